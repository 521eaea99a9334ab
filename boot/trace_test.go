package boot_test

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"hotspare/boot"
)

func TestRecorderIsBounded(t *testing.T) {
	rec := boot.NewRecorder(3, 4)
	at := time.Unix(0, 0)
	rec.Record(boot.Entry{At: at, MAC: n1, Node: "n1", Request: "first"})
	for i := range 100 { // a flood of invented addresses
		rec.Record(boot.Entry{At: at, MAC: boot.MAC{2, 0, 0, 0, 0, byte(i + 1)}, Request: "flood"})
	}
	for i := range 4 {
		rec.Record(boot.Entry{At: at, MAC: n1, Request: fmt.Sprint("more ", i)})
	}
	rec.Record(boot.Entry{At: at, Request: "no address"})
	if n := len(rec.Machines()); n != 4 {
		t.Errorf("%d machines kept, want 4", n)
	}
	trace, ok := rec.Trace(n1)
	if !ok || trace.Node != "n1" || len(trace.Entries) != 3 || trace.Dropped != 2 {
		t.Errorf("the flood pushed out a known machine: %v %+v", ok, trace)
	}
	if first, last := trace.Entries[0], trace.Entries[2]; first.Request != "first" || last.Request != "more 3" {
		t.Errorf("kept are %q and %q: the first and the last say most", first.Request, last.Request)
	}
	if m := rec.Machines()[0]; m.MAC != n1 || m.Node != "n1" {
		t.Errorf("the latest machine is %+v", m)
	}
	var none *boot.Recorder
	none.Record(boot.Entry{MAC: n1})
	if _, ok := none.Trace(n1); ok || none.Machines() != nil {
		t.Error("a nil recorder keeps something")
	}
}

// A machine that waits asks the same three things every 20 s, for weeks.
func TestRepetitionsAreCounted(t *testing.T) {
	rec := boot.NewRecorder(0, 0)
	at := time.Unix(1000, 0)
	for i := range 100 {
		for j, s := range []boot.Step{boot.StepDiscover, boot.StepRequest, boot.StepWait} {
			rec.Record(boot.Entry{At: at.Add(time.Duration(i*20+j) * time.Second), MAC: n1, Step: s, Request: string(s), Detail: boot.Detail{Stage: boot.StageIPXE}})
		}
	}
	trace, _ := rec.Trace(n1)
	if len(trace.Boots) != 1 || len(trace.Entries) != 3 {
		t.Fatalf("%d boots, %d entries", len(trace.Boots), len(trace.Entries))
	}
	if e := trace.Entries[2]; e.Again != 99 || e.Last() != at.Add((99*20+2)*time.Second) || e.At != at.Add(2*time.Second) {
		t.Errorf("the last entry is %+v", e)
	}
}

