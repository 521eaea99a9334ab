package wire_test

import (
	"errors"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"hotspare/bmc"
	"hotspare/bmc/wire"
	"hotspare/testenv/bmcsim"
)

func readsAs(t *testing.T, d bmc.Driver, want bmc.BootOrder) {
	t.Helper()
	if got, err := d.BootOrder(t.Context()); err != nil || got != want {
		t.Errorf("boot order %q, %v, want %q", got, err, want)
	}
}

// bootOrder is the order as drivers set and read it; every protocol passes it.
func bootOrder(t *testing.T, b *bench) {
	d := b.driver(t)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	cycle := func() {
		t.Helper()
		must(d.PowerOn(t.Context()))
		eventually(t, d, bmc.PowerOn)
		must(d.PowerOff(t.Context()))
		eventually(t, d, bmc.PowerOff)
	}
	legacy := bmc.BootOrder{Device: bmc.DevicePXE, Every: true, Mode: bmc.ModeLegacy}
	readsAs(t, d, bmc.BootOrder{})
	must(d.SetNetworkFirst(t.Context(), false))
	readsAs(t, d, legacy)
	cycle()
	cycle()
	readsAs(t, d, legacy)
	must(d.SetNextBootPXE(t.Context(), false)) // the trap: it takes the place of the other
	readsAs(t, d, bmc.BootOrder{Device: bmc.DevicePXE, Mode: bmc.ModeLegacy})
	cycle()
	readsAs(t, d, bmc.BootOrder{})
	cycle()
	must(d.SetNetworkFirst(t.Context(), true))
	readsAs(t, d, bmc.BootOrder{Device: bmc.DevicePXE, Every: true, Mode: bmc.ModeUEFI})
	if got := b.machine.Starts(); !slices.Equal(got, []string{"pxe", "pxe", "pxe", ""}) {
		t.Errorf("starts from %q, want the network twice, once, and then nothing that was asked for", got)
	}
}

// bootOrderFaults: S2a end to end, what the machine does against what is called
// proven.
func bootOrderFaults(t *testing.T, b *bench) {
	right := bmc.Right{Owner: "engine", Epoch: 3}
	opts := bmc.OnOptions{Network: bmc.NetworkEvery, Interval: 50 * time.Millisecond, ReadBack: 300 * time.Millisecond,
		Deadline: 30 * time.Second, ExpectUUID: testUUID}
	for _, c := range []struct {
		name   string
		fault  bmcsim.Fault
		proven bool
		again  bool // it must be set anew after a start
	}{
		{name: "healthy", proven: true},
		{name: "keeps the old order", fault: bmcsim.Fault{KeepsBootOrder: true}},
		{name: "says done and does not", fault: bmcsim.Fault{LyingSuccess: true}},
		{name: "knows once only", fault: bmcsim.Fault{OnceOnly: true}},
		{name: "forgets", fault: bmcsim.Fault{ForgetsBootOrder: true}, proven: true, again: true},
		{name: "lets flags expire", fault: bmcsim.Fault{ExpireBootFlags: time.Nanosecond}, proven: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(t, wire.Config{Protocol: b.cfg.Protocol, CipherSuite: b.cfg.CipherSuite}, nil)
			b.sim.SetFault(c.fault)
			q := bmc.NewQueue(b.driver(t), bmc.QueueOptions{Name: c.name, Settle: time.Millisecond})
			res, err := bmc.On(t.Context(), q, right, opts)
			if !c.proven {
				if !errors.Is(err, bmc.ErrBootOrder) {
					t.Errorf("%v, want ErrBootOrder", err)
				}
				if b.machine.PowerState() || len(b.machine.Starts()) > 0 {
					t.Errorf("switched on although %v", err)
				}
				return
			}
			if err != nil || res.Order == nil || !res.Order.NetworkFirst(false) {
				t.Fatalf("order %v, %v", res.Order, err)
			}
			if got := b.machine.Starts(); !slices.Equal(got, []string{"pxe"}) {
				t.Errorf("starts from %q", got)
			}
			after, err := bmc.BootNetworkFirst(t.Context(), q, right, opts)
			if err != nil || !after.Order.NetworkFirst(false) {
				t.Errorf("after the start: order %v, %v", after.Order, err)
			}
			if forgot := len(after.Sent) > 0; forgot != c.again || forgot != (after.Before == bmc.BootOrder{}) {
				t.Errorf("after the start: read %q, sent %v, want sent %v", after.Before, after.Sent, c.again)
			}
			if !b.machine.PowerState() {
				t.Error("the power was touched")
			}
		})
	}
}

