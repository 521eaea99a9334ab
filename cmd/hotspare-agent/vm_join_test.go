package main_test

import (
	"strings"
	"testing"
	"time"

	"hotspare/haengine/agentlink"
)

// A real kernel starts the agent as PID 1; it brings up its NIC, gets an
// address, joins over TLS and waits for its claim; a power order ends it.
func TestAgentBootsAndJoins(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	serveDHCP(t)
	a := newAppliance(t)
	env := buildEnvironment(t)
	m := bootNode(t, env.kernel, env.initrd(t, joinArchive(t, a.ca.PEM(), agentlink.ModeStart, 0xab)))
	select {
	case s := <-a.joined:
		t.Logf("joined %.1f s after the machine was started: %+v", time.Since(m.start).Seconds(), s)
		if s.Node != "n1" || s.Facts.UUID != nodeUUID || len(s.Facts.MACs) == 0 || s.Facts.MACs[0] != nodeMAC || s.Facts.Address != nodeAddr.String() || s.Epoch != 7 {
			t.Errorf("the session's facts are wrong: %+v", s)
		}
		m.await(t, 10*time.Second, 1, "waits for the application")
		waitUntil(t, 20*time.Second, "the marks of the boot", func() bool { return strings.Contains(a.marked(), "init agent link address joined") })
		if m.console.count("not wholly pinned") > 0 {
			t.Error("the agent is not pinned in memory")
		}
		r, err := a.link.Send(t.Context(), "n1", s.BootID, agentlink.Order{ID: "1", Power: &agentlink.Power{Action: agentlink.PowerOff, Why: "the test is over"}})
		if err != nil || !r.OK {
			t.Errorf("power order: %+v, %v", r, err)
		}
		m.awaitEnd(t, 30*time.Second)
	case <-m.done:
		t.Fatal("the machine ended before it joined")
	case <-time.After(4 * time.Minute):
		t.Fatal("no join within four minutes")
	}
}

// A node that nobody has approved has no token: it tells what it is, gets
// nothing but the word to come again, and boots anew once it is approved.
func TestUnapprovedNodeAnnouncesItself(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	serveDHCP(t)
	a := newAppliance(t)
	env := buildEnvironment(t)
	m := bootNode(t, env.kernel, env.initrd(t, joinArchive(t, a.ca.PEM(), agentlink.ModeDiscovery, 0)))
	m.await(t, 4*time.Minute, 1, "is not approved: approve it on the appliance")
	a.note(func() {
		if len(a.heard) != 1 || a.heard[0].Facts.UUID != nodeUUID || a.heard[0].Claimed != "n1" || len(a.heard[0].Facts.NICs) != 1 {
			t.Errorf("heard: %+v", a.heard)
		}
		a.approved = true
	})
	m.awaitEnd(t, 50*time.Second) // -no-reboot; a node that has something to show waits for 60 s
	select {
	case s := <-a.joined:
		t.Errorf("a node without a token joined: %+v", s)
	default:
	}
}
