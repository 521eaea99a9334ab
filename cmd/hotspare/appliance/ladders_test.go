package appliance

import (
	"crypto/sha256"
	"errors"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"hotspare"
	"hotspare/boot"
	"hotspare/haengine"
	"hotspare/haengine/agentlink"
	"hotspare/haengine/agentlink/server"
	"hotspare/storage/iscsi"
)

// watched is a recorder with one node, and a clock that the test moves.
type watched struct {
	*ladders
	clock time.Time
}

var card = boot.MAC{0x52, 0x54, 0, 0x77, 0, 1}

func watch(t *testing.T) *watched {
	t.Helper()
	w := &watched{clock: time.Date(2026, 1, 2, 3, 4, 0, 0, time.UTC)}
	n := &haengine.NodeState{Spec: haengine.Node{Name: "n1", MACs: []string{"52:54:00:77:00:02", card.String()}}}
	w.ladders = newLadders(boot.NewRecorder(0, 0), func(name string) (*haengine.NodeState, bool) { return n, name == "n1" }, slog.New(slog.DiscardHandler))
	w.now = func() time.Time { return w.clock }
	// It booted from its second card.
	w.rec.Record(boot.Entry{At: w.clock, MAC: card, Node: "n1", Protocol: boot.DHCP, Step: boot.StepDiscover, Request: "DISCOVER", Detail: boot.Detail{Stage: boot.StageIPXE}})
	return w
}

func (w *watched) pass(d time.Duration) { w.clock = w.clock.Add(d) }

func (w *watched) newest(t *testing.T) boot.Ladder {
	t.Helper()
	all := w.of(card)
	if len(all) == 0 {
		t.Fatal("no ladder")
	}
	return all[0]
}

var linked = server.Session{Node: "n1", BootID: "0123456789"}

// The agent's marks are told late, over the link that the last of them opened;
// the ladder shows them where they were.
func TestMarksStandWhereTheyWerePassed(t *testing.T) {
	w := watch(t)
	w.rec.Record(boot.Entry{At: w.clock.Add(time.Second), MAC: card, Protocol: boot.HTTP, Step: boot.StepKernel, Request: "GET kernel", Reason: boot.Reason{Rule: boot.RuleFile}})
	w.pass(11 * time.Second) // the kernel began at second 3, is up for 8
	w.redeemed("n1", agentlink.Facts{BootID: linked.BootID}, nil)
	w.joined(linked)
	beat := agentlink.Heartbeat{Phase: agentlink.PhaseParked, Metrics: agentlink.Metrics{UptimeMillis: 8000}, Marks: []agentlink.Mark{{Name: "init", UpMillis: 1500}, {Name: "link", UpMillis: 2500}, {Name: "joined", UpMillis: 7900}}}
	w.beat(linked, beat)
	w.pass(time.Second)
	w.beat(linked, agentlink.Heartbeat{Phase: agentlink.PhaseClaiming, Metrics: agentlink.Metrics{UptimeMillis: 9300}, Marks: beat.Marks}) // 300 ms on its way
	l := w.newest(t)
	at := map[string]time.Duration{}
	for _, r := range l.Rungs {
		for _, s := range r.Steps {
			at[s.Request] = s.At.Sub(l.Began)
		}
	}
	if at["mark init"] != 4500*time.Millisecond || at["mark link"] != 5500*time.Millisecond || at["mark claim"] != 12*time.Second {
		t.Errorf("marks stand at %v", at)
	}
	if n := len(at); n != 7 {
		t.Errorf("%d steps: %v", n, at)
	}
	// An appliance that was started again hears all of them anew.
	again := newLadders(w.rec, w.node, slog.New(slog.DiscardHandler))
	again.now = w.now
	again.beat(linked, beat)
	if l := w.newest(t); len(l.Rungs[5].Steps) != 1 || l.Rungs[5].Steps[0].Again != 0 {
		t.Errorf("after a restart init stands as %+v", l.Rungs[5].Steps)
	}
}

func TestARefusedJoinIsOnTheLadder(t *testing.T) {
	w := watch(t)
	w.rec.Record(boot.Entry{At: w.clock, MAC: card, Protocol: boot.HTTP, Step: boot.StepKernel, Request: "GET kernel", Reason: boot.Reason{Rule: boot.RuleFile}})
	w.redeemed("", agentlink.Facts{BootID: "b", MACs: []string{card.String()}}, refuseJoin("the token is not known", "it belongs to another appliance"))
	if l := w.newest(t); l.State != boot.LadderStuck || l.Findings[0].Rule != "join-refused" || l.Findings[0].Code != hotspare.CodeJoinRefused || !strings.Contains(l.Verdict, "it belongs to another appliance") {
		t.Errorf("%s %+v", l.Verdict, l.Findings)
	}
	w.redeemed("", agentlink.Facts{MACs: []string{"02:00:00:00:00:09"}}, errors.New("x"))
	if n := len(w.rec.Machines()); n != 1 {
		t.Errorf("a stranger's word made a machine: %d", n)
	}
}

