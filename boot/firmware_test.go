package boot_test

import (
	"fmt"
	"strings"
	"testing"

	"hotspare/boot"
)

// port80 is a site on HTTP's own port, where GRUB can boot.
func port80() boot.Site {
	return boot.Site{
		Server: server, Loaders: boot.DefaultLoaders(), SecureLoaders: boot.DefaultSecureLoaders(),
		MoreLoaders: []string{"shimaa64.efi", "ipxe.efi", "snponly-shim.efi", "ipxe.pxe"},
	}
}

// Which loader a firmware gets: the site's for its architecture, the signed one
// with Secure Boot, the node's own where it fits.
func TestLoaders(t *testing.T) {
	waits := "/grub/unassigned/52-54-00-77-00-01/"
	for _, c := range []struct {
		arch   boot.Arch
		secure bool
		own    string
		kind   boot.OfferKind
		file   string
	}{
		{0, false, "", boot.OfferFile, "undionly.kpxe"},
		{0, true, "", boot.OfferFile, "undionly.kpxe"}, // a BIOS has no Secure Boot
		{0, false, "ipxe.pxe", boot.OfferFile, "ipxe.pxe"},
		{0, false, "ipxe.efi", boot.OfferFile, "undionly.kpxe"}, // it does not fit
		{7, false, "", boot.OfferFile, "snponly.efi"},
		{7, false, "ipxe.efi", boot.OfferFile, "ipxe.efi"},
		{9, false, "ipxe.efi", boot.OfferFile, "ipxe.efi"},
		{16, false, "ipxe.efi", boot.OfferURL, "http://10.77.0.1/loader/ipxe.efi"},
		{7, false, "not-served.efi", boot.OfferFile, "snponly.efi"},
		{7, true, "", boot.OfferFile, waits + "7/shimx64.efi"},
		{9, true, "", boot.OfferFile, waits + "9/shimx64.efi"},
		{16, true, "", boot.OfferNothing, ""}, // GRUB has no network after HTTP boot
		{16, true, "snponly-shim.efi", boot.OfferURL, "http://10.77.0.1/loader/snponly-shim.efi"},
		{7, true, "snponly-shim.efi", boot.OfferFile, "snponly-shim.efi"}, // a signed iPXE
		{7, true, "shimaa64.efi", boot.OfferFile, waits + "7/shimx64.efi"},
		{11, false, "", boot.OfferFile, waits + "11/grubaa64.efi"},
		{11, true, "", boot.OfferFile, waits + "11/shimaa64.efi"},
		{19, false, "", boot.OfferNothing, ""},
		{19, true, "shimaa64.efi", boot.OfferURL, "http://10.77.0.1" + waits + "19/shimaa64.efi"},
		{6, false, "", boot.OfferNothing, ""},
		{6, true, "", boot.OfferNothing, ""},
		{6, false, "ipxe.efi", boot.OfferFile, "ipxe.efi"},
		{10, false, "", boot.OfferNothing, ""},
		{20, false, "", boot.OfferURL, "http://10.77.0.1/loader/undionly.kpxe"},
		{22, false, "", boot.OfferNothing, ""},
		{27, false, "", boot.OfferNothing, ""},
	} {
		a := boot.Assignment{Node: "n1", Approved: true, SecureBoot: c.secure, Loader: c.own}
		o, why := port80().Plan(boot.Request{Protocol: boot.DHCP, Stage: boot.StageFirmware, MAC: n1, Arch: c.arch}, a)
		if o.Kind != c.kind || o.BootFile != c.file {
			t.Errorf("%s, secure %v, own %q: %s %q, want %s %q (%s)", c.arch, c.secure, c.own, o.Kind, o.BootFile, c.kind, c.file, why)
		}
	}
}

