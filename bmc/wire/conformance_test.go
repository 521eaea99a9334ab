package wire_test

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"hotspare"
	"hotspare/bmc"
	"hotspare/bmc/wire"
	"hotspare/testenv/bmcsim"
)

func TestMain(m *testing.M) {
	flag.Parse()
	// These tests wait for tools and time-outs, they do not compute.
	_ = flag.Set("test.parallel", "12")
	goleak.VerifyTestMain(m)
}

const (
	testUUID     = "8f7c1a52-9a3b-4c1d-8e2f-525400770001"
	testPassword = "right-horse-battery"
)

// backend is one protocol in the conformance suite.
type backend struct {
	name string
	cfg  wire.Config
}

var backends = []backend{
	{"ipmi, suite 3", wire.Config{Protocol: wire.IPMI, CipherSuite: 3}},
	{"ipmi, suite 17", wire.Config{Protocol: wire.IPMI, CipherSuite: 17}},
	{"redfish", wire.Config{Protocol: wire.Redfish}},
}

// bench is a virtual BMC and a description of it.
type bench struct {
	sim     *bmcsim.BMC
	machine *bmcsim.MemoryMachine
	cfg     wire.Config
}

func newBench(t testing.TB, cfg wire.Config, edit func(*bmcsim.Options)) *bench {
	t.Helper()
	m := &bmcsim.MemoryMachine{ID: testUUID}
	opts := bmcsim.Options{User: "admin", Password: testPassword, Machine: m}
	if cfg.Protocol == wire.Redfish {
		opts.RedfishListen = "127.0.0.1:0"
	} else {
		opts.Listen = "127.0.0.1:0"
	}
	if edit != nil {
		edit(&opts)
	}
	sim, err := bmcsim.New(opts)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- sim.Serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("bmcsim: %v", err)
		}
	})
	host, port, err := net.SplitHostPort(sim.Addr() + sim.RedfishAddr()) // one of them is empty
	if err != nil {
		t.Fatal(err)
	}
	cfg.Host, cfg.User, cfg.Password = host, "admin", hotspare.NewSecret(testPassword)
	cfg.Port, _ = strconv.Atoi(port)
	cfg.Timeout, cfg.ReachTimeout = 30*time.Second, 2*time.Second // a busy machine starts ipmitool slowly
	return &bench{sim: sim, machine: m, cfg: cfg}
}

func (b *bench) driver(t testing.TB) bmc.Driver {
	t.Helper()
	d, err := wire.New(b.cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := d.Close(ctx); err != nil && b.sim.Fault() == (bmcsim.Fault{}) {
			t.Errorf("close: %v", err)
		}
	})
	return d
}

// eventually reads until the state is there: an accepted command is done later.
func eventually(t *testing.T, d bmc.Driver, want bmc.PowerState) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; {
		got, err := d.PowerState(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if got == want {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("power state %v, want %v", got, want)
		}
	}
}

// TestDriver is the conformance suite: every protocol passes it.
func TestDriver(t *testing.T) {
	for _, be := range backends {
		t.Run(be.name, func(t *testing.T) {
			t.Parallel()
			for _, c := range []struct {
				name string
				run  func(*testing.T, *bench)
			}{
				{"power and boot", powerAndBoot},
				{"boot order", bootOrder},
				{"boot order faults", bootOrderFaults},
				{"faults", faults},
				{"wrong password", wrongPassword},
				{"no privilege", noPrivilege},
				{"dead", dead},
				{"stalls", stalls},
				{"off is proven or not", offEvidence},
				{"probe", probe},
			} {
				t.Run(c.name, func(t *testing.T) {
					t.Parallel()
					var edit func(*bmcsim.Options)
					if c.name == "no privilege" {
						edit = func(o *bmcsim.Options) { o.Privilege = bmcsim.User }
					}
					c.run(t, newBench(t, be.cfg, edit))
				})
			}
		})
	}
}

func powerAndBoot(t *testing.T, b *bench) {
	d := b.driver(t)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, d, bmc.PowerOff)
	must(d.PowerOff(t.Context())) // off twice is no error
	must(d.SetNextBootPXE(t.Context(), false))
	must(d.PowerOn(t.Context()))
	eventually(t, d, bmc.PowerOn)
	must(d.PowerOn(t.Context()))
	uuid, err := d.SystemUUID(t.Context())
	must(err)
	if uuid != testUUID {
		t.Errorf("UUID %s, want %s", uuid, testUUID)
	}
	must(d.PowerOff(t.Context()))
	eventually(t, d, bmc.PowerOff)
	must(d.PowerOff(t.Context()))
	must(d.PowerOn(t.Context()))
	eventually(t, d, bmc.PowerOn)
	if got := b.machine.Starts(); !slices.Equal(got, []string{"pxe", ""}) {
		t.Errorf("starts from %q, want pxe once", got)
	}
}

