package wire

import (
	"context"
	"encoding/hex"
	"errors"
	"strings"

	bmclib "github.com/bmc-toolbox/bmclib/v2"

	"hotspare/bmc"
)

// SetNextBootPXE runs `chassis bootdev pxe`. The BMC forgets it after 60 s
// (IPMI v2.0 section 28.12), so power on follows at once.
func (d *ipmi) SetNextBootPXE(ctx context.Context, uefi bool) error {
	return d.call(ctx, func(ctx context.Context, c *bmclib.Client, _ int) error {
		ok, err := c.SetBootDevice(ctx, "pxe", false, uefi || d.cfg.EFI)
		return accepted(ok, err)
	})
}

// SetNetworkFirst runs `chassis bootdev pxe options=persistent`. Before it the BMC
// is told to keep that request: without, most drop it when 60 s pass or somebody
// presses a button (IPMI v2.0 table 28-14, parameter 3). Those that do not know
// parameter 3 answer with an error, which changes nothing.
func (d *ipmi) SetNetworkFirst(ctx context.Context, uefi bool) error {
	return d.call(ctx, func(ctx context.Context, c *bmclib.Client, suite int) error {
		if output, err := d.run(ctx, suite, keepBootFlags...); err != nil && !unknownParameter(output) {
			return err
		}
		ok, err := c.SetBootDevice(ctx, "pxe", true, uefi || d.cfg.EFI)
		return accepted(ok, err)
	})
}

// keepBootFlags is Set System Boot Options (NetFn Chassis, command 08h) of
// parameter 3 with all five reasons to clear the flags switched off.
var keepBootFlags = []string{"raw", "0x00", "0x08", "0x03", "0x1f"}

// unknownParameter says that a raw command reached the BMC, which refused it.
func unknownParameter(output string) bool {
	return strings.Contains(output, "Unable to send RAW command") && strings.Contains(output, "rsp=0x")
}

// BootOrder runs `chassis bootparam get 5`.
func (d *ipmi) BootOrder(ctx context.Context) (bmc.BootOrder, error) {
	var order bmc.BootOrder
	err := d.call(ctx, func(ctx context.Context, _ *bmclib.Client, suite int) error {
		output, err := d.run(ctx, suite, "chassis", "bootparam", "get", "5")
		if err != nil {
			return err
		}
		var ok bool
		if order, ok = parseBootFlags(output); !ok {
			return errors.New("the BMC gave no usable boot flags (parameter 5): " + firstLine(output))
		}
		return nil
	})
	return order, err
}

// parseBootFlags reads the output of `ipmitool chassis bootparam get 5`: the bytes
// that it prints, not the words that it makes of them, which differ between its
// versions (IPMI v2.0 table 28-14, parameter 5). ok is false when the output has
// not exactly one such parameter of version 1 with its five bytes.
func parseBootFlags(output string) (order bmc.BootOrder, ok bool) {
	const valid, locked = "Boot parameter 5 is valid/unlocked", "Boot parameter 5 is invalid/locked"
	var version, state, data []string
	for line := range strings.Lines(output) {
		line = strings.TrimSpace(line)
		if v, found := strings.CutPrefix(line, "Boot parameter version: "); found {
			version = append(version, v)
		} else if d, found := strings.CutPrefix(line, "Boot parameter data: "); found {
			data = append(data, d)
		} else if line == valid || line == locked {
			state = append(state, line)
		}
	}
	if len(version) != 1 || version[0] != "1" || len(state) != 1 || len(data) != 1 {
		return order, false
	}
	flags, err := hex.DecodeString(data[0])
	if err != nil || len(flags) != 5 {
		return order, false
	}
	const (
		flagsValid, everyBoot, efi = 0x80, 0x40, 0x20 // of data 1
		selector                   = 0x3c             // of data 2
	)
	device := bootSelectors[flags[1]&selector>>2]
	if state[0] == locked || flags[0]&flagsValid == 0 || device == "" {
		return order, true
	}
	order = bmc.BootOrder{Device: device, Every: flags[0]&everyBoot != 0, Mode: bmc.ModeLegacy}
	if flags[0]&efi != 0 {
		order.Mode = bmc.ModeUEFI
	}
	return order, true
}

// bootSelectors are the words for the boot device selector; the first is no
// override.
var bootSelectors = [16]string{
	"", bmc.DevicePXE, "disk", "disk, safe mode", "diagnostics", "cdrom", "bios", "remote floppy", "remote cdrom",
	"remote media", "reserved 10", "remote disk", "reserved 12", "reserved 13", "reserved 14", "floppy",
}
