package bmcsim

import (
	"context"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bougou/go-ipmi/pkg/client"
	"github.com/bougou/go-ipmi/pkg/command/chassis"
	"github.com/bougou/go-ipmi/pkg/types"
	"go.uber.org/goleak"
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

// start runs a BMC on loopback until the test ends.
func start(t *testing.T, m *MemoryMachine, edit func(*Options)) *BMC {
	t.Helper()
	m.ID = testUUID
	opts := Options{Listen: "127.0.0.1:0", User: "admin", Password: testPassword, Machine: m}
	if edit != nil {
		edit(&opts)
	}
	b, err := New(opts)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- b.Serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return b
}

// tool runs a program with a deadline and gives its output and exit status.
func tool(t *testing.T, name string, args ...string) (string, int) {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("%v (make test installs ipmitool and freeipmi-tools)", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = append(os.Environ(), "IPMITOOL_PASSWORD="+testPassword)
	out, err := cmd.CombinedOutput()
	if err != nil && cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

func ipmitool(t *testing.T, b *BMC, args ...string) (string, int) {
	t.Helper()
	host, port, err := net.SplitHostPort(b.Addr())
	if err != nil {
		t.Fatal(err)
	}
	return tool(t, "ipmitool", append([]string{"-I", "lanplus", "-H", host, "-p", port, "-U", "admin", "-E", "-N", "1", "-R", "2"}, args...)...)
}

// until waits for what the worker does after the answer.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("never happened: %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// step is one command of a tool and what must come of it.
type step struct {
	args  string
	want  string
	fails bool
	on    bool // the state of the machine after it
}

func TestIPMITool(t *testing.T) {
	t.Parallel()
	for _, suite := range []string{"3", "17"} {
		t.Run("suite "+suite, func(t *testing.T) {
			t.Parallel()
			m := &MemoryMachine{}
			b := start(t, m, nil)
			for _, s := range []step{
				{args: "chassis power status", want: "Chassis Power is off"},
				{args: "chassis power off", want: "Down/Off"}, // off twice is no error
				{args: "chassis bootdev pxe", want: "Set Boot Device to pxe"},
				{args: "chassis bootparam get 5", want: "Force PXE"},
				{args: "chassis power on", want: "Up/On", on: true},
				{args: "chassis power on", want: "Up/On", on: true},
				{args: "chassis power status", want: "Chassis Power is on", on: true},
				{args: "chassis bootparam get 5", want: "No override", on: true}, // one shot: spent
				{args: "chassis status", want: "System Power         : on", on: true},
				{args: "mc guid", want: testUUID, on: true},
				{args: "mc info", want: "IPMI Version              : ", on: true},
				{args: "power cycle", want: "Cycle", on: true},
				{args: "power reset", want: "Reset", on: true},
				{args: "power soft", want: "Soft"},
				{args: "power cycle", want: "not supported in present state", fails: true},
				{args: "sel list", want: "Power Unit"},
				{args: "sel info", want: "Entries"},
				{args: "sel clear", want: "Clearing SEL"},
				{args: "sel list", want: "SEL has no entries"},
				{args: "chassis bootdev disk options=persistent", want: "Set Boot Device to disk"},
				{args: "chassis power on", want: "Up/On", on: true},
				{args: "chassis bootparam get 5", want: "Force Boot from default Hard-Drive", on: true},
				{args: "chassis bootdev pxe options=persistent,efiboot", want: "Set Boot Device to pxe", on: true},
				{args: "chassis bootparam get 5", want: "Boot parameter data: e004000000", on: true},
				{args: "chassis power cycle", want: "Cycle", on: true},
				{args: "chassis bootparam get 5", want: "Options apply to all future boots", on: true},
				{args: "chassis power off", want: "Down/Off"},
				{args: "chassis power on", want: "Up/On", on: true}, // every start: not spent
				{args: "chassis bootdev disk", want: "Set Boot Device to disk", on: true},
				{args: "chassis bootparam get 5", want: "Options apply to only next boot", on: true}, // once takes its place
				{args: "raw 0x00 0x08 0x03 0x1f", want: "", on: true},
				{args: "chassis bootparam get 3", want: "Don't automatically clear boot flag valid bit on timeout", on: true},
				{args: "chassis power off", want: "Down/Off"},
				{args: "chassis power off", want: "Down/Off"},
				{args: "chassis power status", want: "Chassis Power is off"},
				{args: "sensor reading nothing", want: "", fails: true},
			} {
				out, status := ipmitool(t, b, append([]string{"-C", suite}, strings.Fields(s.args)...)...)
				if !strings.Contains(out, s.want) || (status != 0) != s.fails {
					t.Fatalf("ipmitool %s: status %d, want failure %v and %q in\n%s", s.args, status, s.fails, s.want, out)
				}
				until(t, fmt.Sprintf("machine on=%v after %s", s.on, s.args), func() bool { return m.PowerState() == s.on && b.idle() })
			}
			if got := m.Starts(); !slices.Equal(got, []string{"pxe", "", "", "disk", "pxe", "pxe"}) {
				t.Errorf("starts from %q: one pxe, two cycles, one disk, two pxe expected", got)
			}
		})
	}
}

// idle says that no accepted command waits to be done.
func (b *BMC) idle() bool {
	b.chassis.mu.Lock()
	defer b.chassis.mu.Unlock()
	return len(b.chassis.queue) == 0 && b.chassis.busy == 0
}

func TestIPMIToolIsRefused(t *testing.T) {
	t.Parallel()
	b := start(t, &MemoryMachine{}, nil)
	for name, c := range map[string]struct {
		args []string
		want string
	}{
		"wrong user":          {[]string{"-C", "17", "-U", "nobody"}, "Unable to establish"},
		"wrong password":      {[]string{"-C", "17", "-P", "wrong"}, "Unable to establish"},
		"empty password":      {[]string{"-C", "17", "-P", ""}, "Unable to establish"},
		"cipher suite 0":      {[]string{"-C", "0"}, "invalid authentication algorithm"},
		"IPMI v1.5, password": {[]string{"-I", "lan", "-P", "wrong"}, "Unable to establish"},
	} {
		out, status := ipmitool(t, b, append(c.args, "chassis", "power", "on")...)
		if status == 0 || !strings.Contains(out, c.want) {
			t.Errorf("%s: status %d, want a failure with %q in\n%s", name, status, c.want, out)
		}
	}
	if s := b.Stats(); s.Ons != 0 {
		t.Errorf("%d power commands got through", s.Ons)
	}
}

func TestFreeIPMI(t *testing.T) {
	t.Parallel()
	for _, suite := range []string{"3", "17"} {
		t.Run("suite "+suite, func(t *testing.T) {
			t.Parallel()
			m := &MemoryMachine{}
			b := start(t, m, nil)
			common := []string{"-D", "LAN_2_0", "-h", b.Addr(), "-u", "admin", "-p", testPassword, "-I", suite}
			run := func(want string, name string, args ...string) {
				t.Helper()
				out, status := tool(t, name, append(slices.Clone(common), args...)...)
				if status != 0 || !strings.Contains(out, want) {
					t.Fatalf("%s %v: status %d, want %q in\n%s", name, args, status, want, out)
				}
			}
			run("off", "ipmi-chassis", "--get-chassis-status")
			run("", "ipmi-chassis", "--chassis-control=power-up")
			until(t, "power up", m.PowerState)
			run("on", "ipmi-chassis", "--get-chassis-status")
			run("ok", "ipmipower", "--off")
			until(t, "power off", func() bool { return !m.PowerState() })
			run("off", "ipmipower", "--stat")
			run("ok", "ipmipower", "--on", "--wait-until-on")
			run("on", "ipmipower", "--stat")
			run("ok", "ipmipower", "--off", "--wait-until-off")
			run("2.0", "bmc-info", "--get-device-id")
			const flags = "Chassis_Boot_Flags"
			run("", "ipmi-config", "--category=chassis", "--commit", "-e", flags+":Boot_Flags_Persistent=Yes",
				"-e", flags+":BIOS_Boot_Type=EFI", "-e", flags+":Boot_Device=PXE")
			if f := b.chassis.bootFlags(); !f.BootFlagsValid || !f.Persist || f.BootDeviceSelector != types.BootDeviceSelectorForcePXE || f.BIOSBootType != types.BIOSBootTypeEFI {
				t.Errorf("boot flags %+v, want PXE for every boot by EFI", f)
			}
			out, _ := tool(t, "ipmi-config", append(slices.Clone(common), "--category=chassis", "--checkout", "-S", flags)...)
			got := map[string]string{}
			for line := range strings.Lines(out) {
				if f := strings.Fields(line); len(f) == 2 {
					got[f[0]] = f[1]
				}
			}
			if got["Boot_Flags_Persistent"] != "Yes" || got["BIOS_Boot_Type"] != "EFI" || got["Boot_Device"] != "PXE" {
				t.Errorf("read back: %v in\n%s", got, out)
			}
		})
	}
}

func TestGoIPMI(t *testing.T) {
	t.Parallel()
	for _, suite := range []types.CipherSuiteID{types.CipherSuiteID3, types.CipherSuiteID17} {
		m := &MemoryMachine{}
		b := start(t, m, nil)
		addr := b.conn.LocalAddr().(*net.UDPAddr)
		c, err := client.NewClient(addr.IP.String(), addr.Port, "admin", testPassword)
		if err != nil {
			t.Fatal(err)
		}
		c.WithInterface(client.InterfaceLanplus).WithCipherSuiteID(suite).WithTimeout(5 * time.Second)
		if err := c.Connect(t.Context()); err != nil {
			t.Fatalf("suite %d: %v", suite, err)
		}
		if _, err := c.ChassisControl(t.Context(), chassis.ChassisControlPowerUp); err != nil {
			t.Error(err)
		}
		until(t, "power up", m.PowerState)
		if s, err := c.GetChassisStatus(t.Context()); err != nil || !s.PowerIsOn {
			t.Errorf("status %+v, %v, want on", s, err)
		}
		if err := c.Close(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

func TestPrivileges(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		level Privilege
		args  []string
		want  string
	}{
		{Operator, []string{"chassis", "power", "status"}, "Unable to establish"}, // ipmitool asks for Administrator
		{Operator, []string{"-L", "OPERATOR", "chassis", "power", "on"}, "Up/On"},
		{User, []string{"-L", "USER", "chassis", "power", "status"}, "is off"},
		{User, []string{"-L", "USER", "chassis", "power", "on"}, "Insufficient privilege level"},
	} {
		b := start(t, &MemoryMachine{}, func(o *Options) { o.Privilege = c.level })
		if out, _ := ipmitool(t, b, append([]string{"-C", "17"}, c.args...)...); !strings.Contains(out, c.want) {
			t.Errorf("level %d, %v: want %q in %s", c.level, c.args, c.want, out)
		}
	}
}

// Many clients in turn, some of them killed: no session slot is lost for good.
func TestSessionsDoNotRunOut(t *testing.T) {
	t.Parallel()
	b := start(t, &MemoryMachine{}, nil)
	b.SetFault(Fault{Stall: 50 * time.Millisecond})
	for range 8 {
		ctx, cancel := context.WithTimeout(t.Context(), 220*time.Millisecond) // in the middle of the handshake
		host, port, _ := net.SplitHostPort(b.Addr())
		cmd := exec.CommandContext(ctx, "ipmitool", "-I", "lanplus", "-H", host, "-p", port, "-U", "admin", "-P", testPassword,
			"-C", "17", "chassis", "power", "status")
		_ = cmd.Run()
		cancel()
	}
	b.SetFault(Fault{})
	for range 12 {
		if out, status := ipmitool(t, b, "-C", "17", "chassis", "power", "status"); status != 0 {
			t.Fatalf("refused: %s", out)
		}
	}
}

func TestOptionsAreChecked(t *testing.T) {
	good := Options{Listen: "127.0.0.1:0", User: "admin", Password: "x", Machine: &MemoryMachine{ID: testUUID}}
	for name, edit := range map[string]func(*Options){
		"no machine":      func(o *Options) { o.Machine = nil },
		"no address":      func(o *Options) { o.Listen = "" },
		"no user":         func(o *Options) { o.User = "" },
		"long user":       func(o *Options) { o.User = strings.Repeat("u", 17) },
		"no password":     func(o *Options) { o.Password = "" },
		"long password":   func(o *Options) { o.Password = strings.Repeat("p", 21) },
		"bad UUID":        func(o *Options) { o.Machine = &MemoryMachine{ID: "x"} },
		"bad suite":       func(o *Options) { o.CipherSuites = []uint8{99} },
		"address in use":  func(o *Options) { o.Listen = "192.0.2.1:623" },
		"redfish address": func(o *Options) { o.RedfishListen = "192.0.2.1:443" },
	} {
		opts := good
		edit(&opts)
		if b, err := New(opts); err == nil {
			b.close()
			t.Errorf("%s: accepted", name)
		}
	}
}