func TestABootBeginsWhereAMachineBeginsAnew(t *testing.T) {
	type seen struct {
		step   boot.Step
		stage  boot.Stage
		bootID string
		after  time.Duration
		boot   uint64
	}
	fw, ipxe, system := boot.StageFirmware, boot.StageIPXE, boot.StageSystem
	for name, story := range map[string][]seen{
		"chain loading is one boot":                {{boot.StepPower, "", "", 0, 1}, {boot.StepDiscover, fw, "", 9, 1}, {boot.StepRequest, fw, "", 1, 1}, {boot.StepLoader, "", "", 1, 1}, {boot.StepDiscover, ipxe, "", 1, 1}, {boot.StepScript, "", "", 1, 1}, {boot.StepKernel, "", "", 1, 1}, {boot.StepDiscover, system, "", 4, 1}, {boot.StepMark, "", "a", 1, 1}},
		"an iPXE in ROM":                           {{boot.StepDiscover, ipxe, "", 0, 1}, {boot.StepScript, "", "", 1, 1}, {boot.StepKernel, "", "", 1, 1}, {boot.StepDiscover, ipxe, "", 40, 2}},
		"a machine that waits and is then started": {{boot.StepDiscover, ipxe, "", 0, 1}, {boot.StepWait, "", "", 1, 1}, {boot.StepDiscover, ipxe, "", 20, 1}, {boot.StepScript, "", "", 1, 1}},
		"a loader that is refused":                 {{boot.StepDiscover, fw, "", 0, 1}, {boot.StepLoader, "", "", 1, 1}, {boot.StepDiscover, fw, "", 30, 2}},
		"a firmware that asks on":                  {{boot.StepDiscover, fw, "", 0, 1}, {boot.StepDiscover, fw, "", 16, 1}, {boot.StepDiscover, fw, "", 600, 2}},
		"a kernel that starts a kernel":            {{boot.StepKernel, "", "", 0, 1}, {boot.StepMark, "", "a", 1, 1}, {boot.StepMark, "", "a", 1, 1}, {boot.StepMark, "", "b", 9, 2}},
		"power orders that are repeated":           {{boot.StepPower, "", "", 0, 1}, {boot.StepPower, "", "", 1, 1}, {boot.StepDiscover, fw, "", 300, 1}, {boot.StepPower, "", "", 9, 2}},
		"a running system that renews its lease":   {{boot.StepMark, "", "a", 0, 1}, {boot.StepRequest, system, "", 300, 1}, {boot.StepRequest, system, "", 300, 1}},
	} {
		t.Run(name, func(t *testing.T) {
			rec := boot.NewRecorder(0, 0)
			at := time.Unix(0, 0)
			for i, s := range story {
				at = at.Add(s.after * time.Second)
				rec.Record(boot.Entry{At: at, MAC: n1, Node: "n1", Step: s.step, Request: fmt.Sprint(i), Detail: boot.Detail{Stage: s.stage, BootID: s.bootID}})
				trace, _ := rec.Trace(n1)
				if got := trace.Boots[len(trace.Boots)-1].Number; got != s.boot {
					t.Fatalf("step %d (%s) stands in boot %d, want %d", i, s.step, got, s.boot)
				}
			}
		})
	}
}

func TestTracesOutliveTheProcess(t *testing.T) {
	rec := boot.NewRecorder(0, 0)
	at := time.Date(2026, 1, 2, 3, 4, 5, 678e6, time.UTC)
	rec.Record(boot.Entry{At: at, MAC: n1, Node: "n1", Protocol: boot.DHCP, Step: boot.StepDiscover, Request: "DISCOVER", Detail: boot.Detail{Stage: boot.StageFirmware, Arch: boot.ArchARM64, Took: 3}})
	rec.Record(boot.Entry{At: at, MAC: boot.MAC{2, 0, 0, 0, 0, 9}, Request: "of a stranger"})
	kept := rec.Keep()
	if len(kept) != 1 || rec.Changed() == 0 {
		t.Fatalf("%d traces are kept, change %d", len(kept), rec.Changed())
	}
	text, err := json.Marshal(kept)
	if err != nil {
		t.Fatal(err)
	}
	var read []boot.Trace
	if err := json.Unmarshal(text, &read); err != nil {
		t.Fatal(err)
	}
	again := boot.NewRecorder(0, 0)
	again.Restore(read)
	want, _ := rec.Trace(n1)
	if got, ok := again.Trace(n1); !ok || !reflect.DeepEqual(got, want) {
		t.Errorf("restored\n%+v\nwant\n%+v", got, want)
	}
	again.Record(boot.Entry{At: at, MAC: n1, Step: boot.StepPower})
	if got, _ := again.Trace(n1); got.Boots[len(got.Boots)-1].Number != 2 {
		t.Error("the count of boots begins anew")
	}
}

// Names and files come from machines: neither a terminal nor a reader may be
// steered by them.
func TestTextsOfMachinesAreHarmless(t *testing.T) {
	rec := boot.NewRecorder(0, 0)
	rec.Record(boot.Entry{MAC: n1, Request: "read \"\x1b]0;owned\a\x1b[2J\u202egnp.exe\"", Answer: strings.Repeat("ä", 1000), Reason: boot.Reason{Text: "bad \xff utf-8\nsecond line"}})
	trace, _ := rec.Trace(n1)
	e := trace.Entries[0]
	for _, s := range []string{e.Request, e.Answer, e.Reason.Text} {
		if strings.ContainsAny(s, "\x1b\a\n\u202e") || len(s) > 420 {
			t.Errorf("kept as %q", s)
		}
	}
	if !strings.Contains(e.Request, "owned") || !strings.HasPrefix(e.Reason.Text, "bad ? utf-8") {
		t.Errorf("the rest is lost: %q, %q", e.Request, e.Reason.Text)
	}
}
