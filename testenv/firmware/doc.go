// Package firmware holds the matrix of firmwares: the real appliance boots
// machines of the QEMU lab with each kind of firmware that servers have, up to an
// application that answers on its address.
//
// `go test` boots the two that differ most from the machines of the end-to-end
// tests, UEFI over PXE and UEFI with Secure Boot; HOTSPARE_TEST_FULL=1 boots all
// of them. It needs root, and the packages of packaging/test-packages.txt.
package firmware
