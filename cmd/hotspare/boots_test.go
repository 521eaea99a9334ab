package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"hotspare"
	"hotspare/boot"
	"hotspare/ui/api"
)

// ladders is a boot that ends in a refusal by a machine with a bad mind, after one
// that came up.
func ladders(t *testing.T) []boot.Ladder {
	t.Helper()
	rec := boot.NewRecorder(0, 0)
	at := time.Date(2026, 1, 2, 3, 4, 0, 0, time.UTC)
	mac := boot.MAC{0x52, 0x54, 0, 0x77, 0, 1}
	add := func(after time.Duration, e boot.Entry) {
		at = at.Add(after)
		e.At, e.MAC, e.Node = at, mac, "n1"
		rec.Record(e)
	}
	add(0, boot.Entry{Protocol: boot.BMC, Step: boot.StepPower, Request: "power on"})
	add(9*time.Second, boot.Entry{Protocol: boot.Agent, Step: boot.StepMark, Request: "mark online", Detail: boot.Detail{Mark: boot.MarkOnline}})
	add(time.Hour, boot.Entry{Protocol: boot.BMC, Step: boot.StepPower, Request: "power on"})
	for range 3 {
		add(3*time.Second, boot.Entry{Protocol: boot.DHCP, Step: boot.StepDiscover, Request: "DISCOVER, \x1b]0;owned\a", Answer: "nothing", Detail: boot.Detail{Stage: boot.StageFirmware, Silent: true}, Reason: boot.Reason{Rule: boot.RuleNoAddress, Text: "no address is free"}})
	}
	trace, _ := rec.Trace(mac)
	return boot.Ladders(trace, boot.Circumstances{Now: at})
}

func TestExplainBootDrawsTheLadder(t *testing.T) {
	all := ladders(t)
	e := api.Explanation{Subject: "boot " + all[0].MAC.String(), Verdict: "x", Boots: all}
	sock := server(t, map[string]any{"GET /api/v1/explain/boot/n1": e, "GET /api/v1/boots": all[:1], "GET /api/v1/boots/n1": all})
	code, out, errs := call(t, "explain", "boot", "n1", "--socket", sock)
	if code != 0 {
		t.Fatal(errs)
	}
	for _, w := range []string{
		"52:54:00:77:00:01 (node n1), boot 2 of 2026-01-02", ": STUCK\n", string(hotspare.CodePoolEmpty) + ": it gets no address: no address is free\n", "  fix    make the DHCP range larger",
		"RUNG", "firmware  done   0.00s  3.00s", "dhcp      stuck  3.00s  6.00s", "! dhcp DISCOVER, ?]0;owned? (3 times) -> nothing: no address is free", "kernel    ahead  -", "earlier: boot 1", "over; it served 9s after it began",
	} {
		if !strings.Contains(out, w) {
			t.Errorf("%q is missing in\n%s", w, out)
		}
	}
	if strings.ContainsAny(out, "\x1b\a") {
		t.Error("a machine's text reaches the terminal as it is")
	}
	code, out, errs = call(t, "explain", "boot", "n1", "-o", "json", "--socket", sock)
	var read api.Explanation
	if err := json.Unmarshal([]byte(out), &read); code != 0 || err != nil || len(read.Boots) != 2 || read.Boots[0].Rungs[1].State != boot.RungStuck || read.Boots[0].Findings[0].Code != hotspare.CodePoolEmpty {
		t.Errorf("%d %v %s\n%s", code, err, errs, out)
	}
	for _, args := range [][]string{{"get", "boots"}, {"get", "boots", "n1"}} {
		code, out, errs = call(t, append(args, "--socket", sock)...)
		if code != 0 || !strings.Contains(out, "stuck") || !strings.Contains(out, "52:54:00:77:00:01") {
			t.Errorf("%v: %d %s\n%s", args, code, errs, out)
		}
	}
}

func TestTablesAreHarmlessForATerminal(t *testing.T) {
	if s := brief("n1\x1b[2J\u202e"); strings.ContainsAny(s, "\x1b\u202e") {
		t.Errorf("%q", s)
	}
}

// Of the interface that every command must speak, see contract_test.go.

func (a *everything) Boots(context.Context) ([]boot.Ladder, error) {
	a.note("boots")
	return nil, nil
}

func (a *everything) BootsOf(_ context.Context, name string) ([]boot.Ladder, error) {
	a.note("boots", name)
	return []boot.Ladder{}, nil
}

func (a *everything) Machines(context.Context) ([]api.Machine, error) {
	a.note("machines")
	return []api.Machine{}, nil
}

func (a *everything) Machine(_ context.Context, name string) (api.Machine, error) {
	a.note("machine", name)
	return api.Machine{ID: name, MACs: []string{}}, nil
}

func (a *everything) ApproveMachine(_ context.Context, name string, in api.Approval, _ string) (api.Applied, error) {
	a.note("approve", name, in.Name, in.Pool, in.BMC.Address, in.BMC.User, in.BMC.Password, fmt.Sprint(in.MemoryMiB), in.Labels["rack"])
	return api.Applied{Kind: "node", Name: in.Name, Result: "created"}, nil
}

func (a *everything) IgnoreMachine(_ context.Context, name, _ string, undo bool) error {
	a.note("ignore", name, fmt.Sprint(undo))
	return nil
}

func (a *everything) ForgetMachine(_ context.Context, name, _ string) error {
	a.note("forget", name)
	return nil
}

// getCalls are further kinds of `get`, which the contract test calls once.
func TestGetKnowsBootsAndMachines(t *testing.T) {
	at := time.Now().Add(-3 * time.Second)
	machines := []api.Machine{{
		ID: "52:54:00:77:00:05", State: "discovered", MACs: []string{"52:54:00:77:00:05"}, Firmware: "x86-64 UEFI (7)", FirstSeen: at, LastSeen: at,
		Facts: &api.MachineFacts{Vendor: "Acme\x1b[2J", CPUs: 4, MemoryMiB: 8192, Disks: []api.MachineDisk{{Name: "sda", Bytes: 1 << 40}}},
	}}
	sock := server(t, map[string]any{"GET /api/v1/machines": machines, "GET /api/v1/machines/52:54:00:77:00:05": machines[0]})
	for _, args := range [][]string{{"get", "machines"}, {"get", "machine", "52:54:00:77:00:05"}, {"get", "machines", "-o", "wide"}} {
		code, out, errs := call(t, append(args, "--socket", sock)...)
		if code != 0 || !strings.Contains(out, "discovered") || !strings.Contains(out, "8192Mi") || strings.Contains(out, "\x1b") {
			t.Errorf("%v: %d %s\n%s", args, code, errs, out)
		}
	}
	if code, _, errs := call(t, "node", "approve", "52:54:00:77:00:05", "--name", "n5", "--pool", "p", "--socket", sock); code != 2 || !strings.Contains(errs, "--bmc") {
		t.Errorf("without a BMC: %d %s", code, errs)
	}
}
