package boot

import (
	"fmt"
	"strings"

	"hotspare"
)

// planLoader answers firmware, and an iPXE that was built without HTTP.
func (s Site) planLoader(r Request, a Assignment) (Offer, Reason) {
	name, note := s.loader(r.Arch, a)
	if name == "" {
		secure := ""
		if a.SecureBoot {
			secure = " with Secure Boot"
		}
		return Offer{Kind: OfferNothing}, Reason{
			Rule: RuleNoLoader, Code: hotspare.CodeArchMismatch,
			Text: fmt.Sprintf("%sthe firmware is %s%s and there is no loader for it", note, r.Arch, secure),
			Fix:  noLoaderFix(r.Arch, a),
		}
	}
	why := note
	if r.Stage == StageIPXE {
		why += "an iPXE without HTTP asks; "
	}
	path := Path{Artefact: ArtefactLoader, Name: name}
	file := name
	if KindOf(name) == LoaderGRUB {
		// GRUB asks no DHCP server: what is meant for the machine is in the folder
		// that its loader comes from.
		verdict, reason := judge(r, a, LoaderGRUB)
		path.MAC, path.Arch = r.MAC, r.Arch
		if verdict != ScriptWait {
			path.MAC, path.Arch, path.Token = MAC{}, 0, a.Token
		}
		file, why = path.String(), why+reason.Text+"; "
	}
	o := Offer{Kind: OfferFile, BootFile: file, NextServer: s.Server, VendorClass: "PXEClient"}
	way := "TFTP"
	if r.Arch.HTTP() {
		o.Kind, o.VendorClass, way = OfferURL, "HTTPClient", "HTTP"
		secure := a.HTTPS != HTTPSNone && s.HTTPSPort != 0
		if secure {
			way = "HTTPS"
		}
		o.BootFile = s.url(path, secure)
	}
	return o, Reason{Rule: RuleLoader, Text: fmt.Sprintf("%sfirmware %s gets the loader %s over %s", why, r.Arch, name, way)}
}

func noLoaderFix(arch Arch, a Assignment) string {
	if a.SecureBoot && arch.HTTP() {
		return "let the machine boot over PXE, or name a signed iPXE as its loader (docs/boot.md)"
	}
	return "install or name a loader for this architecture (docs/boot.md), or exclude the machine from the pool"
}

// planTFTP answers for files. What GRUB fetches has the same names as over HTTP,
// for a signed GRUB has no other protocol: kernel, archives and all.
func (s Site) planTFTP(r Request, a Assignment) (Offer, Reason) {
	name := strings.TrimPrefix(r.File, "/")
	if s.serves(name) {
		return loaderContent(name)
	}
	p, ok := ParsePath("/" + name)
	r.Path = p
	switch {
	case ok && strings.HasPrefix(name, "grub/"):
		return s.planGRUB(r, a)
	case p.Artefact == ArtefactKernel, p.Artefact == ArtefactInitrd, p.Artefact == ArtefactJoin:
		return s.planToken(r, a)
	}
	return Offer{Kind: OfferDeny}, Reason{Rule: RuleNoSuchFile, Text: fmt.Sprintf("no such file over TFTP: %.80q", RedactFile(r.File))}
}

// optional says whether shim only looks whether there is such a file: further
// revocations and certificates.
func optional(name string) bool {
	return strings.HasPrefix(name, "revocations") || strings.HasPrefix(name, "shim_certificate_")
}

func loaderContent(name string) (Offer, Reason) {
	return Offer{Kind: OfferContent, Artefact: ArtefactLoader, BootFile: name}, Reason{Rule: RuleFile, Text: "sends the loader " + name}
}

// planGRUB answers what GRUB and the shim before it fetch.
func (s Site) planGRUB(r Request, a Assignment) (Offer, Reason) {
	p := r.Path
	switch p.Artefact {
	case ArtefactLoader:
		switch {
		case s.serves(p.Name):
			return loaderContent(p.Name)
		case optional(p.Name):
			return Offer{Kind: OfferDeny}, Reason{Rule: RuleOptional, Text: "shim looks for " + p.Name + ", which it can do without"}
		}
		return Offer{Kind: OfferDeny}, Reason{Rule: RuleNoSuchFile, Text: "no loader has this name"}
	case ArtefactGRUBEntry:
		sc := Script{Kind: ScriptEntry, Language: LanguageGRUB, Again: s.again()}
		return Offer{Kind: OfferScript, Script: sc}, Reason{Rule: RuleFile, Text: "GRUB is sent on to the machine's own script"}
	}
	// A refusal would leave GRUB at its prompt: whatever is wrong, it waits.
	if p.Token == "" {
		// Knowing a MAC opens nothing here either. GRUB cannot ask by DHCP again;
		// the next start that is ordered begins with the power off.
		r.MAC, r.Arch = p.MAC, p.Arch
		verdict, reason := judge(r, a, LoaderGRUB)
		if verdict != ScriptWait {
			reason = Reason{Rule: RuleNothing, Text: "something is assigned now: it starts when hotspare powers this machine off and on"}
		}
		return Offer{Kind: OfferScript, Script: s.waitScript(r, reason, LanguageGRUB)}, reason
	}
	if !SameToken(p.Token, a.Token) {
		reason := tokenRefused()
		return Offer{Kind: OfferScript, Script: s.waitScript(r, reason, LanguageGRUB)}, reason
	}
	return s.planScript(r, a, LanguageGRUB)
}