func TestFollowers(t *testing.T) {
	for name, want := range map[string]string{
		"shimx64.efi": "grubx64.efi", "shimaa64.efi": "grubaa64.efi", "snponly-shim.efi": "snponly.efi", "ipxe-shim.efi": "ipxe.efi",
		"grubx64.efi": "", "snponly.efi": "", "undionly.kpxe": "", "-shim.efi": "", "shim": "",
	} {
		if got := boot.Follower(name); got != want {
			t.Errorf("%s is followed by %q, want %q", name, got, want)
		}
	}
	files := strings.Join(port80().LoaderFiles(), " ")
	for _, want := range []string{"undionly.kpxe", "shimx64.efi", "grubx64.efi", "shimaa64.efi", "grubaa64.efi", "ipxe.efi", "snponly-shim.efi"} {
		if !strings.Contains(files, want) {
			t.Errorf("%s is not among %s", want, files)
		}
	}
}

func TestArchWords(t *testing.T) {
	for n := range 60 {
		a := boot.Arch(n)
		if back, err := boot.ParseArch(a.Word()); err != nil || back != a {
			t.Errorf("%s is written as %q and read as %s: %v", a, a.Word(), back, err)
		}
	}
	for _, s := range []string{"", "uefi", "-1", "65536", "UEFI-X64"} {
		if a, err := boot.ParseArch(s); err == nil {
			t.Errorf("%q is read as %s", s, a)
		}
	}
}

// outcome follows a machine through the protocols, as it would go on with each
// answer, and gives all scripts that it may get in the end.
func outcomes(t *testing.T, s boot.Site, r boot.Request, a boot.Assignment) []boot.Script {
	t.Helper()
	o, why := s.Plan(r, a)
	if why.Text == "" {
		t.Errorf("%s %s: no reason", r.Stage, r.Arch)
	}
	if o.Kind == boot.OfferNothing {
		return nil
	}
	file := strings.TrimPrefix(o.BootFile, "http://10.77.0.1")
	if !strings.HasPrefix(file, "/") {
		file = "/loader/" + file
	}
	p, ok := boot.ParsePath(file)
	if !ok {
		t.Fatalf("%s %s: %q is no boot path", r.Stage, r.Arch, o.BootFile)
	}
	if p.Artefact != boot.ArtefactLoader { // an iPXE with its script
		o, _ = s.Plan(boot.Request{Protocol: boot.HTTP, Stage: boot.StageIPXE, Path: p}, a)
		return []boot.Script{o.Script}
	}
	if boot.KindOf(p.Name) == boot.LoaderIPXE {
		// The loader is an iPXE and asks by DHCP again.
		again := boot.Request{Protocol: r.Protocol, Stage: boot.StageIPXE, MAC: r.MAC, Arch: r.Arch, Features: boot.Features{HTTP: true, ISCSI: true}}
		return outcomes(t, s, again, a)
	}
	// shim and GRUB fetch from the folder that they came from, over either protocol.
	var out []boot.Script
	for _, q := range []boot.Request{{Protocol: boot.HTTP, Stage: boot.StageGRUB}, {Protocol: boot.TFTP}} {
		next := p
		next.Name = boot.Follower(p.Name)
		if next.Name != "" {
			q.Path, q.File = next, next.String()
			if o, why := s.Plan(q, a); o.Kind != boot.OfferContent || o.BootFile != next.Name {
				t.Errorf("%s: %s cannot be fetched over %s: %s", r.Arch, next.Name, q.Protocol, why)
			}
		}
		next.Artefact, next.Name = boot.ArtefactGRUB, ""
		q.Path, q.File = next, next.String()
		o, why := s.Plan(q, a)
		if o.Kind != boot.OfferScript || o.Script.Language != boot.LanguageGRUB {
			t.Fatalf("%s: GRUB gets %s over %s: %s", r.Arch, o.Kind, q.Protocol, why)
		}
		out = append(out, o.Script)
	}
	return out
}

