package boot_test

import (
	"net/netip"
	"strings"
	"testing"

	"hotspare"
	"hotspare/boot"
)

const (
	goodToken  = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8"
	otherToken = "HxwdHhsaGRgXFhUUExIREA8ODQwLCgkIBwYFBAMCAQA"
)

func testSite() boot.Site {
	return boot.Site{Server: server, HTTPPort: 8081, Loaders: boot.DefaultLoaders()}
}

func startOf(node string) boot.Assignment {
	return boot.Assignment{Node: node, Approved: true, Kind: boot.KindStart, Token: goodToken, Kernel: "vmlinuz", Initrd: "initrd", Arch: "amd64", Epoch: 4, Cmdline: "quiet"}
}

// Every firmware gets its loader or a reason, whatever is assigned to it: the
// decision proper is for the iPXE that follows.
func TestFirmwareGetsItsLoader(t *testing.T) {
	for _, c := range []struct {
		arch  boot.Arch
		kind  boot.OfferKind
		file  string
		class string
		name  string
	}{
		{0, boot.OfferFile, "undionly.kpxe", "PXEClient", "x86 BIOS (0)"},
		{6, boot.OfferNothing, "", "", "x86 UEFI (6)"},
		{7, boot.OfferFile, "snponly.efi", "PXEClient", "x86-64 UEFI (7)"},
		{9, boot.OfferFile, "snponly.efi", "PXEClient", "x86-64 UEFI (as EBC) (9)"},
		{10, boot.OfferNothing, "", "", "ARM 32-bit UEFI (10)"},
		{11, boot.OfferFile, "", "PXEClient", "ARM 64-bit UEFI (11)"}, // GRUB: TestLoaders
		{15, boot.OfferNothing, "", "", "x86 UEFI HTTP (15)"},
		{16, boot.OfferURL, "http://10.77.0.1:8081/loader/snponly.efi", "HTTPClient", "x86-64 UEFI HTTP (16)"},
		{18, boot.OfferNothing, "", "", "ARM 32-bit UEFI HTTP (18)"},
		{19, boot.OfferNothing, "", "", "ARM 64-bit UEFI HTTP (19)"},
		{22, boot.OfferNothing, "", "", "ARM 64-bit U-Boot (22)"},
		{39, boot.OfferNothing, "", "", "LoongArch 64-bit UEFI (39)"},
		{20, boot.OfferURL, "http://10.77.0.1:8081/loader/undionly.kpxe", "HTTPClient", "x86 BIOS HTTP (20)"},
		{4711, boot.OfferNothing, "", "", "unknown architecture (4711)"},
	} {
		for _, a := range []boot.Assignment{{}, startOf("n1"), {Node: "n2"}, {Node: "n3", Approved: true, Kind: boot.KindLocal}} {
			o, why := testSite().Plan(boot.Request{Protocol: boot.DHCP, Stage: boot.StageFirmware, MAC: n1, Arch: c.arch}, a)
			if o.Kind != c.kind || o.BootFile != c.file && c.arch != boot.ArchARM64 || o.VendorClass != c.class {
				t.Errorf("%s: got %s %q class %q, want %s %q class %q", c.arch, o.Kind, o.BootFile, o.VendorClass, c.kind, c.file, c.class)
			}
			if !strings.Contains(why.Text, c.name) {
				t.Errorf("architecture %d: the reason does not name %q: %s", c.arch, c.name, why)
			}
			if c.kind == boot.OfferNothing && (why.Code != hotspare.CodeArchMismatch || why.Fix == "") {
				t.Errorf("architecture %d: no code or no fix in %+v", c.arch, why)
			}
		}
	}
}

