// Package pid1 is the agent binary as /init of the initramfs: it mounts the
// kernel's file systems, loads the modules of a list and those that the devices
// ask for, starts the agent as a process of its own, and on the agent's word replaces the initramfs by the
// image's root and itself by the image's init (what switch_root(8) does). For an
// image that is one process it stays PID 1 in the new root and collects what ends.
//
// The agent goes on beside the image's init. Its executable lies on a tmpfs of
// its own under /run, and its argv[0] begins with '@', which keeps systemd from
// killing it at shutdown (systemd's ROOT_STORAGE_DAEMONS).
package pid1
