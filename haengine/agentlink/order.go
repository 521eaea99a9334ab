package agentlink

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"hotspare"
	"hotspare/haengine"
)

// Order is a command to one boot of one node. Exactly one of the commands is
// set. The same id is the same order: an agent that gets it again answers with
// the result it has.
type Order struct {
	ID     string `json:"id"`
	BootID string `json:"bootId"`          // an order for another boot is refused
	App    string `json:"app,omitempty"`   // needed by Claim, Release and Drop
	Epoch  uint64 `json:"epoch,omitempty"` // an order below the highest epoch seen for App is refused

	Claim   *Claim   `json:"claim,omitempty"`
	Release *Release `json:"release,omitempty"`
	Drop    *Drop    `json:"drop,omitempty"`
	Power   *Power   `json:"power,omitempty"`
	Preload *Preload `json:"preload,omitempty"`
	Kexec   *Kexec   `json:"kexec,omitempty"`
	Install *Install `json:"install,omitempty"`
	Wipe    *Wipe    `json:"wipe,omitempty"`
}

// Claim makes the node carry an application under the order's epoch: log in to
// the volumes, start the image, bring the service group online. Its Result comes
// when the group is online or has failed.
type Claim struct {
	Application haengine.Application `json:"application"`
	Image       Image                `json:"image"`
	Volumes     []Volume             `json:"volumes"` // each of the application's, and the root volume where the image has one
	Lease       LeasePolicy          `json:"lease"`
	// Seed is what the image's cloud-init reads, by file name; none: it finds what
	// the image holds. The values print as "[secret]"; only EncodeOrder reveals them.
	Seed map[string]hotspare.Secret `json:"seed,omitempty"`
}

// Image is what the agent must know of the image to start it.
type Image struct {
	RootFS        string `json:"rootFs"`                  // e.g. ext4
	RootPartition int    `json:"rootPartition"`           // 0: the whole disk
	RootSubvolume string `json:"rootSubvolume,omitempty"` // of a btrfs; empty: its default one
	Init          string `json:"init,omitempty"`          // empty: /sbin/init

	// Kernel is the release whose modules the image has. A node that runs
	// another kernel refuses the claim with CodeWrongKernel. Empty: any.
	Kernel string `json:"kernel,omitempty"`
	// Process says that the image is one process: it has no init. The agent
	// stays PID 1 and runs the process and script resources itself.
	Process bool `json:"process,omitempty"`

	Root  RootSource `json:"root,omitempty"`
	RAM   *Artefact  `json:"ram,omitempty"`   // with RootInRAM
	Local *Local     `json:"local,omitempty"` // with RootInSlot and RootOnDisk
}

// Volume is one log-in. Secret prints and marshals as "[secret]"; only
// EncodeOrder reveals it.
type Volume struct {
	Name      string          `json:"name"` // RootVolume, or the name in the application
	Portal    netip.AddrPort  `json:"portal"`
	IQN       string          `json:"iqn"`
	LUN       uint64          `json:"lun"`
	Initiator string          `json:"initiator"`
	User      string          `json:"user"`
	Secret    hotspare.Secret `json:"secret"`
	Format    string          `json:"format,omitempty"`
	ReadOnly  bool            `json:"readOnly,omitempty"`
}

// RootVolume is the name of the volume that the image starts from.
const RootVolume = "root"

// LeasePolicy says how the agent fences itself.
type LeasePolicy struct {
	Lease     haengine.Duration `json:"lease"`     // for the lease before the first acknowledgement, and for a lost storage session
	DropBound haengine.Duration `json:"dropBound"` // the drop is finished within this time, or the guard resets the machine
}

// Release is the orderly stop: units stopped, file systems unmounted, address
// removed, data volumes logged out; each is attested in Result.Steps. The root
// stays mounted; the appliance powers the node off afterwards.
type Release struct {
	Why string `json:"why"`
}

// Drop makes the agent drop the application at once when it carries it under an
// epoch lower than Below.
type Drop struct {
	Below uint64 `json:"below"`
	Why   string `json:"why"`
}

// PowerAction is what a Power order does.
type PowerAction string

