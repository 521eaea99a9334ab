// Package units is the agent's hand on the image's systemd: drop-ins that keep
// the service group's units from starting without a live grant, starting and
// stopping units over D-Bus, commands as transient units, and the group's slice,
// whose cgroup.kill is what the drop needs.
//
// It speaks to systemd on /run/systemd/private, so the image needs no D-Bus
// daemon. Everything that it writes lies under /run and is gone with the boot.
package units
