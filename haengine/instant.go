package haengine

import "time"

// Instant is a moment of the appliance's monotonic clock in nanoseconds. The
// clock starts anew with every start of the appliance: instants of different
// runs are not comparable, and Restarted re-bases those that are kept.
type Instant int64

// Add gives the moment d later.
func (i Instant) Add(d time.Duration) Instant { return i + Instant(d) }

// Sub gives the time from o to i.
func (i Instant) Sub(o Instant) time.Duration { return time.Duration(i - o) }

// Stamp is a moment as the engine decides by it (At) and as people read it
// (Wall). Wall never decides anything but the end of a freeze, which an operator
// gave as a date.
type Stamp struct {
	At   Instant   `json:"at"`
	Wall time.Time `json:"wall"`
}

// IsZero says whether the stamp was never set.
func (s Stamp) IsZero() bool { return s.At == 0 && s.Wall.IsZero() }

// Sub gives the monotonic time from o to s.
func (s Stamp) Sub(o Stamp) time.Duration { return s.At.Sub(o.At) }

// Epoch is the number of a grant, per application, counted from 1.
type Epoch uint64

const (
	// MaxEpoch is the highest epoch that anybody is believed to hold; grants above
	// it would come near the end of the numbers, and an epoch never wraps.
	MaxEpoch Epoch = 1 << 62
	// MaxLag is how far a heartbeat's epoch may be ahead of the state: more grants
	// than were made since any backup that is worth restoring. The storage knows
	// every epoch that may write, so a higher one needs its word (EpochFloor).
	MaxLag Epoch = 1 << 16
)

// Turn numbers the uses of one node, counted from 1: it is raised whenever the
// node is given to an application or taken away. Epochs count per application
// and cannot order the commands to a machine that serves several in turn; the
// node's BMC queue refuses a lower turn.
type Turn uint64

// ActionID numbers the actions of one appliance, counted from 1. A repeated
// action keeps its number.
type ActionID uint64

// FailoverID numbers the failovers of one appliance, counted from 1.
type FailoverID uint64
