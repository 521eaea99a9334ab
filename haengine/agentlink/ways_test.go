package agentlink_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"hotspare"
	"hotspare/haengine"
	"hotspare/haengine/agentlink"
	"hotspare/haengine/agentlink/client"
	"hotspare/haengine/agentlink/server"
)

var digest = strings.Repeat("5a", 32)

func artefact(name string) agentlink.Artefact {
	return agentlink.Artefact{URL: "http://10.77.0.1:8080/" + name, SHA256: digest, Bytes: 1 << 20}
}

func kexecOrder() agentlink.Order {
	// An archive is bytes, not text.
	return agentlink.Order{ID: "k", BootID: "boot-a", App: "orders", Epoch: 7, Kexec: &agentlink.Kexec{
		Kernel: artefact("vmlinuz"), Initrd: artefact("initrd"), Cmdline: "quiet", Join: hotspare.NewSecret("\x00\xff\xfe" + canary),
	}}
}

func installOrder() agentlink.Order {
	return agentlink.Order{ID: "i", BootID: "boot-a", App: "orders", Install: &agentlink.Install{
		Disk: agentlink.DiskSelector{ID: "wwn-1"}, Source: agentlink.Source{URL: "http://10.77.0.1/i", Digest: digest, Bytes: 1 << 20},
		Layout: &agentlink.SlotLayout{Slots: []string{"A", "B"}, SlotBytes: 1 << 20}, Slot: "A", Image: "orders:1",
	}}
}

func roundTrip(t *testing.T, o agentlink.Order) agentlink.Order {
	t.Helper()
	frame, err := agentlink.EncodeOrder(o)
	if err != nil {
		t.Fatal(err)
	}
	e, err := agentlink.Read(bytes.NewReader(frame), agentlink.MaxFrame)
	if err != nil {
		t.Fatal(err)
	}
	got, err := agentlink.DecodeOrder(e)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func TestOrdersOfAllWaysArriveAsTheyWereSent(t *testing.T) {
	ram := claimOrder()
	art := artefact("root")
	ram.Claim.Image.Root, ram.Claim.Image.RAM, ram.Claim.Volumes = agentlink.RootInRAM, &art, ram.Claim.Volumes[1:]
	slot := claimOrder()
	slot.Claim.Image.Root, slot.Claim.Volumes = agentlink.RootInSlot, slot.Claim.Volumes[1:]
	slot.Claim.Image.Local = &agentlink.Local{Disk: agentlink.DiskSelector{Serial: "S1"}, Slot: "B", Digest: digest}
	for name, o := range map[string]agentlink.Order{
		"kexec": kexecOrder(), "install": installOrder(), "ram": ram, "slot": slot,
		"preload": {ID: "p", BootID: "boot-a", Preload: &agentlink.Preload{Artefacts: []agentlink.Artefact{art}}},
		"wipe":    {ID: "w", BootID: "boot-a", Wipe: &agentlink.Wipe{Slots: []string{"A"}, Erase: true}},
	} {
		if got := roundTrip(t, o); !reflect.DeepEqual(got, o) {
			t.Errorf("%s changed on its way:\n%+v\n%+v", name, got, o)
		}
	}
}

// SAFETY S17: the join archive holds a token.
func TestTheJoinArchiveOfAKexecIsSecret(t *testing.T) {
	o := kexecOrder()
	text, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	if shown := string(text) + fmt.Sprintf("%+v %#v", o, *o.Kexec); strings.Contains(shown, canary) {
		t.Error("the join archive is shown")
	}
}

func TestOrdersOfWaysAreChecked(t *testing.T) {
	for _, c := range []struct {
		name  string
		order func() agentlink.Order
		spoil func(*agentlink.Order)
	}{
		{"a kexec for an application without an epoch", kexecOrder, func(o *agentlink.Order) { o.Epoch = 0 }},
		{"an epoch without an application", kexecOrder, func(o *agentlink.Order) { o.App = "" }},
		{"no join archive", kexecOrder, func(o *agentlink.Order) { o.Kexec.Join = hotspare.Secret{} }},
		{"a kernel without a digest", kexecOrder, func(o *agentlink.Order) { o.Kexec.Kernel.SHA256 = "" }},
		{"a kernel that is too large", kexecOrder, func(o *agentlink.Order) { o.Kexec.Kernel.Bytes = agentlink.MaxArtefact + 1 }},
		{"an initrd by file", kexecOrder, func(o *agentlink.Order) { o.Kexec.Initrd.URL = "file:///etc/shadow" }},
		{"two lines of command line", kexecOrder, func(o *agentlink.Order) { o.Kexec.Cmdline = "a\nb" }},
		{"a long command line", kexecOrder, func(o *agentlink.Order) { o.Kexec.Cmdline = strings.Repeat("a", 4096) }},
		{"an installation for nobody", installOrder, func(o *agentlink.Order) { o.App = "" }},
		{"no disk", installOrder, func(o *agentlink.Order) { o.Install.Disk = agentlink.DiskSelector{} }},
		{"consent without a name", installOrder, func(o *agentlink.Order) {
			o.Install.Disk, o.Install.Consent = agentlink.DiskSelector{MinBytes: 1}, agentlink.ConsentOverwrite
		}},
		{"another consent", installOrder, func(o *agentlink.Order) { o.Install.Consent = "yes" }},
		{"a slot that the layout lacks", installOrder, func(o *agentlink.Order) { o.Install.Slot = "C" }},
		{"a slot without a layout", installOrder, func(o *agentlink.Order) { o.Install.Layout = nil }},
		{"a slot that is too small", installOrder, func(o *agentlink.Order) { o.Install.Source.Bytes++ }},
		{"more than any slot takes", installOrder, func(o *agentlink.Order) { o.Install.Slot = ""; o.Install.Source.Bytes = o.Install.Layout.SlotBytes + 1 }},
		{"a head in a slot", installOrder, func(o *agentlink.Order) { o.Install.Head = 512 }},
		{"half a sector as head", installOrder, func(o *agentlink.Order) { wholeDisk(o); o.Install.Head = 100 }},
		{"a partition outside", installOrder, func(o *agentlink.Order) {
			wholeDisk(o)
			o.Install.Partitions = []agentlink.Partition{{Number: 1, Offset: 512, Bytes: o.Install.Source.Bytes}}
		}},
		{"a partition without a number", installOrder, func(o *agentlink.Order) {
			wholeDisk(o)
			o.Install.Partitions = []agentlink.Partition{{Offset: 512, Bytes: 512}}
		}},
		{"a slot twice", installOrder, func(o *agentlink.Order) { o.Install.Layout.Slots[1] = "A" }},
		{"a slot with a bad name", installOrder, func(o *agentlink.Order) { o.Install.Layout.Slots[1] = "../B" }},
		{"an empty source", installOrder, func(o *agentlink.Order) { o.Install.Source.Bytes = 0 }},
		{"a root in memory without its image", claimOrder, func(o *agentlink.Order) {
			o.Claim.Image.Root, o.Claim.Volumes = agentlink.RootInRAM, o.Claim.Volumes[1:]
		}},
		{"a root in memory and on a volume", claimOrder, func(o *agentlink.Order) {
			art := artefact("root")
			o.Claim.Image.Root, o.Claim.Image.RAM = agentlink.RootInRAM, &art
		}},
		{"a root in a slot without the slot", claimOrder, func(o *agentlink.Order) {
			o.Claim.Image.Root, o.Claim.Volumes = agentlink.RootInSlot, o.Claim.Volumes[1:]
			o.Claim.Image.Local = &agentlink.Local{Disk: agentlink.DiskSelector{ID: "x"}, Digest: digest}
		}},
		{"another root", claimOrder, func(o *agentlink.Order) { o.Claim.Image.Root = "floppy" }},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := c.order()
			if _, err := agentlink.EncodeOrder(o); err != nil {
				t.Fatalf("the order is refused unspoilt: %v", err)
			}
			c.spoil(&o)
			if _, err := agentlink.EncodeOrder(o); err == nil {
				t.Error("the order is accepted")
			}
		})
	}
	many := agentlink.Order{ID: "p", BootID: "b", Preload: &agentlink.Preload{Artefacts: make([]agentlink.Artefact, agentlink.MaxPreload+1)}}
	if many.Validate() == nil {
		t.Error("too many artefacts are accepted")
	}
}

