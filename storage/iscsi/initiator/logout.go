package initiator

import (
	"fmt"

	"hotspare/storage/iscsi"
)

// logoutRequest closes the session (RFC 7143, 11.14). The kernel fills in the
// task tag and the sequence numbers.
func logoutRequest() *iscsi.PDU {
	p := &iscsi.PDU{}
	p.Header.SetOpcode(iscsi.OpLogout, true)
	p.Header.SetFlags(0x80) // final; reason 0: close the session
	return p
}

// checkLogout reads the answer (RFC 7143, 11.15).
func checkLogout(p *iscsi.PDU) error {
	if p.Header.Opcode() != iscsi.OpLogoutResponse {
		return fmt.Errorf("log-out: answer with opcode %#02x", byte(p.Header.Opcode()))
	}
	if r := p.Header[2]; r != 0 {
		return fmt.Errorf("log-out: the target answers %d", r)
	}
	return nil
}
