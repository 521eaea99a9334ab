package boot

import (
	"cmp"
	"fmt"
	"strings"

	"hotspare"
)

func foreignServer(v *view) (Finding, bool) {
	e, ok := v.last(func(e Entry) bool { return e.Detail.Server.IsValid() || e.Reason.Code == hotspare.CodeForeignDHCP })
	if !ok {
		return Finding{}, false
	}
	who := e.Detail.Server.String()
	if !e.Detail.Server.IsValid() {
		_, who, _ = strings.Cut(e.Reason.Text, "server, ")
	}
	for _, f := range v.Foreign {
		if f.Server == e.Detail.Server && f.About != "" {
			who += " (" + f.About + ")"
		}
	}
	f := Finding{
		Rung: RungDHCP, Gravity: Stuck, Code: hotspare.CodeForeignDHCP, Text: "it took the offer of another DHCP server, " + who,
		Fix: "set `mode: proxy` for this segment, or stop that server, or keep it off the segment",
	}
	if o, offered := v.last(func(x Entry) bool { return x.Step == StepDiscover && x.Detail.Address.IsValid() && !x.Detail.Silent }); offered {
		f.Text = fmt.Sprintf("it asked, was offered %s and took another server's offer, %s", o.Detail.Address, who)
	}
	if e.Detail.Stage == StageSystem {
		f.Rung = RungAgent
	}
	if v.after(e.Last(), func(x Entry) bool { return x.Step == StepScript || x.Step.started() }) {
		f.Gravity = Noted
	}
	return f, true
}

func offerNotTaken(v *view) (Finding, bool) {
	e, ok := v.last(func(e Entry) bool { return e.Step == StepDiscover && !e.Detail.Silent })
	if !ok || v.after(e.At, func(x Entry) bool { return x.Step != StepDiscover }) {
		return Finding{}, false
	}
	d, over := v.silent(e.Last(), offerPatience)
	if !over && e.Again < 2 {
		return Finding{}, false
	}
	f := Finding{
		Rung: RungDHCP, Gravity: Stuck, Code: hotspare.CodeOfferIgnored,
		Fix: "look for another DHCP server, and whether broadcasts and answers pass between the machine and the appliance (VLAN, port security, DHCP snooping)",
	}
	if e.Detail.Stage == StageSystem {
		f.Rung = RungAgent
	}
	what := "an address"
	if e.Detail.Address.IsValid() {
		what = e.Detail.Address.String()
	}
	f.Text = fmt.Sprintf("it asked %s, was offered %s and has not requested it for %s", times(e.Again+1), what, sec(d))
	if e.Protocol == ProxyDHCP {
		f.Text = fmt.Sprintf("it asked %s, was told where to boot from and does not come", times(e.Again+1))
		f.Fix = "some firmware ignores proxy offers: make hotspare the segment's DHCP server, or set options 66 and 67 on the other one"
	}
	if len(v.Foreign) > 0 {
		var names []string
		for _, x := range v.Foreign {
			names = append(names, strings.TrimSpace(x.Server.String()+" "+x.About))
		}
		f.Text += "; it probably took the offer of another DHCP server: " + strings.Join(names, ", ")
		f.Fix = "set `mode: proxy` for this segment, or stop that server, or keep it off the segment"
	}
	return f, true
}

func times(n uint64) string {
	if n == 1 {
		return "once"
	}
	return fmt.Sprintf("%d times", n)
}

func noAddress(v *view) (Finding, bool) {
	e, ok := v.last(func(e Entry) bool {
		return e.Step.dhcp() && e.Detail.Silent && e.Reason.Rule == RuleNoAddress && !e.Detail.Server.IsValid()
	})
	if !ok || e.Reason.Code == hotspare.CodeForeignDHCP || v.after(e.Last(), func(x Entry) bool { return x.Step.dhcp() && !x.Detail.Silent || x.Step.started() }) {
		return Finding{}, false
	}
	rung := RungDHCP
	if e.Detail.Stage == StageSystem && v.passed(RungScript) {
		rung = RungAgent
	}
	return Finding{
		Rung: rung, Gravity: Stuck, Code: cmp.Or(e.Reason.Code, hotspare.CodePoolEmpty), Text: "it gets no address: " + e.Reason.Text,
		Fix: cmp.Or(e.Reason.Fix, "make the DHCP range larger, or find out who sends so many MAC addresses"),
	}, true
}

func addressInUse(v *view) (Finding, bool) {
	e, ok := v.last(func(e Entry) bool { return e.Step == StepDecline || e.Reason.Code == hotspare.CodeAddressInUse })
	if !ok {
		return Finding{}, false
	}
	f := Finding{
		Rung: RungDHCP, Gravity: Stuck, Code: hotspare.CodeAddressInUse, Text: cmp.Or(e.Reason.Text, "somebody else answers on the address that it was given"),
		Fix: cmp.Or(e.Reason.Fix, "find the machine that has the address, or exclude the address from the range"),
	}
	if e.Step == StepReport || e.Step == StepOrder {
		f.Rung = RungService
	} else if v.after(e.Last(), func(x Entry) bool { return x.Step == StepRequest && !x.Detail.Silent || x.Step.started() }) {
		f.Gravity = Noted // it got another one
	}
	return f, true
}