// A parked node learns from heartbeats that a grant is over (SAFETY S2): the
// kexec that comes late for it is refused.
func TestAnAnswerToAHeartbeatEndsGrants(t *testing.T) {
	w := newWorld(t, nil)
	w.over = map[string]uint64{"orders": 9}
	n := newNode(w, w.token(1), nil)
	w.until("the epoch was heard of", func() bool { return n.Gate().Seen("orders") == 9 })
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	r, err := w.srv.Send(ctx, "n1", "boot-a", kexecOrder())
	if err != nil || r.OK || r.Code != hotspare.CodeStaleEpoch {
		t.Errorf("a late kexec: %+v, %v", r, err)
	}
}

func TestHealthStandsInEveryTenthHeartbeat(t *testing.T) {
	w := newWorld(t, nil)
	newNode(w, w.token(1), func(o *client.Options) {
		o.Beat = func() agentlink.Heartbeat { return agentlink.Heartbeat{Health: &agentlink.Health{MemoryErrors: 1}} }
	})
	w.until("21 heartbeats", func() bool { return len(w.beats) >= 21 })
	w.mu.Lock()
	defer w.mu.Unlock()
	for i, h := range w.beats[:21] {
		if (h.Health != nil) != (i%agentlink.HealthEvery == 0) {
			t.Errorf("heartbeat %d: %+v", i+1, h)
		}
	}
}

