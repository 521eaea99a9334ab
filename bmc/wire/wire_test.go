package wire_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
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
	cfg.Timeout, cfg.ReachTimeout = 4*time.Second, 1500*time.Millisecond
	return &bench{sim: sim, machine: m, cfg: cfg}
}

func (b *bench) driver(t testing.TB) bmc.Driver {
	t.Helper()
	d, err := wire.New(b.cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(context.Background()); err != nil && b.sim.Fault() == (bmcsim.Fault{}) {
			t.Errorf("close: %v", err)
		}
	})
	return d
}

// eventually reads until the state is there: an accepted command is done later.
func eventually(t *testing.T, d bmc.Driver, want bmc.PowerState) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); ; {
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
	must(d.SetNextBootPXE(t.Context()))
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
		if took := time.Since(began); took > b.cfg.Timeout+time.Second {
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
	if took := time.Since(began); took > 2*time.Second {
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
		b.sim.SetFault(bmcsim.Fault{})
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
		_ = q.Close(t.Context()) // a dead BMC cannot end its session
	}
	b.sim.SetFault(bmcsim.Fault{})
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

func TestProbeFindsTheMissingPrivilege(t *testing.T) {
	t.Parallel()
	b := newBench(t, wire.Config{Protocol: wire.IPMI}, func(o *bmcsim.Options) { o.Privilege = bmcsim.Operator })
	r := bmc.Probe(t.Context(), wire.Access(b.cfg), bmc.ProbeOptions{})
	if f := r.Failed(); f == nil || f.Stage != bmc.StagePrivilege || f.Code != hotspare.CodeBMCPrivilege {
		t.Errorf("failed at %+v, want the privilege", f)
	}
}

// Redfish sessions expire and BMCs restart: the driver logs in anew.
func TestRedfishSessionIsRenewed(t *testing.T) {
	t.Parallel()
	b := newBench(t, wire.Config{Protocol: wire.Redfish}, nil)
	d := b.driver(t)
	eventually(t, d, bmc.PowerOff)
	for range 3 {
		b.sim.ForgetSessions()
		if err := d.PowerOn(t.Context()); err != nil {
			t.Fatal(err)
		}
		eventually(t, d, bmc.PowerOn)
	}
}

// PoweringOff is neither on nor off.
func TestRedfishTransitionIsUnknown(t *testing.T) {
	t.Parallel()
	b := newBench(t, wire.Config{Protocol: wire.Redfish}, nil)
	b.machine.Set(true)
	b.sim.SetFault(bmcsim.Fault{SlowPower: 2 * time.Second})
	d := b.driver(t)
	if err := d.PowerOff(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s, err := d.PowerState(t.Context()); err != nil || s != bmc.PowerUnknown {
		t.Errorf("in transition: %v, %v, want unknown", s, err)
	}
	eventually(t, d, bmc.PowerOff)
}

// With no suite given, one that the BMC offers is found.
func TestCipherSuiteIsFound(t *testing.T) {
	t.Parallel()
	for _, offered := range []uint8{3, 17} {
		b := newBench(t, wire.Config{Protocol: wire.IPMI}, func(o *bmcsim.Options) { o.CipherSuites = []uint8{offered} })
		eventually(t, b.driver(t), bmc.PowerOff)
		b.cfg.CipherSuite = 20 - int(offered)
		if _, err := wire.Open(t.Context(), b.cfg); !errors.Is(err, bmc.ErrRefused) {
			t.Errorf("suite %d where only %d is offered: %v, want ErrRefused", b.cfg.CipherSuite, offered, err)
		}
	}
}

func TestIPMIToolMissing(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	_, err := wire.New(wire.Config{Protocol: wire.IPMI, Host: "127.0.0.1", User: "admin", Password: hotspare.NewSecret("x")})
	if !errors.Is(err, bmc.ErrTool) || !strings.Contains(err.Error(), "apt-get install ipmitool") {
		t.Errorf("%v, want ErrTool with the mend", err)
	}
}

// A closed port and one where something else answers.
func TestNothingThatSpeaksIPMI(t *testing.T) {
	t.Parallel()
	sock, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	port := sock.LocalAddr().(*net.UDPAddr).Port
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 1500)
		for {
			_, from, err := sock.ReadFromUDP(buf)
			if err != nil {
				return
			}
			_, _ = sock.WriteToUDP([]byte("go away, this is a game server"), from)
		}
	}()
	cfg := wire.Config{Protocol: wire.IPMI, Host: "127.0.0.1", Port: port, User: "admin", Password: hotspare.NewSecret("x"),
		ReachTimeout: 1500 * time.Millisecond}
	for _, what := range []string{"something else", "nothing"} {
		began := time.Now()
		if _, err := wire.Open(t.Context(), cfg); !errors.Is(err, bmc.ErrUnreachable) {
			t.Errorf("%s: %v, want ErrUnreachable", what, err)
		}
		if took := time.Since(began); took > 3*time.Second {
			t.Errorf("%s: took %s", what, took)
		}
		sock.Close()
	}
	<-done
}

// countingTool is ipmitool with a line in a file for each run.
func countingTool(t *testing.T) (tool string, runs func() int) {
	t.Helper()
	real, err := exec.LookPath("ipmitool")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	tool, log := filepath.Join(dir, "ipmitool"), filepath.Join(dir, "runs")
	script := fmt.Sprintf("#!/bin/sh\necho run >>%s\nexec %s \"$@\"\n", log, real)
	if err := os.WriteFile(tool, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	return tool, func() int {
		raw, err := os.ReadFile(log)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		return bytes.Count(raw, []byte("\n"))
	}
}

// Each run with a wrong password brings the BMC's user nearer to being locked.
func TestWrongPasswordIsTriedTwice(t *testing.T) {
	t.Parallel()
	for name, op := range map[string]func(context.Context, bmc.Driver) error{
		"read":     func(ctx context.Context, d bmc.Driver) error { _, err := d.PowerState(ctx); return err },
		"power on": func(ctx context.Context, d bmc.Driver) error { return d.PowerOn(ctx) },
		"boot":     func(ctx context.Context, d bmc.Driver) error { return d.SetNextBootPXE(ctx) },
		"uuid":     func(ctx context.Context, d bmc.Driver) error { _, err := d.SystemUUID(ctx); return err },
	} {
		b := newBench(t, wire.Config{Protocol: wire.IPMI}, nil)
		tool, runs := countingTool(t)
		b.cfg.IPMITool, b.cfg.Password = tool, hotspare.NewSecret("wrong")
		d := b.driver(t)
		for range 5 {
			if err := op(t.Context(), d); !errors.Is(err, bmc.ErrPassword) {
				t.Errorf("%s: %v, want ErrPassword", name, err)
			}
		}
		if n := runs(); n != 2 {
			t.Errorf("%s: ipmitool ran %d times with a wrong password, want 2", name, n)
		}
	}
}

func TestIPv6(t *testing.T) {
	t.Parallel()
	for _, proto := range []wire.Protocol{wire.IPMI, wire.Redfish} {
		b := newBench(t, wire.Config{Protocol: proto}, func(o *bmcsim.Options) {
			if o.Listen != "" {
				o.Listen = "[::1]:0"
			} else {
				o.RedfishListen = "[::1]:0"
			}
		})
		d := b.driver(t)
		if err := d.PowerOn(t.Context()); err != nil {
			t.Errorf("%s: %v", proto, err)
			continue
		}
		eventually(t, d, bmc.PowerOn)
		if uuid, err := d.SystemUUID(t.Context()); err != nil || uuid != testUUID {
			t.Errorf("%s: UUID %s, %v", proto, uuid, err)
		}
	}
}

// BenchmarkCalls gives the cost of one call of each protocol.
func BenchmarkCalls(b *testing.B) {
	for _, proto := range []wire.Protocol{wire.IPMI, wire.Redfish} {
		b.Run(string(proto), func(b *testing.B) {
			d := newBench(b, wire.Config{Protocol: proto}, nil).driver(b)
			for b.Loop() {
				if _, err := d.PowerState(b.Context()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// S17: neither errors nor logs show the password.
func TestPasswordIsNotLogged(t *testing.T) {
	t.Parallel()
	for _, be := range backends[1:] {
		var logs bytes.Buffer
		b := newBench(t, be.cfg, nil)
		b.cfg.Log = slog.New(slog.NewTextHandler(&logs, &slog.HandlerOptions{Level: slog.Level(-10)}))
		d := b.driver(t)
		_, err := d.PowerState(t.Context())
		b.sim.SetFault(bmcsim.Fault{WrongPassword: true})
		b.sim.ForgetSessions()
		_, err2 := d.PowerState(t.Context())
		b.sim.SetFault(bmcsim.Fault{})
		text := fmt.Sprintf("%s %v %v %+v %#v", logs.String(), err, err2, b.cfg, b.cfg)
		if strings.Contains(text, testPassword) {
			t.Errorf("%s: the password is in\n%s", be.name, text)
		}
	}
}

func TestConfigIsChecked(t *testing.T) {
	good := wire.Config{Protocol: wire.IPMI, Host: "h", User: "u", Password: hotspare.NewSecret("p")}
	for name, edit := range map[string]func(*wire.Config){
		"protocol":      func(c *wire.Config) { c.Protocol = "telnet" },
		"host":          func(c *wire.Config) { c.Host = "" },
		"port":          func(c *wire.Config) { c.Port = 70000 },
		"user":          func(c *wire.Config) { c.User = "" },
		"long user":     func(c *wire.Config) { c.User = strings.Repeat("u", 17) },
		"password":      func(c *wire.Config) { c.Password = hotspare.Secret{} },
		"long password": func(c *wire.Config) { c.Password = hotspare.NewSecret(strings.Repeat("p", 21)) },
		"suite 0":       func(c *wire.Config) { c.CipherSuite = 1 },
	} {
		cfg := good
		edit(&cfg)
		if _, err := wire.New(cfg); hotspare.CodeOf(err) != hotspare.CodeInvalid {
			t.Errorf("%s: %v, want %s", name, err, hotspare.CodeInvalid)
		}
	}
}
