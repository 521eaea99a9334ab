package haengine

import (
	"encoding/json"
	"fmt"
	"net/netip"

	"hotspare"
)

// Action is something to do. It is journalled before it is performed, and
// whoever performs it refuses an epoch lower than one it has seen.
type Action interface {
	// Head gives the fields that every action has.
	Head() Order
	// Kind gives the action's stable name, e.g. "power-off".
	Kind() string

	withHead(Order) Action
}

// Order is the head of every action. Repeating an action with the same ID must
// have the same effect as performing it once.
type Order struct {
	ID    ActionID `json:"id"`
	App   string   `json:"app,omitempty"`
	Node  string   `json:"node,omitempty"`
	Epoch Epoch    `json:"epoch,omitempty"`
}

// Head gives the order itself.
func (o Order) Head() Order { return o }

// The actions.
type (
	// ReadPower reads the node's power state. An observation: not journalled.
	ReadPower struct{ Order }

	// PowerOff makes sure that the node is off: read, off, read back twice.
	PowerOff struct {
		Order
		Turn Turn `json:"turn"`
	}

	// Revoke ends the right of every epoch below Below to the application's
	// volumes.
	Revoke struct {
		Order
		Below Epoch `json:"below"`
	}

	// Attach makes a fresh root clone and exports it and the application's
	// volumes to the node under the epoch.
	Attach struct {
		Order
		Spec Application `json:"spec"`
		Way  Way         `json:"way"`
	}

	// Boot prepares the boot answers for the node, mints its join token, sets
	// the next boot to the network and powers it on. A node that already joined
	// for this epoch is left alone.
	//
	// With a BootID nothing is powered on: the parked boot of that id executes the
	// image's kernel, with boot answers of the epoch. Any other boot refuses. The
	// order ends when the node has said that it goes; from then on it comes as
	// another boot.
	Boot struct {
		Order
		Turn   Turn   `json:"turn"`
		Way    Way    `json:"way"`
		Image  string `json:"image"`
		BootID string `json:"bootID,omitempty"`
	}

	// Install has the joined or parked boot write the image to a local disk. It
	// ends when what was written was read back and has the digest (Done.Copy). It
	// starts nothing. With epoch 0 it is for later: the agent gives it up when a
	// claim comes, and goes on where it ended when it is ordered again.
	Install struct {
		Order
		BootID string `json:"bootID"`
		Image  string `json:"image"`
	}

	// ParkNode boots an idle node, which is off, into the standby environment: on
	// the kernel of Image, or the appliance's own. The agent comes with a one-time
	// token of this order (Parked). A node that is parked in this turn already is
	// left alone.
	ParkNode struct {
		Order
		Turn  Turn   `json:"turn"`
		Image string `json:"image,omitempty"`
	}

	// Preload has a parked boot keep ready what a claim of these images needs:
	// kernels and initial file systems, and warms the appliance's read cache.
	// Nothing of the images runs, nothing is attached.
	Preload struct {
		Order
		BootID string   `json:"bootID"`
		Images []string `json:"images"`
	}

	// DisableCopies has the agent of a boot in discovery or standby disable every
	// copy of these applications on the node's local disks, so that nothing starts
	// one.
	DisableCopies struct {
		Order
		BootID string   `json:"bootID"`
		Apps   []string `json:"apps"`
	}

	// Claim orders the joined or parked agent to become the application. Lease is
	// what the agent is told; 0, of an order of an older state, means the policy's.
	Claim struct {
		Order
		BootID string      `json:"bootID"`
		Spec   Application `json:"spec"`
		Way    Way         `json:"way"`
		Lease  Duration    `json:"lease,omitempty"`
		Copy   *LocalCopy  `json:"copy,omitempty"` // ways install and slot: what is started
	}

	// Release orders the agent to stop the application in order and to attest
	// it: stopped, unmounted, address removed, logged out. Epoch is the ending
	// grant's.
	Release struct {
		Order
		BootID string `json:"bootID"`
	}

	// ProbeAddress asks whether anybody answers on the service address. An
	// observation: not journalled.
	ProbeAddress struct {
		Order
		Address netip.Prefix `json:"address"`
	}

	// ReturnNode removes a proven-off node's assignments (boot answers, tokens,
	// traces) when its BMC queue is drained.
	ReturnNode struct {
		Order
		Turn Turn `json:"turn"`
	}

	// CancelBoot takes back the boot answers and the join token of an epoch.
	CancelBoot struct{ Order }

	// DeleteRoot reaps the root clone of an excluded grant.
	DeleteRoot struct{ Order }

	// Notify tells the administrator, once per incident.
	Notify struct {
		Order
		Notice Notice `json:"notice"`
	}
)

// Notice is a message to the administrator.
type Notice struct {
	Incident string        `json:"incident"` // key: one cause, one message
	App      string        `json:"app,omitempty"`
	Node     string        `json:"node,omitempty"`
	Code     hotspare.Code `json:"code,omitempty"`
	Text     string        `json:"text"`
	Fix      string        `json:"fix,omitempty"`
	Resolved bool          `json:"resolved,omitempty"`
	At       Stamp         `json:"at"`
}

