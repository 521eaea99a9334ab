package haengine

// Rules is the engine with all its safety rules on. Its zero value is the only
// one that a product uses; Sabotage makes others for tests.
type Rules struct {
	timeoutIsOff   bool // a power fence that timed out counts as off
	epochIgnored   bool // a lease is renewed whatever the epoch
	leaseIgnored   bool // storage evidence does not wait for the drop bound
	oneChannel     bool // a single failed channel establishes a failure
	proofsStay     bool // a proof is believed whatever speaks against it
	silenceIgnored bool // a claim does not wait for the old boot's silence
	freezeIgnored  bool // effects go on in a frozen scope
	ownerIgnored   bool // a node may carry two applications
	releaseTrusted bool // an attested release counts whatever the target saw
	failuresStay   bool // a resource that failed once has failed for ever
	noTurn         bool // the agent's own restart does not go first

	staleParked     bool // a parked boot is claimed whether it was heard or not
	storageForLocal bool // storage evidence counts for what needs no volume
	preloadAttaches bool // a warm-up exports the volumes, too
	lateJoin        bool // a join for an earlier grant is accepted
}

// Bug names a rule that a test switches off to see that the checks notice.
type Bug string

// The planted bugs.
const (
	BugTimeoutIsOff   Bug = "timeout counts as off"
	BugEpochIgnored   Bug = "epoch not checked"
	BugLeaseIgnored   Bug = "lease bound not awaited"
	BugOneChannel     Bug = "single channel suffices"
	BugProofsStay     Bug = "contradicted proof stays"
	BugSilenceIgnored Bug = "silence not awaited"
	BugFreezeIgnored  Bug = "freeze ignored"
	BugOwnerIgnored   Bug = "owner not checked"
	BugReleaseTrusted Bug = "log-out not checked"
	BugFailuresStay   Bug = "restart not believed"
	BugNoTurn         Bug = "restart not awaited"

	BugStaleParked     Bug = "stale parked boot claimed"
	BugStorageForLocal Bug = "storage evidence for a local copy"
	BugPreloadAttaches Bug = "preload attaches"
	BugLateJoin        Bug = "late join accepted"
)

// Sabotage gives rules with one switched off. It wants a test to stand there.
func Sabotage(tb interface {
	Helper()
	Name() string
	TempDir() string
}, b Bug) Rules {
	tb.Helper()
	var r Rules
	switch b {
	case BugTimeoutIsOff:
		r.timeoutIsOff = true
	case BugEpochIgnored:
		r.epochIgnored = true
	case BugLeaseIgnored:
		r.leaseIgnored = true
	case BugOneChannel:
		r.oneChannel = true
	case BugProofsStay:
		r.proofsStay = true
	case BugSilenceIgnored:
		r.silenceIgnored = true
	case BugFreezeIgnored:
		r.freezeIgnored = true
	case BugOwnerIgnored:
		r.ownerIgnored = true
	case BugReleaseTrusted:
		r.releaseTrusted = true
	case BugFailuresStay:
		r.failuresStay = true
	case BugNoTurn:
		r.noTurn = true
	case BugStaleParked:
		r.staleParked = true
	case BugStorageForLocal:
		r.storageForLocal = true
	case BugPreloadAttaches:
		r.preloadAttaches = true
	case BugLateJoin:
		r.lateJoin = true
	default:
		panic("no such bug: " + string(b))
	}
	return r
}

// Step takes the engine from one state to the next. The actions are to be
// performed after the new state's Delta was journalled.
func Step(s State, now Stamp, e Event) (State, []Action) { return Rules{}.Step(s, now, e) }

// Step is the package's Step under these rules.
func (r Rules) Step(s State, now Stamp, e Event) (State, []Action) {
	if now.At < s.Soft.Now.At {
		now.At = s.Soft.Now.At // time does not go back
	}
	w := r.begin(s, now)
	w.apply(e)
	w.advanceAll()
	return w.finish()
}

// LeaseAllowed says whether the agent of that boot may go on running the
// application under the epoch, and why not. The link asks it before it answers a
// heartbeat, with the state that Step made of that very heartbeat.
func LeaseAllowed(s State, node, bootID, app string, epoch Epoch) (bool, Reason) {
	return Rules{}.LeaseAllowed(s, node, bootID, app, epoch)
}

// LeaseAllowed is the package's LeaseAllowed under these rules.
func (r Rules) LeaseAllowed(s State, node, bootID, app string, epoch Epoch) (bool, Reason) {
	if r.epochIgnored && s.Durable.Apps[app] != nil {
		return true, Reason{}
	}
	return leaseAllowed(s.Durable.Apps[app], node, bootID, app, epoch)
}
