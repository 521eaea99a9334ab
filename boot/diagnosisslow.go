package boot

import (
	"fmt"
	"time"

	"hotspare"
)

// Bounds of what is called slow.
const (
	lateLink     = 8 * time.Second         // of asking in vain
	routerWaits  = 12 * time.Second        // iPXE waits 16 s for an IPv6 router
	proxyWaits   = 1800 * time.Millisecond // iPXE waits 2.8 s for a proxyDHCP server
	proxyWaitsTo = 6 * time.Second
	slowRate     = 2e6 // bytes per second of a boot file
	slowFile     = 5 * time.Second
	slowKernel   = 30 * time.Second
	slowFirmware = 30 * time.Second
)

const edgePort = "make the switch port an edge port (portfast); for a bond, let single links through (LACP fallback)"

// askedFor is how long a client says that it has been asking. Some firmware
// sends the field in the wrong byte order.
func askedFor(e Entry) time.Duration {
	s := e.Detail.Seconds
	if s >= 256 && s&0xff == 0 {
		s >>= 8
	}
	return time.Duration(s) * time.Second
}

// linkLate looks at the first packet that arrived: it says for how long the
// machine had been sending others.
func linkLate(v *view) (Finding, bool) {
	e, ok := v.first(func(e Entry) bool { return e.Step == StepDiscover && e.Detail.Stage != StageSystem })
	if !ok || askedFor(e) < lateLink || askedFor(e) > 10*time.Minute {
		return Finding{}, false
	}
	return Finding{
		Rung: RungDHCP, Gravity: Slow, Code: hotspare.CodeLinkLate,
		Text: fmt.Sprintf("its first packet that arrived says that it has been asking for %s: the network did not forward until then; spanning tree without portfast?", sec(askedFor(e))),
		Fix:  edgePort,
	}, true
}

// agentLinkLate is the same in the system that was booted.
func agentLinkLate(v *view) (Finding, bool) {
	link, ok := v.first(func(e Entry) bool { return e.Step == StepMark && e.Detail.Mark == MarkLink })
	if !ok {
		return Finding{}, false
	}
	got, ok := v.first(func(e Entry) bool {
		return e.At.After(link.At) && (e.Step.dhcp() && e.Detail.Stage == StageSystem || e.Step == StepMark && e.Detail.Mark == MarkAddress)
	})
	if gap := got.At.Sub(link.At); ok && gap >= lateLink {
		return Finding{
			Rung: RungAgent, Gravity: Slow, Code: hotspare.CodeLinkLate,
			Text: fmt.Sprintf("%s between link and first DHCP: spanning tree without portfast?", sec(gap)), Fix: edgePort,
		}, true
	}
	return Finding{}, false
}

// routerWait looks at what iPXE does between its address and the script.
func routerWait(v *view) (Finding, bool) {
	e, ok := v.first(granted(StageIPXE))
	if !ok {
		return Finding{}, false
	}
	got, ok := v.first(func(x Entry) bool { return x.At.After(e.At) && x.Protocol == HTTP })
	if gap := got.At.Sub(e.At); ok && e.Again == 0 && gap >= routerWaits && gap < 2*routerWaits {
		return Finding{
			Rung: RungScript, Gravity: Slow, Code: hotspare.CodeBootSlow,
			Text: fmt.Sprintf("iPXE waited %s between its address and the script: it looked for an IPv6 router", sec(gap)),
			Fix:  "set `network.routerAdvertisements: true`: an advertisement with lifetime 0 ends the wait",
		}, true
	}
	return Finding{}, false
}

func proxyWait(v *view) (Finding, bool) {
	d, ok := v.first(func(e Entry) bool { return e.Step == StepDiscover && e.Detail.Stage == StageIPXE && !e.Detail.Silent })
	if !ok || d.Again > 1 {
		return Finding{}, false
	}
	r, ok := v.first(func(e Entry) bool { return e.Step == StepRequest && e.Detail.Stage == StageIPXE && e.At.After(d.At) })
	if gap := r.At.Sub(d.At); ok && gap >= proxyWaits && gap <= proxyWaitsTo {
		return Finding{
			Rung: RungDHCP, Gravity: Slow, Code: hotspare.CodeBootSlow,
			Text: fmt.Sprintf("iPXE waited %s between offer and request: it looked for a proxyDHCP server", sec(gap)),
			Fix:  "nothing where hotspare is the DHCP server, which tells iPXE not to wait; in proxy mode set option 175.176 on the other server",
		}, true
	}
	return Finding{}, false
}

func blocksResent(v *view) (Finding, bool) {
	e, ok := v.last(func(e Entry) bool {
		return e.Protocol == TFTP && e.Detail.Resent >= 3 && e.Reason.Rule == RuleTransferred
	})
	if !ok {
		return Finding{}, false
	}
	return Finding{
		Rung: RungLoader, Gravity: Slow, Code: hotspare.CodeTransfer,
		Text: fmt.Sprintf("%d blocks of the loader had to be sent again: packets are lost between it and the appliance", e.Detail.Resent),
		Fix:  "check cable, duplex and MTU; HTTP boot avoids TFTP",
	}, true
}

func fileSlow(v *view) (Finding, bool) {
	for _, e := range v.all {
		if e.Protocol != HTTP && e.Protocol != TFTP || e.Detail.Took < slowFile || failed(e) {
			continue
		}
		if rate := float64(e.Detail.Bytes) / e.Detail.Took.Seconds(); rate < slowRate {
			rung := RungKernel
			if e.Step == StepLoader || e.Step == StepFile {
				rung = RungLoader
			}
			return Finding{
				Rung: rung, Gravity: Slow, Code: hotspare.CodeBootSlow,
				Text: fmt.Sprintf("the %s took %s for %.1f MB (%.1f MB/s)", e.Step, sec(e.Detail.Took), float64(e.Detail.Bytes)/1e6, rate/1e6),
				Fix:  "check link speed and duplex, and what else uses the segment; a node in standby has the files already",
			}, true
		}
	}
	return Finding{}, false
}

func kernelSlow(v *view) (Finding, bool) {
	init, ok := v.first(func(e Entry) bool { return e.Step == StepMark && e.Detail.Mark == MarkInit })
	if !ok {
		return Finding{}, false
	}
	_, fetched := v.span(RungKernel)
	if gap := init.At.Sub(fetched); !fetched.IsZero() && gap >= slowKernel {
		return Finding{
			Rung: RungInit, Gravity: Slow, Code: hotspare.CodeBootSlow,
			Text: fmt.Sprintf("%s between the last file and the first process", sec(gap)),
			Fix:  "a serial console that nobody reads slows a kernel down, and so does a large initramfs: check the kernel arguments (console=) and `modules`",
		}, true
	}
	return Finding{}, false
}

func firmwareSlow(v *view) (Finding, bool) {
	p, ok := v.last(step(StepPower))
	if !ok || !v.passed(RungFirmware) {
		return Finding{}, false
	}
	if d := v.firstRequest(p.Last()).Sub(p.Last()); d >= slowFirmware {
		return Finding{
			Rung: RungFirmware, Gravity: Noted, Text: fmt.Sprintf("its firmware took %s to the first packet", sec(d)),
			Fix: "a node in standby has this behind it: give its pool a standby policy",
		}, true
	}
	return Finding{}, false
}
