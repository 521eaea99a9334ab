// Package initiators meets the target with the initiators that operators have:
// Linux's open-iscsi in a virtual machine, iPXE, and QEMU's libiscsi. It has
// tests alone. They need root, network namespaces and the packages of
// packaging/test-packages.txt; the kernel comes from Debian's archive.
package initiators