// What an iPXE is told depends on what is assigned, and each outcome has its
// reason.
func TestAssignmentDecides(t *testing.T) {
	wrongArch := startOf("n1")
	wrongArch.Arch = "arm64"
	noToken := startOf("n1")
	noToken.Token = ""
	noKernel := startOf("n1")
	noKernel.Kernel = ""
	unapproved := startOf("n1")
	unapproved.Approved = false
	for _, c := range []struct {
		name string
		a    boot.Assignment
		rule boot.Rule
		live bool // gets the URL with the token
	}{
		{"unknown machine", boot.Assignment{}, boot.RuleUnknown, false},
		{"known, not approved", boot.Assignment{Node: "n1"}, boot.RuleUnapproved, false},
		{"start, but not approved", unapproved, boot.RuleUnapproved, false},
		{"approved, nothing assigned", boot.Assignment{Node: "n1", Approved: true, Reason: "n1 is a spare"}, boot.RuleNothing, false},
		{"start", startOf("n1"), boot.RuleStart, true},
		{"start of another architecture", wrongArch, boot.RuleArch, false},
		{"start without a token", noToken, boot.RuleNoToken, false},
		{"start without a kernel", noKernel, boot.RuleNoSuchFile, false},
		{"discovery of an unknown machine", boot.Assignment{Kind: boot.KindDiscovery, Token: goodToken, Kernel: "vmlinuz"}, boot.RuleDiscovery, true},
		{"discovery without a kernel", boot.Assignment{Kind: boot.KindDiscovery, Token: goodToken}, boot.RuleUnknown, false},
		{"local disk", boot.Assignment{Node: "n1", Approved: true, Kind: boot.KindLocal, Token: goodToken}, boot.RuleLocal, true},
		{"local disk, not approved", boot.Assignment{Node: "n1", Kind: boot.KindLocal, Token: goodToken}, boot.RuleUnapproved, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := boot.Request{Protocol: boot.DHCP, Stage: boot.StageIPXE, MAC: n1, Features: boot.Features{HTTP: true}}
			o, why := testSite().Plan(r, c.a)
			want := "http://10.77.0.1:8081/ipxe/unassigned/52-54-00-77-00-01/0"
			if c.live {
				want = "http://10.77.0.1:8081/ipxe/" + goodToken
			}
			if o.Kind != boot.OfferURL || o.BootFile != want || why.Rule != c.rule {
				t.Errorf("got %s %q by %s, want %q by %s", o.Kind, o.BootFile, why.Rule, want, c.rule)
			}
			if why.Text == "" || !c.live && why.Fix == "" {
				t.Errorf("the reason tells too little: %+v", why)
			}
			// HTTP must agree: the same assignment, asked for by its path.
			p, ok := boot.ParsePath(strings.TrimPrefix(o.BootFile, "http://10.77.0.1:8081"))
			if !ok {
				t.Fatalf("the offered path %q is none", o.BootFile)
			}
			o2, why2 := testSite().Plan(boot.Request{Protocol: boot.HTTP, Stage: boot.StageIPXE, Path: p}, c.a)
			if o2.Kind != boot.OfferScript || why2.Rule != c.rule {
				t.Errorf("over HTTP: %s by %s, want a script by %s", o2.Kind, why2.Rule, c.rule)
			}
			starts := o2.Script.Kind == boot.ScriptStart
			if starts != (c.rule == boot.RuleStart || c.rule == boot.RuleDiscovery) {
				t.Errorf("the script is of kind %s under rule %s", o2.Script.Kind, c.rule)
			}
			if local := o2.Script.Kind == boot.ScriptLocal; local != (c.rule == boot.RuleLocal) {
				t.Errorf("SAFETY S2a: a script hands back to the firmware under rule %s", c.rule)
			}
		})
	}
}

// A machine that knows only a MAC address never gets a start, nor anything with
// a token, over HTTP: the MAC is no identity.
func TestMACOpensNothing(t *testing.T) {
	p := boot.Path{Artefact: boot.ArtefactUnassigned, MAC: n1}
	o, _ := testSite().Plan(boot.Request{Protocol: boot.HTTP, Stage: boot.StageIPXE, Path: p}, startOf("n1"))
	if o.Kind != boot.OfferScript || o.Script.Kind != boot.ScriptWait {
		t.Fatalf("got %s with a script of kind %s", o.Kind, o.Script.Kind)
	}
	if strings.Contains(strings.Join(append(o.Script.Lines, o.Script.Title, o.Script.Kernel), " "), goodToken) {
		t.Error("the waiting script carries the token")
	}
}