func TestTheClaimIsOnTheLadder(t *testing.T) {
	w := watch(t)
	w.joined(linked)
	w.beat(linked, agentlink.Heartbeat{Phase: agentlink.PhaseClaiming, Metrics: agentlink.Metrics{UptimeMillis: 5000}})
	w.pass(time.Second)
	name := "iqn.2026-11.io.hotspare:n1:orders.e7.abcdef012345"
	asked := iscsi.LoginAsked{Initiator: name, Target: "iqn.x:orders.root", Address: "10.77.0.101:4000", Began: w.clock}
	w.login(asked, &hotspare.Error{Code: hotspare.CodeLoginRefused, What: "a log-in is refused", Why: "no live grant", Err: errors.New("private")})
	l := w.newest(t)
	if f := l.Findings[0]; f.Rule != "login-refused" || !strings.Contains(f.Text, "no live grant; it came with epoch 7 of orders") || strings.Contains(l.Verdict, "private") {
		t.Errorf("%+v", l.Findings)
	}
	w.pass(time.Second)
	asked.Began = w.clock
	w.login(asked, nil)
	w.result("n1", linked.BootID, agentlink.Result{OK: false, Code: hotspare.CodeOnlineFailed, Steps: []agentlink.Step{
		{Name: "login root", OK: true, UpMillis: 6500, Millis: 100}, {Name: "mount root", Why: "ISCSI-034: the logical unit did not appear; fix: look at the console", UpMillis: 6900, Millis: 300},
	}})
	l = w.newest(t)
	if f := l.Findings[0]; f.Rule != "step-failed" || f.Rung != boot.RungRoot || f.Code != hotspare.CodeNoDevice || f.Fix != "look at the console" {
		t.Errorf("%+v", l.Findings)
	}
	for _, s := range []haengine.Sample{{OK: false}, {OK: false}, {OK: true}, {OK: true}, {OK: false, Why: "refused"}} {
		s.App, s.Monitor, s.Epoch = "orders", "sql", 7
		w.pass(time.Second)
		w.sample("n1", s)
	}
	checks := 0
	for _, r := range w.newest(t).Rungs {
		for _, s := range r.Steps {
			if s.Protocol == boot.Check {
				checks++
			}
		}
	}
	if checks != 3 {
		t.Errorf("%d of the check's changes are shown, want 3", checks)
	}
}

func TestAStrangersLoginIsNobodysBoot(t *testing.T) {
	w := watch(t)
	for _, name := range []string{"iqn.1993-08.org.debian:01:abc", "iqn.2026-11.io.hotspare:n9:orders.e7.abc", "", "iqn.2026-11.io.hotspare:n1:orders"} {
		w.login(iscsi.LoginAsked{Initiator: name, Target: "t:x", Address: "10.77.0.9:1"}, errors.New("no"))
	}
	if l := w.newest(t); len(l.Findings) != 0 || len(l.Rungs[7].Steps) != 0 {
		t.Errorf("%+v", l)
	}
}

func TestTheScreenSaysWhatWentWrongLast(t *testing.T) {
	w := watch(t)
	if s := w.trouble(card); s != "" {
		t.Errorf("trouble %q", s)
	}
	w.powerFailed("n1", &hotspare.Error{Code: hotspare.CodeBMCUnreachable, What: "the BMC does not answer", Fix: "check its address"})
	if s := w.trouble(card); s != "last seen: BMC-020: it could not be powered on: the BMC does not answer (check its address)" {
		t.Errorf("trouble %q", s)
	}
	w.pass(time.Second)
	w.power("n1", "it is to become orders", 8)
	if s := w.newest(t); s.State != boot.LadderBoots {
		t.Errorf("after the next order: %s %+v", s.State, s.Findings)
	}
}

func TestTracesSurviveARestart(t *testing.T) {
	w := watch(t)
	w.power("n1", "it is to become orders", 8)
	path := filepath.Join(t.TempDir(), "boot-traces.json")
	if err := w.save(path); err != nil {
		t.Fatal(err)
	}
	next := watch(t)
	next.rec = boot.NewRecorder(0, 0)
	next.load(path)
	if l := next.newest(t); l.Number != 2 || l.Node != "n1" || len(next.of(card)) != 2 {
		t.Errorf("%+v", l)
	}
	for name, text := range map[string]string{"another version": `{"version":9}`, "not JSON": "traces"} {
		t.Run(name, func(t *testing.T) {
			if err := writeFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			empty := watch(t)
			empty.load(path) // and no more than a word in the log
		})
	}
}

func TestKernelsAndChecksAreBounded(t *testing.T) {
	w := watch(t)
	for i := range 2 * maxChecks {
		id := sha256.Sum256([]byte{byte(i), byte(i >> 8)})
		w.beat(server.Session{Node: "n1", BootID: string(id[:])}, agentlink.Heartbeat{Phase: agentlink.PhaseParked})
		w.sample("n1", haengine.Sample{App: "a", Epoch: haengine.Epoch(i)})
		w.pass(time.Millisecond)
	}
	if len(w.boots) > maxKernels || len(w.checks) > maxChecks {
		t.Errorf("%d kernels, %d checks", len(w.boots), len(w.checks))
	}
}
