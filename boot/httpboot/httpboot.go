// Package httpboot serves boot files over HTTP to iPXE and to UEFI firmware.
//
// It is one http.Handler without a ServeMux: that one redirects //file, and UEFI
// HTTP boot does not follow redirects (tinkerbell/smee#229). Paths are those of
// boot.ParsePath. Each is decided by boot.Site.Plan over what the Director
// assigned to the token, so DHCP and HTTP never differ; scripts come from the
// injected writer (boot/ipxe), artefacts from the injected Source. Ranges, HEAD
// and If-Range follow RFC 9110 section 14 through http.ServeContent.
//
// The join archive, which carries the machine's join secret, is served once per
// token; a second fetch is refused with 410 and reported (SAFETY L1).
//
// Serve bounds connections and time; with Certificates it speaks TLS. The package
// opens no listener and keeps no file.
package httpboot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"hotspare"
	"hotspare/boot"
)

// File is one artefact, open. ETag is a quoted strong validator or "".
type File struct {
	io.ReadSeekCloser
	ModTime time.Time
	ETag    string
}

// Source opens the artefacts of a boot: kernel, initrd, join. It is called only
// for a token that the Director vouched for and that Plan admitted.
type Source interface {
	// Open gives the artefact. boot.ErrSpent says that the join archive or the
	// SAN script was opened before: the source notes that durably, before it returns the file,
	// so that it holds over a restart.
	Open(ctx context.Context, token string, artefact boot.Artefact) (File, error)
}

// Refetch tells of a second fetch of a join archive.
type Refetch struct {
	Node   string
	Epoch  uint64
	MAC    boot.MAC   // of the asker by its lease, zero if unknown
	Client netip.Addr // who asked
}

// Options of a Handler. All but Site, Director, Source, Script and Loader may be
// left out.
type Options struct {
	Site     boot.Site
	SiteAt   func(local netip.Addr) boot.Site // where requests for several addresses of ours come in: what stands in answers to each; nil: Site
	Director boot.Director
	Source   Source
	Script   func(boot.Script) ([]byte, error)            // ipxe.Write
	GRUB     func(boot.Script) ([]byte, error)            // grub.Write; nil: no machine boots by GRUB
	Loader   func(name string) (io.ReadSeekCloser, error) // called with names of Site.Loaders only
	MACOf    func(netip.Addr) (boot.MAC, bool)            // by lease, for traces only
	Refetch  func(context.Context, Refetch)               // JoinFetchedTwice: quarantine and alarm; must not block
	Stall    time.Duration                                // in which a machine must take a MiB, 0: 1 min
	Recorder *boot.Recorder                               // nil: no traces
	Log      *slog.Logger                                 // nil: discard
	Now      func() time.Time                             // nil: time.Now
}

func (o Options) withDefaults() Options {
	if o.MACOf == nil {
		o.MACOf = func(netip.Addr) (boot.MAC, bool) { return boot.MAC{}, false }
	}
	if o.SiteAt == nil {
		o.SiteAt = func(netip.Addr) boot.Site { return o.Site }
	}
	if o.GRUB == nil {
		o.GRUB = func(s boot.Script) ([]byte, error) {
			return nil, &hotspare.Error{Code: hotspare.CodeInvalid, What: "no GRUB script can be written", Where: "httpboot.Options.GRUB", Why: "it is missing"}
		}
	}
	if o.Stall <= 0 {
		o.Stall = time.Minute
	}
	if o.Refetch == nil {
		o.Refetch = func(context.Context, Refetch) {}
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return o
}

func (o Options) validate() error {
	missing := func(field string) error {
		return &hotspare.Error{Code: hotspare.CodeInvalid, What: "the boot file server is not configured", Where: "httpboot.Options." + field, Why: "it is missing"}
	}
	switch {
	case !o.Site.Server.IsValid():
		return missing("Site.Server")
	case o.Director == nil:
		return missing("Director")
	case o.Source == nil:
		return missing("Source")
	case o.Script == nil:
		return missing("Script")
	case o.Loader == nil:
		return missing("Loader")
	}
	return nil
}

// Handler serves the boot paths.
type Handler struct {
	o    Options
	join taken
}

// New checks the options.
func New(o Options) (*Handler, error) {
	if err := o.validate(); err != nil {
		return nil, err
	}
	return &Handler{o: o.withDefaults()}, nil
}

// ServeHTTP answers one request.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("X-Content-Type-Options", "nosniff")
	// The deadline of the connection's last answer still stands.
	control := http.NewResponseController(w)
	_ = control.SetWriteDeadline(time.Now().Add(h.o.Stall)) // not supported by a test's writer
	if r.ContentLength != 0 {
		// Nothing here takes a body; one that comes slowly must not hold us.
		_ = control.SetReadDeadline(time.Now().Add(5 * time.Second))
		w.Header().Set("Connection", "close")
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		plain(w, http.StatusMethodNotAllowed, "only GET and HEAD are served here")
		return
	}
	if r.ContentLength != 0 {
		plain(w, http.StatusBadRequest, "a request for a boot file has no body")
		return
	}
	path, ok := boot.ParsePath(r.URL.Path)
	if !ok {
		plain(w, http.StatusNotFound, "this is not a boot path")
		return
	}
	c := h.newCall(w, r, path)
	a, err := h.o.Director.Assign(r.Context(), c.req)
	if err != nil {
		c.undecided(err)
		return
	}
	c.a = a
	offer, reason := c.site.Plan(c.req, a)
	switch offer.Kind {
	case boot.OfferScript:
		c.script(offer.Script, reason)
	case boot.OfferContent:
		c.content(offer, reason)
	default:
		c.deny(reason)
	}
}