// The power actions.
const (
	PowerOff    PowerAction = "off"
	PowerReboot PowerAction = "reboot"
)

// Power ends this boot. An application that is still carried is dropped first.
type Power struct {
	Action PowerAction `json:"action"`
	Why    string      `json:"why"`
}

// Result is the outcome of an order.
type Result struct {
	OrderID string        `json:"orderId"`
	OK      bool          `json:"ok"`
	Code    hotspare.Code `json:"code,omitempty"`
	Why     string        `json:"why,omitempty"`
	Steps   []Step        `json:"steps,omitempty"`

	Installed *Installed `json:"installed,omitempty"` // of an Install
}

// Step is one thing done for an order, with its duration.
type Step struct {
	Name     string `json:"name"` // e.g. "login data", "mount root", "stop database"
	OK       bool   `json:"ok"`
	Why      string `json:"why,omitempty"`
	UpMillis int64  `json:"upMillis"` // the node's CLOCK_BOOTTIME at its end
	Millis   int64  `json:"millis"`
}

// Err gives nil, or the failure as an error with its code.
func (r Result) Err() error {
	if r.OK {
		return nil
	}
	code := r.Code
	if code == "" {
		code = hotspare.CodeOnlineFailed
	}
	return &hotspare.Error{Code: code, What: "the agent could not carry out order " + r.OrderID, Why: r.Why}
}

// Validate says whether an order is whole.
func (o Order) Validate() error {
	if o.ID == "" || o.BootID == "" {
		return errors.New("agentlink: an order needs an id and a boot id")
	}
	n := 0
	for _, set := range []bool{o.Claim != nil, o.Release != nil, o.Drop != nil, o.Power != nil, o.Preload != nil, o.Kexec != nil, o.Install != nil, o.Wipe != nil} {
		if set {
			n++
		}
	}
	if n != 1 {
		return fmt.Errorf("agentlink: order %s holds %d commands instead of one", o.ID, n)
	}
	if o.Claim != nil || o.Release != nil || o.Drop != nil {
		return o.validateGranted()
	}
	if err := o.validateFree(); err != nil {
		return fmt.Errorf("agentlink: order %s: %w", o.ID, err)
	}
	return nil
}

// validateFree checks the orders that need no grant.
func (o Order) validateFree() error {
	if o.App == "" && o.Epoch != 0 {
		return errors.New("an epoch without an application")
	}
	switch {
	case o.Preload != nil:
		return o.Preload.validate()
	case o.Kexec != nil:
		if (o.App == "") != (o.Epoch == 0) {
			return errors.New("a kexec carries application and epoch, or neither")
		}
		return o.Kexec.validate()
	case o.Install != nil:
		if o.App == "" {
			return errors.New("an installation is for an application")
		}
		return o.Install.validate()
	case o.Wipe != nil:
		return o.Wipe.validate()
	case o.Power.Action != PowerOff && o.Power.Action != PowerReboot:
		return fmt.Errorf("power action %q", o.Power.Action)
	}
	return nil
}

// validateGranted checks the orders about a grant.
func (o Order) validateGranted() error {
	if o.App == "" || o.Epoch == 0 {
		return fmt.Errorf("agentlink: order %s needs an application and an epoch", o.ID)
	}
	if o.Claim != nil {
		return o.Claim.validate(o)
	}
	return nil
}

