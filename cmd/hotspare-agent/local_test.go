package main

import (
	"testing"

	"hotspare"
	"hotspare/haengine/agentlink"
)

// An installation goes to the one disk that is described, or nowhere.
func TestADiskIsNeverGuessed(t *testing.T) {
	all := []agentlink.Disk{
		{Name: "sda", ID: "wwn-1", WWN: "1", Serial: "S1", Bytes: 100}, {Name: "sdb", ID: "wwn-2", WWN: "2", Serial: "S2", Bytes: 200},
		{Name: "sdc", ID: "wwn-2", WWN: "2", Serial: "S2", Bytes: 200}, // the other path of the same disk
		{Name: "sdd", ID: "wwn-4", Bytes: 400, ReadOnly: true}, {Name: "sde", ID: "wwn-5", Bytes: 500, Removable: true}, {Name: "sdf", Bytes: 600},
	}
	for _, c := range []struct {
		name string
		want agentlink.DiskSelector
		disk string // empty: refused
	}{
		{"by id", agentlink.DiskSelector{ID: "wwn-1"}, "sda"},
		{"by serial number", agentlink.DiskSelector{Serial: "S1"}, "sda"},
		{"by size alone, one fits", agentlink.DiskSelector{MinBytes: 550}, "sdf"},
		{"by size alone, several fit", agentlink.DiskSelector{MinBytes: 1}, ""},
		{"two with one id", agentlink.DiskSelector{ID: "wwn-2"}, ""},
		{"id and another size", agentlink.DiskSelector{ID: "wwn-1", MinBytes: 150}, ""},
		{"id and another serial number", agentlink.DiskSelector{ID: "wwn-1", Serial: "S2"}, ""},
		{"none", agentlink.DiskSelector{ID: "wwn-9"}, ""},
		{"read-only", agentlink.DiskSelector{ID: "wwn-4"}, ""},
		{"removable, by size", agentlink.DiskSelector{MinBytes: 450, MaxBytes: 550}, ""},
		{"removable, by name", agentlink.DiskSelector{ID: "wwn-5"}, "sde"},
	} {
		d, err := choose(all, c.want)
		if d.Name != c.disk || (err == nil) != (c.disk != "") || err != nil && hotspare.CodeOf(err) != hotspare.CodeDiskChoice {
			t.Errorf("%s: %q, %v", c.name, d.Name, err)
		}
	}
}