// A Redfish BMC of a UEFI machine is not told to start in the legacy way by a
// caller that does not know its firmware.
func TestRedfishKeepsTheMode(t *testing.T) {
	t.Parallel()
	b := newBench(t, wire.Config{Protocol: wire.Redfish}, nil)
	d := b.driver(t)
	if err := d.SetNetworkFirst(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	if err := d.SetNextBootPXE(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	readsAs(t, d, bmc.BootOrder{Device: bmc.DevicePXE, Mode: bmc.ModeUEFI})
	if err := d.SetNetworkFirst(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	readsAs(t, d, bmc.BootOrder{Device: bmc.DevicePXE, Every: true, Mode: bmc.ModeUEFI})
}

// What another tool set is read as what it is.
func TestBootOrderOfAnotherTool(t *testing.T) {
	t.Parallel()
	b := newBench(t, wire.Config{Protocol: wire.IPMI, CipherSuite: 17}, nil)
	d := b.driver(t)
	const flags = "Chassis_Boot_Flags:"
	for _, c := range []struct {
		persistent, mode, device string
		want                     bmc.BootOrder
	}{
		{"Yes", "PC-COMPATIBLE", "PXE", bmc.BootOrder{Device: bmc.DevicePXE, Every: true, Mode: bmc.ModeLegacy}},
		{"Yes", "EFI", "HARD-DRIVE", bmc.BootOrder{Device: "disk", Every: true, Mode: bmc.ModeUEFI}},
		{"No", "EFI", "CD-DVD", bmc.BootOrder{Device: "cdrom", Mode: bmc.ModeUEFI}},
		{"Yes", "EFI", "NO-OVERRIDE", bmc.BootOrder{}},
	} {
		out, err := exec.CommandContext(t.Context(), "ipmi-config", "--category=chassis", "-D", "LAN_2_0", "-h", b.sim.Addr(), "-u", "admin",
			"-p", testPassword, "-I", "17", "--commit", "-e", flags+"Boot_Flags_Persistent="+c.persistent,
			"-e", flags+"BIOS_Boot_Type="+c.mode, "-e", flags+"Boot_Device="+c.device).CombinedOutput()
		if err != nil {
			t.Fatalf("ipmi-config: %v\n%s", err, out)
		}
		readsAs(t, d, c.want)
	}
}

// The probe shows the order, and does not take one for every start away.
func TestProbeShowsTheBootOrder(t *testing.T) {
	t.Parallel()
	for _, be := range backends[1:] {
		b := newBench(t, be.cfg, nil)
		stage := func(test bool) bmc.StageResult {
			t.Helper()
			r := bmc.Probe(t.Context(), wire.Access(b.cfg), bmc.ProbeOptions{TestBoot: test})
			i := slices.IndexFunc(r.Stages, func(s bmc.StageResult) bool { return s.Stage == bmc.StageBoot })
			return r.Stages[i]
		}
		if s := stage(false); !s.OK || s.Detail != "nothing asked for" {
			t.Errorf("%s: %+v", be.name, s)
		}
		if s := stage(true); !s.OK || s.Detail != "pxe, once, legacy" {
			t.Errorf("%s: %+v", be.name, s)
		}
		if err := b.driver(t).SetNetworkFirst(t.Context(), false); err != nil {
			t.Fatal(err)
		}
		for _, test := range []bool{false, true} {
			if s := stage(test); !s.OK || !strings.HasPrefix(s.Detail, "pxe, every boot, legacy") {
				t.Errorf("%s, tested %v: %+v", be.name, test, s)
			}
		}
		readsAs(t, b.driver(t), bmc.BootOrder{Device: bmc.DevicePXE, Every: true, Mode: bmc.ModeLegacy})
	}
}

// A BMC that takes a request and does not keep it is found before it matters.
func TestProbeFindsTheLyingBootOrder(t *testing.T) {
	t.Parallel()
	b := newBench(t, wire.Config{Protocol: wire.IPMI, CipherSuite: 17}, func(o *bmcsim.Options) { o.Fault = bmcsim.Fault{KeepsBootOrder: true} })
	r := bmc.Probe(t.Context(), wire.Access(b.cfg), bmc.ProbeOptions{TestBoot: true})
	if f := r.Failed(); f == nil || f.Stage != bmc.StageBoot || f.Code != "BMC-030" || f.Fix == "" {
		t.Errorf("failed at %+v, want the boot order", f)
	}
}
