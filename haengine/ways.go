package haengine

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// Way is how an application is started on a node.
type Way string

// The ways.
const (
	WayStandbySwitch Way = "standby-switch" // the parked node's kernel is the image's: it is claimed as it is
	WayStandbyKexec  Way = "standby-kexec"  // a parked node executes the image's kernel
	WayColdISCSI     Way = "cold-iscsi"     // power cycle, network boot, root over iSCSI
	WayColdSAN       Way = "cold-san"       // power cycle, the firmware boots the volume: no agent inside
	WayRAM           Way = "ram"            // the root is in memory
	WayInstall       Way = "install"        // the image is written to a local disk, then started
	WaySlot          Way = "slot"           // a copy that was installed earlier is started
)

// Ways lists all of them, in the order in which they are shown.
func Ways() []Way {
	return []Way{WayStandbySwitch, WayStandbyKexec, WayColdISCSI, WayColdSAN, WayRAM, WayInstall, WaySlot}
}

// NeedsVolume says whether a node started in this way stops when its volumes
// are revoked. Storage evidence never counts for the others (SAFETY S2.2).
func (w Way) NeedsVolume() bool { return w != WayRAM && w != WayInstall && w != WaySlot }

// LeavesCopy says whether something of the application stays on a local disk and
// could start there again: identity evidence counts only after that was disabled
// (SAFETY S2.3).
func (w Way) LeavesCopy() bool { return w == WayInstall || w == WaySlot }

// HasAgent says whether an agent guards the application on its node. Without one
// nobody drops it: only power or a person's word excludes it, there is no orderly
// release, and it runs when the check from the appliance passes.
func (w Way) HasAgent() bool { return w != WayColdSAN }

// expected is the time to service in which a way is taken to succeed before one
// start was measured. The cold ones have a minute of firmware in them, which real
// machines take at least.
func (w Way) expected() time.Duration {
	switch w {
	case WayStandbySwitch:
		return 3 * time.Second
	case WayStandbyKexec:
		return 13 * time.Second
	case WaySlot:
		return 15 * time.Second
	case WayRAM:
		return 20 * time.Second
	case WayColdISCSI:
		return 70 * time.Second
	case WayColdSAN:
		return 80 * time.Second
	}
	return 10 * time.Minute
}

// firmware is what a start with a power cycle takes longer than one of a parked
// node, as long as nothing was measured.
const firmware = time.Minute

// ImageFacts are what the appliance found out about an image.
type ImageFacts struct {
	Ref    string         `json:"ref"`              // as applications name it: Application.Image
	Image  string         `json:"image"`            // name:version that it stands for now
	Arch   string         `json:"arch,omitempty"`   // GOARCH word
	Kernel string         `json:"kernel,omitempty"` // identity of kernel and modules: a node whose Parked.Kernel is equal runs them
	Ways   []Way          `json:"ways"`             // that the image can be started in
	Not    map[Way]string `json:"not,omitempty"`    // why it cannot be started in the others
}

// offers says whether the image has a way like that, a network boot without an
// agent set aside.
func (f *ImageFacts) offers(like func(Way) bool) bool {
	return slices.ContainsFunc(f.Ways, func(w Way) bool { return w != WayColdSAN && like(w) })
}

// NodeFacts are what an authenticated agent found on its node.
type NodeFacts struct {
	Model   string `json:"model,omitempty"`   // vendor and product: times are measured per model
	Kexec   bool   `json:"kexec,omitempty"`   // its standby kernel executes others
	NoKexec string `json:"noKexec,omitempty"` // why not
	Disk    bool   `json:"disk,omitempty"`    // the local disk that its document names is there and may be written
	NoDisk  string `json:"noDisk,omitempty"`  // why not
}

// WayChoice is a way as placement saw it for an application on a node.
type WayChoice struct {
	Way      Way      `json:"way"`
	OK       bool     `json:"ok"`
	Text     string   `json:"text"`               // why not; or from what it begins and how long it takes
	Expect   Duration `json:"expect,omitempty"`   // time to service, from the evidence to the passed check
	Measured int      `json:"measured,omitempty"` // starts behind Expect; 0: an assumption
	Parked   bool     `json:"parked,omitempty"`   // it begins from the node's parked boot
	Direct   bool     `json:"direct,omitempty"`   // ... which is claimed as it is

	copy *LocalCopy
	rank int
}

// Measured are the last times to service of an application on a model, in one way.
type Measured struct {
	App   string     `json:"app"`
	Model string     `json:"model"` // or the node's name where its model is unknown
	Way   string     `json:"way"`   // with "/cold" where a way can begin from standby, too, and did not
	Last  []Duration `json:"last"`  // newest last
}

// keptTimes is how many measurements the median is taken of.
const keptTimes = 5

func timeKey(app, model, way string) string { return app + "|" + model + "|" + way }