// Kind names the action.
func (ReadPower) Kind() string     { return "read-power" }
func (PowerOff) Kind() string      { return "power-off" }
func (Revoke) Kind() string        { return "revoke" }
func (Attach) Kind() string        { return "attach" }
func (Boot) Kind() string          { return "boot" }
func (Claim) Kind() string         { return "claim" }
func (Install) Kind() string       { return "install" }
func (ParkNode) Kind() string      { return "park" }
func (Preload) Kind() string       { return "preload" }
func (DisableCopies) Kind() string { return "disable-copies" }
func (Release) Kind() string       { return "release" }
func (ProbeAddress) Kind() string  { return "probe-address" }
func (ReturnNode) Kind() string    { return "return-node" }
func (CancelBoot) Kind() string    { return "cancel-boot" }
func (DeleteRoot) Kind() string    { return "delete-root" }
func (Notify) Kind() string        { return "notify" }

func (a ReadPower) withHead(o Order) Action     { a.Order = o; return a }
func (a PowerOff) withHead(o Order) Action      { a.Order = o; return a }
func (a Revoke) withHead(o Order) Action        { a.Order = o; return a }
func (a Attach) withHead(o Order) Action        { a.Order = o; return a }
func (a Boot) withHead(o Order) Action          { a.Order = o; return a }
func (a Claim) withHead(o Order) Action         { a.Order = o; return a }
func (a Install) withHead(o Order) Action       { a.Order = o; return a }
func (a ParkNode) withHead(o Order) Action      { a.Order = o; return a }
func (a Preload) withHead(o Order) Action       { a.Order = o; return a }
func (a DisableCopies) withHead(o Order) Action { a.Order = o; return a }
func (a Release) withHead(o Order) Action       { a.Order = o; return a }
func (a ProbeAddress) withHead(o Order) Action  { a.Order = o; return a }
func (a ReturnNode) withHead(o Order) Action    { a.Order = o; return a }
func (a CancelBoot) withHead(o Order) Action    { a.Order = o; return a }
func (a DeleteRoot) withHead(o Order) Action    { a.Order = o; return a }
func (a Notify) withHead(o Order) Action        { a.Order = o; return a }

// Pending is an action that was ordered and has not ended.
type Pending struct {
	Action    Action
	Ordered   Stamp
	Tries     int     // how often it was given out
	Waiting   bool    // not given out now: between tries, or held by a guard
	NotBefore Instant // while Waiting
	Withdrawn bool    // no longer wanted: its performer is stopped, its result only marks its end
	Failover  FailoverID
}

type pendingJSON struct {
	Kind      string          `json:"kind"`
	Action    json.RawMessage `json:"action"`
	Ordered   Stamp           `json:"ordered"`
	Tries     int             `json:"tries"`
	Waiting   bool            `json:"waiting,omitempty"`
	NotBefore Instant         `json:"notBefore,omitempty"`
	Withdrawn bool            `json:"withdrawn,omitempty"`
	Failover  FailoverID      `json:"failover,omitempty"`
}

// MarshalJSON writes the action with its kind.
func (p *Pending) MarshalJSON() ([]byte, error) {
	raw, err := json.Marshal(p.Action)
	if err != nil {
		return nil, fmt.Errorf("encode action %d: %w", p.Action.Head().ID, err)
	}
	return json.Marshal(pendingJSON{p.Action.Kind(), raw, p.Ordered, p.Tries, p.Waiting, p.NotBefore, p.Withdrawn, p.Failover})
}

// UnmarshalJSON reads what MarshalJSON wrote.
func (p *Pending) UnmarshalJSON(b []byte) error {
	var j pendingJSON
	if err := json.Unmarshal(b, &j); err != nil {
		return err
	}
	a, err := decodeAction(j.Kind, j.Action)
	if err != nil {
		return err
	}
	*p = Pending{a, j.Ordered, j.Tries, j.Waiting, j.NotBefore, j.Withdrawn, j.Failover}
	return nil
}

func decodeAction(kind string, raw []byte) (Action, error) {
	switch kind {
	case ReadPower{}.Kind():
		return decodeAs[ReadPower](raw)
	case PowerOff{}.Kind():
		return decodeAs[PowerOff](raw)
	case Revoke{}.Kind():
		return decodeAs[Revoke](raw)
	case Attach{}.Kind():
		return decodeAs[Attach](raw)
	case Boot{}.Kind():
		return decodeAs[Boot](raw)
	case Claim{}.Kind():
		return decodeAs[Claim](raw)
	case Install{}.Kind():
		return decodeAs[Install](raw)
	case ParkNode{}.Kind():
		return decodeAs[ParkNode](raw)
	case Preload{}.Kind():
		return decodeAs[Preload](raw)
	case DisableCopies{}.Kind():
		return decodeAs[DisableCopies](raw)
	case Release{}.Kind():
		return decodeAs[Release](raw)
	case ProbeAddress{}.Kind():
		return decodeAs[ProbeAddress](raw)
	case ReturnNode{}.Kind():
		return decodeAs[ReturnNode](raw)
	case CancelBoot{}.Kind():
		return decodeAs[CancelBoot](raw)
	case DeleteRoot{}.Kind():
		return decodeAs[DeleteRoot](raw)
	case Notify{}.Kind():
		return decodeAs[Notify](raw)
	}
	return nil, fmt.Errorf("action of unknown kind %q", kind)
}

func decodeAs[A Action](raw []byte) (Action, error) {
	var a A
	if err := json.Unmarshal(raw, &a); err != nil {
		return nil, fmt.Errorf("decode action %s: %w", a.Kind(), err)
	}
	return a, nil
}
