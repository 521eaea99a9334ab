// Package boot decides what a machine gets when it boots over the network.
//
// It is pure policy: Site.Plan turns one Request (what a machine asked for, over
// DHCP, proxyDHCP, TFTP or HTTP) and one Assignment (what is meant for it) into
// one Offer and its Reason. The same rules answer all protocols, so a machine
// cannot be told one thing by DHCP and another by HTTP. The package opens no
// socket and reads no clock; its children speak the protocols (boot/dhcp,
// boot/tftp, boot/httpboot), write scripts (boot/ipxe) and build the standby
// initramfs (boot/standby), and the appliance says through a Director what is
// assigned to whom.
//
// Specifications: RFC 2131 and 2132 (DHCP), RFC 4578 and the IANA registry
// "Processor Architecture Types" (option 93), the PXE specification 2.1, the
// UEFI specification's HTTP boot, and iPXE's option 175.
package boot