// call is one request on its way.
type call struct {
	h    *Handler
	w    http.ResponseWriter
	r    *http.Request
	at   time.Time
	req  boot.Request
	site boot.Site // at the address that was asked
	mac  boot.MAC  // of the asker by its lease; zero if unknown
	a    boot.Assignment
}

// traceMAC is whose trace the request belongs to. A MAC address in the path is
// only believed when no lease tells better.
func (c *call) traceMAC() boot.MAC {
	for _, m := range []boot.MAC{c.mac, c.a.MAC} {
		if !m.IsZero() {
			return m
		}
	}
	return c.req.MAC
}

func (h *Handler) newCall(w http.ResponseWriter, r *http.Request, path boot.Path) *call {
	req := boot.Request{Protocol: boot.HTTP, Stage: boot.StageFirmware, Path: path, MAC: path.MAC, Arch: path.Arch, Secure: r.TLS != nil}
	switch {
	case strings.HasPrefix(r.UserAgent(), "iPXE/"):
		req.Stage = boot.StageIPXE
	case strings.HasPrefix(r.UserAgent(), "GRUB"):
		req.Stage = boot.StageGRUB
	}
	if ap, err := netip.ParseAddrPort(r.RemoteAddr); err == nil {
		req.Client = ap.Addr().Unmap()
	}
	c := &call{h: h, w: w, r: r, at: h.o.Now(), site: h.o.SiteAt(Local(r.Context()))}
	if m, ok := h.o.MACOf(req.Client); ok {
		c.mac = m
		if req.MAC.IsZero() {
			req.MAC = m
		}
	}
	c.req = req
	return c
}

// Local gives the address of ours that the request of this context came to; not
// valid when it came by no connection of Serve.
func Local(ctx context.Context) netip.Addr {
	at, ok := ctx.Value(http.LocalAddrContextKey).(net.Addr)
	if !ok {
		return netip.Addr{}
	}
	ap, err := netip.ParseAddrPort(at.String())
	if err != nil {
		return netip.Addr{}
	}
	return ap.Addr().Unmap().WithZone("")
}

func (c *call) record(answer string, reason boot.Reason) {
	c.recordStep(boot.StepOf(c.req.Path.Artefact), answer, reason, boot.Detail{})
}

func (c *call) recordStep(step boot.Step, answer string, reason boot.Reason, d boot.Detail) {
	c.h.o.Recorder.Record(boot.Entry{
		At: c.at, MAC: c.traceMAC(), Protocol: boot.HTTP, Step: step, Node: c.a.Node, Detail: d,
		Request: c.r.Method + " " + c.req.Path.Redacted(), Answer: answer, Reason: reason,
	})
}

