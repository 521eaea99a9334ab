package wire_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"hotspare"
	"hotspare/bmc"
	"hotspare/bmc/wire"
	"hotspare/testenv/bmcsim"
)

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
	b.sim.SetFault(bmcsim.Fault{SlowPower: 4 * time.Second})
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
		if took := time.Since(began); took > 6*time.Second {
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
		"boot":     func(ctx context.Context, d bmc.Driver) error { return d.SetNextBootPXE(ctx, false) },
		"every":    func(ctx context.Context, d bmc.Driver) error { return d.SetNetworkFirst(ctx, true) },
		"order":    func(ctx context.Context, d bmc.Driver) error { _, err := d.BootOrder(ctx); return err },
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
