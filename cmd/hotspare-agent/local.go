package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"

	"hotspare"
	"hotspare/cmd/hotspare-agent/disk"
	"hotspare/cmd/hotspare-agent/inventory"
	"hotspare/cmd/hotspare-agent/slots"
	"hotspare/haengine/agentlink"
)

// localDisks gives the node's disks with what they hold. A disk that does not
// open, because it fails or is in use, is told of with the reason.
// Copies of another appliance's are foreign data.
func localDisks(site string) []agentlink.Disk {
	all := inventory.Reader{Root: "/"}.Disks()
	for i := range all {
		d := &all[i]
		dev, err := disk.OpenLocal("/dev/" + d.Name)
		if err != nil {
			d.Holds = "unreadable: " + err.Error()
			continue
		}
		d.Holds, d.Copies = holds(dev, site)
		_ = dev.Close()
	}
	return all
}

// What hotspare itself wrote to a disk, in the words of agentlink.Disk.Holds.
const (
	holdsBlank   = "blank"
	holdsSlots   = "hotspare slots"
	holdsInstall = "hotspare install"
)

func holds(dev *disk.Local, site string) (string, []agentlink.Copy) {
	switch r, err := slots.Read(dev, dev.Size); {
	case err == nil && r.Site != site:
		return "copies of another appliance", nil
	case err == nil && r.Layout != nil:
		return holdsSlots, r.Public()
	case err == nil:
		return holdsInstall, r.Public()
	case !errors.Is(err, slots.ErrNone):
		return "unreadable: " + err.Error(), nil
	}
	what, err := disk.Holds(dev, dev.Size)
	if err != nil {
		return "unreadable: " + err.Error(), nil
	}
	return what, nil
}

// choose gives the one disk that a selector describes. It never guesses.
func choose(all []agentlink.Disk, want agentlink.DiskSelector) (agentlink.Disk, error) {
	var found []agentlink.Disk
	var seen []string
	for _, d := range all {
		seen = append(seen, fmt.Sprintf("%s (%s, %d bytes, %s)", d.ID, d.Name, d.Bytes, d.Holds))
		if want.Fits(d) {
			found = append(found, d)
		}
	}
	refuse := func(what string) (agentlink.Disk, error) {
		return agentlink.Disk{}, &hotspare.Error{
			Code: hotspare.CodeDiskChoice, What: what, Where: fmt.Sprintf("%+v", want), Why: "the node has: " + strings.Join(seen, "; "),
			Fix: "name one disk by its id, WWN or serial number",
		}
	}
	switch {
	case len(found) == 0:
		return refuse("no local disk is what was asked for")
	case len(found) > 1:
		return refuse(fmt.Sprintf("%d local disks are what was asked for", len(found)))
	case found[0].ReadOnly:
		return refuse("the local disk is read-only")
	case found[0].Removable && want.ID == "" && want.WWN == "" && want.Serial == "":
		return refuse("the only disk that fits is removable and was not named")
	}
	return found[0], nil
}

// mayWrite says whether an installation may overwrite what a disk holds. app is
// whom it is for.
func mayWrite(d agentlink.Disk, o agentlink.Install, app string) error {
	refuse := func(why string) error {
		return &hotspare.Error{
			Code: hotspare.CodeDiskChoice, What: "the local disk must not be overwritten", Where: d.ID + " (" + d.Name + ")", Why: why,
			Fix: "look at what is on it; give consent to overwrite it, naming the disk, if nothing of it is wanted",
		}
	}
	if o.Consent == agentlink.ConsentOverwrite {
		return nil
	}
	switch d.Holds {
	case holdsBlank:
		return nil
	case holdsSlots, holdsInstall:
	default:
		return refuse("it holds " + d.Holds)
	}
	keep := o.Layout != nil && d.Holds == holdsSlots // the other slots stay
	for _, c := range d.Copies {
		if keep && c.Slot != o.Slot {
			continue
		}
		if c.App != app && (c.State == agentlink.CopyReady || c.State == agentlink.CopyStarted) {
			return refuse(fmt.Sprintf("slot %q holds %s of %s", c.Slot, c.Image, c.App))
		}
	}
	return nil
}

// site names this node's appliance on disks: by its CA.
func (a *agent) site() string { return siteOf(a.boot.CA) }

func siteOf(ca string) string {
	sum := sha256.Sum256([]byte(ca))
	return hex.EncodeToString(sum[:8])
}

// installed gives where the contents of an installation are already, or nil.
func installed(d agentlink.Disk, o agentlink.Install, app string) *agentlink.Installed {
	for _, c := range d.Copies {
		if c.App == app && c.State == agentlink.CopyReady && c.Digest == o.Source.Digest && (o.Layout != nil) == (c.Slot != "") && (o.Slot == "" || o.Slot == c.Slot) {
			return &agentlink.Installed{Disk: d.ID, Slot: c.Slot}
		}
	}
	return nil
}