func TestTokenOpensItsOwnPathsOnly(t *testing.T) {
	discovery := boot.Assignment{Kind: boot.KindDiscovery, Token: goodToken, Kernel: "k", Initrd: "i"}
	local := boot.Assignment{Node: "n1", Approved: true, Kind: boot.KindLocal, Token: goodToken}
	idle := boot.Assignment{Node: "n1", Approved: true, Token: goodToken}
	for _, c := range []struct {
		name  string
		token string
		art   boot.Artefact
		a     boot.Assignment
		want  boot.OfferKind
	}{
		{"kernel", goodToken, boot.ArtefactKernel, startOf("n1"), boot.OfferContent},
		{"initrd", goodToken, boot.ArtefactInitrd, startOf("n1"), boot.OfferContent},
		{"join", goodToken, boot.ArtefactJoin, startOf("n1"), boot.OfferContent},
		{"another token", otherToken, boot.ArtefactKernel, startOf("n1"), boot.OfferDeny},
		{"another token's join", otherToken, boot.ArtefactJoin, startOf("n1"), boot.OfferDeny},
		{"nothing assigned to the token", goodToken, boot.ArtefactKernel, boot.Assignment{}, boot.OfferDeny},
		{"the epoch is over", goodToken, boot.ArtefactKernel, idle, boot.OfferDeny},
		{"discovery kernel", goodToken, boot.ArtefactKernel, discovery, boot.OfferContent},
		{"discovery gets no secret", goodToken, boot.ArtefactJoin, discovery, boot.OfferDeny},
		{"local disk gets no kernel", goodToken, boot.ArtefactKernel, local, boot.OfferDeny},
		{"local disk gets no secret", goodToken, boot.ArtefactJoin, local, boot.OfferDeny},
		{"empty tokens are not equal", "", boot.ArtefactJoin, func() boot.Assignment { a := startOf("n1"); a.Token = ""; return a }(), boot.OfferDeny},
	} {
		r := boot.Request{Protocol: boot.HTTP, Stage: boot.StageIPXE, Path: boot.Path{Artefact: c.art, Token: c.token}}
		o, why := testSite().Plan(r, c.a)
		if o.Kind != c.want {
			t.Errorf("%s: %s (%s), want %s", c.name, o.Kind, why, c.want)
		}
	}
}

// A dead token makes iPXE wait, for a refusal would send it on to its disk
// (SAFETY S2a); everybody else is refused.
func TestDeadTokenOfAScript(t *testing.T) {
	p := boot.Path{Artefact: boot.ArtefactScript, Token: otherToken}
	o, why := testSite().Plan(boot.Request{Protocol: boot.HTTP, Stage: boot.StageIPXE, Path: p}, boot.Assignment{})
	if o.Kind != boot.OfferScript || o.Script.Kind != boot.ScriptWait || why.Code != hotspare.CodeBootToken {
		t.Errorf("iPXE: %s, script %s, %s", o.Kind, o.Script.Kind, why)
	}
	o, why = testSite().Plan(boot.Request{Protocol: boot.HTTP, Stage: boot.StageFirmware, Path: p}, boot.Assignment{})
	if o.Kind != boot.OfferDeny || why.Code != hotspare.CodeBootToken {
		t.Errorf("others: %s, %s", o.Kind, why)
	}
}

func TestStartScriptFetchesTheSecretLast(t *testing.T) {
	p := boot.Path{Artefact: boot.ArtefactScript, Token: goodToken}
	o, _ := testSite().Plan(boot.Request{Protocol: boot.HTTP, Path: p}, startOf("n1"))
	s := o.Script
	if s.Kernel != "http://10.77.0.1:8081/boot/"+goodToken+"/kernel" || s.Cmdline != "quiet" || len(s.Initrds) != 2 {
		t.Fatalf("script %+v", s)
	}
	if j := s.Initrds[1]; j.Name != "join" || !j.Once || s.Initrds[0].Once {
		t.Errorf("archives %+v", s.Initrds)
	}
	if s.Attempt == "" || strings.Contains(goodToken, s.Attempt) {
		t.Errorf("attempt %q", s.Attempt)
	}
}