// A node that leaves for another kernel gives the result first, the appliance
// has read it when Leave returns, and the link is not opened again.
func TestANodeThatLeavesHasBeenHeard(t *testing.T) {
	w := newWorld(t, nil)
	var n *node
	left := make(chan error, 1)
	n = newNode(w, w.token(1), func(o *client.Options) {
		o.Order = func(ctx context.Context, o agentlink.Order) agentlink.Result {
			left <- n.Leave(ctx, agentlink.Result{OrderID: o.ID, OK: true, Why: "on its way"})
			return agentlink.Result{OrderID: o.ID, Why: "it came back"}
		}
	})
	w.until("a link", func() bool { return len(w.joins) == 1 })
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	r, err := w.srv.Send(ctx, "n1", "boot-a", kexecOrder())
	if err != nil || !r.OK || r.Why != "on its way" {
		t.Fatalf("%+v, %v", r, err)
	}
	if err := <-left; err != nil {
		t.Error(err)
	}
	w.until("the end of the session", func() bool { return len(w.gone) == 1 && strings.Contains(w.gone[0], "the node closed the link") })
	n.mu.Lock()
	dials := n.dials
	n.mu.Unlock()
	if err := n.Leave(ctx, agentlink.Result{}); !errors.Is(err, client.ErrLinkDown) {
		t.Errorf("leaving twice: %v", err)
	}
	time.Sleep(300 * time.Millisecond) // six back-offs
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.dials != dials {
		t.Error("a node that has left came back")
	}
}

func TestProgressReachesTheAppliance(t *testing.T) {
	var w *world
	var got []agentlink.Progress
	w = newWorld(t, func(o *server.Options) {
		o.Progress = func(_ context.Context, _ server.Session, p agentlink.Progress) {
			w.note(func() { got = append(got, p) })
		}
	})
	n := newNode(w, w.token(1), nil)
	w.until("a link", func() bool { return len(w.joins) == 1 })
	w.until("progress", func() bool {
		n.Progress(agentlink.Progress{OrderID: "i", Step: "write", Done: 5, Total: 9})
		return len(got) > 0 && got[0].Done == 5
	})
}

// A node that nobody has approved proves nothing: its claims are cut to what is
// kept, it gets no certificate, and it cannot come more often than it is let.
func TestUnapprovedNodesAreHeardWithinBounds(t *testing.T) {
	var w *world
	var heard []server.Announcement
	w = newWorld(t, func(o *server.Options) {
		o.Announced = func(_ context.Context, a server.Announcement) agentlink.Noted {
			w.note(func() { heard = append(heard, a) })
			return agentlink.Noted{Again: haengine.Duration(time.Minute), Why: "not approved"}
		}
	})
	facts := agentlink.Facts{BootID: "boot-x", UUID: strings.Repeat("u", 1000) + "\x1b[2J", MACs: make([]string, 500)}
	facts.Disks = []agentlink.Disk{{ID: "a\x00b\nc", Copies: make([]agentlink.Copy, 100)}}
	opt := client.Options{Addr: w.addr, CA: w.ca.PEM(), Node: "n9\n", Facts: facts, Now: func() time.Duration { return 0 }}
	noted, err := client.Announce(t.Context(), opt)
	if err != nil || noted.Again.D() != time.Minute || noted.Boot || noted.Why != "not approved" {
		t.Fatalf("%+v, %v", noted, err)
	}
	w.mu.Lock()
	f := heard[0].Facts
	if heard[0].Claimed != "n9" || len(f.UUID) != 128 || len(f.MACs) != 64 || f.Disks[0].ID != "abc" || len(f.Disks[0].Copies) != 64 || len(w.joins) != 0 {
		t.Errorf("heard: %+v", heard[0])
	}
	w.mu.Unlock()
	if _, err := client.Announce(t.Context(), opt); err == nil || !strings.Contains(err.Error(), "too often") {
		t.Errorf("a second announcement at once: %v", err)
	}
	if len(w.srv.Sessions()) != 0 {
		t.Error("a node without a token has a session")
	}
}

// An appliance that takes no announcements refuses them.
func TestAnnouncementsMayBeUnwanted(t *testing.T) {
	w := newWorld(t, nil)
	_, err := client.Announce(t.Context(), client.Options{Addr: w.addr, CA: w.ca.PEM(), Facts: agentlink.Facts{BootID: "x"}, Now: func() time.Duration { return 0 }})
	if err == nil || !client.IsRefusal(err) {
		t.Errorf("%v", err)
	}
}

func TestStandbyBootsAreForNoGrant(t *testing.T) {
	c := agentlink.BootConfig{Node: "n1", Appliance: claimOrder().Claim.Volumes[0].Portal, CA: "pem", Mode: agentlink.ModeStandby}
	if _, err := agentlink.EncodeBootConfig(c); err != nil {
		t.Error(err)
	}
	c.Epoch = 7
	if _, err := agentlink.EncodeBootConfig(c); err == nil {
		t.Error("a standby boot with an epoch is accepted")
	}
}

func wholeDisk(o *agentlink.Order) { o.Install.Layout, o.Install.Slot = nil, "" }