// SAFETY S2a over every firmware: only a machine with a live, approved assignment
// starts anything, only `local` hands back to the firmware, and every other one
// waits, whichever way it came.
func TestEveryFirmwareObeysTheAssignment(t *testing.T) {
	san := startOf("n1")
	san.Kind, san.Kernel = boot.KindSAN, ""
	unapproved := startOf("n1")
	unapproved.Approved = false
	unapprovedSAN := san
	unapprovedSAN.Approved = false
	dead := startOf("n1")
	dead.Token = ""
	cases := map[string]struct {
		a    boot.Assignment
		want boot.ScriptKind // of a machine that can do it; it waits otherwise
	}{
		"unknown":               {boot.Assignment{}, boot.ScriptWait},
		"unknown, discovery":    {boot.Assignment{Kind: boot.KindDiscovery, Token: goodToken, Kernel: "k", Arch: "amd64"}, boot.ScriptStart},
		"not approved":          {boot.Assignment{Node: "n1"}, boot.ScriptWait},
		"not approved, start":   {unapproved, boot.ScriptWait},
		"not approved, san":     {unapprovedSAN, boot.ScriptWait},
		"not approved, local":   {boot.Assignment{Node: "n1", Kind: boot.KindLocal, Token: goodToken}, boot.ScriptWait},
		"fenced, nothing":       {boot.Assignment{Node: "n1", Approved: true, Reason: "it is fenced"}, boot.ScriptWait},
		"start without token":   {dead, boot.ScriptWait},
		"start":                 {startOf("n1"), boot.ScriptStart},
		"san":                   {san, boot.ScriptSAN},
		"local":                 {boot.Assignment{Node: "n1", Approved: true, Kind: boot.KindLocal, Token: goodToken}, boot.ScriptLocal},
		"local without token":   {boot.Assignment{Node: "n1", Approved: true, Kind: boot.KindLocal}, boot.ScriptWait},
		"fenced, its discovery": {boot.Assignment{Node: "n1", Approved: true, Kind: boot.KindDiscovery, Token: goodToken, Kernel: "k", Arch: "amd64"}, boot.ScriptStart},
	}
	seen := map[boot.ScriptKind]int{}
	for name, c := range cases {
		for arch := range boot.Arch(45) {
			for _, secure := range []bool{false, true} {
				for _, stage := range []boot.Stage{boot.StageFirmware, boot.StageIPXE} {
					for _, protocol := range []boot.Protocol{boot.DHCP, boot.ProxyDHCP} {
						a := c.a
						a.SecureBoot = secure
						r := boot.Request{Protocol: protocol, Stage: stage, MAC: n1, Arch: arch, Features: boot.Features{HTTP: stage == boot.StageIPXE, ISCSI: true}}
						for _, sc := range outcomes(t, port80(), r, a) {
							seen[sc.Kind]++
							if sc.Kind == boot.ScriptWait && (c.want == boot.ScriptWait || !arch.Runs("amd64") || secure && c.want == boot.ScriptSAN) {
								continue
							}
							if sc.Kind != c.want {
								t.Errorf("%s: %s %s, secure %v, over %s gets a script of kind %s, want %s", name, arch, stage, secure, protocol, sc.Kind, c.want)
							}
							if c.want == boot.ScriptWait && strings.Contains(fmt.Sprint(sc), goodToken) {
								t.Errorf("%s: the waiting script carries the token", name)
							}
						}
					}
				}
			}
		}
	}
	for _, k := range []boot.ScriptKind{boot.ScriptWait, boot.ScriptStart, boot.ScriptSAN, boot.ScriptLocal} {
		if seen[k] < 20 {
			t.Errorf("only %d scripts of kind %s were seen: the table proves too little", seen[k], k)
		}
	}
}

