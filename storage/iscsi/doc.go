// Package iscsi is an iSCSI target over storage devices: log-in with CHAP both
// ways, sessions, the SCSI block commands, and the codecs of the wire.
//
// It follows RFC 7143 (iSCSI), RFC 1994 (CHAP), SPC-4 and SBC-3 (SCSI). It
// speaks error recovery level 0 with one connection per session and any number
// of sessions. It leaves to others: who may see which volume and under which
// epoch (the Directory in Options, served by package storage), and where the
// bytes are kept (storage.Device).
//
// The files pdu.go, text.go and chap.go are the codecs. They hold no policy and
// are used by both ends: the target here and the initiator in the child package
// initiator.
package iscsi
