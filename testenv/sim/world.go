package sim

import (
	"fmt"
	"net/netip"
	"time"

	"hotspare/haengine"
)

// world is the ground truth.
type world struct {
	s       *Sim
	nodes   []*node
	apps    []*app
	answers map[string]answer   // boot answers by node, kept by the appliance's disk
	tokens  map[string]grantKey // of the boots that came for a grant, by boot id
	standby haengine.Standby    // the pool's policy
	facts   bool                // the appliance tells what it knows about images

	isolated          bool          // the appliance has no network
	crashBeforeActing int           // at the n-th step with actions: die after the journal, before the first effect
	slow              time.Duration // further delay of actions
	flaky             float64       // chance that a try fails for a transient cause
	quick             bool          // machines boot and applications start within seconds
	noRevoke          bool          // the storage cannot write a new floor

	healed    time.Duration            // when the quiet time began
	linkFixed time.Duration            // when a link healed last
	probeAt   map[string]time.Duration // ... an application's probe path
	hbAt      map[string]time.Duration // ... a node's heartbeats
}

type grantKey struct {
	app   string
	epoch haengine.Epoch
}

// answer is what a node that boots from the network is given: the start of a grant
// in a way, or standby (turn is not 0) on a kernel.
type answer struct {
	key    grantKey
	way    haengine.Way
	turn   haengine.Turn
	kernel string
}

// node is a machine, its BMC and what runs on it.
type node struct {
	name    string
	powered bool
	cut     bool // its link is dead for everybody
	pathCut bool // only the appliance cannot reach it
	noHB    bool // its heartbeats are lost
	noAck   bool // they arrive, and the answers are lost
	frozen  bool // the machine hangs as a whole, for good
	noBoot  bool // it never comes up
	badApp  bool // the application never comes online on it
	badExit bool // its agent attests a release, goes on serving and falls silent

	bmcDead   bool
	bmcLies   bool // says off, does nothing
	bmcRefuse bool
	bmcLag    time.Duration // a command takes effect this late
	shared    bool          // the BMC dies with the node's power
	lostPower bool          // its feed is cut
	onAt      time.Duration // when the last power-on takes effect at the latest

	gen      int // raised at every power change and reboot: ends what was scheduled
	boots    int
	boot     string // boot id
	mode     string // "", booting, discovery, parked, running
	token    grantKey
	released grantKey       // what it released in order in this boot
	seen     haengine.Epoch // highest epoch that the agent saw in this boot
	inst     *instance
	believed bool // its BMC lied that it is off, and was believed
	missed   bool // it was cut off since it was last heard

	turn     haengine.Turn // of the order that its present boot is in standby by
	kernel   string        // that it is in standby on
	noKexec  bool          // its kernel executes no other
	late     time.Duration // claims that are sent to it, and boots that have fetched their answers, take this much longer
	copies   []haengine.LocalCopy
	installs int
	loaded   []string // images that its boot has preloaded
}

// instance is an application on a node.
type instance struct {
	key      grantKey
	way      haengine.Way
	acked    bool
	leaseEnd time.Duration
	up       bool // the service runs
	addr     bool // the address is configured
	hung     bool
	unhung   time.Duration // when it went on after a hang
	mending  time.Duration // until then the agent's restart of the service goes first: the appliance was told
	dropping bool
	online   bool          // onlining was begun
	failed   bool          // onlining ended badly
	refused  time.Duration // since when its storage refuses it; 0: it does not
}

// app is an application's storage and its truth.
type app struct {
	spec   haengine.Application
	floor  haengine.Epoch // durable in the target: lower epochs cannot write
	grants map[haengine.Epoch]string
	probe  bool // the appliance's probe path is broken
	claims haengine.Epoch
	upAt   time.Duration   // last moment at which the truth served
	moves  []time.Duration // when it was failed over for a failure
	lied   bool            // a proof about it rests on a BMC's lie that nobody could hear contradicted
}

