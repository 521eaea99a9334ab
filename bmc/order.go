package bmc

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"hotspare"
)

// NetworkBoot says for which starts On asks for a network boot.
type NetworkBoot uint8

// The zero value asks for nothing: the firmware goes by the order that it has.
//
// Every and once exclude each other on one machine. A BMC has one place for both
// (IPMI boot parameter 5, Redfish BootSourceOverride), so a request for the next
// start alone takes back the one for every start.
const (
	NetworkUnasked NetworkBoot = iota
	NetworkOnce                // the next start, and only that one
	NetworkEvery               // every start from now on; read back before the power goes on
)

// BootMode is the firmware interface that a boot order belongs to.
type BootMode string

// The modes; "" means that the BMC does not say.
const (
	ModeLegacy BootMode = "legacy"
	ModeUEFI   BootMode = "uefi"
)

// DevicePXE is BootOrder.Device for the network.
const DevicePXE = "pxe"

// BootOrder is what a BMC says it has asked, or will ask, the firmware to start
// from. The zero value is no request: the firmware's own order counts, which no
// BMC shows by these means.
type BootOrder struct {
	Device string   `json:"device,omitempty"` // DevicePXE, disk, cdrom, bios, another word of the BMC; "" none
	Every  bool     `json:"every,omitempty"`  // for every start, not the next one alone
	Mode   BootMode `json:"mode,omitempty"`
}

// String gives the words for people: "pxe, every boot, uefi".
func (o BootOrder) String() string {
	if o.Device == "" {
		return "nothing asked for"
	}
	words := []string{o.Device, "once"}
	if o.Every {
		words[1] = "every boot"
	}
	if o.Mode != "" {
		words = append(words, string(o.Mode))
	}
	return strings.Join(words, ", ")
}

// NetworkFirst says that every start begins with the network. uefi says that the
// firmware is known to be UEFI: then an order for legacy starts is none, because
// such a firmware passes over it and starts its disk.
func (o BootOrder) NetworkFirst(uefi bool) bool {
	return o.Device == DevicePXE && o.Every && (!uefi || o.Mode != ModeLegacy)
}

// OrderResult is the record of BootNetworkFirst.
type OrderResult struct {
	BMC   string `json:"bmc"`
	Right Right  `json:"right"`
	UUID  string `json:"uuid,omitempty"`
	// Before is what the BMC said at first, Order what it said at last. A machine
	// that was set before and reads otherwise now has a BMC or a firmware that
	// forgets, or somebody has changed it.
	Before BootOrder `json:"before"`
	Order  BootOrder `json:"order"`
	Sent   []Sent    `json:"sent,omitempty"` // empty: it was so already
}

// BootNetworkFirst has the machine begin every start with the network, and reads
// back that the BMC keeps this. It does not touch the power, so the machine may be
// on. It reads first, and sends nothing when it is so already. The result is
// ErrBootOrder when the BMC took the order and shows another one.
//
// On a machine that is on, the BMC only keeps the request; the firmware acts on it
// at its next start.
//
// Of the options Network is not looked at.
func BootNetworkFirst(ctx context.Context, q *Queue, r Right, opts OnOptions) (OrderResult, error) {
	o := &onRun{q: q, opts: opts.withDefaults(), res: OnResult{BMC: q.Name(), Right: r}}
	out := OrderResult{BMC: q.Name(), Right: r}
	ctx, cancel := context.WithTimeout(ctx, o.opts.Deadline)
	defer cancel()
	err := o.begin(ctx)
	if err == nil {
		err = o.networkFirst(ctx, &out.Before)
	}
	out.UUID, out.Sent = o.res.UUID, o.res.Sent
	if o.res.Order != nil {
		out.Order = *o.res.Order
	}
	return out, err
}

// networkFirst reads, and sets what does not read as it should, until it does.
func (o *onRun) networkFirst(ctx context.Context, before *BootOrder) error {
	first := true
	for {
		order, err := o.readOrder(ctx)
		if err == nil {
			if first {
				*before, first = order, false
			}
			if order.NetworkFirst(o.opts.UEFI) {
				return nil
			}
			err = o.setOrder(ctx)
		}
		if err == nil || Permanent(err) || errors.Is(err, errClosed) {
			return err
		}
		o.cause = telling(o.cause, err)
		if err := pause(ctx, o.opts.Interval); err != nil {
			return o.ended(err, fmt.Sprintf("the boot order was not proven within %s", o.opts.Deadline))
		}
	}
}

// setOrder asks for the network at every start and returns nil when the BMC says
// that it is so. BMCs that do what was asked a moment after the answer are given
// ReadBack for it; one that still shows another order then will go on to do so.
func (o *onRun) setOrder(ctx context.Context) error {
	c := CommandNetworkFirst
	if o.opts.UEFI {
		c = CommandNetworkFirstUEFI
	}
	if err := o.send(ctx, c); err != nil {
		return about(err, "it was asked to boot from the network at every start")
	}
	for until := time.Now().Add(o.opts.ReadBack); ; {
		order, err := o.readOrder(ctx)
		switch {
		case err == nil && order.NetworkFirst(o.opts.UEFI):
			return nil
		case err != nil && (Permanent(err) || errors.Is(err, errClosed)):
			return err
		case !time.Now().Before(until):
			return o.notKept(order, err)
		}
		if err := pause(ctx, o.opts.Interval); err != nil {
			return o.notKept(order, err)
		}
	}
}

// notKept gives the error of a read-back that did not show the order.
func (o *onRun) notKept(order BootOrder, err error) error {
	if err != nil {
		return err
	}
	want := BootOrder{Device: DevicePXE, Every: true}
	if o.opts.UEFI {
		want.Mode = ModeUEFI
	}
	return NewError(hotspare.CodeBMCBootOrder, o.res.BMC, fmt.Sprintf("it took %q and shows %q", want, order), nil)
}

func (o *onRun) readOrder(ctx context.Context) (BootOrder, error) {
	order, err := o.q.BootOrder(ctx)
	if err != nil {
		return BootOrder{}, about(err, "its boot order was to be read")
	}
	o.res.Order = &order
	return order, nil
}

// about says at what the BMC answered with an error: its own words often do not.
func about(err error, what string) error {
	var e *hotspare.Error
	if !errors.As(err, &e) || e.Code != hotspare.CodeBMCRefused {
		return err
	}
	told := *e
	told.Why = strings.TrimSuffix(what+": "+e.Why, ": ")
	return &told
}
