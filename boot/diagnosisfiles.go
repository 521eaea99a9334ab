package boot

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"hotspare"
)

// granted says whether an entry is an acknowledged address for a stage.
func granted(stage Stage) func(Entry) bool {
	return func(e Entry) bool {
		return (e.Step == StepRequest || e.Step == StepProxy) && e.Detail.Stage == stage && !e.Detail.Silent && !failed(e)
	}
}

func sent(s Step) func(Entry) bool {
	return func(e Entry) bool {
		return e.Step == s && !e.Detail.Probe && e.Reason.Rule != RuleTransferFail && !failed(e)
	}
}

func loaderNotFetched(v *view) (Finding, bool) {
	e, ok := v.last(granted(StageFirmware))
	if !ok || v.passed(RungDHCP) || e.Reason.Rule == RuleNoLoader {
		return Finding{}, false
	}
	d, over := v.silent(e.Last(), filePatience)
	if !over {
		return Finding{}, false
	}
	way, port := "TFTP", "UDP port 69 and the high ports that it answers from"
	if e.Detail.Arch.HTTP() {
		way, port = "HTTP", "TCP port 80"
	}
	return Finding{
		Rung: RungLoader, Gravity: Stuck, Code: hotspare.CodeTransfer,
		Text: fmt.Sprintf("it has an address, was told its loader %s ago and has not asked for it over %s%s", sec(d), way, v.anew()),
		Fix:  "open " + port + " between the machine and the appliance",
	}, true
}

func loaderStalled(v *view) (Finding, bool) {
	e, ok := v.last(func(e Entry) bool { return e.Step == StepLoader && e.Reason.Rule == RuleTransferFail })
	if !ok || v.after(e.At, sent(StepLoader)) || v.passed(RungLoader) {
		return Finding{}, false
	}
	f := Finding{
		Rung: RungLoader, Gravity: Stuck, Code: hotspare.CodeTransfer, Text: "the loader does not reach it: " + e.Reason.Text,
		Fix: "the machine's answers are lost: a firewall between it and the appliance, or packets that are too large on the way (MTU); HTTP boot avoids TFTP",
	}
	if e.Detail.Bytes == 0 && e.Protocol == TFTP {
		f.Text = fmt.Sprintf("it asks for its loader over TFTP (%s) and acknowledges no block", times(e.Again+1))
	}
	return f, true
}

func loaderSilent(v *view) (Finding, bool) {
	e, ok := v.last(sent(StepLoader))
	if !ok || v.passed(RungLoader) || v.after(e.At, func(x Entry) bool { return x.Detail.Stage == StageIPXE }) {
		return Finding{}, false
	}
	d, over := v.silent(endOf(e), loaderPatience)
	if !over {
		return Finding{}, false
	}
	f := Finding{
		Rung: RungLoader, Gravity: Stuck, Code: hotspare.CodeLoaderSilent,
		Text: fmt.Sprintf("the loader was fetched, and nothing came after it for %s%s", sec(d), v.anew()),
		Fix:  "choose another loader for this machine: this one does not drive its network card",
	}
	dhcp, _ := v.last(func(x Entry) bool { return x.Step.dhcp() && x.Detail.Stage == StageFirmware })
	if dhcp.Detail.Arch.Firmware() == FirmwareUEFI {
		f.Text += ": Secure Boot refused it, or it does not drive the network card"
		f.Fix = "with Secure Boot on, set `secureBoot: true` for the node, or switch Secure Boot off; else choose another loader (snponly.efi, ipxe.efi)"
	}
	return f, true
}

func scriptNotFetched(v *view) (Finding, bool) {
	e, ok := v.last(granted(StageIPXE))
	if !ok || v.after(e.At, func(x Entry) bool { return x.Protocol == HTTP || x.Step == StepDiscover || x.Step.started() }) {
		return Finding{}, false
	}
	d, over := v.silent(e.Last(), scriptPatience)
	if !over {
		return Finding{}, false
	}
	return Finding{
		Rung: RungScript, Gravity: Stuck, Code: hotspare.CodeScriptEnds,
		Text: fmt.Sprintf("iPXE has an address and the script's URL, and has not fetched it for %s%s", sec(d), v.anew()),
		Fix:  "open TCP port 80 between the machine and the appliance; iPXE's own message is on the machine's screen",
	}, true
}