// Foreign data, and what belongs to another application, is overwritten with
// consent only.
func TestNothingIsOverwrittenUnasked(t *testing.T) {
	slot := agentlink.Install{Layout: &agentlink.SlotLayout{}, Slot: "A"}
	consent := slot
	consent.Consent = agentlink.ConsentOverwrite
	copies := func(a, b agentlink.Copy) []agentlink.Copy { a.Slot, b.Slot = "A", "B"; return []agentlink.Copy{a, b} }
	mine, theirs := agentlink.Copy{App: "web", State: agentlink.CopyReady}, agentlink.Copy{App: "orders", State: agentlink.CopyReady}
	released := agentlink.Copy{App: "orders", State: agentlink.CopyDisabled}
	for _, c := range []struct {
		name  string
		disk  agentlink.Disk
		order agentlink.Install
		ok    bool
	}{
		{"blank", agentlink.Disk{Holds: holdsBlank}, slot, true},
		{"ext4", agentlink.Disk{Holds: "ext4"}, slot, false},
		{"data", agentlink.Disk{Holds: "data"}, slot, false},
		{"unreadable", agentlink.Disk{Holds: "unreadable: EIO"}, slot, false},
		{"nothing known", agentlink.Disk{}, slot, false},
		{"ext4 with consent", agentlink.Disk{Holds: "ext4"}, consent, true},
		{"own slot", agentlink.Disk{Holds: holdsSlots, Copies: copies(mine, theirs)}, slot, true},
		{"another's slot", agentlink.Disk{Holds: holdsSlots, Copies: copies(theirs, mine)}, slot, false},
		{"another's released slot", agentlink.Disk{Holds: holdsSlots, Copies: copies(released, theirs)}, slot, true},
		{"the whole disk, with another's slot", agentlink.Disk{Holds: holdsSlots, Copies: copies(mine, theirs)}, agentlink.Install{}, false},
		{"the whole disk, own and released slots", agentlink.Disk{Holds: holdsSlots, Copies: copies(mine, released)}, agentlink.Install{}, true},
		{"another's installation", agentlink.Disk{Holds: holdsInstall, Copies: []agentlink.Copy{theirs}}, slot, false},
		{"another's installation that runs", agentlink.Disk{Holds: holdsInstall, Copies: []agentlink.Copy{{App: "orders", State: agentlink.CopyStarted}}}, agentlink.Install{}, false},
		{"own installation", agentlink.Disk{Holds: holdsInstall, Copies: []agentlink.Copy{mine}}, agentlink.Install{}, true},
	} {
		if err := mayWrite(c.disk, c.order, "web"); (err == nil) != c.ok || err != nil && hotspare.CodeOf(err) != hotspare.CodeDiskChoice {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

// An installation that names no slot takes one that nobody needs, and never another
// application's.
func TestWhichSlotIsFree(t *testing.T) {
	ready := func(slot, app, digest string, active bool) agentlink.Copy {
		return agentlink.Copy{Slot: slot, App: app, Digest: digest, State: agentlink.CopyReady, Active: active}
	}
	state := func(slot, app string, s agentlink.CopyState) agentlink.Copy {
		return agentlink.Copy{Slot: slot, App: app, State: s}
	}
	begun := agentlink.Copy{Slot: "C", App: "web", Digest: "new", State: agentlink.CopyWriting}
	for _, c := range []struct {
		name   string
		copies []agentlink.Copy
		want   string // empty: none
	}{
		{"an empty one", []agentlink.Copy{ready("A", "web", "old", true), state("B", "", agentlink.CopyEmpty)}, "B"},
		{"where it was begun", []agentlink.Copy{state("A", "", agentlink.CopyEmpty), begun}, "C"},
		{"what another began is not continued", []agentlink.Copy{ready("A", "web", "old", true), {Slot: "B", App: "orders", Digest: "new", State: agentlink.CopyWriting}}, "B"},
		{"one that nothing starts", []agentlink.Copy{ready("A", "web", "old", true), state("B", "orders", agentlink.CopyDisabled)}, "B"},
		{"its own older one", []agentlink.Copy{ready("A", "web", "v2", true), ready("B", "web", "v1", false)}, "B"},
		{"its own only one", []agentlink.Copy{ready("A", "web", "v1", true), ready("B", "orders", "x", false)}, "A"},
		{"none", []agentlink.Copy{ready("A", "orders", "v1", true), state("B", "shop", agentlink.CopyStarted)}, ""},
	} {
		var names []string
		for _, x := range c.copies {
			names = append(names, x.Slot)
		}
		got, err := freeSlot(agentlink.Disk{Holds: holdsSlots, Copies: c.copies}, agentlink.Install{
			Layout: &agentlink.SlotLayout{Slots: names}, Source: agentlink.Source{Digest: "new"},
		}, "web")
		if got != c.want || (err == nil) != (c.want != "") || err != nil && hotspare.CodeOf(err) != hotspare.CodeDiskChoice {
			t.Errorf("%s: %q, %v", c.name, got, err)
		}
	}
}

// What was installed for later is not installed again.
func TestWhatIsThereIsNotInstalledAgain(t *testing.T) {
	d := agentlink.Disk{ID: "wwn-1", Copies: []agentlink.Copy{
		{Slot: "A", App: "web", Digest: "d", State: agentlink.CopyFailed}, {Slot: "B", App: "web", Digest: "d", State: agentlink.CopyReady},
		{Slot: "C", App: "orders", Digest: "e", State: agentlink.CopyReady},
	}}
	o := agentlink.Install{Layout: &agentlink.SlotLayout{}, Source: agentlink.Source{Digest: "d"}}
	if got := installed(d, o, "web"); got == nil || *got != (agentlink.Installed{Disk: "wwn-1", Slot: "B"}) {
		t.Errorf("%+v", got)
	}
	for name, change := range map[string]func(*agentlink.Install) string{
		"another application": func(*agentlink.Install) string { return "orders" },
		"another image":       func(o *agentlink.Install) string { o.Source.Digest = "f"; return "web" },
		"a whole disk":        func(o *agentlink.Install) string { o.Layout = nil; return "web" },
		"another slot":        func(o *agentlink.Install) string { o.Slot = "A"; return "web" },
	} {
		x := o
		if app := change(&x); installed(d, x, app) != nil {
			t.Errorf("%s is taken for it", name)
		}
	}
}
