package standby

// want is one module that a set asks for.
type want struct {
	name     string
	required bool // neither file nor built in is an error
	load     bool // at once; otherwise when a device asks for it, or by name
}

// wants gives the modules of a request. The order is the order of loading, as
// far as dependencies leave it open: disks and file system come last, the
// network first, so that DHCP starts as early as it can.
func wants(req Request) []want {
	var all []want
	add := func(required, load bool, names ...string) {
		for _, n := range names {
			all = append(all, want{n, required, load})
		}
	}
	// af_packet: DHCP. virtio_rng: without entropy, TLS waits.
	add(false, true, "af_packet", "virtio_pci", "virtio_mmio", "virtio_net", "virtio_rng")
	// ext4, btrfs and iSCSI digests ask the crypto API for crc32c by name, which
	// an initramfs without modprobe cannot answer.
	add(false, true, "crc32c_generic", "crc32c_intel", "crc32c_arm64")
	add(true, true, "sd_mod", "iscsi_tcp", req.RootFS)
	add(false, false, "e1000", "e1000e", "i6300esb", "virtio_blk", "virtio_scsi")
	// Roots in memory and in slots.
	add(false, false, "overlay", "squashfs", "loop")
	if req.Set == Generic {
		add(false, false, genericNICs()...)
		add(false, false, "iTCO_wdt", "softdog", "wdat_wdt", "sp5100_tco", "ipmi_si", "ipmi_devintf", "ipmi_watchdog")
		add(false, false, "xfs", "btrfs", "dm_mod", "iscsi_ibft")
		add(false, false, genericDisks()...)
		add(false, false, "coretemp", "k10temp", "drivetemp") // sensors
	}
	add(true, true, req.Modules...)
	return all
}

// genericNICs are the drivers of network cards that servers have. Cards that
// need firmware from linux-firmware (bnx2, bnx2x, some of qed) run only if their
// option ROM loaded it.
func genericNICs() []string {
	return []string{
		"igb", "igc", "ixgbe", "i40e", "ice", // Intel
		"tg3", "bnxt_en", "bnx2", "bnx2x", // Broadcom
		"mlx4_en", "mlx5_core", // NVIDIA
		"r8169", "realtek", // Realtek and its PHYs
		"qede", "cxgb4", "be2net", "sfc", "atlantic", // Marvell, Chelsio, Emulex, AMD
		"ena", "vmxnet3", "hv_netvsc", // virtual machines elsewhere
	}
}

// genericDisks are the drivers of local disks and their controllers that servers
// have, for installations.
func genericDisks() []string {
	return []string{
		"nvme", "ahci", "ata_piix",
		"megaraid_sas", "mpt3sas", "mpi3mr", // Broadcom
		"hpsa", "smartpqi", "aacraid", // HPE, Microchip
		"vmw_pvscsi", "mptspi", "hv_storvsc", "xen_blkfront", // virtual machines elsewhere
	}
}
