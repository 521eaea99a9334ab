package boot

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"strconv"
	"time"

	"hotspare"
)

// Site is what Plan knows of the appliance: where its servers listen and which
// loader each firmware gets.
type Site struct {
	Server   netip.Addr      // IPv4 address of TFTP and HTTP, on the nodes' segment
	HTTPPort uint16          // of the boot files; 0 means 80
	Loaders  map[Arch]string // file names, served by TFTP and below /loader/
	Again    time.Duration   // how long a waiting machine waits; 0 means 20 s
}

// DefaultLoaders is the choice for the binaries of Debian's package ipxe. The
// UEFI one is snponly.efi, which drives the NIC through the firmware: iPXE's own
// drivers hang or miss the link on several server NICs. Debian 12 has no iPXE for
// 32-bit UEFI or ARM.
func DefaultLoaders() map[Arch]string {
	return map[Arch]string{
		ArchBIOS:      "undionly.kpxe",
		ArchUEFI64:    "snponly.efi",
		ArchUEFI64EBC: "snponly.efi",
		ArchHTTP64:    "snponly.efi",
		ArchHTTPEBC:   "snponly.efi",
		ArchHTTPBIOS:  "undionly.kpxe",
	}
}

// OfferKind says what form an offer has.
type OfferKind string

// Kinds of offer.
const (
	OfferNothing OfferKind = "nothing" // an address perhaps, but nothing to boot
	OfferFile    OfferKind = "file"    // a file's name, with NextServer over TFTP
	OfferURL     OfferKind = "url"     // a URL in place of the name
	OfferScript  OfferKind = "script"  // over HTTP: this script
	OfferContent OfferKind = "content" // over HTTP or TFTP: the artefact asked for
	OfferDeny    OfferKind = "deny"    // refused; the reason says why
)

// Offer is the answer to one request.
type Offer struct {
	Kind        OfferKind
	BootFile    string     // OfferFile: TFTP name; OfferURL: URL
	NextServer  netip.Addr // with OfferFile and OfferURL
	VendorClass string     // option 60 of the answer: PXEClient, HTTPClient, or ""
	Script      Script     // with OfferScript
	Artefact    Artefact   // with OfferContent
}

// Plan decides. It is a pure function: the same site, request and assignment
// give the same offer and reason, whatever the protocol.
//
// The firmware always gets its loader, whatever is assigned: a firmware that
// gets none goes on to the next boot device, and a fenced machine must not reach
// its disk that way (SAFETY S2a). The decision proper is taken for the iPXE that
// the loader is.
func (s Site) Plan(r Request, a Assignment) (Offer, Reason) {
	switch r.Protocol {
	case DHCP, ProxyDHCP:
		return s.planDHCP(r, a)
	case TFTP:
		return s.planTFTP(r)
	case HTTP:
		return s.planHTTP(r, a)
	}
	return Offer{Kind: OfferDeny}, Reason{Rule: RuleNoSuchFile, Text: fmt.Sprintf("no answer over protocol %q", r.Protocol)}
}

func (s Site) planDHCP(r Request, a Assignment) (Offer, Reason) {
	switch {
	case r.Stage == StageSystem:
		return Offer{Kind: OfferNothing}, Reason{Rule: RuleSystem, Text: "an operating system asks for an address; nothing is booted"}
	case r.Stage == StageIPXE && r.Features.HTTP:
		verdict, reason := judge(r, a)
		path := Path{Artefact: ArtefactUnassigned, MAC: r.MAC, Arch: r.Arch}
		if verdict != ScriptWait {
			path = Path{Artefact: ArtefactScript, Token: a.Token}
		}
		o := Offer{Kind: OfferURL, BootFile: s.url(path), NextServer: s.Server}
		if r.Protocol == ProxyDHCP {
			o.VendorClass = "PXEClient" // iPXE takes a proxy's answer only with it
		}
		return o, reason
	}
	return s.planLoader(r)
}

// planLoader answers firmware, and an iPXE that was built without HTTP.
func (s Site) planLoader(r Request) (Offer, Reason) {
	name := s.Loaders[r.Arch]
	if name == "" {
		return Offer{Kind: OfferNothing}, Reason{
			Rule: RuleNoLoader, Code: hotspare.CodeArchMismatch,
			Text: fmt.Sprintf("the firmware is %s and no loader is configured for it", r.Arch),
			Fix:  "name a loader for this architecture in the configuration, or exclude the machine from the pool",
		}
	}
	o := Offer{Kind: OfferFile, BootFile: name, NextServer: s.Server, VendorClass: "PXEClient"}
	way := "TFTP"
	if r.Arch.HTTP() {
		o.Kind, o.VendorClass, way = OfferURL, "HTTPClient", "HTTP"
		o.BootFile = s.url(Path{Artefact: ArtefactLoader, Name: name})
	}
	why := ""
	if r.Stage == StageIPXE {
		why = "an iPXE without HTTP asks; "
	}
	return o, Reason{Rule: RuleLoader, Text: fmt.Sprintf("%sfirmware %s gets the loader %s over %s", why, r.Arch, name, way)}
}

