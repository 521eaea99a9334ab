// Package e2e holds the end-to-end tests: the real appliance, built as operators
// run it, moves a real database between real machines of the QEMU lab while their
// power, links, BMCs and services fail and the appliance itself is killed. A
// client inserts rows all the time, another one asks who answers on the service
// address, and the target's own record of the witness volume says who wrote.
//
// `go test` runs the failovers that HOTSPARE_TEST_FULL=1 does not reserve for
// `make test-full`. It needs root, and the packages of
// packaging/test-packages.txt.
package e2e