// undecided answers when the Director failed. A machine that runs a script
// waits; everything else gets 503.
func (c *call) undecided(err error) {
	reason := boot.Undecided()
	c.h.o.Log.Error("boot decision failed", "path", c.req.Path.Redacted(), "client", c.req.Client, "err", err)
	if hotspare.CodeOf(err) == hotspare.CodeBootToken {
		// An unknown token is refused as Plan refuses it.
		offer, reason := c.site.Plan(c.req, boot.Assignment{})
		if offer.Kind == boot.OfferScript {
			c.script(offer.Script, reason)
			return
		}
		c.deny(reason)
		return
	}
	wait := boot.Script{Kind: boot.ScriptWait, Title: "this machine waits", Lines: []string{"reason: " + reason.String()}, Again: c.site.Again}
	switch c.req.Path.Artefact {
	case boot.ArtefactScript, boot.ArtefactUnassigned:
		if c.req.Stage == boot.StageIPXE {
			c.script(wait, reason)
			return
		}
	case boot.ArtefactGRUB:
		wait.Language = boot.LanguageGRUB
		c.script(wait, reason)
		return
	case boot.ArtefactGRUBEntry, boot.ArtefactLoader:
		// The same for every machine, whatever is meant for it.
		if offer, reason := c.site.Plan(c.req, boot.Assignment{}); offer.Kind == boot.OfferScript {
			c.script(offer.Script, reason)
			return
		} else if offer.Kind == boot.OfferContent {
			c.content(offer, reason)
			return
		}
	}
	c.record("503", reason)
	plain(c.w, http.StatusServiceUnavailable, reason.String())
}

func (c *call) deny(reason boot.Reason) {
	status := http.StatusForbidden
	if reason.Rule == boot.RuleNoSuchFile {
		status = http.StatusNotFound
	}
	c.record(strconv.Itoa(status), reason)
	text := reason.String()
	if reason.Fix != "" {
		text += "; what to do: " + reason.Fix
	}
	plain(c.w, status, text)
}

func (c *call) script(s boot.Script, reason boot.Reason) {
	write := c.h.o.Script
	if s.Language == boot.LanguageGRUB {
		write = c.h.o.GRUB
	}
	text, err := write(s)
	if err != nil {
		// A start that cannot be written (an argument that the loader would take
		// apart) becomes a wait that says so on the machine's screen.
		c.h.o.Log.Error("boot script refused", "node", c.a.Node, "err", err)
		reason = boot.Reason{Rule: boot.RuleUndecided, Code: hotspare.CodeOf(err), Text: "the boot script cannot be written: " + err.Error()}
		text, err = write(boot.Script{Kind: boot.ScriptWait, Language: s.Language, Title: "this machine waits", Lines: []string{"reason: " + reason.Text}, Again: c.site.Again})
		if err != nil {
			c.record("500", reason)
			plain(c.w, http.StatusInternalServerError, reason.Text)
			return
		}
		s.Kind = boot.ScriptWait
	}
	c.recordStep(boot.StepOfScript(s.Kind), "script: "+string(s.Kind), reason, boot.Detail{Bytes: int64(len(text)), Size: int64(len(text)), Took: c.h.o.Now().Sub(c.at)})
	head := c.w.Header()
	head.Set("Content-Type", "text/plain; charset=us-ascii")
	head.Set("Cache-Control", "no-store")
	http.ServeContent(c.w, c.r, "", time.Time{}, bytes.NewReader(text))
}

func (c *call) content(offer boot.Offer, reason boot.Reason) {
	switch offer.Artefact {
	case boot.ArtefactLoader:
		f, err := c.h.o.Loader(offer.BootFile)
		if err != nil {
			c.failed(err)
			return
		}
		if strings.HasSuffix(offer.BootFile, ".efi") {
			c.w.Header().Set("Content-Type", "application/efi")
		}
		c.send(File{ReadSeekCloser: f}, reason)
	case boot.ArtefactJoin, boot.ArtefactSAN:
		c.sendOnce(offer.Artefact, reason)
	default:
		f, err := c.h.o.Source.Open(c.r.Context(), c.req.Path.Token, offer.Artefact)
		if err != nil {
			c.failed(err)
			return
		}
		c.send(f, reason)
	}
}

