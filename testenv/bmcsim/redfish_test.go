package bmcsim

import (
	"strings"
	"testing"
	"time"
)

// TestRedfishWithCurl follows what an administrator does by hand; the Redfish
// library of the product is tried in hotspare/bmc/wire.
func TestRedfishWithCurl(t *testing.T) {
	t.Parallel()
	m := &MemoryMachine{}
	b := start(t, m, func(o *Options) { o.Listen, o.RedfishListen = "", "127.0.0.1:0" })
	base := "https://" + b.RedfishAddr()
	curl := func(args ...string) string {
		t.Helper()
		out, _ := tool(t, "curl", append([]string{"-sk", "-m", "5", "-w", "\n%{http_code}"}, args...)...)
		return out
	}
	login := []string{"-u", "admin:" + testPassword}
	system := base + "/redfish/v1/Systems/1"
	reset := func(kind string) []string {
		return append([]string{"-X", "POST", "-H", "Content-Type: application/json", "-d", `{"ResetType":"` + kind + `"}`,
			system + "/Actions/ComputerSystem.Reset"}, login...)
	}
	boot := func(body string, more ...string) []string {
		return append(append([]string{"-X", "PATCH", "-d", body, system}, login...), more...)
	}
	for _, c := range []struct {
		name string
		args []string
		want []string
		on   bool
	}{
		{"root without log-in", []string{base + "/redfish/v1/"}, []string{`"RedfishVersion":"1.11.0"`, "\n200"}, false},
		{"system without log-in", []string{system}, []string{"\n401"}, false},
		{"wrong password", []string{"-u", "admin:nope", system}, []string{"\n401"}, false},
		{"system", append([]string{system}, login...), []string{`"PowerState":"Off"`, testUUID, `"ForceOff"`, "\n200"}, false},
		{"boot override", boot(`{"Boot":{"BootSourceOverrideEnabled":"Once","BootSourceOverrideTarget":"Pxe"}}`), []string{"\n204"}, false},
		{"old etag", boot(`{"Boot":{"BootSourceOverrideEnabled":"Once","BootSourceOverrideTarget":"Hdd"}}`,
			"-H", `If-Match: W/"Disabled-None-Legacy"`), []string{"\n412"}, false},
		{"unknown target", boot(`{"Boot":{"BootSourceOverrideTarget":"Tape"}}`), []string{"\n400"}, false},
		{"no JSON", boot(`boot from the network please`), []string{"\n400"}, false},
		{"on", reset("On"), []string{"\n204"}, true},
		{"cycle", reset("PowerCycle"), []string{"\n204"}, true},
		{"unknown reset", reset("Explode"), []string{"\n400"}, true},
		{"off", reset("ForceOff"), []string{"\n204"}, false},
		{"cycle while off", reset("PowerCycle"), []string{"\n409"}, false},
		{"too large", boot(strings.Repeat("x", maxBody+1)), []string{"\n400"}, false},
		{"nowhere", append([]string{base + "/redfish/v1/Managers"}, login...), []string{"\n404"}, false},
	} {
		out := curl(c.args...)
		for _, want := range c.want {
			if !strings.Contains(out, want) {
				t.Errorf("%s: want %q in\n%s", c.name, want, out)
			}
		}
		until(t, c.name, func() bool { return b.idle() && m.PowerState() == c.on })
	}
	if got := m.Starts(); len(got) != 2 || got[0] != "pxe" || got[1] != "" {
		t.Errorf("starts from %q, want pxe once", got)
	}

	// An order for every start stays until something else is asked for.
	for _, x := range []struct {
		fault      Fault
		body, want string
	}{
		{Fault{}, `{"Boot":{"BootSourceOverrideEnabled":"Continuous","BootSourceOverrideTarget":"Pxe","BootSourceOverrideMode":"UEFI"}}`, "\n204"},
		{Fault{OnceOnly: true}, `{"Boot":{"BootSourceOverrideEnabled":"Continuous","BootSourceOverrideTarget":"Hdd"}}`, "\n400"},
		{Fault{KeepsBootOrder: true}, `{"Boot":{"BootSourceOverrideEnabled":"Once","BootSourceOverrideTarget":"Hdd"}}`, "\n204"},
	} {
		b.SetFault(x.fault)
		if out := curl(boot(x.body)...); !strings.Contains(out, x.want) {
			t.Errorf("%+v: %s: want %q in %s", x.fault, x.body, x.want, out)
		}
	}
	if out := curl(append([]string{system}, login...)...); !strings.Contains(out, `"BootSourceOverrideEnabled":"Continuous"`) ||
		!strings.Contains(out, `"BootSourceOverrideTarget":"Pxe"`) || !strings.Contains(out, `"BootSourceOverrideMode":"UEFI"`) {
		t.Errorf("boot order: %s", out)
	}
	b.SetFault(Fault{})
	for range 2 {
		curl(reset("On")...)
		until(t, "on", m.PowerState)
		curl(reset("ForceOff")...)
		until(t, "off", func() bool { return b.idle() && !m.PowerState() })
	}
	if got := m.Starts()[2:]; len(got) != 2 || got[0] != "pxe" || got[1] != "pxe" {
		t.Errorf("starts from %q, want pxe twice", got)
	}

	b.SetFault(Fault{SlowPower: time.Second})
	curl(reset("On")...)
	if out := curl(append([]string{system}, login...)...); !strings.Contains(out, `"PowerState":"PoweringOn"`) {
		t.Errorf("in transition: %s", out)
	}
	until(t, "slow on", m.PowerState)
	b.SetFault(Fault{Refuse: true})
	if out := curl(reset("ForceOff")...); !strings.Contains(out, "\n409") {
		t.Errorf("refuse: %s", out)
	}
	b.SetFault(Fault{Dead: true})
	if out, status := tool(t, "curl", append([]string{"-sk", "-m", "1", base + "/redfish/v1/"}, login...)...); status != 28 {
		t.Errorf("dead: curl status %d, want 28 (time-out): %s", status, out)
	}
}
