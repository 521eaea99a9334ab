package boot_test

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"hotspare"
	"hotspare/boot"
)

// story builds the entries of a boot; each call moves the clock on.
type story struct {
	now     time.Time
	entries []boot.Entry
}

func newStory() *story { return &story{now: time.Date(2026, 1, 2, 3, 4, 0, 0, time.UTC)} }

func (s *story) add(after time.Duration, e boot.Entry) *story {
	s.now = s.now.Add(after)
	e.At, e.MAC, e.Node = s.now, n1, "n1"
	s.entries = append(s.entries, e)
	return s
}

func (s *story) power(after time.Duration) *story {
	return s.add(after, boot.Entry{Protocol: boot.BMC, Step: boot.StepPower, Request: "power on"})
}

func (s *story) dhcp(after time.Duration, step boot.Step, stage boot.Stage, d boot.Detail, r boot.Reason) *story {
	d.Stage = stage
	if d.Arch == 0 && stage == boot.StageFirmware {
		d.Arch = boot.ArchUEFI64
	}
	return s.add(after, boot.Entry{Protocol: boot.DHCP, Step: step, Request: strings.ToUpper(string(step)) + ", " + string(stage), Answer: "answer", Detail: d, Reason: r})
}

var offered = boot.Detail{Address: netip.MustParseAddr("10.77.0.101")}

// address is a whole exchange.
func (s *story) address(after time.Duration, stage boot.Stage) *story {
	return s.dhcp(after, boot.StepDiscover, stage, offered, boot.Reason{}).dhcp(20*time.Millisecond, boot.StepRequest, stage, offered, boot.Reason{})
}

func (s *story) loader(after time.Duration) *story {
	return s.add(after, boot.Entry{Protocol: boot.TFTP, Step: boot.StepLoader, Request: `read "snponly.efi"`, Reason: boot.Reason{Rule: boot.RuleTransferred}, Detail: boot.Detail{Bytes: 200e3, Took: 100 * time.Millisecond}})
}

func (s *story) get(after time.Duration, step boot.Step, bytes int64, took time.Duration) *story {
	s.add(after, boot.Entry{Protocol: boot.HTTP, Step: step, Request: "GET " + string(step), Answer: "200", Reason: boot.Reason{Rule: boot.RuleFile}, Detail: boot.Detail{Bytes: bytes, Size: bytes, Took: took}})
	s.now = s.now.Add(took)
	return s
}

func (s *story) files() *story {
	return s.get(100*time.Millisecond, boot.StepScript, 900, 0).get(50*time.Millisecond, boot.StepKernel, 8e6, 200*time.Millisecond).
		get(0, boot.StepInitrd, 20e6, 400*time.Millisecond).get(0, boot.StepJoin, 2e3, 0)
}

func (s *story) mark(after time.Duration, name string) *story {
	return s.add(after, boot.Entry{Protocol: boot.Agent, Step: boot.StepMark, Request: "mark " + name, Detail: boot.Detail{Mark: name, BootID: "b1"}})
}

func (s *story) joined() *story {
	return s.mark(3*time.Second, boot.MarkInit).mark(100*time.Millisecond, boot.MarkAgent).mark(time.Second, boot.MarkLink).
		address(100*time.Millisecond, boot.StageSystem).mark(100*time.Millisecond, boot.MarkAddress).mark(200*time.Millisecond, boot.MarkJoined)
}

func (s *story) online() *story {
	return s.mark(50*time.Millisecond, boot.MarkClaim).
		add(100*time.Millisecond, boot.Entry{Protocol: boot.ISCSI, Step: boot.StepLogin, Request: "log-in to orders.root"}).
		mark(300*time.Millisecond, boot.MarkSwitch).mark(2*time.Second, boot.MarkSystemd).mark(3*time.Second, boot.MarkOnline).
		add(100*time.Millisecond, boot.Entry{Protocol: boot.Check, Step: boot.StepService, Request: "check sql"})
}

func (s *story) later(d time.Duration) *story { s.now = s.now.Add(d); return s }

// ladders plays the story through a recorder, as the appliance does.
func (s *story) ladders(c boot.Circumstances) []boot.Ladder {
	rec := boot.NewRecorder(0, 0)
	for _, e := range s.entries {
		rec.Record(e)
	}
	trace, _ := rec.Trace(n1)
	c.Now = s.now
	return boot.Ladders(trace, c)
}