func kernelNotFetched(v *view) (Finding, bool) {
	e, ok := v.last(sent(StepScript))
	if !ok || v.after(e.At, func(x Entry) bool { return x.Step != StepScript && (x.Protocol == HTTP || x.Step.started()) }) {
		return Finding{}, false
	}
	d, over := v.silent(e.Last(), filePatience)
	if !over {
		return Finding{}, false
	}
	return Finding{
		Rung: RungKernel, Gravity: Stuck, Code: hotspare.CodeScriptEnds,
		Text: fmt.Sprintf("the script was fetched, and the kernel has not been asked for since %s%s", sec(d), v.anew()),
		Fix:  "the machine's screen has iPXE's own message: the URL, its memory, or an iPXE that cannot boot Linux",
	}, true
}

func fileStopped(v *view) (Finding, bool) {
	e, ok := v.last(func(e Entry) bool {
		return (e.Step == StepKernel || e.Step == StepInitrd || e.Step == StepJoin || e.Step == StepScript) && e.Reason.Rule == RuleTransferFail
	})
	if !ok || v.after(e.At, func(x Entry) bool { return sent(e.Step)(x) || x.Step == StepMark || x.Step == StepAdmit }) {
		return Finding{}, false
	}
	text := fmt.Sprintf("the %s did not reach it whole: %s", e.Step, e.Reason.Text)
	if e.Detail.Size > 0 {
		text += fmt.Sprintf(" (%d of %d bytes)", e.Detail.Bytes, e.Detail.Size)
	}
	return Finding{
		Rung: RungKernel, Gravity: Stuck, Code: cmp.Or(e.Reason.Code, hotspare.CodeTransfer), Text: text,
		Fix: cmp.Or(e.Reason.Fix, "check the machine's memory and its link; iPXE's own message is on its screen"),
	}, true
}

func fileMissing(v *view) (Finding, bool) {
	e, ok := v.last(func(e Entry) bool { return e.Reason.Rule == RuleNoSuchFile })
	if !ok || e.Protocol == TFTP && v.passed(RungLoader) || // shim and GRUB look for files that they can do without
		v.after(e.At, func(x Entry) bool { return x.Step.started() && x.Reason.Rule != RuleNoSuchFile }) {
		return Finding{}, false
	}
	f := Finding{Rung: RungLoader, Gravity: Slow, Code: hotspare.CodeTransfer, Text: "it asks for a file that is not served: " + e.Reason.Text, Fix: "set the loader of this machine; another DHCP server may name that file"}
	if v.silentAfter(e, loaderPatience) {
		f.Gravity = Stuck
	}
	if e.Protocol == HTTP {
		f.Rung = RungScript
	}
	return f, true
}

// silentAfter says whether e was the last thing for longer than patience.
func (v *view) silentAfter(e Entry, patience time.Duration) bool {
	_, over := v.silent(e.Last(), patience)
	return over && !slices.ContainsFunc(v.all, func(x Entry) bool { return x.Last().After(e.Last()) })
}

func kernelSilent(v *view) (Finding, bool) {
	e, ok := v.last(func(e Entry) bool {
		return sent(StepKernel)(e) || sent(StepInitrd)(e) || sent(StepJoin)(e)
	})
	if !ok || v.passed(RungKernel) {
		return Finding{}, false
	}
	d, over := v.silent(endOf(e), kernelPatience)
	if !over {
		return Finding{}, false
	}
	f := Finding{
		Rung: RungInit, Gravity: Stuck, Code: hotspare.CodeKernelSilent,
		Text: fmt.Sprintf("kernel and initramfs were fetched, and the agent was not heard for %s%s", sec(d), v.anew()),
		Fix:  "look at the machine's console (kernel argument console=): a panic, or no driver for the network card in the initramfs (`modules: generic`)",
	}
	if _, asked := v.last(step(StepInitrd)); !asked {
		f.Text = fmt.Sprintf("the kernel was fetched, the initramfs was not asked for since %s%s", sec(d), v.anew())
		f.Rung, f.Code, f.Fix = RungKernel, hotspare.CodeTransfer, "iPXE's own message is on the machine's screen"
	} else if !v.ended.IsZero() && d < kernelPatience {
		f.Text += ": the kernel panicked, or the agent gave up and started the machine again"
	}
	return f, true
}