// The secret of the volume is on a path of its own, behind the token, for a SAN
// boot alone; such a boot has nothing else.
func TestSANBootHasItsSecretAndNothingElse(t *testing.T) {
	san := startOf("n1")
	san.Kind, san.Kernel = boot.KindSAN, ""
	for art, want := range map[boot.Artefact]boot.OfferKind{
		boot.ArtefactSAN: boot.OfferContent, boot.ArtefactJoin: boot.OfferDeny, boot.ArtefactKernel: boot.OfferDeny, boot.ArtefactInitrd: boot.OfferDeny,
	} {
		p := boot.Path{Artefact: art, Token: goodToken}
		if o, why := port80().Plan(boot.Request{Protocol: boot.HTTP, Stage: boot.StageIPXE, Path: p}, san); o.Kind != want {
			t.Errorf("%s of a SAN boot: %s (%s)", art, o.Kind, why)
		}
		p.Token = otherToken
		if o, _ := port80().Plan(boot.Request{Protocol: boot.HTTP, Stage: boot.StageIPXE, Path: p}, san); o.Kind != boot.OfferDeny {
			t.Errorf("%s behind another token: %s", art, o.Kind)
		}
	}
	p := boot.Path{Artefact: boot.ArtefactSAN, Token: goodToken}
	if o, _ := port80().Plan(boot.Request{Protocol: boot.HTTP, Stage: boot.StageIPXE, Path: p}, startOf("n1")); o.Kind != boot.OfferDeny {
		t.Errorf("a start with an agent gets the volume's secret by HTTP: %s", o.Kind)
	}
	// A SAN boot has nothing over TFTP; a start has what GRUB needs, behind its token.
	for _, file := range []string{"boot/" + goodToken + "/san", "boot/" + goodToken + "/join", "boot/" + goodToken + "/kernel", "ipxe/" + goodToken} {
		if o, _ := port80().Plan(boot.Request{Protocol: boot.TFTP, File: file}, san); o.Kind != boot.OfferDeny {
			t.Errorf("%s over TFTP: %s", file, o.Kind)
		}
	}
	for _, art := range []string{"kernel", "initrd", "join"} {
		if o, _ := port80().Plan(boot.Request{Protocol: boot.TFTP, File: "boot/" + goodToken + "/" + art}, startOf("n1")); o.Kind != boot.OfferContent || string(o.Artefact) != art {
			t.Errorf("%s over TFTP: %s", art, o.Kind)
		}
		if o, _ := port80().Plan(boot.Request{Protocol: boot.TFTP, File: "boot/" + otherToken + "/" + art}, startOf("n1")); o.Kind != boot.OfferDeny {
			t.Errorf("%s over TFTP behind another token: %s", art, o.Kind)
		}
	}
	san.Modes = []boot.Firmware{boot.FirmwareBIOS}
	o, why := port80().Plan(boot.Request{Protocol: boot.DHCP, Stage: boot.StageIPXE, Arch: 7, MAC: n1, Features: boot.Features{HTTP: true, ISCSI: true}}, san)
	if why.Rule != boot.RuleFirmware || strings.Contains(o.BootFile, goodToken) {
		t.Errorf("a disk for BIOS on a UEFI machine: %s %s", o.BootFile, why)
	}
}

func TestTokensAreNotShown(t *testing.T) {
	a := startOf("n1")
	a.SecureBoot = true
	o, why := port80().Plan(boot.Request{Protocol: boot.DHCP, Stage: boot.StageFirmware, MAC: n1, Arch: 7}, a)
	if o.BootFile != "/grub/"+goodToken+"/shimx64.efi" {
		t.Fatalf("offer %q", o.BootFile)
	}
	for _, shown := range []string{o.Redacted(), why.String(), boot.RedactFile("grub/" + goodToken + "/grubx64.efi")} {
		if strings.Contains(shown, goodToken) {
			t.Errorf("%q shows the token", shown)
		}
	}
	if o.Redacted() != "/grub/AAECAw…/shimx64.efi" {
		t.Errorf("redacted: %q", o.Redacted())
	}
	_, why = port80().Plan(boot.Request{Protocol: boot.TFTP, File: "grub/" + goodToken + "/evil/x"}, a)
	if strings.Contains(why.String(), goodToken) {
		t.Errorf("a refusal shows the token: %s", why)
	}
}