func faults(t *testing.T, b *bench) {
	d := b.driver(t)
	b.machine.Set(true)
	b.sim.SetFault(bmcsim.Fault{Refuse: true})
	if err := d.PowerOff(t.Context()); !errors.Is(err, bmc.ErrRefused) {
		t.Errorf("refused off: %v, want ErrRefused", err)
	}
	eventually(t, d, bmc.PowerOn)
	b.sim.SetFault(bmcsim.Fault{LyingSuccess: true})
	if err := d.PowerOff(t.Context()); err != nil {
		t.Errorf("lying success: %v, want nil (accepted is all that it says)", err)
	}
	eventually(t, d, bmc.PowerOn)
}

func wrongPassword(t *testing.T, b *bench) {
	b.cfg.Password = hotspare.NewSecret("wrong-" + testPassword[:8])
	b.cfg.PasswordPause = time.Hour
	d := b.driver(t)
	for _, op := range []func() error{
		func() error { return d.PowerOn(t.Context()) },
		func() error { _, err := d.PowerState(t.Context()); return err },
	} {
		err := op()
		if !errors.Is(err, bmc.ErrPassword) || !bmc.Permanent(err) {
			t.Fatalf("%v, want ErrPassword", err)
		}
		if strings.Contains(fmt.Sprintf("%v %+v", err, err), b.cfg.Password.Reveal()) {
			t.Error("the error shows the password")
		}
	}
	// The right password changes nothing for a while: the user may be locked.
	if _, err := d.PowerState(t.Context()); !errors.Is(err, bmc.ErrPassword) {
		t.Errorf("third try: %v", err)
	}
	if b.machine.PowerState() {
		t.Error("switched on with a wrong password")
	}
	b.cfg.Password = hotspare.NewSecret(testPassword)
	if _, err := wire.Open(t.Context(), b.cfg); err != nil {
		t.Errorf("right password: %v", err)
	} else {
		eventually(t, b.driver(t), bmc.PowerOff)
	}
}

func noPrivilege(t *testing.T, b *bench) {
	d := b.driver(t)
	if err := d.PowerOn(t.Context()); !errors.Is(err, bmc.ErrPrivilege) {
		t.Errorf("%v, want ErrPrivilege", err)
	}
	if b.machine.PowerState() {
		t.Error("switched on without the privilege")
	}
}

func dead(t *testing.T, b *bench) {
	if b.cfg.Protocol == wire.Redfish {
		b.cfg.Timeout = 4 * time.Second // IPMI ends earlier, by ReachTimeout
	}
	d := b.driver(t)
	eventually(t, d, bmc.PowerOff)
	b.sim.SetFault(bmcsim.Fault{Dead: true})
	for name, op := range map[string]func() error{
		"read": func() error { _, err := d.PowerState(t.Context()); return err },
		"off":  func() error { return d.PowerOff(t.Context()) },
		"uuid": func() error { _, err := d.SystemUUID(t.Context()); return err },
	} {
		began := time.Now()
		if err := op(); !errors.Is(err, bmc.ErrUnreachable) {
			t.Errorf("%s: %v, want ErrUnreachable", name, err)
		}
		if took := time.Since(began); took > 8*time.Second {
			t.Errorf("%s: took %s", name, took)
		}
	}
	if _, err := wire.Open(t.Context(), b.cfg); !errors.Is(err, bmc.ErrUnreachable) {
		t.Errorf("open: %v, want ErrUnreachable", err)
	}
	b.sim.SetFault(bmcsim.Fault{})
	eventually(t, d, bmc.PowerOff) // and it recovers by itself
}

// The caller's deadline ends a call, whatever the BMC does.
func stalls(t *testing.T, b *bench) {
	d := b.driver(t)
	b.sim.SetFault(bmcsim.Fault{Stall: time.Minute})
	ctx, cancel := context.WithTimeout(t.Context(), 700*time.Millisecond)
	defer cancel()
	began := time.Now()
	if _, err := d.PowerState(ctx); !errors.Is(err, bmc.ErrUnreachable) {
		t.Errorf("%v, want ErrUnreachable", err)
	}
	if took := time.Since(began); took > 4*time.Second {
		t.Errorf("took %s after a deadline of 0.7 s", took)
	}
	b.sim.SetFault(bmcsim.Fault{Stall: 100 * time.Millisecond})
	eventually(t, d, bmc.PowerOff)
	b.sim.SetFault(bmcsim.Fault{})
}

