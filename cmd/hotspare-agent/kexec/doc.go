// Package kexec makes the running kernel execute another one: kexec_file_load(2),
// and reboot(2) with LINUX_REBOOT_CMD_KEXEC. It takes care of what a device may
// still write into memory when the other kernel has it.
//
// Which kernel it is, and whether the node may leave, is for others.
package kexec