// freeSlot chooses the slot of an installation that names none: one where it was
// begun before, else an empty one, one that nothing starts any more, or the
// application's own that is not the last. Another application's is never taken.
func freeSlot(d agentlink.Disk, o agentlink.Install, app string) (string, error) {
	names := func(yield func(string) bool) {
		for _, c := range d.Copies {
			if !yield(c.Slot) {
				return
			}
		}
	}
	if d.Holds != holdsSlots || !slices.Equal(slices.Collect(names), o.Layout.Slots) { // it is divided first
		return o.Layout.Slots[0], nil
	}
	best, rank := "", 0
	var full []string
	for _, c := range d.Copies {
		r := 0
		switch mine := c.App == app; {
		case c.State == agentlink.CopyWriting && mine && c.Digest == o.Source.Digest:
			r = 6
		case c.State == agentlink.CopyEmpty:
			r = 5
		case c.State == agentlink.CopyDisabled, c.State == agentlink.CopyFailed, c.State == agentlink.CopyWriting:
			r = 4
		case mine && c.Digest == o.Source.Digest: // of the same image: what is there was not what was wanted
			r = 3
		case mine && !c.Active:
			r = 2
		case mine:
			r = 1
		default:
			full = append(full, fmt.Sprintf("%s: %s of %s", c.Slot, c.Image, c.App))
		}
		if r > rank {
			best, rank = c.Slot, r
		}
	}
	if rank == 0 {
		return "", &hotspare.Error{
			Code: hotspare.CodeDiskChoice, What: "no slot of the local disk is free", Where: d.ID + " (" + d.Name + ")", Why: strings.Join(full, "; "),
			Fix: "give the node's disk more slots, or fewer applications the way slot",
		}
	}
	return best, nil
}

// remember notes that a copy was read and had its digest in this boot. Nothing
// else writes to local disks while the node is parked, so a start need not read
// it again.
func (a *agent) remember(disk, slot, digest string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.verified == nil {
		a.verified = map[[2]string]string{}
	}
	a.verified[[2]string{disk, slot}] = digest
}

func (a *agent) remembers(disk, slot, digest string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return digest != "" && a.verified[[2]string{disk, slot}] == digest
}

// forget ends what was remembered: the disks are written to.
func (a *agent) forget() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.verified = nil
}

// wipe takes copies off the node's disks, or makes them such that nothing starts
// them.
func (a *agent) wipe(ctx context.Context, o agentlink.Order) agentlink.Result {
	if l := a.current(); l != nil && !l.isDone() {
		return failed(o, &hotspare.Error{Code: hotspare.CodeConflict, What: "the node carries an application", Where: l.app.Name, Fix: "release it first"}, nil)
	}
	if l := a.current(); l == nil {
		if err := a.occupy("writes to a local disk"); err != nil {
			return failed(o, err, nil)
		}
		defer a.vacate()
	}
	a.forget()
	did := &steps{a: a}
	all := localDisks(a.site())
	if o.Wipe.Disk != (agentlink.DiskSelector{}) {
		d, err := choose(all, o.Wipe.Disk)
		if err != nil {
			return failed(o, err, nil)
		}
		all = []agentlink.Disk{d}
	}
	var errs []error
	for _, d := range all {
		if d.Holds != holdsSlots && d.Holds != holdsInstall {
			if strings.HasPrefix(d.Holds, "unreadable") {
				errs = append(errs, &hotspare.Error{Code: hotspare.CodeDiskChoice, What: "it cannot be known what the disk holds", Where: d.ID + " (" + d.Name + ")", Why: d.Holds})
			}
			continue
		}
		errs = append(errs, did.timed("wipe "+d.ID, func() error { return wipeDisk(ctx, d, *o.Wipe) }))
	}
	if err := errors.Join(errs...); err != nil {
		return failed(o, err, did.all)
	}
	return agentlink.Result{OrderID: o.ID, OK: true, Steps: did.all}
}

func wipeDisk(ctx context.Context, d agentlink.Disk, w agentlink.Wipe) (err error) {
	dev, err := disk.OpenLocal("/dev/" + d.Name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dev.Close()) }()
	rec, err := slots.Read(dev, dev.Size)
	if err != nil {
		return err
	}
	for i := range rec.Copies {
		c := &rec.Copies[i]
		if len(w.Slots) > 0 && !slices.Contains(w.Slots, c.Slot) || len(w.Apps) > 0 && !slices.Contains(w.Apps, c.App) || c.State == agentlink.CopyEmpty {
			continue
		}
		// First it is disabled, durably: an erasure that is cut leaves nothing
		// that could be started.
		c.State, c.Active, c.Written = agentlink.CopyDisabled, false, 0
		if err := rec.Write(dev); err != nil {
			return err
		}
		if err := wipeCopy(ctx, dev, &rec, c, w.Erase); err != nil {
			return err
		}
	}
	return dev.Reread()
}

// bootArea is what a firmware reads of a disk to start it: partition tables and
// boot sectors.
const bootArea = 1 << 20

func wipeCopy(ctx context.Context, dev *disk.Local, rec *slots.Record, c *slots.Copy, erase bool) error {
	at, length, err := rec.Place(c.Slot, dev.Size)
	if err != nil {
		return err
	}
	part := copyPart(dev, rec, at, length)
	if !erase {
		if rec.Layout != nil {
			return nil // no firmware knows the slot; the record keeps agents from it
		}
		tail := min(length, (c.Bytes+bootArea)&^(bootArea-1))
		return errors.Join(part.Zero(0, min(bootArea, length)), part.Zero(max(0, tail-2*bootArea), min(2*bootArea, tail)), dev.Sync())
	}
	for done := int64(0); done < length; {
		if err := ctx.Err(); err != nil {
			return err
		}
		n := min(length-done, 1<<30)
		if err := part.Zero(done, n); err != nil {
			return err
		}
		done += n
	}
	*c = slots.Copy{Copy: agentlink.Copy{Slot: c.Slot, State: agentlink.CopyEmpty}}
	return rec.Write(dev)
}
