package boot

import (
	"crypto/rand"
	"net/netip"
	"strings"
	"testing"

	"hotspare"
)

// What a node's document says of HTTPS decides the form of every URL that it is
// given, and what is refused without TLS.
func TestHTTPS(t *testing.T) {
	token, err := NewToken(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	mac := MAC{0x52, 0x54, 0, 0x77, 0, 1}
	site := Site{Server: netip.MustParseAddr("10.77.0.1"), HTTPSPort: 443, Loaders: DefaultLoaders(), SecureLoaders: DefaultSecureLoaders()}
	start := func(h HTTPS) Assignment {
		return Assignment{Node: "n1", MAC: mac, Approved: true, Kind: KindStart, Token: token, Kernel: "6.1", Arch: "amd64", HTTPS: h}
	}
	ipxe := Request{Protocol: DHCP, Stage: StageIPXE, MAC: mac, Arch: 7, Features: Features{HTTP: true, HTTPS: true}}
	old := ipxe
	old.Features.HTTPS = false
	firmware := Request{Protocol: DHCP, Stage: StageFirmware, MAC: mac, Arch: 16}
	script := Request{Protocol: HTTP, Stage: StageIPXE, Path: Path{Artefact: ArtefactScript, Token: token}}
	kernel := Request{Protocol: HTTP, Stage: StageIPXE, Path: Path{Artefact: ArtefactKernel, Token: token}}
	over := func(r Request) Request { r.Secure = true; return r }
	tftp := Request{Protocol: TFTP, Stage: StageGRUB, File: "boot/" + token + "/kernel"}
	for _, c := range []struct {
		name string
		h    HTTPS
		r    Request
		want string // beginning of the boot file or of the kernel's URL; "" with a rule: refused or waiting
		rule Rule
	}{
		{"firmware, none", HTTPSNone, firmware, "http://10.77.0.1/loader/", RuleLoader},
		{"firmware, loader", HTTPSLoader, firmware, "https://10.77.0.1/loader/", RuleLoader},
		{"firmware, all", HTTPSAll, firmware, "https://10.77.0.1/loader/", RuleLoader},
		{"iPXE, loader", HTTPSLoader, old, "http://10.77.0.1/ipxe/" + token, RuleStart},
		{"iPXE, all", HTTPSAll, ipxe, "https://10.77.0.1/ipxe/" + token, RuleStart},
		{"iPXE without HTTPS, all", HTTPSAll, old, "http://10.77.0.1/ipxe/unassigned/", RuleSecure},
		{"where it waits", HTTPSAll, Request{Protocol: HTTP, Stage: StageIPXE, Path: Path{Artefact: ArtefactUnassigned, MAC: mac, Arch: 7}}, "", RuleSecure},
		{"script, loader", HTTPSLoader, script, "http://10.77.0.1/boot/", RuleStart},
		{"script over TLS, loader", HTTPSLoader, over(script), "http://10.77.0.1/boot/", RuleStart},
		{"script, all", HTTPSAll, script, "", RuleSecure},
		{"script over TLS, all", HTTPSAll, over(script), "https://10.77.0.1/boot/", RuleStart},
		{"kernel, all", HTTPSAll, kernel, "", RuleSecure},
		{"kernel over TLS, all", HTTPSAll, over(kernel), "", RuleFile},
		{"kernel over TFTP, all", HTTPSAll, tftp, "", RuleSecure},
		{"kernel over TFTP, loader", HTTPSLoader, tftp, "", RuleFile},
	} {
		t.Run(c.name, func(t *testing.T) {
			o, reason := site.Plan(c.r, start(c.h))
			got := o.BootFile
			if o.Kind == OfferScript {
				got = o.Script.Kernel
			}
			if reason.Rule != c.rule || !strings.HasPrefix(got, c.want) {
				t.Fatalf("got %q, %+v", got, reason)
			}
			if refused := o.Kind == OfferDeny || o.Kind == OfferScript && o.Script.Kind == ScriptWait; refused != (c.rule == RuleSecure && o.Kind != OfferURL) {
				t.Fatalf("refused: %v, %+v", refused, o)
			}
			if c.name == "where it waits" && !strings.Contains(reason.Text, "built without it") {
				t.Errorf("its screen tells another reason than DHCP: %s", reason.Text)
			}
			if c.rule == RuleSecure && (reason.Fix == "" || reason.Code != hotspare.CodeNoAssignment) {
				t.Errorf("nobody is told what to do: %+v", reason)
			}
		})
	}
	// A node with Secure Boot fetches over TFTP, behind shim and GRUB.
	a := start(HTTPSAll)
	a.SecureBoot = true
	if o, reason := site.Plan(Request{Protocol: DHCP, Stage: StageFirmware, MAC: mac, Arch: 7}, a); strings.Contains(o.BootFile, token) || !strings.Contains(reason.Text, "over TFTP") {
		t.Errorf("%+v, %+v", o, reason)
	}
}

// URLs and GRUB's names hold an IPv6 address in brackets, and no port that is the
// scheme's own.
func TestURLs(t *testing.T) {
	p := Path{Artefact: ArtefactLoader, Name: "snponly.efi"}
	for _, c := range []struct {
		server      string
		http, https uint16
		secure      bool
		want        string
	}{
		{"10.77.0.1", 0, 0, false, "http://10.77.0.1/loader/snponly.efi"},
		{"10.77.0.1", 80, 443, false, "http://10.77.0.1/loader/snponly.efi"},
		{"10.77.0.1", 8080, 443, false, "http://10.77.0.1:8080/loader/snponly.efi"},
		{"10.77.0.1", 8080, 443, true, "https://10.77.0.1/loader/snponly.efi"},
		{"10.77.0.1", 80, 8443, true, "https://10.77.0.1:8443/loader/snponly.efi"},
		{"10.77.0.1", 80, 0, true, "http://10.77.0.1/loader/snponly.efi"},
		{"fd77::1", 80, 443, false, "http://[fd77::1]/loader/snponly.efi"},
		{"fd77::1", 8080, 8443, true, "https://[fd77::1]:8443/loader/snponly.efi"},
	} {
		s := Site{Server: netip.MustParseAddr(c.server), HTTPPort: c.http, HTTPSPort: c.https}
		if got := s.url(p, c.secure); got != c.want {
			t.Errorf("%+v: %s", c, got)
		}
	}
}
