package ipxe_test

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"hotspare"
	"hotspare/boot"
	"hotspare/boot/ipxe"
)

func volume() ipxe.Volume {
	return ipxe.Volume{
		Portal: netip.MustParseAddrPort("10.77.0.1:3260"), Target: "iqn.2026-11.io.hotspare:v1", Initiator: "iqn.2026-11.io.hotspare:n1:web.e3.abc",
		User: "web.e3.xyz", Secret: hotspare.NewSecret("S3CR3TS3CR3TS3CR3T"),
	}
}

// The script that everybody with the token may fetch names no secret; it fetches
// the other one once, and whatever happens the machine waits.
func TestSANBootWaitsWhenItFails(t *testing.T) {
	b, err := ipxe.Write(boot.Script{Kind: boot.ScriptSAN, Title: "node n1 boots its volume", SAN: "http://10.77.0.1/boot/T/san", Attempt: "a1b2c3", Again: 20 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	want := `#!ipxe
# hotspare boot script, version 1
echo hotspare: node n1 boots its volume
iseq ${hotspare-once} a1b2c3 && goto spent ||
imgfree ||
set hotspare-once a1b2c3 || goto failed_san
chain --autofree http://10.77.0.1/boot/T/san || goto failed_san
goto failed_san
:spent
echo hotspare: this boot attempt has failed, a new one is needed
goto again
:failed_san
echo hotspare: FAILED to boot the volume; iPXE's own message is above
:again
`
	if !strings.HasPrefix(string(b), want) || strings.Contains(string(b), "exit") {
		t.Errorf("got\n%s\nwant\n%s", b, want)
	}
}

func TestSANScript(t *testing.T) {
	b, err := ipxe.SANScript(volume())
	if err != nil {
		t.Fatal(err)
	}
	want := `#!ipxe
# hotspare SAN script, version 1
set initiator-iqn iqn.2026-11.io.hotspare:n1:web.e3.abc || goto failed
set username web.e3.xyz || goto failed
set password S3CR3TS3CR3TS3CR3T || goto failed
echo hotspare: boots the volume iqn.2026-11.io.hotspare:v1
sanboot --drive 0x80 iscsi:10.77.0.1::3260:0:iqn.2026-11.io.hotspare:v1 ||
:failed
clear password ||
clear username ||
clear initiator-iqn ||
exit 1
`
	if string(b) != want {
		t.Errorf("got\n%s\nwant\n%s", b, want)
	}
}

func TestSANScriptRefusesWhatIPXEWouldTakeApart(t *testing.T) {
	for name, change := range map[string]func(*ipxe.Volume){
		"a secret that is expanded":  func(v *ipxe.Volume) { v.Secret = hotspare.NewSecret("hidden${net0/mac}") },
		"a secret of two words":      func(v *ipxe.Volume) { v.Secret = hotspare.NewSecret("hidden || shell") },
		"no secret":                  func(v *ipxe.Volume) { v.Secret = hotspare.Secret{} },
		"a user that is an option":   func(v *ipxe.Volume) { v.User = "--x" },
		"a target with a line break": func(v *ipxe.Volume) { v.Target = "iqn\nshell" },
		"no initiator":               func(v *ipxe.Volume) { v.Initiator = "" },
		"no portal":                  func(v *ipxe.Volume) { v.Portal = netip.AddrPort{} },
	} {
		v := volume()
		change(&v)
		b, err := ipxe.SANScript(v)
		if err == nil {
			t.Errorf("%s: written:\n%s", name, b)
		} else if strings.Contains(err.Error(), "hidden") {
			t.Errorf("%s: the error shows the secret: %v", name, err)
		}
	}
}

// Whatever the values are: they are read as they were given, each as one word of
// its own command, or refused.
func FuzzSANScript(f *testing.F) {
	f.Add("iqn.x:a", "user", "secret")
	f.Add("a || exit 0", "#", "$x")
	f.Add("&&", ";", "||")
	f.Fuzz(func(t *testing.T, target, user, secret string) {
		v := volume()
		v.Target, v.User, v.Secret = target, user, hotspare.NewSecret(secret)
		b, err := ipxe.SANScript(v)
		if err != nil {
			return
		}
		set := map[string]string{}
		lines := parse(t, string(b))
		if len(lines) != 10 {
			t.Fatalf("%d lines:\n%s", len(lines), b)
		}
		for _, cmds := range lines {
			switch w := cmds[0].words; w[0] {
			case "set":
				if len(w) != 3 || cmds[0].next != "||" {
					t.Fatalf("%v", cmds)
				}
				set[w[1]] = w[2]
			case "sanboot":
				if len(w) != 4 || w[3] != "iscsi:10.77.0.1::3260:0:"+target {
					t.Errorf("target %q is read as %v", target, w)
				}
			}
		}
		if set["username"] != user || set["password"] != secret {
			t.Errorf("%q and %q are read as %q", user, secret, set)
		}
	})
}