// sendOnce serves what carries a secret, once. The set in memory holds also when
// the source forgets; the source holds over a restart.
func (c *call) sendOnce(what boot.Artefact, reason boot.Reason) {
	if c.r.Method != http.MethodGet {
		c.w.Header().Set("Allow", "GET")
		plain(c.w, http.StatusMethodNotAllowed, fmt.Sprintf("the %s is fetched with GET, once", onceName(what)))
		return
	}
	// A boot has one of these, never both: the token alone is the key.
	key := boot.TokenDigest(c.req.Path.Token)
	if !c.h.join.take(key) {
		c.spent(what)
		return
	}
	f, err := c.h.o.Source.Open(c.r.Context(), c.req.Path.Token, what)
	switch {
	case errors.Is(err, boot.ErrSpent):
		c.spent(what)
		return
	case err != nil:
		c.h.join.giveBack(key) // nothing left the house
		c.failed(err)
		return
	}
	// One whole answer: half a secret in a range would need a second fetch.
	c.r.Header.Del("Range")
	c.w.Header().Set("Cache-Control", "no-store")
	if what == boot.ArtefactSAN {
		c.w.Header().Set("Content-Type", "text/plain; charset=us-ascii")
	}
	f.ETag, f.ModTime = "", time.Time{}
	c.send(f, reason)
}

func onceName(what boot.Artefact) string {
	if what == boot.ArtefactSAN {
		return "script with the volume's secret"
	}
	return "join archive"
}

func (c *call) spent(what boot.Artefact) {
	reason := boot.Reason{
		Rule: boot.RuleSpent, Code: hotspare.CodeTokenReused,
		Text: fmt.Sprintf("the %s of this boot was fetched before; the boot attempt is void", onceName(what)),
		Fix:  "find out who fetched it, then boot the node again",
	}
	c.h.o.Log.Warn("fetched twice", "what", onceName(what), "node", c.a.Node, "epoch", c.a.Epoch, "client", c.req.Client)
	c.h.o.Refetch(c.r.Context(), Refetch{Node: c.a.Node, Epoch: c.a.Epoch, MAC: c.mac, Client: c.req.Client})
	c.record("410", reason)
	plain(c.w, http.StatusGone, reason.String())
}

func (c *call) failed(err error) {
	c.h.o.Log.Error("boot artefact not available", "path", c.req.Path.Redacted(), "node", c.a.Node, "err", err)
	reason := boot.Reason{Rule: boot.RuleTransferFail, Code: hotspare.CodeOf(err), Text: fmt.Sprintf("%s cannot be opened", c.req.Path.Artefact), Fix: "look into the appliance's log"}
	c.record("500", reason)
	plain(c.w, http.StatusInternalServerError, reason.String())
}

// send serves a file and records how much of it went out, and how fast.
func (c *call) send(f File, reason boot.Reason) {
	defer f.Close()
	head := c.w.Header()
	if head.Get("Content-Type") == "" {
		head.Set("Content-Type", "application/octet-stream")
	}
	if f.ETag != "" {
		head.Set("ETag", f.ETag)
	}
	if when, ok := f.ReadSeekCloser.(interface{ Stat() (fs.FileInfo, error) }); ok && f.ModTime.IsZero() && f.ETag == "" && head.Get("Cache-Control") == "" {
		if info, err := when.Stat(); err == nil {
			f.ModTime = info.ModTime()
		}
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		c.failed(err)
		return
	}
	cw := &counter{ResponseWriter: c.w, stall: c.h.o.Stall}
	// The file itself: net/http finds no sendfile(2) behind a type of ours.
	http.ServeContent(cw, c.r, "", f.ModTime, f.ReadSeekCloser)
	took := c.h.o.Now().Sub(c.at)
	answer := fmt.Sprintf("%d, %d bytes in %s", cw.code(), cw.n, took.Round(time.Millisecond))
	switch {
	case errors.Is(cw.err, os.ErrDeadlineExceeded):
		reason = boot.Reason{Rule: boot.RuleTransferFail, Code: hotspare.CodeTransfer, Text: fmt.Sprintf("%s stopped: the machine took less than %d KiB in %s", c.req.Path.Artefact, slice>>10, c.h.o.Stall)}
	case cw.err != nil:
		reason = boot.Reason{Rule: boot.RuleTransferFail, Text: fmt.Sprintf("%s stopped: the machine went away", c.req.Path.Artefact)}
	}
	c.recordStep(boot.StepOf(c.req.Path.Artefact), answer, reason, boot.Detail{Bytes: cw.n, Size: size, Took: took, Failed: cw.err != nil})
}

func plain(w http.ResponseWriter, status int, text string) {
	head := w.Header()
	head.Set("Content-Type", "text/plain; charset=utf-8")
	head.Set("Cache-Control", "no-store")
	head.Set("Content-Length", strconv.Itoa(len(text)+1))
	w.WriteHeader(status)
	_, _ = io.WriteString(w, text+"\n")
}