func whole() *story {
	return newStory().power(0).address(9*time.Second, boot.StageFirmware).loader(100*time.Millisecond).address(2*time.Second, boot.StageIPXE).files().joined().online()
}

func TestAHealthyBootClimbsEveryRung(t *testing.T) {
	l := whole().ladders(boot.Circumstances{})[0]
	if l.State != boot.LadderServes || len(l.Findings) != 0 || l.Node != "n1" {
		t.Fatalf("%s: %s, findings %+v", l.State, l.Verdict, l.Findings)
	}
	want := map[boot.RungName][2]int64{ // at, took
		"firmware": {0, 9000}, "dhcp": {9000, 20}, "loader": {9020, 200}, "script": {9220, 2020}, "kernel": {11240, 650},
		"init": {11890, 3000}, "agent": {14890, 1520}, "root": {16460, 400}, "service": {16860, 5100},
	}
	total := int64(0)
	for _, r := range l.Rungs {
		if r.State != boot.RungDone {
			t.Errorf("%s is %s", r.Name, r.State)
		}
		if w := want[r.Name]; r.At != w[0] || r.Took != w[1] {
			t.Errorf("%s: at %d took %d, want %v", r.Name, r.At, r.Took, w)
		}
		if len(r.Steps) == 0 {
			t.Errorf("%s shows no step", r.Name)
		}
		total += r.Took
	}
	// The time between join and claim is the engine's, not the machine's.
	if claim := int64(50); total+claim != l.Total {
		t.Errorf("the rungs sum up to %d of %d ms", total, l.Total)
	}
	if !strings.HasPrefix(l.Verdict, "serves 22") {
		t.Errorf("verdict %q", l.Verdict)
	}
}

func TestALadderShowsHowFarABootIs(t *testing.T) {
	for _, c := range []struct {
		name  string
		s     *story
		state boot.LadderState
		rungs string // by first letter of the state
		says  string
	}{
		{"just powered on", newStory().power(0).later(3 * time.Second), boot.LadderBoots, "naaaaaaaa", "power on"},
		{"asks", newStory().power(0).dhcp(9*time.Second, boot.StepDiscover, boot.StageFirmware, offered, boot.Reason{}), boot.LadderBoots, "dnaaaaaaa", "DISCOVER"},
		{"an iPXE in ROM fetches", newStory().address(0, boot.StageIPXE).files(), boot.LadderBoots, "ddsdnaaaa", "GET join"},
		{"parked", newStory().power(0).address(9*time.Second, boot.StageIPXE).files().joined().later(time.Hour), boot.LadderWaits, "ddsddddaa", "parked"},
		{"waits on its screen", newStory().address(0, boot.StageIPXE).add(time.Second, boot.Entry{Protocol: boot.HTTP, Step: boot.StepWait, Request: "GET", Answer: "script: wait", Reason: boot.Reason{Rule: boot.RuleNothing, Text: "nothing is ordered"}}).later(time.Hour), boot.LadderWaits, "ddsnaaaaa", "waits: nothing is ordered"},
		{"its own disk", newStory().address(0, boot.StageIPXE).add(time.Second, boot.Entry{Protocol: boot.HTTP, Step: boot.StepLocal, Request: "GET", Reason: boot.Reason{Rule: boot.RuleLocal, Text: "node n1 boots from its own disk"}}), boot.LadderLocal, "ddsnaaaaa", "own disk"},
		{"discovery", newStory().address(0, boot.StageIPXE).files().mark(5*time.Second, boot.MarkDiscovery).later(time.Hour), boot.LadderWaits, "ddsddsdaa", "an operator to approve it"},
		{"kexec from standby", newStory().mark(0, boot.MarkInit).mark(time.Second, boot.MarkLink).mark(time.Second, boot.MarkJoined), boot.LadderWaits, "dssssddaa", "parked"},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := c.s.ladders(boot.Circumstances{})[0]
			var rungs strings.Builder
			for _, r := range l.Rungs {
				rungs.WriteByte(r.State[0])
			}
			if l.State != c.state || rungs.String() != c.rungs || !strings.Contains(l.Verdict, c.says) {
				t.Errorf("%s %s %q, want %s %s %q; findings %+v", l.State, rungs.String(), l.Verdict, c.state, c.rungs, c.says, l.Findings)
			}
		})
	}
}

