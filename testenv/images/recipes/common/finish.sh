#!/bin/sh
# The last step of every recipe, run outside the image's root with the root as $1:
# what a golden image must not hold, and what costs boot time for nothing.
set -eu
root=$1 name=$2

# mmdebstrap copies these two from the build host.
echo "$name" > "$root/etc/hostname"
: > "$root/etc/resolv.conf"
printf '127.0.0.1\tlocalhost\n::1\tlocalhost\n' > "$root/etc/hosts"
# Empty, not missing: a missing one makes systemd apply presets at the first boot.
: > "$root/etc/machine-id"
rm -f "$root/var/lib/dbus/machine-id"

# Nothing to mount: the root is there, and what belongs to an application comes
# with its grant. A line for the root would only have it remounted.
echo "# The root is mounted by whatever boots this image." > "$root/etc/fstab"

# No log-in, no housekeeping and no tty on a node that serves one application.
mask() { for unit; do ln -sf /dev/null "$root/etc/systemd/system/$unit"; done; }
mask apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer \
	e2scrub_all.timer e2scrub_reap.service fstrim.timer logrotate.timer man-db.timer \
	systemd-tmpfiles-clean.timer \
	getty.target getty@tty1.service serial-getty@ttyS0.service console-getty.service \
	systemd-udev-settle.service systemd-pstore.service systemd-firstboot.service \
	systemd-machine-id-commit.service systemd-random-seed.service \
	systemd-update-utmp.service systemd-update-utmp-runlevel.service \
	systemd-journal-flush.service systemd-journal-catalog-update.service \
	systemd-hwdb-update.service ldconfig.service systemd-update-done.service \
	systemd-binfmt.service proc-sys-fs-binfmt_misc.automount proc-sys-fs-binfmt_misc.mount \
	dev-hugepages.mount sys-kernel-debug.mount sys-kernel-tracing.mount sys-fs-fuse-connections.mount \
	modprobe@drm.service modprobe@configfs.service modprobe@fuse.service modprobe@efi_pstore.service \
	modprobe@dm_mod.service modprobe@loop.service \
	systemd-ask-password-console.path systemd-ask-password-wall.path \
	console-setup.service keyboard-setup.service \
	systemd-udev-trigger.service kmod-static-nodes.service systemd-modules-load.service \
	systemd-sysusers.service systemd-user-sessions.service \
	systemd-udevd.service systemd-udevd-control.socket systemd-udevd-kernel.socket \
	systemd-tmpfiles-setup-dev.service systemd-sysctl.service dev-mqueue.mount
# (Each of these costs up to a second of an emulated processor, the cold plug of
# all devices even ten: it loads every module that any device names. The node's
# devices are there before the image's init starts.)

# Generators run before everything else, each as a process of its own. What they
# look for is not in this image.
mkdir -p "$root/etc/systemd/system-generators"
for g in "$root"/lib/systemd/system-generators/*; do
	case "${g##*/}" in
		systemd-fstab-generator | systemd-debug-generator | postgresql-generator) ;;
		*) ln -sf /dev/null "$root/etc/systemd/system-generators/${g##*/}" ;;
	esac
done
ln -sf /lib/systemd/system/multi-user.target "$root/etc/systemd/system/default.target"
mkdir -p "$root/etc/systemd/system/sockets.target.wants"
ln -sf ../lab-fault.socket "$root/etc/systemd/system/sockets.target.wants/lab-fault.socket"
chmod 0755 "$root/usr/local/sbin/"*

# apt's lists and caches and the temporary folders are mmdebstrap's to clean, which
# still needs its own configuration in /tmp.
rm -rf "$root"/var/cache/debconf/*-old "$root"/var/log/apt "$root"/var/log/*.log
