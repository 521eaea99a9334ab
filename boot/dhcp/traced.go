package dhcp

import (
	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv6"

	"hotspare"
	"hotspare/boot"
)

// traced gives a question with its answer as the machine's trace keeps it.
func (s *Server) traced(m message, protocol boot.Protocol, a answer) boot.Entry {
	e := boot.Entry{
		At: s.o.Now(), MAC: m.mac, Protocol: protocol, Step: stepOf(m.kind), Node: a.node, Request: describe(m), Answer: a.text, Reason: a.reason,
		Detail: boot.Detail{Stage: m.boot.Stage, Arch: m.boot.Arch, Seconds: m.NumSeconds, Silent: a.packet == nil && expects(m.kind)},
	}
	if m.boot.Stage == boot.StageSystem {
		e.Detail.Arch = 0 // it says none
	}
	switch {
	case a.packet == nil:
		// It took another server's offer, which is no refusal of ours.
		if chosen := addrOf(m.Options[54]); m.kind == dhcpv4.MessageTypeRequest && chosen.IsValid() && a.reason.Code == hotspare.CodeForeignDHCP {
			e.Detail.Server = chosen
		}
	case a.packet.MessageType() == dhcpv4.MessageTypeNak:
		e.Detail.Failed = true
	default:
		e.Detail.Address = addrOf(a.packet.YourIPAddr)
		if !e.Detail.Address.IsValid() {
			e.Detail.Address = m.have
		}
	}
	return e
}

// expects says whether a machine waits for an answer to the message.
func expects(kind dhcpv4.MessageType) bool {
	return kind == dhcpv4.MessageTypeDiscover || kind == dhcpv4.MessageTypeRequest || kind == dhcpv4.MessageTypeInform
}

// stepOf gives a message's place on the ladder of a boot.
func stepOf(kind dhcpv4.MessageType) boot.Step {
	switch kind {
	case dhcpv4.MessageTypeDiscover:
		return boot.StepDiscover
	case dhcpv4.MessageTypeDecline:
		return boot.StepDecline
	case dhcpv4.MessageTypeRelease:
		return boot.StepRelease
	case dhcpv4.MessageTypeInform:
		return boot.StepInform
	}
	return boot.StepRequest
}

func stepOf6(kind dhcpv6.MessageType) boot.Step {
	switch kind {
	case dhcpv6.MessageTypeSolicit:
		return boot.StepDiscover
	case dhcpv6.MessageTypeDecline:
		return boot.StepDecline
	case dhcpv6.MessageTypeRelease:
		return boot.StepRelease
	case dhcpv6.MessageTypeInformationRequest:
		return boot.StepInform
	}
	return boot.StepRequest
}