func silent(r boot.Rule, code hotspare.Code, text string) (boot.Detail, boot.Reason) {
	return boot.Detail{Silent: true}, boot.Reason{Rule: r, Code: code, Text: text}
}

// diagnoses is one row for each rule: what is seen, and what is said of it.
func TestDiagnosis(t *testing.T) {
	dnsmasq := netip.MustParseAddr("10.0.0.1")
	noAddr, noAddrWhy := silent(boot.RuleNoAddress, "", "no address is free")
	transferFail := func(step boot.Step, p boot.Protocol, text string, sent, size int64) boot.Entry {
		return boot.Entry{Protocol: p, Step: step, Request: "GET " + string(step), Reason: boot.Reason{Rule: boot.RuleTransferFail, Text: text}, Detail: boot.Detail{Bytes: sent, Size: size, Took: time.Second}}
	}
	refused := func(step boot.Step, rule boot.Rule, code hotspare.Code, text string) boot.Entry {
		return boot.Entry{Protocol: boot.HTTP, Step: step, Request: "GET " + string(step), Answer: "403", Reason: boot.Reason{Rule: rule, Code: code, Text: text, Fix: "mend it"}}
	}
	loop := newStory()
	for range 4 {
		loop.address(30*time.Second, boot.StageIPXE).files()
	}
	for _, c := range []struct {
		rule string
		s    *story
		code hotspare.Code
		says string
		c    boot.Circumstances
	}{
		{"power-refused", newStory().add(0, boot.Entry{Protocol: boot.BMC, Step: boot.StepPower, Request: "power on", Detail: boot.Detail{Failed: true}, Reason: boot.Reason{Code: hotspare.CodeBMCUnreachable, Text: "the BMC does not answer"}}), hotspare.CodeBMCUnreachable, "could not be powered on: the BMC does not answer", boot.Circumstances{}},
		{"never-asked", newStory().power(0).later(6 * time.Minute), hotspare.CodeNeverAsked, "powered it on 6m0s ago and it has asked for nothing", boot.Circumstances{}},
		{"booted-local-disk", newStory().power(0).address(42*time.Second, boot.StageSystem), hotspare.CodeNeverAsked, "42 s later an operating system asked for an address: it booted from its own disk", boot.Circumstances{}},
		{"foreign-server", newStory().dhcp(0, boot.StepDiscover, boot.StageFirmware, offered, boot.Reason{}).dhcp(time.Second, boot.StepRequest, boot.StageFirmware, boot.Detail{Server: dnsmasq, Silent: true}, boot.Reason{Rule: boot.RuleNoAddress, Code: hotspare.CodeForeignDHCP, Text: "took another"}), hotspare.CodeForeignDHCP, "it asked, was offered 10.77.0.101 and took another server's offer, 10.0.0.1 (dnsmasq)", boot.Circumstances{Foreign: []boot.Foreign{{Server: dnsmasq, About: "dnsmasq"}}}},
		{"offer-not-taken", newStory().dhcp(0, boot.StepDiscover, boot.StageFirmware, offered, boot.Reason{}).dhcp(4*time.Second, boot.StepDiscover, boot.StageFirmware, offered, boot.Reason{}).later(12 * time.Second), hotspare.CodeOfferIgnored, "asked 2 times, was offered 10.77.0.101 and has not requested it for 12 s", boot.Circumstances{}},
		{"offer-not-taken", newStory().dhcp(0, boot.StepDiscover, boot.StageFirmware, offered, boot.Reason{}).later(12 * time.Second), hotspare.CodeOfferIgnored, "probably took the offer of another DHCP server: 10.0.0.1 dnsmasq", boot.Circumstances{Foreign: []boot.Foreign{{Server: dnsmasq, About: "dnsmasq"}}}},
		{"no-address", newStory().dhcp(0, boot.StepDiscover, boot.StageFirmware, noAddr, noAddrWhy), hotspare.CodePoolEmpty, "gets no address: no address is free", boot.Circumstances{}},
		{"address-in-use", newStory().address(0, boot.StageFirmware).dhcp(time.Second, boot.StepDecline, boot.StageFirmware, boot.Detail{}, boot.Reason{Code: hotspare.CodeAddressInUse, Text: "somebody else answers on 10.77.0.101"}), hotspare.CodeAddressInUse, "somebody else answers on 10.77.0.101", boot.Circumstances{}},
		{"no-loader", newStory().dhcp(0, boot.StepDiscover, boot.StageFirmware, boot.Detail{Arch: boot.ArchARM64}, boot.Reason{Rule: boot.RuleNoLoader, Code: hotspare.CodeArchMismatch, Text: "no loader for ARM 64-bit UEFI (11)"}).later(time.Second), hotspare.CodeArchMismatch, "(11)", boot.Circumstances{}},
		{"architecture", newStory().address(0, boot.StageIPXE).add(time.Second, refused(boot.StepWait, boot.RuleArch, hotspare.CodeArchMismatch, "the firmware is ARM 64-bit UEFI (11) and the kernel is for amd64")), hotspare.CodeArchMismatch, "kernel is for amd64", boot.Circumstances{}},
		{"loader-not-fetched", newStory().address(0, boot.StageFirmware).later(20 * time.Second), hotspare.CodeTransfer, "has not asked for it over TFTP", boot.Circumstances{}},
		{"loader-stalled", newStory().address(0, boot.StageFirmware).add(time.Second, transferFail(boot.StepLoader, boot.TFTP, "snponly.efi stopped after 1428 bytes", 1428, 2e5)), hotspare.CodeTransfer, "stopped after 1428 bytes", boot.Circumstances{}},
		{"loader-stalled", newStory().address(0, boot.StageFirmware).add(time.Second, transferFail(boot.StepLoader, boot.TFTP, "stopped", 0, 2e5)), hotspare.CodeTransfer, "acknowledges no block", boot.Circumstances{}},
		{"loader-silent", newStory().address(0, boot.StageFirmware).loader(time.Second).later(time.Minute), hotspare.CodeLoaderSilent, "Secure Boot refused it", boot.Circumstances{}},
		{"script-not-fetched", newStory().address(0, boot.StageIPXE).later(time.Minute), hotspare.CodeScriptEnds, "has not fetched it for 60 s", boot.Circumstances{}},
		{"token-refused", newStory().address(0, boot.StageIPXE).add(time.Second, refused(boot.StepWait, boot.RuleToken, hotspare.CodeBootToken, "this boot token is not live")), hotspare.CodeBootToken, "not live", boot.Circumstances{}},
		{"no-token", newStory().address(0, boot.StageIPXE).add(time.Second, refused(boot.StepWait, boot.RuleNoToken, hotspare.CodeBootToken, "no boot token is live for it")), hotspare.CodeBootToken, "no boot token", boot.Circumstances{}},
		{"token-spent", newStory().address(0, boot.StageIPXE).get(0, boot.StepScript, 1, 0).get(0, boot.StepInitrd, 1, 0).add(time.Second, refused(boot.StepJoin, boot.RuleSpent, hotspare.CodeTokenReused, "the join archive was fetched before")), hotspare.CodeTokenReused, "fetched before", boot.Circumstances{}},
		{"undecided", newStory().address(0, boot.StageIPXE).add(time.Second, refused(boot.StepWait, boot.RuleUndecided, hotspare.CodeUnavailable, "cannot say now")), hotspare.CodeUnavailable, "cannot say now", boot.Circumstances{}},
		{"kernel-not-fetched", newStory().address(0, boot.StageIPXE).get(0, boot.StepScript, 900, 0).later(20 * time.Second), hotspare.CodeScriptEnds, "kernel has not been asked for", boot.Circumstances{}},
		{"file-stopped", newStory().address(0, boot.StageIPXE).get(0, boot.StepScript, 900, 0).get(0, boot.StepKernel, 8e6, 0).add(time.Second, transferFail(boot.StepInitrd, boot.HTTP, "initrd stopped: the machine went away", 5, 9)), hotspare.CodeTransfer, "(5 of 9 bytes)", boot.Circumstances{}},
		{"file-missing", newStory().address(0, boot.StageFirmware).add(time.Second, boot.Entry{Protocol: boot.TFTP, Step: boot.StepFile, Request: `read "pxelinux.0"`, Reason: boot.Reason{Rule: boot.RuleNoSuchFile, Text: `no such file over TFTP: "pxelinux.0"`}}).later(time.Minute), hotspare.CodeTransfer, "pxelinux.0", boot.Circumstances{}},
		{"kernel-silent", newStory().address(0, boot.StageIPXE).files().later(2 * time.Minute), hotspare.CodeKernelSilent, "the agent was not heard for 2m0s", boot.Circumstances{}},
		{"not-joined", newStory().address(0, boot.StageIPXE).files().address(5*time.Second, boot.StageSystem).later(30 * time.Second), hotspare.CodeJoinRefused, "has not reached the appliance for 30 s", boot.Circumstances{}},
		{"join-refused", newStory().address(0, boot.StageIPXE).files().address(5*time.Second, boot.StageSystem).add(time.Second, boot.Entry{Protocol: boot.Agent, Step: boot.StepAdmit, Request: "join", Detail: boot.Detail{Failed: true}, Reason: boot.Reason{Code: hotspare.CodeTokenReused, Text: "this join token was used before"}}), hotspare.CodeTokenReused, "used before", boot.Circumstances{}},
		{"login-refused", newStory().address(0, boot.StageIPXE).files().joined().mark(0, boot.MarkClaim).add(time.Second, boot.Entry{Protocol: boot.ISCSI, Step: boot.StepLogin, Request: "log-in", Detail: boot.Detail{Failed: true}, Reason: boot.Reason{Code: hotspare.CodeLoginRefused, Text: "no live grant for this initiator: epoch 6 is over, 7 is live"}}), hotspare.CodeLoginRefused, "epoch 6 is over", boot.Circumstances{}},
		{"step-failed", newStory().address(0, boot.StageIPXE).files().joined().mark(0, boot.MarkClaim).add(time.Second, boot.Entry{Protocol: boot.Agent, Step: boot.StepOrder, Request: "mount root", Detail: boot.Detail{Failed: true, Mark: "mount root"}, Reason: boot.Reason{Text: "no such device"}}), hotspare.CodeOnlineFailed, "mount root failed: no such device", boot.Circumstances{}},
		{"step-failed", newStory().address(0, boot.StageIPXE).files().joined().mark(0, boot.MarkClaim).add(time.Second, boot.Entry{Protocol: boot.Agent, Step: boot.StepReport, Request: "systemd database", Detail: boot.Detail{Failed: true}, Reason: boot.Reason{Text: "postgresql.service: exit status 1"}}), hotspare.CodeOnlineFailed, "systemd database failed: postgresql.service: exit status 1", boot.Circumstances{}},
		{"check-fails", whole().add(time.Second, boot.Entry{Protocol: boot.Check, Step: boot.StepService, Request: "check sql", Detail: boot.Detail{Failed: true}, Reason: boot.Reason{Text: "connection refused"}}), hotspare.CodeOnlineFailed, "check fails: connection refused", boot.Circumstances{}},
		{"boot-loop", loop, hotspare.CodeBootLoop, "booted 4 times", boot.Circumstances{}},
		{"link-late", newStory().dhcp(0, boot.StepDiscover, boot.StageFirmware, boot.Detail{Seconds: 28}, boot.Reason{}).dhcp(0, boot.StepRequest, boot.StageFirmware, offered, boot.Reason{}), hotspare.CodeLinkLate, "asking for 28 s", boot.Circumstances{}},
		{"link-late", newStory().dhcp(0, boot.StepDiscover, boot.StageFirmware, boot.Detail{Seconds: 28 << 8}, boot.Reason{}).dhcp(0, boot.StepRequest, boot.StageFirmware, offered, boot.Reason{}), hotspare.CodeLinkLate, "asking for 28 s", boot.Circumstances{}},
		{"agent-link-late", newStory().address(0, boot.StageIPXE).files().mark(time.Second, boot.MarkInit).mark(0, boot.MarkLink).address(30*time.Second, boot.StageSystem).mark(0, boot.MarkJoined), hotspare.CodeLinkLate, "30 s between link and first DHCP: spanning tree without portfast?", boot.Circumstances{}},
		{"router-wait", newStory().address(0, boot.StageIPXE).get(16*time.Second, boot.StepScript, 900, 0), hotspare.CodeBootSlow, "waited 16 s between its address and the script", boot.Circumstances{}},
		{"proxy-wait", newStory().dhcp(0, boot.StepDiscover, boot.StageIPXE, offered, boot.Reason{}).dhcp(2800*time.Millisecond, boot.StepRequest, boot.StageIPXE, offered, boot.Reason{}).get(0, boot.StepScript, 900, 0), hotspare.CodeBootSlow, "waited 2.8 s between offer and request", boot.Circumstances{}},
		{"blocks-resent", newStory().address(0, boot.StageFirmware).add(time.Second, boot.Entry{Protocol: boot.TFTP, Step: boot.StepLoader, Request: "read", Reason: boot.Reason{Rule: boot.RuleTransferred}, Detail: boot.Detail{Bytes: 1e5, Resent: 7}}), hotspare.CodeTransfer, "7 blocks", boot.Circumstances{}},
		{"file-slow", newStory().address(0, boot.StageIPXE).get(time.Second, boot.StepScript, 900, 0).get(time.Second, boot.StepInitrd, 20e6, 40*time.Second), hotspare.CodeBootSlow, "the initrd took 40 s for 20.0 MB (0.5 MB/s)", boot.Circumstances{}},
		{"kernel-slow", newStory().address(0, boot.StageIPXE).files().mark(45*time.Second, boot.MarkInit).mark(0, boot.MarkJoined), hotspare.CodeBootSlow, "45 s between the last file and the first process", boot.Circumstances{}},
		{"firmware-slow", newStory().power(0).address(92*time.Second, boot.StageIPXE), "", "firmware took 92 s", boot.Circumstances{}},
		{"unknown-machine", newStory().address(0, boot.StageIPXE).add(time.Second, refused(boot.StepWait, boot.RuleUnknown, hotspare.CodeNoAssignment, "the appliance does not know this machine")), hotspare.CodeNoAssignment, "does not know", boot.Circumstances{}},
		{"not-approved", newStory().address(0, boot.StageIPXE).add(time.Second, refused(boot.StepWait, boot.RuleUnapproved, hotspare.CodeNoAssignment, "node n1 is not approved yet")), hotspare.CodeNoAssignment, "not approved", boot.Circumstances{}},
	} {
		t.Run(c.rule, func(t *testing.T) {
			l := c.s.ladders(c.c)[0]
			if len(l.Findings) == 0 {
				t.Fatalf("nothing is found; %s: %s", l.State, l.Verdict)
			}
			f := l.Findings[0]
			if f.Rule != c.rule || f.Code != c.code || !strings.Contains(f.Text, c.says) || f.Fix == "" && f.Gravity == boot.Stuck && c.rule != "no-loader" {
				t.Errorf("found %+v, want %s %q %q", l.Findings, c.rule, c.code, c.says)
			}
			if f.Gravity == boot.Stuck && (l.State != boot.LadderStuck || !strings.Contains(l.Verdict, f.Text)) {
				t.Errorf("%s: %s", l.State, l.Verdict)
			}
			if f.Gravity == boot.Stuck && !slices.ContainsFunc(l.Rungs, func(r boot.Rung) bool { return r.Name == f.Rung && r.State == boot.RungStuck }) {
				t.Errorf("no rung is stuck at %s: %+v", f.Rung, l.Rungs)
			}
		})
	}
}