func wayName(w Way, parked bool) string {
	if !parked && (w == WayRAM || w == WayInstall || w == WaySlot) {
		return string(w) + "/cold"
	}
	return string(w)
}

func modelOf(n *NodeState) string {
	if n.Facts != nil && n.Facts.Model != "" {
		return n.Facts.Model
	}
	return n.Spec.Name
}

func median(d []Duration) Duration {
	d = slices.Sorted(slices.Values(d))
	return d[len(d)/2]
}

// measure notes how long a start took.
func (w *work) measure(a *AppState) {
	g := a.Grant
	n := w.nodes.get(g.Node)
	if g.Began.IsZero() || n == nil {
		return
	}
	m := Measured{App: a.Spec.Name, Model: modelOf(n), Way: wayName(g.Way, g.From != "")}
	key := timeKey(m.App, m.Model, m.Way)
	if old := w.times.get(key); old != nil {
		m.Last = old.Last
	}
	m.Last = append(slices.Clone(m.Last), Duration(w.now.Sub(g.Began)))
	m.Last = m.Last[max(0, len(m.Last)-keptTimes):]
	w.times.put(key, &m)
}

// forgetTimes drops what was measured of an application that is gone.
func (w *work) forgetTimes(app string) {
	for _, k := range w.times.keys() {
		if w.times.get(k).App == app {
			w.times.del(k)
		}
	}
}

// expect gives the time to service of a way: measured with this application on
// this model, else on any model, else assumed.
func (w *work) expect(a *AppState, n *NodeState, way Way, parked bool) (d Duration, measured int) {
	name := wayName(way, parked)
	if m := w.times.get(timeKey(a.Spec.Name, modelOf(n), name)); m != nil {
		return median(m.Last), len(m.Last)
	}
	var all []Duration
	for _, k := range w.times.keys() {
		if m := w.times.get(k); m.App == a.Spec.Name && m.Way == name {
			all = append(all, m.Last...)
		}
	}
	if len(all) > 0 {
		return median(all), len(all)
	}
	t := way.expected()
	if name != string(way) {
		t += firmware
	}
	return Duration(t), 0
}

// class puts times that differ by less than a quarter together: noise must not
// decide between nodes.
func class(d Duration) int {
	n := 0
	for limit := Duration(time.Second); d > limit && n < 60; n++ {
		limit += limit / 4
	}
	return n
}

// waysOn gives every way for the application on the node with its reasons, the
// possible ones first, in the order in which they would be tried.
func (w *work) waysOn(a *AppState, n *NodeState) []WayChoice {
	boot, whyNot := w.parkedBoot(n)
	var out []WayChoice
	for _, way := range Ways() {
		out = append(out, w.wayOn(a, n, way, boot != "", whyNot))
	}
	slices.SortStableFunc(out, func(x, y WayChoice) int {
		switch {
		case x.OK != y.OK && x.OK:
			return -1
		case x.OK != y.OK:
			return 1
		case x.rank != y.rank:
			return x.rank - y.rank
		}
		return int(min(1, max(-1, x.Expect-y.Expect)))
	})
	return out
}

func (w *work) wayOn(a *AppState, n *NodeState, way Way, parked bool, whyNot string) WayChoice {
	c := WayChoice{Way: way}
	p, facts := a.Spec.Policy, w.images.get(a.Spec.Image)
	sameKernel := parked && facts != nil && facts.Kernel != "" && n.Park.Kernel == facts.Kernel
	kexec := parked && n.Facts != nil && n.Facts.Kexec
	switch way {
	case WayStandbySwitch:
		c.Parked, c.Direct = sameKernel, sameKernel
	case WayStandbyKexec:
		c.Parked = kexec
	case WayRAM, WayInstall, WaySlot:
		c.Parked, c.Direct = sameKernel || kexec, sameKernel
	}
	c.Expect, c.Measured = w.expect(a, n, way, c.Parked)
	why := w.notAtAll(a, facts, way)
	if c.rank = 1; why == "" { // what is possible elsewhere, or later, is shown first
		c.rank, why = 0, w.notHere(a, n, &c, facts, parked, whyNot)
	}
	if f := w.failedWay(a, n.Spec.Name, way); why == "" && f != nil && c.Parked && w.now.Sub(f.At) < p.RetryAfter.D() && !(a.Asked != nil && a.Asked.Way == way) {
		why = fmt.Sprintf("it failed here (%s); rests for %s", f.Why, p.RetryAfter)
	}
	if why != "" {
		c.Text, c.Expect, c.Measured, c.Parked, c.Direct = why, 0, 0, false, false
		return c
	}
	c.OK = true
	c.rank = w.wayRank(p, way, c.Expect)
	from := "from off"
	if c.Parked {
		from = "from standby"
	}
	c.Text = fmt.Sprintf("%s, %s assumed", from, c.Expect)
	if c.Measured > 0 {
		c.Text = fmt.Sprintf("%s, %s measured (%d)", from, time.Duration(c.Expect).Round(100*time.Millisecond), c.Measured)
	}
	return c
}