// S2(1) end to end: the truth of the machine against what is called proven.
func offEvidence(t *testing.T, b *bench) {
	right := bmc.Right{Owner: "orders", Epoch: 7}
	// Interval must be longer than the BMC may repeat an old state: 50 ms would
	// take a machine for off that was switched on by hand 300 ms ago, while a
	// stale "on" only costs time.
	opts := bmc.OffOptions{Interval: 50 * time.Millisecond, Resend: 500 * time.Millisecond, ExpectUUID: testUUID}
	for _, c := range []struct {
		name   string
		fault  bmcsim.Fault
		proven bool
	}{
		{"healthy", bmcsim.Fault{}, true},
		{"slow", bmcsim.Fault{SlowPower: 400 * time.Millisecond}, true},
		{"stale", bmcsim.Fault{StaleState: 400 * time.Millisecond}, true},
		{"refuses", bmcsim.Fault{Refuse: true}, false},
		{"says done and does not", bmcsim.Fault{LyingSuccess: true}, false},
		{"dead", bmcsim.Fault{Dead: true}, false},
	} {
		// Each with a BMC of its own: a command of the last one may come late.
		b := newBench(t, wire.Config{Protocol: b.cfg.Protocol, CipherSuite: b.cfg.CipherSuite}, nil)
		b.machine.Set(true)
		d, err := wire.New(b.cfg)
		if err != nil {
			t.Fatal(err)
		}
		q := bmc.NewQueue(d, bmc.QueueOptions{Name: c.name, Settle: time.Millisecond})
		b.sim.SetFault(c.fault)
		if c.proven {
			eventually(t, d, bmc.PowerOn) // also when its reports are old
		}
		opts.Deadline = 30 * time.Second
		if !c.proven {
			opts.Deadline = 2 * time.Second
		}
		ev, err := bmc.Off(t.Context(), q, right, opts)
		if ev.Proven != c.proven || (err == nil) != c.proven {
			t.Errorf("%s: proven %v, %v, want %v", c.name, ev.Proven, err, c.proven)
		}
		if ev.Proven && b.machine.PowerState() {
			t.Errorf("%s: proven off while the machine is on", c.name)
		}
		if _, err := json.Marshal(ev); err != nil {
			t.Errorf("%s: evidence cannot be stored: %v", c.name, err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		_ = q.Close(ctx) // a dead BMC cannot end its session
		cancel()
	}
}

func probe(t *testing.T, b *bench) {
	run := func(cfg wire.Config, uuid string) bmc.ProbeReport {
		return bmc.Probe(t.Context(), wire.Access(cfg), bmc.ProbeOptions{ExpectUUID: uuid, TestBoot: true})
	}
	failsAt := func(name string, r bmc.ProbeReport, stage bmc.Stage, code hotspare.Code) {
		t.Helper()
		f := r.Failed()
		if r.OK || f == nil || f.Stage != stage || f.Code != code || f.Fix == "" {
			t.Errorf("%s: failed at %+v, want %s with %s and a mend", name, f, stage, code)
		}
		if len(r.Stages) != 7 {
			t.Errorf("%s: %d stages, want 7", name, len(r.Stages))
		}
	}
	if r := run(b.cfg, testUUID); !r.OK || r.Failed() != nil || r.Power != bmc.PowerOff || r.UUID != testUUID {
		t.Errorf("healthy: %+v", r)
	}
	failsAt("another machine", run(b.cfg, "11111111-2222-3333-4444-555555555555"), bmc.StageIdentity, hotspare.CodeBMCWrongNode)
	bad := b.cfg
	bad.Password = hotspare.NewSecret("wrong")
	failsAt("password", run(bad, testUUID), bmc.StageAuthentication, hotspare.CodeBMCPassword)
	bad = b.cfg
	bad.Host = "no-such-host.invalid"
	failsAt("name", run(bad, testUUID), bmc.StageAddress, hotspare.CodeBMCUnreachable)
	b.sim.SetFault(bmcsim.Fault{Dead: true})
	cfg := b.cfg
	cfg.Timeout = time.Second
	failsAt("dead", run(cfg, testUUID), bmc.StagePort, hotspare.CodeBMCUnreachable)
	b.sim.SetFault(bmcsim.Fault{})
}
