// Package initiator logs in to iSCSI targets with the Linux kernel's own
// initiator (iscsi_tcp), from one process and without any daemon.
//
// It does in pure Go what open-iscsi's iscsid and iscsistart do: it opens the
// kernel's control channel (netlink family NETLINK_ISCSI), creates a session and
// a connection, hands a TCP socket to the kernel, carries the log-in PDUs
// through the kernel (so that the command numbers stay the kernel's, also when a
// session is reinstated), sets what was negotiated, starts the connection, asks
// the SCSI layer to look for the one logical unit that was asked for, and waits
// for its block device by the kernel's own event. From then on the data path is
// the kernel's alone. When the connection fails, the package logs in again with
// the same ISID, for ever, while the kernel holds the I/O back; nothing is lost
// across a restart of the target.
//
// It is made for the node agent, which must survive the volume that it guards:
// recovery opens no file outside sysfs, starts no process and asks no resolver.
// The process that uses it locks its memory, and sets time.Local early (the
// first print of a local time reads /etc/localtime).
//
// It is the only manager of its sessions: an iscsid that runs beside it may take
// them over when it starts, so images that carry open-iscsi keep that service
// masked. When the process dies, its sessions stay in the kernel and nobody
// recovers them.
//
// It follows RFC 7143: log-in (section 6), parameters (section 13), session
// reinstatement (section 6.3.5), log-out (section 11.14), CHAP with RFC 1994;
// and the kernel's include/scsi/iscsi_if.h for the control channel. One
// connection per session, error recovery level 0.
//
// It leaves to others: loading the modules scsi_mod, sd_mod and iscsi_tcp,
// mounting, discovery (the portal and the name are told), redirections
// (refused, with the address that was named), and the decision what to do when a
// session is lost or refused: Session.Events and Session.Status tell it.
package initiator