func (w *world) init(s *Sim) {
	w.s, w.answers, w.tokens = s, map[string]answer{}, map[string]grantKey{}
	w.linkFixed, w.probeAt, w.hbAt = -time.Hour, map[string]time.Duration{}, map[string]time.Duration{}
	for i := range s.cfg.Nodes {
		w.nodes = append(w.nodes, &node{name: fmt.Sprintf("n%d", i+1), bmcLag: 0})
	}
	names := []string{"orders", "web", "mail", "wiki"}
	for i := range s.cfg.Apps {
		w.apps = append(w.apps, &app{spec: application(names[i], i), grants: map[haengine.Epoch]string{}})
	}
}

func application(name string, i int) haengine.Application {
	return haengine.Application{
		Name: name, Image: name, Pools: []string{"rack1"}, Priority: 100 - 10*i,
		Address:  netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 77, 0, byte(50 + i)}), 24),
		Requires: haengine.Requirements{MemoryMiB: 400},
		Monitors: []haengine.Monitor{
			{Name: "check", Kind: haengine.MonitorTCP, Port: 80, From: []haengine.Vantage{haengine.FromAppliance, haengine.FromNode}},
			{Name: "agent", Kind: haengine.MonitorHeartbeat},
		},
		Policy: haengine.Policy{
			Lease: dur(15 * time.Second), BootDeadline: dur(60 * time.Second), OnlineDeadline: dur(40 * time.Second),
			RetryAfter: dur(30 * time.Second), MaxFailovers: 1000,
		},
	}
}

func dur(d time.Duration) haengine.Duration { return haengine.Duration(d) }

func nodeSpec(n *node) haengine.Node {
	disk := &haengine.LocalDisk{Serial: n.name, Slots: 3, SlotGiB: 1}
	if n.wholeDisk() {
		disk.Slots, disk.SlotGiB = 0, 0
	}
	return haengine.Node{
		Name: n.name, MACs: []string{"52:54:00:77:00:0" + n.name[1:]}, Pool: "rack1", CPUs: 1, MemoryMiB: 512, DiskGiB: 8, Disk: disk, Approved: true,
		BMC: haengine.BMC{Address: netip.MustParseAddr("10.78.0.11"), SharedPower: n.shared},
	}
}

// begin declares everything and starts the clocks of the world.
func (w *world) begin() {
	s := w.s
	s.start()
	s.submit(haengine.PoolApplied{Pool: w.pool()})
	for _, n := range w.nodes {
		s.submit(haengine.NodeApplied{Node: nodeSpec(n)})
	}
	for _, a := range w.apps {
		w.tellImage(a)
		s.submit(haengine.AppApplied{Application: a.spec})
	}
	s.every(500*time.Millisecond, 500*time.Millisecond, func() { s.submit(haengine.Tick{}) })
	s.every(time.Second, time.Second, s.checkTold)
	for i, a := range w.apps {
		s.every(time.Duration(100+37*i)*time.Millisecond, time.Second, func() { w.sample(a) })
	}
	for i, n := range w.nodes {
		s.every(time.Duration(200+53*i)*time.Millisecond, time.Second, func() { w.beat(n) })
	}
}

// applianceStarted is what the rest of the appliance tells the engine at a
// start: the storage's epochs, and every agent that connects again.
func (w *world) applianceStarted() {
	for _, a := range w.apps {
		w.s.submit(haengine.EpochFloor{App: a.spec.Name, Epoch: a.floor})
	}
	for _, n := range w.nodes {
		n.missed = true
	}
}

func (w *world) node(name string) *node {
	for _, n := range w.nodes {
		if n.name == name {
			return n
		}
	}
	return nil
}

func (w *world) app(name string) *app {
	for _, a := range w.apps {
		if a.spec.Name == name {
			return a
		}
	}
	return nil
}

// reaches says whether node and appliance can talk.
func (w *world) reaches(n *node) bool {
	return n.powered && !n.frozen && !n.cut && !n.pathCut && !w.isolated && w.s.up()
}

// ---- power