func TestIPXEWithoutHTTPGetsALoader(t *testing.T) {
	o, why := testSite().Plan(boot.Request{Protocol: boot.DHCP, Stage: boot.StageIPXE, Arch: boot.ArchBIOS}, startOf("n1"))
	if o.BootFile != "undionly.kpxe" || !strings.Contains(why.Text, "iPXE without HTTP") {
		t.Errorf("%+v: %s", o, why)
	}
}

func TestPlansThatAreNoBoot(t *testing.T) {
	for _, r := range []boot.Request{
		{Protocol: boot.DHCP, Stage: boot.StageSystem},
		{Protocol: boot.TFTP, File: "../../etc/shadow"},
		{Protocol: boot.TFTP, File: ""},
		{Protocol: boot.HTTP, Path: boot.Path{Artefact: boot.ArtefactLoader, Name: "grub.efi"}},
		{Protocol: boot.HTTP},
		{Protocol: "gopher"},
		{},
	} {
		o, why := testSite().Plan(r, startOf("n1"))
		if o.BootFile != "" || o.Kind != boot.OfferDeny && o.Kind != boot.OfferNothing || why.Text == "" {
			t.Errorf("%+v: %+v (%s)", r, o, why)
		}
	}
	o, _ := testSite().Plan(boot.Request{Protocol: boot.TFTP, File: "undionly.kpxe"}, boot.Assignment{})
	if o.Kind != boot.OfferContent || o.Artefact != boot.ArtefactLoader {
		t.Errorf("the loader over TFTP: %+v", o)
	}
}

func TestWhatRunsWhere(t *testing.T) {
	for _, c := range []struct {
		arch boot.Arch
		cpu  string
		want bool
	}{
		{0, "amd64", true}, {0, "x86_64", true}, {0, "i386", true}, {0, "arm64", false},
		{6, "amd64", false}, {6, "386", true}, {7, "amd64", true}, {9, "amd64", true}, {7, "i686", true},
		{7, "arm64", false}, {11, "arm64", true}, {11, "aarch64", true}, {11, "amd64", false},
		{16, "amd64", true}, {19, "arm64", true}, {20, "amd64", true}, {99, "amd64", false}, {99, "", true},
	} {
		if got := c.arch.Runs(c.cpu); got != c.want {
			t.Errorf("%s runs %q: %v", c.arch, c.cpu, got)
		}
	}
}

func TestTokens(t *testing.T) {
	a, b := token(t), token(t)
	if a == b || !boot.ValidToken(a) || !boot.SameToken(a, a) || boot.SameToken(a, b) {
		t.Errorf("tokens %q and %q", a, b)
	}
	for _, bad := range []string{"", "unassigned", a[1:], a + "A", a[:42] + "!", a[:42] + "/", strings.Repeat("=", 43)} {
		if boot.ValidToken(bad) || boot.SameToken(bad, bad) {
			t.Errorf("%q passes as a token", bad)
		}
	}
	if s := boot.ShortToken(a); len(s) > 10 || boot.ShortToken("short") != "…" {
		t.Errorf("the short form %q shows too much", s)
	}
	if _, err := boot.NewToken(strings.NewReader("too few bytes")); err == nil {
		t.Error("a token from too few random bytes")
	}
}