func notJoined(v *view) (Finding, bool) {
	e, ok := v.last(func(e Entry) bool { return granted(StageSystem)(e) })
	if !ok || !v.has(StepKernel, "") || v.has(StepAdmit, "") || v.has(StepMark, "") {
		return Finding{}, false
	}
	d, over := v.silent(e.At, joinPatience)
	if !over {
		return Finding{}, false
	}
	return Finding{
		Rung: RungAgent, Gravity: Stuck, Code: hotspare.CodeJoinRefused,
		Text: fmt.Sprintf("the agent has an address and has not reached the appliance for %s%s", sec(d), v.anew()),
		Fix:  "open TCP port 7443 between the machine and the appliance; the machine's console says what the agent waits for",
	}, true
}

func joinRefused(v *view) (Finding, bool) {
	e, ok := v.last(step(StepAdmit))
	if !ok || !e.Detail.Failed || v.after(e.Last(), func(x Entry) bool { return x.Step == StepMark }) {
		return Finding{}, false
	}
	return Finding{
		Rung: RungAgent, Gravity: Stuck, Code: cmp.Or(e.Reason.Code, hotspare.CodeJoinRefused), Text: "the agent asked to join and was refused: " + e.Reason.Text,
		Fix: cmp.Or(e.Reason.Fix, "power the node on through hotspare: each boot gets a token of its own"),
	}, true
}

func loginRefused(v *view) (Finding, bool) {
	e, ok := v.last(func(e Entry) bool { return e.Step == StepLogin })
	if !ok || !e.Detail.Failed {
		return Finding{}, false
	}
	return Finding{
		Rung: RungRoot, Gravity: Stuck, Code: cmp.Or(e.Reason.Code, hotspare.CodeLoginRefused), Text: "the iSCSI log-in was refused: " + e.Reason.Text,
		Fix: cmp.Or(e.Reason.Fix, "nothing, if a newer grant exists: this machine holds an older one's secret; else start the application again"),
	}, true
}

// stepFailed is a step of the claim or a resource that did not come online.
func stepFailed(v *view) (Finding, bool) {
	e, ok := v.last(func(e Entry) bool { return (e.Step == StepOrder || e.Step == StepReport) && e.Detail.Failed })
	if !ok || v.after(e.Last(), func(x Entry) bool {
		return x.Step == StepReport && x.Request == e.Request && !x.Detail.Failed || x.Step == StepMark && x.Detail.Mark == MarkOnline || x.Step == StepService && !x.Detail.Failed
	}) {
		return Finding{}, false
	}
	f := Finding{Rung: rungOfMark(e.Detail.Mark), Gravity: Stuck, Code: cmp.Or(e.Reason.Code, hotspare.CodeOnlineFailed), Text: e.Request + " failed: " + e.Reason.Text, Fix: e.Reason.Fix}
	if f.Fix == "" {
		f.Fix = "the machine's console and `hotspare explain node " + cmp.Or(v.node(), "NAME") + "` say more"
	}
	if f.Rung == RungRoot && f.Fix == "" {
		f.Fix = "the image's root was not found or not mounted: check the image (hotspare image show)"
	}
	return f, true
}

func (v *view) node() string {
	e, _ := v.last(func(e Entry) bool { return e.Node != "" })
	return e.Node
}

func checkFails(v *view) (Finding, bool) {
	e, ok := v.last(step(StepService))
	if !ok || !e.Detail.Failed || !v.has(StepMark, MarkOnline) {
		return Finding{}, false
	}
	return Finding{
		Rung: RungService, Gravity: Stuck, Code: hotspare.CodeOnlineFailed, Text: "every resource is online, and the application's check fails: " + e.Reason.Text,
		Fix: "the service runs and does not answer as the check wants: look at the application's own log, and at the check",
	}, true
}