func (w *world) setPower(n *node, on bool) {
	if on && n.lostPower || n.powered == on {
		return
	}
	n.powered, n.believed = on, false
	n.gen++
	n.frozen = false
	n.forget()
	if on {
		w.boot(n)
	}
}

// reboot is what an agent does after a drop.
func (w *world) reboot(n *node) {
	n.gen++
	n.believed = false
	n.forget()
	w.boot(n)
}

// boot lets a machine come up: with a live boot answer to its agent, else to
// discovery.
func (w *world) boot(n *node) {
	n.boots++
	n.mode = "booting"
	w.checkLocalBoot(n)
	gen, boot := n.gen, fmt.Sprintf("%s-boot%d", n.name, n.boots)
	if n.noBoot {
		return
	}
	var early *answer // fetched before it was taken back
	if key, ok := w.answers[n.name]; ok && n.late > 0 {
		early = &key
		delete(w.answers, n.name)
		w.s.counts["late boot"]++
	}
	var come func()
	come = func() {
		if n.gen != gen {
			return
		}
		if !w.reaches(n) { // the firmware tries again
			w.s.after(2*time.Second, come)
			return
		}
		n.boot = boot
		key, ok := w.answers[n.name]
		if early != nil {
			key, ok = *early, true
		} else {
			delete(w.answers, n.name) // the token is used once
		}
		switch {
		case !ok:
			n.mode = "discovery"
		case key.turn != 0:
			n.mode, n.turn, n.kernel = "standby", key.turn, key.kernel
		case key.way == haengine.WayColdSAN:
			w.bootsItself(n, key)
			return
		default:
			n.mode, n.token, n.seen = "parked", key.key, key.key.epoch
		}
		w.connect(n)
	}
	w.s.after(w.pace(8*time.Second, 20*time.Second)+w.lateness(n), come)
}

// pace is how long a boot or a start takes. Quick ones leave no time in which a
// mistake about the old node could go by unseen.
func (w *world) pace(lo, hi time.Duration) time.Duration {
	if w.quick {
		lo, hi = lo/10, hi/10
	}
	return w.s.between(lo, hi)
}

// connect is an agent's (re)connection.
func (w *world) connect(n *node) {
	n.missed = false
	switch n.mode {
	case "discovery":
		w.s.submit(haengine.Discovered{Node: n.name, BootID: n.boot, Facts: n.facts(), Copies: n.onDisk()})
	case "standby", "parked", "running":
		if n.turn != 0 { // also one that was claimed as it is
			w.s.submit(haengine.Parked{Node: n.name, BootID: n.boot, Turn: n.turn, Kernel: n.kernel, Facts: n.facts(), Copies: n.onDisk()})
			return
		}
		j := haengine.Joined{Node: n.name, BootID: n.boot, App: n.token.app, Epoch: n.token.epoch}
		w.tokens[n.boot] = n.token
		if n.late > 0 && w.s.chance(0.5) { // the word of it lies about
			w.s.counts["late join"]++
			w.s.after(w.lateness(n), func() { w.s.submit(j) })
			return
		}
		w.s.submit(j)
	}
}

// randomise gives each run its own policies.
func (w *world) randomise() {
	s := w.s
	w.quick = s.chance(0.6)
	for _, a := range w.apps {
		p := &a.spec.Policy
		switch s.rng.IntN(6) {
		case 0:
			p.Evidence = []haengine.EvidenceKind{haengine.EvidencePower}
		case 1:
			p.Evidence = []haengine.EvidenceKind{haengine.EvidenceStorage, haengine.EvidencePower}
		}
		if s.chance(0.2) {
			p.Lease = dur(s.between(4*time.Second, 30*time.Second))
		}
		if s.chance(0.3) {
			p.MaxFailovers, p.FailoverWindow = 1+s.rng.IntN(2), dur(2*time.Minute)
		}
		if s.chance(0.1) {
			p.Previous = haengine.PreviousQuarantine
		}
	}
	w.randomiseStandby()
}