// What was overcome is not what a boot is stuck at.
func TestADiagnosisEndsWithItsCause(t *testing.T) {
	dead := boot.Entry{Protocol: boot.HTTP, Step: boot.StepWait, Request: "GET", Reason: boot.Reason{Rule: boot.RuleToken, Code: hotspare.CodeBootToken, Text: "not live"}}
	for name, s := range map[string]*story{
		"a dead token, then a live one":       newStory().address(0, boot.StageIPXE).add(time.Second, dead).address(20*time.Second, boot.StageIPXE).files().joined().online(),
		"a transfer that was cut":             newStory().address(0, boot.StageFirmware).add(time.Second, boot.Entry{Protocol: boot.TFTP, Step: boot.StepLoader, Request: "r", Reason: boot.Reason{Rule: boot.RuleTransferFail}}).loader(time.Second).address(time.Second, boot.StageIPXE).files().joined().online(),
		"a size probe before the loader":      newStory().address(0, boot.StageFirmware).add(0, boot.Entry{Protocol: boot.TFTP, Step: boot.StepLoader, Request: "size", Detail: boot.Detail{Probe: true}, Reason: boot.Reason{Rule: boot.RuleTransferred}}).loader(0).address(time.Second, boot.StageIPXE).files().joined().online(),
		"a pool that was empty at first":      newStory().dhcp(0, boot.StepDiscover, boot.StageIPXE, boot.Detail{Silent: true}, boot.Reason{Rule: boot.RuleNoAddress}).address(4*time.Second, boot.StageIPXE).files().joined().online(),
		"a check that fails before it passes": newStory().address(0, boot.StageIPXE).files().joined().mark(0, boot.MarkClaim).add(0, boot.Entry{Step: boot.StepService, Request: "check", Detail: boot.Detail{Failed: true}}).online(),
	} {
		t.Run(name, func(t *testing.T) {
			l := s.ladders(boot.Circumstances{})[0]
			if l.State != boot.LadderServes || slices.ContainsFunc(l.Findings, func(f boot.Finding) bool { return f.Gravity == boot.Stuck }) {
				t.Errorf("%s: %+v", l.State, l.Findings)
			}
		})
	}
	t.Run("orders are no loop", func(t *testing.T) {
		s := newStory()
		for range 5 {
			s.power(2*time.Minute).address(9*time.Second, boot.StageIPXE).files()
		}
		if l := s.ladders(boot.Circumstances{})[0]; slices.ContainsFunc(l.Findings, func(f boot.Finding) bool { return f.Rule == "boot-loop" }) {
			t.Errorf("five ordered boots are taken for a loop: %+v", l.Findings)
		}
	})
}