func (c Claim) validate(o Order) error {
	if c.Application.Name != o.App {
		return fmt.Errorf("agentlink: order %s for %s claims %s", o.ID, o.App, c.Application.Name)
	}
	if c.Lease.Lease <= 0 || c.Lease.DropBound <= 0 {
		return fmt.Errorf("agentlink: order %s: lease %s and drop bound %s must be positive", o.ID, c.Lease.Lease, c.Lease.DropBound)
	}
	have := map[string]bool{}
	for _, v := range c.Volumes {
		if v.Name == "" || have[v.Name] {
			return fmt.Errorf("agentlink: order %s: volume %q twice or without a name", o.ID, v.Name)
		}
		have[v.Name] = true
		if !v.Portal.IsValid() || v.IQN == "" || v.Initiator == "" {
			return fmt.Errorf("agentlink: order %s: volume %s lacks portal, IQN or initiator name", o.ID, v.Name)
		}
	}
	if err := errors.Join(c.Image.validate(), validateSeed(c.Seed)); err != nil {
		return fmt.Errorf("agentlink: order %s: %w", o.ID, err)
	}
	if (c.Image.Root == RootOnVolume) != have[RootVolume] {
		return fmt.Errorf("agentlink: order %s: the image's root is %q, volume %q is there: %v", o.ID, c.Image.Root, RootVolume, have[RootVolume])
	}
	for _, v := range c.Application.Volumes {
		if !have[v.Name] {
			return fmt.Errorf("agentlink: order %s: no log-in for volume %q", o.ID, v.Name)
		}
	}
	return nil
}

// validateSeed checks the names: they become files of the image's root.
func validateSeed(seed map[string]hotspare.Secret) error {
	for name := range seed {
		if !slices.Contains(SeedFiles(), name) {
			return fmt.Errorf("the seed has a file %q, possible are %v", name, SeedFiles())
		}
	}
	return nil
}

// SeedFiles are the files of cloud-init's NoCloud source.
func SeedFiles() []string { return []string{"meta-data", "user-data", "vendor-data", "network-config"} }

// wireVolume is a Volume with its secret in clear, for the TLS link only.
type wireVolume struct {
	Volume
	Secret string `json:"secret"`
}

type wireClaim struct {
	Claim
	Volumes []wireVolume      `json:"volumes"`
	Seed    map[string][]byte `json:"seed,omitempty"`
}

// wireKexec is a Kexec with its join archive in clear, for the TLS link only.
type wireKexec struct {
	Kexec
	Join []byte `json:"join"`
}

type wireOrder struct {
	Order
	Claim *wireClaim `json:"claim,omitempty"`
	Kexec *wireKexec `json:"kexec,omitempty"`
}

// EncodeOrder gives the frame of an order, with the volumes' secrets and the
// join archive in clear.
func EncodeOrder(o Order) ([]byte, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	w := wireOrder{Order: o}
	if o.Claim != nil {
		w.Claim = &wireClaim{Claim: *o.Claim}
		for _, v := range o.Claim.Volumes {
			w.Claim.Volumes = append(w.Claim.Volumes, wireVolume{Volume: v, Secret: v.Secret.Reveal()})
		}
		if len(o.Claim.Seed) > 0 {
			w.Claim.Seed = map[string][]byte{}
			for name, text := range o.Claim.Seed {
				w.Claim.Seed[name] = []byte(text.Reveal())
			}
		}
	}
	if o.Kexec != nil {
		w.Kexec = &wireKexec{Kexec: *o.Kexec, Join: []byte(o.Kexec.Join.Reveal())}
	}
	return encode(KindOrder, w)
}

// DecodeOrder reads and checks an order.
func DecodeOrder(e Envelope) (Order, error) {
	var w wireOrder
	if err := json.Unmarshal(e.Body, &w); err != nil {
		return Order{}, fmt.Errorf("%w: %s: %w", ErrFrameBody, e.Kind, err)
	}
	o := w.Order
	if w.Claim != nil {
		c := w.Claim.Claim
		c.Volumes = nil
		for _, v := range w.Claim.Volumes {
			volume := v.Volume
			volume.Secret = hotspare.NewSecret(v.Secret)
			c.Volumes = append(c.Volumes, volume)
		}
		c.Seed = nil
		if len(w.Claim.Seed) > 0 {
			c.Seed = map[string]hotspare.Secret{}
			for name, text := range w.Claim.Seed {
				c.Seed[name] = hotspare.NewSecret(string(text))
			}
		}
		o.Claim = &c
	}
	if w.Kexec != nil {
		k := w.Kexec.Kexec
		k.Join = hotspare.NewSecret(string(w.Kexec.Join))
		o.Kexec = &k
	}
	if err := o.Validate(); err != nil {
		return Order{}, fmt.Errorf("%w: %w", ErrFrameBody, err)
	}
	return o, nil
}
