// Package inventory reads from sysfs and procfs what a node is: processor,
// network cards, local disks with identities that last, firmware, and its
// sensors. Disks of the network (iSCSI) and devices of memory are left out.
//
// What a disk holds is for others: nothing here opens a device.
package inventory
