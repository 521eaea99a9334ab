// Package disk is what the agent does with the block devices of its volumes:
// it finds the image's root and mounts it, formats a volume that is blank and
// meant to be formatted, checks and mounts file systems, and writes the witness.
//
// The superblock's fields are those of ext2/3/4 as the kernel's
// fs/ext4/ext4.h has them. A device node may be there before the device opens,
// and a partition's node comes later still; waiting is by the kernel's uevents.
package disk
