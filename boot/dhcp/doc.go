// Package dhcp gives machines addresses and tells them what to boot.
//
// It serves one segment on one interface: authoritative (RFC 2131), as a proxy
// beside another DHCP server (PXE 2.1 section 2.2.3, ports 67 and 4011), or not
// at all. The wire format is insomniacslk/dhcp's; sockets, leases and the choice
// of where an answer goes are here. What to boot is decided by boot.Site.Plan
// over what the Director assigned; this package only carries it, in both header
// fields (siaddr, file) and options (66, 67), for firmware differs in what it
// reads.
//
// Leases are keyed on the MAC address alone: a machine's firmware, iPXE and
// operating system send different client identifiers during one boot and must
// get one address (matchbox#245, coreos#1432).
//
// A packet that makes the parser panic is dropped and counted. Nothing that a
// client sends is trusted; a MAC address is a label.
package dhcp