// No trace, however strange, may bring a rule down.
func FuzzLadders(f *testing.F) {
	f.Add([]byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19})
	steps := []boot.Step{"", boot.StepPower, boot.StepDiscover, boot.StepRequest, boot.StepDecline, boot.StepProxy, boot.StepLoader, boot.StepFile, boot.StepScript, boot.StepWait, boot.StepLocal, boot.StepKernel, boot.StepInitrd, boot.StepJoin, boot.StepMark, boot.StepAdmit, boot.StepLogin, boot.StepOrder, boot.StepReport, boot.StepService}
	marks := []string{"", boot.MarkInit, boot.MarkLink, boot.MarkJoined, boot.MarkClaim, boot.MarkOnline, "mount root"}
	rules := []boot.Rule{"", boot.RuleToken, boot.RuleTransferFail, boot.RuleTransferred, boot.RuleNoAddress, boot.RuleNoSuchFile, boot.RuleArch}
	stages := []boot.Stage{"", boot.StageFirmware, boot.StageIPXE, boot.StageSystem}
	protocols := []boot.Protocol{boot.DHCP, boot.TFTP, boot.HTTP, boot.ProxyDHCP, boot.Agent}
	f.Fuzz(func(t *testing.T, in []byte) {
		s := newStory()
		for len(in) >= 4 {
			s.add(time.Duration(int8(in[1]))*time.Second, boot.Entry{
				Step: steps[int(in[0])%len(steps)], Protocol: protocols[int(in[3])%len(protocols)], Reason: boot.Reason{Rule: rules[int(in[2])%len(rules)]},
				Detail: boot.Detail{Mark: marks[int(in[2]>>4)%len(marks)], Stage: stages[int(in[3]>>4)%len(stages)], Failed: in[3]&8 != 0, Silent: in[3]&4 != 0, Bytes: int64(in[2]), Took: time.Duration(in[1]) * time.Second, BootID: string(in[2]&1 + '0')},
			})
			in = in[4:]
		}
		if len(s.entries) == 0 {
			return
		}
		for _, l := range s.ladders(boot.Circumstances{}) {
			if len(l.Rungs) != 9 || l.Verdict == "" || l.State == "" {
				t.Errorf("ladder %+v", l)
			}
			for _, r := range l.Rungs {
				if r.Took < 0 || r.At < 0 {
					t.Errorf("rung %+v", r)
				}
			}
		}
	})
}

// What a waiting machine is shown must not change by itself: it is part of the
// trace, and repetitions are found by it.
func TestADiagnosisOfAWaitingMachineIsSteady(t *testing.T) {
	s := newStory()
	for range 4 {
		s.address(30*time.Second, boot.StageIPXE).files()
	}
	s.address(30*time.Second, boot.StageIPXE)
	verdicts := map[string]bool{}
	for range 20 {
		s.add(20*time.Second, boot.Entry{Protocol: boot.HTTP, Step: boot.StepWait, Request: "GET", Reason: boot.Reason{Rule: boot.RuleNothing, Text: "nothing is ordered"}})
		verdicts[s.ladders(boot.Circumstances{})[0].Verdict] = true
	}
	if len(verdicts) != 1 {
		t.Errorf("it changes: %v", verdicts)
	}
}
