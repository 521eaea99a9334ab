// Package nic is the agent's network: it brings up the NIC that booted, holds
// its address by DHCP (RFC 2131) for as long as the node runs, and adds,
// announces and removes the application's service address.
//
// The boot address is kept when its lease ends and no server answers: the root
// file system comes over it. Service addresses are IPv4; a probe (RFC 5227)
// precedes each and announcements follow it.
package nic