// wayRank orders ways: as the policy lists them, or by time.
func (w *work) wayRank(p Policy, way Way, expect Duration) int {
	if p.WayOrder == OrderListed {
		return slices.Index(p.Ways, way)
	}
	return class(expect)
}

// notAtAll says why a way is not for this application, wherever.
func (w *work) notAtAll(a *AppState, facts *ImageFacts, way Way) string {
	p := a.Spec.Policy
	switch {
	case a.Asked != nil && a.Asked.Way != "" && a.Asked.Way != way:
		return "the operator asked for " + string(a.Asked.Way)
	case len(p.Ways) > 0 && !slices.Contains(p.Ways, way):
		return "the policy does not list it"
	case len(p.Ways) == 0 && way.LeavesCopy():
		return "it writes to a local disk: the policy has to list it"
	case facts == nil && way != WayColdISCSI:
		return "nothing is known about the image"
	case facts != nil && !slices.Contains(facts.Ways, way):
		if why := facts.Not[way]; why != "" {
			return why
		}
		return "the image does not offer it"
	case len(p.Ways) == 0 && way == WayRAM && facts.offers(Way.NeedsVolume):
		return "its root would be in memory: the policy has to list it"
	case len(p.Ways) == 0 && !way.HasAgent() && facts.offers(Way.HasAgent):
		return "no agent would guard it: the policy has to list it"
	case way.HasAgent():
		return ""
	case len(a.Spec.Volumes) > 0:
		return "no agent is there to attach the application's volumes"
	case !accepts(p, EvidencePower):
		return "no agent guards the application: the policy has to accept power evidence"
	case !slices.ContainsFunc(a.Spec.Monitors, func(m Monitor) bool { return m.Kind != MonitorHeartbeat && slices.Contains(m.From, FromAppliance) }):
		return "no agent guards the application: it needs a check from the appliance"
	}
	return ""
}

// notHere says why a way is not possible on this node now.
func (w *work) notHere(a *AppState, n *NodeState, c *WayChoice, facts *ImageFacts, parked bool, whyNot string) string {
	if n.Spec.BMC.SharedPower && !(c.Way.NeedsVolume() && c.Way.HasAgent()) {
		return "its BMC loses power with it, and nothing else excludes this way"
	}
	switch c.Way {
	case WayStandbySwitch:
		switch {
		case !parked:
			return whyNot
		case !c.Direct && facts.Kernel == "":
			return "the image's kernel is not known"
		case !c.Direct:
			return fmt.Sprintf("it is parked on kernel %s, the image has %s", n.Park.Kernel, facts.Kernel)
		}
	case WayStandbyKexec:
		switch {
		case !parked:
			return whyNot
		case !c.Parked && n.Facts != nil && n.Facts.NoKexec != "":
			return "it cannot execute another kernel: " + n.Facts.NoKexec
		case !c.Parked:
			return "it cannot execute another kernel"
		}
	case WayInstall:
		switch {
		case n.Spec.Disk == nil:
			return "its document names no local disk to install on"
		case w.writesDisk(n.Spec.Name):
			return "its disk is being written to, or has to be looked after first"
		case !n.roomFor(a.Spec.Name):
			return "its disk is full of other applications' copies"
		case n.Facts != nil && !n.Facts.Disk:
			return strings.TrimSuffix("no local disk to install on: "+n.Facts.NoDisk, ": ")
		}
	case WaySlot:
		switch c.copy = n.usableCopy(a.Spec.Name, facts.Image); {
		case n.Spec.Disk == nil:
			return "its document names no local disk"
		case c.copy == nil:
			return "no local disk of it holds " + facts.Image
		}
	}
	return ""
}

// failedWay gives the failure that is held against a way on a node.
func (w *work) failedWay(a *AppState, node string, way Way) *Failure {
	for i := range a.Failures {
		if f := &a.Failures[i]; f.Node == node && f.Parked && f.Way == way {
			return f
		}
	}
	return nil
}

// imageSeen takes what is known about an image.
func (w *work) imageSeen(f ImageFacts) {
	f.Ways, f.Not = slices.Clone(f.Ways), maps.Clone(f.Not)
	old := w.images.get(f.Ref)
	w.images.put(f.Ref, &f)
	w.all = true
	if old == nil || old.Image == f.Image {
		return
	}
	for _, k := range w.nodes.keys() { // what was preloaded is of the version before
		if p := w.nodes.get(k).Park; p != nil && p.BootID != "" && slices.Contains(p.Loaded, f.Ref) {
			n := w.nodes.edit(k)
			n.Park.Loaded = nil
			w.preload(n, "")
		}
	}
}