func TestMACs(t *testing.T) {
	for _, s := range []string{"52:54:00:77:00:01", "52-54-00-77-00-01", "525400770001"} {
		if m, err := boot.ParseMAC(s); err != nil || m != n1 {
			t.Errorf("%s: %v %v", s, m, err)
		}
	}
	for _, s := range []string{"", "52:54:00:77:00", "52:54-00:77:00:01", "52:54:00:77:00:0g", "52.54.00.77.00.01", "5254007700010"} {
		if _, err := boot.ParseMAC(s); err == nil {
			t.Errorf("%q is taken for a MAC address", s)
		}
	}
	for _, b := range [][]byte{nil, {1}, make([]byte, 6), {0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, {1, 0, 0x5e, 0, 0, 1}, make([]byte, 8)} {
		if _, ok := boot.MACFrom(b); ok {
			t.Errorf("% x is taken for a station", b)
		}
	}
}

func FuzzParsePath(f *testing.F) {
	for _, s := range []string{
		"/ipxe/" + goodToken, "/ipxe/unassigned/52-54-00-77-00-01/7", "/boot/" + goodToken + "/kernel", "/boot/" + goodToken + "/join",
		"/loader/snponly.efi", "//loader/undionly.kpxe", "/loader/../x", "/grub/grub.cfg", "/grub/" + goodToken + "//grubx64.efi", "/grub/" + goodToken + "/grub.cfg", "/grub/" + goodToken + "/shimx64.efi", "/grub/unassigned/52-54-00-77-00-01/7/grub.cfg", "/boot/" + goodToken + "/san", "/boot/" + goodToken + "/../join", "/ipxe/unassigned/52-54-00-77-00-01/007", "/", "",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, ok := boot.ParsePath(s)
		if !ok {
			return
		}
		once := strings.TrimPrefix(s, "/")
		if i := strings.LastIndex(once, "//"); i > 0 && strings.HasPrefix(once, "grub/") {
			once = once[:i] + once[i+1:]
		}
		if got := p.String(); got != s && "/"+got != s && got != "/"+once && got != once {
			t.Errorf("%q is read as %q", s, got)
		}
		if again, ok := boot.ParsePath(p.String()); !ok || again != p {
			t.Errorf("%q is not read back: %+v", s, again)
		}
		if p.Token != "" && strings.Contains(p.Redacted(), p.Token) {
			t.Errorf("%q shows the token", p.Redacted())
		}
		// Whatever path it is: nothing assigned, nothing given.
		if o, _ := testSite().Plan(boot.Request{Protocol: boot.HTTP, Path: p}, boot.Assignment{}); o.Kind == boot.OfferContent && p.Artefact != boot.ArtefactLoader {
			t.Errorf("%q is served to nobody in particular", s)
		}
	})
}

func FuzzParseFeatures(f *testing.F) {
	// As Debian's iPXE ROM sends it.
	f.Add([]byte{0xb1, 5, 1, 0x1a, 0xf4, 0x10, 0, 0x18, 1, 1, 0x13, 1, 1, 0xeb, 3, 1, 0, 0, 0x17, 1, 1})
	f.Add([]byte{0x13, 1})
	f.Add([]byte{0, 0, 255, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := boot.ParseFeatures(b)
		if again, err2 := boot.ParseFeatures(b); again != got || (err == nil) != (err2 == nil) {
			t.Error("not a function of its input")
		}
		if got.HTTP && !strings.Contains(string(b), "\x13\x01") {
			t.Errorf("HTTP read from % x", b)
		}
	})
}

func TestFeatures(t *testing.T) {
	got, err := boot.ParseFeatures([]byte{0xb1, 5, 1, 0x1a, 0xf4, 0x10, 0, 0x18, 1, 1, 0x13, 1, 1, 0x14, 1, 0, 0xeb, 3, 1, 21, 1, 0x24, 1, 1})
	want := boot.Features{HTTP: true, BzImage: true, EFI: true, Version: "1.21.1"}
	if err != nil || got != want {
		t.Errorf("%+v, %v", got, err)
	}
	if got, err := boot.ParseFeatures([]byte{0x13, 1, 1, 0x18, 4, 1}); err == nil || !got.HTTP || got.BzImage {
		t.Errorf("a cut option: %+v, %v", got, err)
	}
}

func TestURLWithoutPort(t *testing.T) {
	s := boot.Site{Server: netip.MustParseAddr("10.77.0.1"), HTTPPort: 80, Loaders: boot.DefaultLoaders()}
	o, _ := s.Plan(boot.Request{Protocol: boot.DHCP, Stage: boot.StageFirmware, Arch: boot.ArchHTTP64}, boot.Assignment{})
	if o.BootFile != "http://10.77.0.1/loader/snponly.efi" {
		t.Errorf("%q", o.BootFile)
	}
}