func (s Site) planTFTP(r Request) (Offer, Reason) {
	for _, name := range s.Loaders {
		if name == r.File {
			return Offer{Kind: OfferContent, Artefact: ArtefactLoader, BootFile: name},
				Reason{Rule: RuleFile, Text: "sends the loader " + name}
		}
	}
	return Offer{Kind: OfferDeny}, Reason{Rule: RuleNoSuchFile, Text: fmt.Sprintf("no such file over TFTP: %.80q", r.File)}
}

func (s Site) planHTTP(r Request, a Assignment) (Offer, Reason) {
	switch p := r.Path; p.Artefact {
	case ArtefactLoader:
		for _, name := range s.Loaders {
			if name == p.Name {
				return Offer{Kind: OfferContent, Artefact: ArtefactLoader, BootFile: name},
					Reason{Rule: RuleFile, Text: "sends the loader " + name}
			}
		}
		return Offer{Kind: OfferDeny}, Reason{Rule: RuleNoSuchFile, Text: "no loader has this name"}
	case ArtefactUnassigned:
		// Knowing a MAC opens nothing here: the script only waits, and asks by
		// DHCP on the machine's own segment again.
		r.MAC, r.Arch = p.MAC, p.Arch
		verdict, reason := judge(r, a)
		sc := s.waitScript(r, reason)
		if verdict != ScriptWait {
			sc.Title, sc.Again = "an assignment is there now", time.Second
		}
		return Offer{Kind: OfferScript, Script: sc}, reason
	case ArtefactScript, ArtefactKernel, ArtefactInitrd, ArtefactJoin:
		return s.planToken(r, a)
	}
	return Offer{Kind: OfferDeny}, Reason{Rule: RuleNoSuchFile, Text: "this is not a boot path"}
}

// planToken answers the paths that a boot token opens.
func (s Site) planToken(r Request, a Assignment) (Offer, Reason) {
	if !SameToken(r.Path.Token, a.Token) {
		reason := Reason{
			Rule: RuleToken, Code: hotspare.CodeBootToken,
			Text: "this boot token is not live: it was never given, or its boot attempt is over",
			Fix:  "nothing on the machine; it gets a new token when it boots again",
		}
		if r.Path.Artefact == ArtefactScript && r.Stage == StageIPXE {
			// A refused script would send the machine on to its next boot
			// device (SAFETY S2a): it waits and asks again instead.
			return Offer{Kind: OfferScript, Script: s.waitScript(r, reason)}, reason
		}
		return Offer{Kind: OfferDeny}, reason
	}
	verdict, reason := judge(r, a)
	if r.Path.Artefact == ArtefactScript {
		switch verdict {
		case ScriptStart:
			return Offer{Kind: OfferScript, Script: s.startScript(a, reason)}, reason
		case ScriptLocal:
			return Offer{Kind: OfferScript, Script: Script{Kind: ScriptLocal, Title: reason.Text}}, reason
		}
		return Offer{Kind: OfferScript, Script: s.waitScript(r, reason)}, reason
	}
	if verdict != ScriptStart {
		return Offer{Kind: OfferDeny}, reason
	}
	if r.Path.Artefact == ArtefactJoin && a.Kind != KindStart {
		return Offer{Kind: OfferDeny}, Reason{Rule: RuleUnapproved, Code: hotspare.CodeBootToken, Text: "the discovery environment gets no join archive"}
	}
	return Offer{Kind: OfferContent, Artefact: r.Path.Artefact}, Reason{Rule: RuleFile, Text: fmt.Sprintf("sends %s for %s", r.Path.Artefact, nodeName(a))}
}

// judge says what the machine may do, the same for every protocol.
func judge(r Request, a Assignment) (ScriptKind, Reason) {
	switch {
	case a.Kind == KindStart && !a.Approved:
		return ScriptWait, unapproved(a)
	case a.Kind == KindStart || a.Kind == KindDiscovery && a.Kernel != "":
		return judgeStart(r, a)
	case a.Node == "":
		return ScriptWait, Reason{
			Rule: RuleUnknown, Code: hotspare.CodeNoAssignment,
			Text: "the appliance does not know this machine",
			Fix:  "add a node with this MAC address and approve it",
		}
	case !a.Approved:
		return ScriptWait, unapproved(a)
	case a.Kind == KindLocal && ValidToken(a.Token):
		return ScriptLocal, Reason{Rule: RuleLocal, Text: because(fmt.Sprintf("%s boots from its own disk", nodeName(a)), a.Reason)}
	}
	return ScriptWait, Reason{
		Rule: RuleNothing, Code: hotspare.CodeNoAssignment,
		Text: because(fmt.Sprintf("nothing is to be started on %s now", nodeName(a)), a.Reason),
		Fix:  "nothing, if it is a spare: it starts when an application is given to it",
	}
}

