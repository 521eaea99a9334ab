package boot

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"hotspare"
)

// Site is what Plan knows of the appliance: where its servers listen and which
// loader each firmware gets.
type Site struct {
	Server        netip.Addr      // address of TFTP and HTTP, on the nodes' segment
	HTTPPort      uint16          // of the boot files; 0 means 80
	HTTPSPort     uint16          // of the same over TLS; 0: not served
	Loaders       map[Arch]string // file names, served by TFTP and below /loader/
	SecureLoaders map[Arch]string // for nodes with Secure Boot; their firmware refuses the others
	MoreLoaders   []string        // files that nodes may ask for beside these
	Again         time.Duration   // how long a waiting machine waits; 0 means 20 s
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

// Redacted is the boot file or URL without its token, for logs and traces.
func (o Offer) Redacted() string { return RedactFile(o.BootFile) }

// Plan decides. It is a pure function: the same site, request and assignment
// give the same offer and reason, whatever the protocol.
//
// The firmware always gets its loader, whatever is assigned: a firmware that
// gets none goes on to the next boot device, and a fenced machine must not reach
// its disk that way (SAFETY S2a). The decision proper is taken for the iPXE or
// GRUB that the loader leads to.
func (s Site) Plan(r Request, a Assignment) (Offer, Reason) {
	switch r.Protocol {
	case DHCP, ProxyDHCP:
		return s.planDHCP(r, a)
	case TFTP:
		return s.planTFTP(r, a)
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
		verdict, reason := judge(r, a, LoaderIPXE)
		path := Path{Artefact: ArtefactUnassigned, MAC: r.MAC, Arch: r.Arch}
		secure := false
		if verdict != ScriptWait {
			path, secure = Path{Artefact: ArtefactScript, Token: a.Token}, a.HTTPS == HTTPSAll
		}
		o := Offer{Kind: OfferURL, BootFile: s.url(path, secure), NextServer: s.Server}
		if r.Protocol == ProxyDHCP {
			o.VendorClass = "PXEClient" // iPXE takes a proxy's answer only with it
		}
		return o, reason
	}
	return s.planLoader(r, a)
}

func (s Site) planHTTP(r Request, a Assignment) (Offer, Reason) {
	switch p := r.Path; p.Artefact {
	case ArtefactLoader:
		if p.folder() != "" {
			return s.planGRUB(r, a)
		}
		if s.serves(p.Name) {
			return loaderContent(p.Name)
		}
		return Offer{Kind: OfferDeny}, Reason{Rule: RuleNoSuchFile, Text: "no loader has this name"}
	case ArtefactGRUB, ArtefactGRUBEntry:
		return s.planGRUB(r, a)
	case ArtefactUnassigned:
		// Knowing a MAC opens nothing here: the script only waits, and asks by
		// DHCP on the machine's own segment again.
		r.MAC, r.Arch = p.MAC, p.Arch
		verdict, reason := judge(r, a, LoaderIPXE)
		sc := s.waitScript(r, reason, LanguageIPXE)
		if verdict != ScriptWait {
			sc.Title, sc.Again = "an assignment is there now", time.Second
		}
		return Offer{Kind: OfferScript, Script: sc}, reason
	case ArtefactScript, ArtefactKernel, ArtefactInitrd, ArtefactRoot, ArtefactJoin, ArtefactSAN:
		return s.planToken(r, a)
	}
	return Offer{Kind: OfferDeny}, Reason{Rule: RuleNoSuchFile, Text: "this is not a boot path"}
}

func tokenRefused() Reason {
	return Reason{
		Rule: RuleToken, Code: hotspare.CodeBootToken,
		Text: "this boot token is not live: it was never given, or its boot attempt is over",
		Fix:  "nothing on the machine; it gets a new token when it boots again",
	}
}

// planToken answers the paths that a boot token opens.
func (s Site) planToken(r Request, a Assignment) (Offer, Reason) {
	if !SameToken(r.Path.Token, a.Token) {
		reason := tokenRefused()
		if r.Path.Artefact == ArtefactScript && r.Stage == StageIPXE {
			// A refused script would send the machine on to its next boot
			// device (SAFETY S2a): it waits and asks again instead.
			return Offer{Kind: OfferScript, Script: s.waitScript(r, reason, LanguageIPXE)}, reason
		}
		return Offer{Kind: OfferDeny}, reason
	}
	if r.Path.Artefact == ArtefactScript {
		return s.planScript(r, a, LanguageIPXE)
	}
	verdict, reason := judge(r, a, "")
	if verdict != ScriptStart && verdict != ScriptSAN {
		return Offer{Kind: OfferDeny}, reason
	}
	switch art := r.Path.Artefact; {
	case art == ArtefactJoin && a.Kind != KindStart:
		return Offer{Kind: OfferDeny}, Reason{Rule: RuleUnapproved, Code: hotspare.CodeBootToken, Text: "there is no join archive for this boot"}
	case (art == ArtefactSAN) != (a.Kind == KindSAN):
		return Offer{Kind: OfferDeny}, Reason{Rule: RuleNoSuchFile, Text: fmt.Sprintf("there is no %s for this boot", art)}
	}
	return Offer{Kind: OfferContent, Artefact: r.Path.Artefact}, Reason{Rule: RuleFile, Text: fmt.Sprintf("sends %s for %s", r.Path.Artefact, nodeName(a))}
}

// planScript writes down what the assignment says, in the loader's language.
func (s Site) planScript(r Request, a Assignment, lang Language) (Offer, Reason) {
	kind := LoaderIPXE
	if lang == LanguageGRUB {
		kind = LoaderGRUB
	}
	verdict, reason := judge(r, a, kind)
	var sc Script
	switch verdict {
	case ScriptStart:
		sc = s.startScript(a, reason, lang)
	case ScriptSAN:
		sc = Script{
			Kind: ScriptSAN, Title: reason.Text, Attempt: attempt(a.Token), Again: s.again(),
			SAN: s.url(Path{Artefact: ArtefactSAN, Token: a.Token}, a.HTTPS == HTTPSAll),
		}
	case ScriptLocal:
		sc = Script{Kind: ScriptLocal, Title: reason.Text}
	default:
		sc = s.waitScript(r, reason, lang)
	}
	sc.Language = lang
	return Offer{Kind: OfferScript, Script: sc}, reason
}

// judge says what the machine may do, the same for every protocol. with is the
// loader that is to do it, "" where any may.
func judge(r Request, a Assignment, with LoaderKind) (ScriptKind, Reason) {
	granted := a.Kind == KindStart || a.Kind == KindSAN
	switch {
	case granted && !a.Approved:
		return ScriptWait, unapproved(a)
	case granted || a.Kind == KindDiscovery && a.Kernel != "":
		return judgeStart(r, a, with)
	case a.Node == "":
		return ScriptWait, Reason{
			Rule: RuleUnknown, Code: hotspare.CodeNoAssignment,
			Text: because("the appliance does not know this machine", a.Reason),
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

func judgeStart(r Request, a Assignment, with LoaderKind) (ScriptKind, Reason) {
	switch {
	case !ValidToken(a.Token):
		return ScriptWait, Reason{Rule: RuleNoToken, Code: hotspare.CodeBootToken, Text: fmt.Sprintf("%s is to start, but no boot token is live for it", nodeName(a)), Fix: "wait for the next attempt, or ask for one"}
	case a.Kernel == "" && a.Kind != KindSAN:
		return ScriptWait, Reason{Rule: RuleNoSuchFile, Code: hotspare.CodeNoAssignment, Text: fmt.Sprintf("%s is to start, but the image has no kernel", nodeName(a)), Fix: "import the image with its kernel"}
	case tellsArch(r) && !r.Arch.Runs(a.Arch):
		what := "kernel"
		if a.Kind == KindSAN {
			what = "disk"
		}
		return ScriptWait, Reason{
			Rule: RuleArch, Code: hotspare.CodeArchMismatch,
			Text: fmt.Sprintf("the firmware is %s and the %s is for %s", r.Arch, what, a.Arch),
			Fix:  "import the image for this architecture, or exclude the machine from the pool",
		}
	case a.HTTPS == HTTPSAll:
		if reason, bad := unfitHTTPS(r, a, with); bad {
			return ScriptWait, reason
		}
	}
	switch a.Kind {
	case KindDiscovery:
		return ScriptStart, Reason{Rule: RuleDiscovery, Text: because(fmt.Sprintf("%s boots the discovery environment", nodeName(a)), a.Reason)}
	case KindSAN:
		if reason, bad := unfitSAN(r, a, with); bad {
			return ScriptWait, reason
		}
		return ScriptSAN, Reason{Rule: RuleStart, Text: because(under(nodeName(a)+" boots its volume", a), a.Reason)}
	}
	return ScriptStart, Reason{Rule: RuleStart, Text: because(under(nodeName(a)+" starts", a), a.Reason)}
}

// unfitHTTPS says why a node that fetches everything over TLS gets nothing for this
// request.
func unfitHTTPS(r Request, a Assignment, with LoaderKind) (Reason, bool) {
	bad := func(text, fix string) (Reason, bool) {
		return Reason{Rule: RuleSecure, Code: hotspare.CodeNoAssignment, Text: text, Fix: fix}, true
	}
	switch {
	case with == LoaderGRUB || r.Protocol == TFTP:
		return bad(nodeName(a)+" fetches everything over HTTPS, and its loader fetches over TFTP", "name an iPXE that trusts the appliance's boot CA as this node's loader, or give the node https: loader")
	case r.Stage == StageIPXE && r.Protocol != HTTP && !r.Features.HTTPS, r.Protocol == HTTP && r.Path.Token == "": // which is where the former is sent
		return bad(nodeName(a)+" fetches everything over HTTPS, and its iPXE was built without it", "name an iPXE with HTTPS that trusts the appliance's boot CA as this node's loader, or give the node https: loader")
	case r.Protocol == HTTP && !r.Secure:
		return bad(nodeName(a)+" fetches everything over HTTPS, and this request came without TLS", "nothing, if another machine asked; the node itself is sent to HTTPS when it boots")
	}
	return Reason{}, false
}

func under(text string, a Assignment) string {
	if a.Epoch > 0 {
		text += " under epoch " + strconv.FormatUint(a.Epoch, 10)
	}
	return text
}

// unfitSAN says why this machine's loader cannot boot the volume as a disk.
func unfitSAN(r Request, a Assignment, with LoaderKind) (Reason, bool) {
	bad := func(text, fix string) (Reason, bool) {
		return Reason{Rule: RuleFirmware, Code: hotspare.CodeArchMismatch, Text: text, Fix: fix}, true
	}
	switch {
	case with == LoaderGRUB:
		return bad("its loader is GRUB, which cannot boot a volume over iSCSI", "name an iPXE as this node's loader; with Secure Boot it must be a signed one")
	case r.Stage == StageIPXE && r.Protocol != HTTP && !r.Features.ISCSI:
		return bad("the iPXE of this machine was built without iSCSI", "name a loader for this node, or update the iPXE in its network card")
	case tellsArch(r) && len(a.Modes) > 0 && !slices.Contains(a.Modes, r.Arch.Firmware()):
		return bad(fmt.Sprintf("the firmware is %s and the disk can be booted by %s only", r.Arch, a.Modes[0]), "set the machine's boot mode, or import an image for it")
	}
	return Reason{}, false
}

// tellsArch says whether the request carries the architecture: below a token it
// does not, and DHCP has checked it before the machine got the token.
func tellsArch(r Request) bool {
	return r.Protocol == DHCP || r.Protocol == ProxyDHCP || r.Path.Token == "" && !r.Path.MAC.IsZero()
}

func unapproved(a Assignment) Reason {
	return Reason{
		Rule: RuleUnapproved, Code: hotspare.CodeNoAssignment,
		Text: because(fmt.Sprintf("%s is not approved yet", nodeName(a)), a.Reason),
		Fix:  "approve the node",
	}
}

// Undecided is the reason when the Director failed: the machine waits and asks
// again. The cause stays in the log.
func Undecided() Reason {
	return Reason{Rule: RuleUndecided, Code: hotspare.CodeUnavailable, Text: "the appliance cannot say now what this machine shall do", Fix: "look into the appliance's log"}
}

func (s Site) startScript(a Assignment, reason Reason, lang Language) Script {
	url := func(art Artefact) string {
		p := Path{Artefact: art, Token: a.Token}
		if lang == LanguageGRUB {
			return "tftp://" + host(s.Server, 0) + p.String()
		}
		return s.url(p, a.HTTPS == HTTPSAll)
	}
	sc := Script{
		Kind:    ScriptStart,
		Title:   reason.Text,
		Kernel:  url(ArtefactKernel),
		Cmdline: a.Cmdline,
		Attempt: attempt(a.Token),
		MAC:     a.MAC,
		Again:   s.again(),
	}
	if a.Initrd != "" || a.Kind == KindStart {
		sc.Initrds = append(sc.Initrds, Initrd{Name: string(ArtefactInitrd), URL: url(ArtefactInitrd)})
	}
	if a.Kind == KindStart {
		// Last, for it is served once: all that may fail has succeeded by then.
		sc.Initrds = append(sc.Initrds, Initrd{Name: string(ArtefactJoin), URL: url(ArtefactJoin), Once: true})
	}
	return sc
}

// attempt names a boot attempt without giving its token away.
func attempt(token string) string {
	d := TokenDigest(token)
	return hex.EncodeToString(d[:6])
}

func (s Site) waitScript(r Request, reason Reason, lang Language) Script {
	lines := []string{"reason: " + reason.String()}
	if reason.Fix != "" {
		lines = append(lines, "what to do: "+reason.Fix)
	}
	return Script{Kind: ScriptWait, Language: lang, Title: "this machine waits", Lines: lines, MAC: r.MAC, Again: s.again()}
}

func (s Site) again() time.Duration {
	if s.Again <= 0 {
		return 20 * time.Second
	}
	return s.Again
}

// url gives a boot path's URL, over TLS where that is wanted and served.
func (s Site) url(p Path, secure bool) string {
	switch {
	case secure && s.HTTPSPort == 443:
		return "https://" + host(s.Server, 0) + p.String()
	case secure && s.HTTPSPort != 0:
		return "https://" + host(s.Server, s.HTTPSPort) + p.String()
	case s.HTTPPort == 80:
		return "http://" + host(s.Server, 0) + p.String()
	}
	return "http://" + host(s.Server, s.HTTPPort) + p.String()
}

// host writes an address, and the port if it is not 0, as a URL does (RFC 3986
// section 3.2.2).
func host(a netip.Addr, port uint16) string {
	switch {
	case port != 0:
		return netip.AddrPortFrom(a, port).String()
	case a.Is6():
		return "[" + a.String() + "]"
	}
	return a.String()
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
