// Package conformance runs the public iSCSI conformance suite, iscsi-test-cu of
// libiscsi, against the real target over the real store: every suite, with
// permission to overwrite, over two portals to a volume of its own. What passes,
// what is skipped and why is a table here and in docs/iscsi.md, and both are held
// against each other.
//
// It needs Debian's libiscsi-bin (packaging/test-packages.txt).
package conformance
