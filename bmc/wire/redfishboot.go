package wire

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	bmclib "github.com/bmc-toolbox/bmclib/v2"
	rf "github.com/stmcginnis/gofish/redfish"

	"hotspare"
	"hotspare/bmc"
)

func (d *redfishDriver) SetNextBootPXE(ctx context.Context, uefi bool) error {
	return d.setBoot(ctx, false, uefi || d.cfg.EFI)
}

// SetNetworkFirst asks for Pxe, Continuous. A refusal of what the BMC says that it
// does not offer will not pass by itself, so it ends as ErrBootOrder.
func (d *redfishDriver) SetNetworkFirst(ctx context.Context, uefi bool) error {
	err := d.setBoot(ctx, true, uefi || d.cfg.EFI)
	if !errors.Is(err, bmc.ErrRefused) {
		return err
	}
	if b, readErr := d.bootOverride(ctx); readErr == nil {
		if lacks := b.lacks(); lacks != "" {
			return bmc.NewError(hotspare.CodeBMCBootOrder, d.cfg.where(), "it does not offer a network boot at every start: "+lacks, err)
		}
	}
	return err
}

// setBoot asks for a network boot. bmclib always names a mode; one that is not
// known to be wanted is left as the BMC shows it, for a UEFI machine that is told
// to start in the legacy way may change to it, or pass over the request.
func (d *redfishDriver) setBoot(ctx context.Context, every, uefi bool) error {
	return d.call(ctx, func(ctx context.Context, c *bmclib.Client) error {
		if !uefi {
			// Targets that bmclib does not know end in an error; then the request
			// goes out as it is.
			now, err := c.GetBootDeviceOverride(ctx)
			uefi = err == nil && now.IsEFIBoot
		}
		ok, err := c.SetBootDevice(ctx, "pxe", every, uefi)
		return accepted(ok, err)
	})
}

// BootOrder reads ComputerSystem.Boot. bmclib shows a part of it only: Disabled
// and Once look the same there, and a spent Once keeps its target.
func (d *redfishDriver) BootOrder(ctx context.Context) (bmc.BootOrder, error) {
	b, err := d.bootOverride(ctx)
	if err != nil {
		return bmc.BootOrder{}, err
	}
	return b.order(), nil
}

func (d *redfishDriver) bootOverride(ctx context.Context) (b bootOverride, err error) {
	err = d.system(ctx, func(_ *rf.ComputerSystem, raw []byte) error {
		b, err = parseBootOverride(raw)
		return err
	})
	return b, err
}

// bootOverride is ComputerSystem.Boot of DSP0268.
type bootOverride struct {
	Enabled string   `json:"BootSourceOverrideEnabled"` // Disabled, Once, Continuous
	Target  string   `json:"BootSourceOverrideTarget"`
	Mode    string   `json:"BootSourceOverrideMode"` // Legacy, UEFI; may be absent
	Enables []string `json:"BootSourceOverrideEnabled@Redfish.AllowableValues"`
	Targets []string `json:"BootSourceOverrideTarget@Redfish.AllowableValues"`
}

// parseBootOverride reads it from the document of a system. Enabled without a
// Target, or with a word that DSP0268 does not have, is an error: an order is not
// guessed.
func parseBootOverride(system []byte) (bootOverride, error) {
	var doc struct{ Boot *bootOverride }
	if err := json.Unmarshal(system, &doc); err != nil {
		return bootOverride{}, fmt.Errorf("the system's document: %w", err)
	}
	b := doc.Boot
	switch {
	case b == nil || b.Enabled == "":
		return bootOverride{}, errors.New("the BMC shows no boot override")
	case !slices.Contains([]string{"Disabled", "Once", "Continuous"}, b.Enabled):
		return bootOverride{}, fmt.Errorf("the BMC shows a boot override that is %.40q", b.Enabled)
	case b.Enabled != "Disabled" && b.Target == "":
		return bootOverride{}, fmt.Errorf("the BMC shows a boot override that is %s and names no target", b.Enabled)
	}
	return *b, nil
}

func (b bootOverride) order() bmc.BootOrder {
	if b.Enabled == "Disabled" || b.Target == "None" {
		return bmc.BootOrder{}
	}
	o := bmc.BootOrder{Device: strings.ToLower(b.Target), Every: b.Enabled == "Continuous"}
	switch b.Target {
	case "Hdd":
		o.Device = "disk"
	case "Cd":
		o.Device = "cdrom"
	case "BiosSetup":
		o.Device = "bios"
	}
	switch b.Mode {
	case "Legacy":
		o.Mode = bmc.ModeLegacy
	case "UEFI":
		o.Mode = bmc.ModeUEFI
	}
	return o
}

// lacks says what of Pxe and Continuous is not among the values that the BMC
// allows, if it lists them.
func (b bootOverride) lacks() string {
	for _, l := range []struct {
		want    string
		allowed []string
	}{{"Continuous", b.Enables}, {"Pxe", b.Targets}} {
		if len(l.allowed) > 0 && !slices.Contains(l.allowed, l.want) {
			return fmt.Sprintf("it has %.200q, not %s", l.allowed, l.want)
		}
	}
	return ""
}