func judgeStart(r Request, a Assignment) (ScriptKind, Reason) {
	switch {
	case !ValidToken(a.Token):
		return ScriptWait, Reason{Rule: RuleNoToken, Code: hotspare.CodeBootToken, Text: fmt.Sprintf("%s is to start, but no boot token is live for it", nodeName(a)), Fix: "wait for the next attempt, or ask for one"}
	case a.Kernel == "":
		return ScriptWait, Reason{Rule: RuleNoSuchFile, Code: hotspare.CodeNoAssignment, Text: fmt.Sprintf("%s is to start, but the image has no kernel", nodeName(a)), Fix: "import the image with its kernel"}
	case tellsArch(r) && !r.Arch.Runs(a.Arch):
		return ScriptWait, Reason{
			Rule: RuleArch, Code: hotspare.CodeArchMismatch,
			Text: fmt.Sprintf("the firmware is %s and the kernel is for %s", r.Arch, a.Arch),
			Fix:  "import the image for this architecture, or exclude the machine from the pool",
		}
	case a.Kind == KindDiscovery:
		return ScriptStart, Reason{Rule: RuleDiscovery, Text: because(fmt.Sprintf("%s boots the discovery environment", nodeName(a)), a.Reason)}
	}
	text := fmt.Sprintf("%s starts", nodeName(a))
	if a.Epoch > 0 {
		text += " under epoch " + strconv.FormatUint(a.Epoch, 10)
	}
	return ScriptStart, Reason{Rule: RuleStart, Text: because(text, a.Reason)}
}

// tellsArch says whether the request carries the architecture: below a token it
// does not, and DHCP has checked it before the machine got the token.
func tellsArch(r Request) bool {
	return r.Protocol != HTTP || r.Path.Artefact == ArtefactUnassigned
}

func unapproved(a Assignment) Reason {
	return Reason{
		Rule: RuleUnapproved, Code: hotspare.CodeNoAssignment,
		Text: fmt.Sprintf("%s is not approved yet", nodeName(a)),
		Fix:  "approve the node",
	}
}

// Undecided is the reason when the Director failed: the machine waits and asks
// again. The cause stays in the log.
func Undecided() Reason {
	return Reason{Rule: RuleUndecided, Code: hotspare.CodeUnavailable, Text: "the appliance cannot say now what this machine shall do", Fix: "look into the appliance's log"}
}

func (s Site) startScript(a Assignment, reason Reason) Script {
	sc := Script{
		Kind:    ScriptStart,
		Title:   reason.Text,
		Kernel:  s.url(Path{Artefact: ArtefactKernel, Token: a.Token}),
		Cmdline: a.Cmdline,
		Attempt: attempt(a.Token),
		Again:   s.again(),
	}
	if a.Initrd != "" || a.Kind == KindStart {
		sc.Initrds = append(sc.Initrds, Initrd{Name: string(ArtefactInitrd), URL: s.url(Path{Artefact: ArtefactInitrd, Token: a.Token})})
	}
	if a.Kind == KindStart {
		// Last, for it is served once: all that may fail has succeeded by then.
		sc.Initrds = append(sc.Initrds, Initrd{Name: string(ArtefactJoin), URL: s.url(Path{Artefact: ArtefactJoin, Token: a.Token}), Once: true})
	}
	return sc
}

// attempt names a boot attempt without giving its token away.
func attempt(token string) string {
	d := TokenDigest(token)
	return hex.EncodeToString(d[:6])
}

func (s Site) waitScript(r Request, reason Reason) Script {
	lines := []string{"reason: " + reason.String()}
	if reason.Fix != "" {
		lines = append(lines, "what to do: "+reason.Fix)
	}
	return Script{Kind: ScriptWait, Title: "this machine waits", Lines: lines, Again: s.again()}
}

func (s Site) again() time.Duration {
	if s.Again <= 0 {
		return 20 * time.Second
	}
	return s.Again
}

func (s Site) url(p Path) string {
	host := s.Server.String()
	if s.HTTPPort != 0 && s.HTTPPort != 80 {
		host = netip.AddrPortFrom(s.Server, s.HTTPPort).String()
	}
	return "http://" + host + p.String()
}

func nodeName(a Assignment) string {
	if a.Node == "" {
		return "this unknown machine"
	}
	return "node " + a.Node
}

func because(text, why string) string {
	if why == "" {
		return text
	}
	return text + ": " + why
}
