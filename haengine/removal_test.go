package haengine_test

import (
	"testing"
	"time"

	"hotspare/haengine"
)

// parkedAlone has n1 in standby and nothing else.
func parkedAlone(t *testing.T) *bench {
	t.Helper()
	b := newBench(t, 1)
	b.perform()
	b.event(standby(1))
	b.pass(10*time.Second, nil)
	b.event(haengine.Parked{Node: "n1", BootID: "b1", Turn: b.s.Durable.Nodes["n1"].Park.Turn, Kernel: "k"})
	if n := b.s.Durable.Nodes["n1"]; n.Park == nil || n.Park.BootID != "b1" || b.pow["n1"] != haengine.PowerIsOn {
		t.Fatalf("n1 is not in standby: %+v", n)
	}
	return b
}

// A node that is removed while it waits in standby is switched off and its traces
// are removed before the record goes: nobody could switch it off afterwards.
func TestARemovedNodeDoesNotStayOn(t *testing.T) {
	b := parkedAlone(t)
	b.event(haengine.NodeDeleted{Name: "n1"})
	if b.s.Durable.Nodes["n1"] == nil {
		t.Fatal("the record went while the node was on")
	}
	b.pass(30*time.Second, nil)
	if b.pow["n1"] != haengine.PowerIsOff || b.s.Durable.Nodes["n1"] != nil {
		t.Fatalf("power %s, record %+v", b.pow["n1"], b.s.Durable.Nodes["n1"])
	}
	if b.count("power-off", "n1") == 0 || b.count("return-node", "n1") == 0 {
		t.Error("it was not switched off, or its traces stay")
	}
	if n := b.count("park", "n1"); n != 1 {
		t.Errorf("it was ordered into standby %d times", n)
	}
}

// On its way to standby it is the same.
func TestANodeThatIsRemovedOnItsWay(t *testing.T) {
	b := newBench(t, 1)
	b.perform()
	b.event(standby(1))
	b.pass(10*time.Second, nil)
	b.event(haengine.NodeDeleted{Name: "n1"})
	b.pass(30*time.Second, nil)
	if b.pow["n1"] != haengine.PowerIsOff || b.s.Durable.Nodes["n1"] != nil {
		t.Fatalf("power %s, record %+v", b.pow["n1"], b.s.Durable.Nodes["n1"])
	}
}

// A node whose BMC is dead can be removed all the same. The administrator is told
// that it may be on.
func TestARemovedNodeWithADeadBMC(t *testing.T) {
	b := parkedAlone(t)
	b.fail["power-off n1"] = haengine.Failed{Why: "no answer"}
	b.event(haengine.NodeDeleted{Name: "n1"})
	b.pass(time.Minute, nil)
	if b.s.Durable.Nodes["n1"] != nil {
		t.Fatalf("it cannot be removed: %+v", b.s.Durable.Nodes["n1"])
	}
	if b.count("power-off", "n1") == 0 {
		t.Error("nobody tried to switch it off")
	}
	if !b.incident("node/n1/removed") {
		t.Error("nobody was told that it may be on")
	}
}

// Declared anew while it is switched off, it stays.
func TestARemovalThatIsTakenBack(t *testing.T) {
	b := parkedAlone(t)
	b.keep["power-off"] = true
	b.event(haengine.NodeDeleted{Name: "n1"})
	b.pass(2*time.Second, nil)
	b.event(haengine.NodeApplied{Node: node("n1", nil)})
	b.keep["power-off"] = false
	b.pass(time.Minute, nil)
	if n := b.s.Durable.Nodes["n1"]; n == nil || n.Removing {
		t.Fatalf("%+v", n)
	}
}
