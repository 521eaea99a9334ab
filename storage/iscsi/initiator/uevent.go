package initiator

import (
	"encoding/binary"
	"fmt"

	"hotspare/storage/iscsi"
)

// netlinkHeaderSize is the length of struct nlmsghdr.
const netlinkHeaderSize = 16

// ueventSize is the length of struct iscsi_uevent (include/scsi/iscsi_if.h): 16
// bytes of header, 24 of the request union (its largest members are bind_conn
// and stop_conn), 16 of the reply union (recv_req). The union members are all
// made of naturally aligned fields of at most 8 bytes, so the layout is the same
// on every 64-bit machine. The kernel keeps the size for compatibility.
const ueventSize = 56

// eventType is enum iscsi_uevent_e.
type eventType uint32

// Requests to the kernel.
const (
	ueventCreateSession  eventType = 11
	ueventDestroySession eventType = 12
	ueventCreateConn     eventType = 13
	ueventDestroyConn    eventType = 14
	ueventBindConn       eventType = 15
	ueventSetParam       eventType = 16
	ueventStartConn      eventType = 17
	ueventStopConn       eventType = 18
	ueventSendPDU        eventType = 19
	ueventUnbindSession  eventType = 27
)

// Events from the kernel. keventIfError stands in the reply to a request that
// was refused; the others come by multicast.
const (
	keventRecvPDU       eventType = 101
	keventConnError     eventType = 102
	keventIfError       eventType = 103
	keventUnbindSession eventType = 105
)

// String names the requests for error texts.
func (t eventType) String() string {
	switch t {
	case ueventCreateSession:
		return "create session"
	case ueventDestroySession:
		return "destroy session"
	case ueventCreateConn:
		return "create connection"
	case ueventDestroyConn:
		return "destroy connection"
	case ueventBindConn:
		return "bind connection"
	case ueventSetParam:
		return "set parameter"
	case ueventStartConn:
		return "start connection"
	case ueventStopConn:
		return "stop connection"
	case ueventSendPDU:
		return "send PDU"
	case ueventUnbindSession:
		return "unbind session"
	}
	return fmt.Sprintf("event %d", uint32(t))
}

// Flags of a stop request.
const (
	stopTerminate uint32 = 1 // the session ends
	stopRecover   uint32 = 3 // the session waits for a new connection
)

// uevent is struct iscsi_uevent: Request is the union u, Reply the union r.
type uevent struct {
	Type    eventType
	IfError int32 // negative errno in a keventIfError
	Handle  uint64
	Request [24]byte
	Reply   [16]byte
}

// The kernel's structs are in the byte order of the machine.
var native = binary.NativeEndian

func (e *uevent) putRequest32(off int, v uint32) { native.PutUint32(e.Request[off:], v) }
func (e *uevent) reply32(off int) uint32         { return native.Uint32(e.Reply[off:]) }

// appendMessage appends nlmsghdr, uevent and payload to b.
func appendMessage(b []byte, e *uevent, payload []byte) []byte {
	total := netlinkHeaderSize + ueventSize + len(payload)
	b = native.AppendUint32(b, uint32(total))
	b = native.AppendUint16(b, uint16(e.Type))
	b = native.AppendUint16(b, 0) // flags
	b = native.AppendUint32(b, 0) // sequence: the kernel does not echo it
	b = native.AppendUint32(b, 0) // port: filled in by the kernel
	b = native.AppendUint32(b, uint32(e.Type))
	b = native.AppendUint32(b, uint32(e.IfError))
	b = native.AppendUint64(b, e.Handle)
	b = append(b, e.Request[:]...)
	b = append(b, e.Reply[:]...)
	return append(b, payload...)
}

// parseMessage reads one datagram of the kernel: the message type of the
// nlmsghdr (which repeats the request in a reply), the uevent, and what follows.
func parseMessage(b []byte) (msgType uint16, e uevent, payload []byte, err error) {
	if len(b) < netlinkHeaderSize+ueventSize {
		return 0, e, nil, fmt.Errorf("netlink message of %d bytes, at least %d", len(b), netlinkHeaderSize+ueventSize)
	}
	total := native.Uint32(b)
	if total < netlinkHeaderSize+ueventSize || uint64(total) > uint64(len(b)) {
		return 0, e, nil, fmt.Errorf("netlink message says %d bytes and has %d", total, len(b))
	}
	msgType = native.Uint16(b[4:])
	b = b[netlinkHeaderSize:total]
	e.Type = eventType(native.Uint32(b))
	e.IfError = int32(native.Uint32(b[4:]))
	e.Handle = native.Uint64(b[8:])
	copy(e.Request[:], b[16:40])
	copy(e.Reply[:], b[40:56])
	return msgType, e, b[ueventSize:], nil
}

// parsePDU reads what follows the uevent of a keventRecvPDU: the basic header
// and the data segment, without padding and digests. The kernel's message may be
// longer than the data.
func parsePDU(b []byte) (*iscsi.PDU, error) {
	if len(b) < iscsi.HeaderSize {
		return nil, fmt.Errorf("PDU of %d bytes from the kernel", len(b))
	}
	p := &iscsi.PDU{}
	copy(p.Header[:], b)
	b = b[iscsi.HeaderSize:]
	n := p.Header.DataLength()
	if n > len(b) {
		return nil, fmt.Errorf("PDU says %d bytes of data and the kernel passed %d", n, len(b))
	}
	p.Data = append([]byte(nil), b[:n]...)
	return p, nil
}

// kernelError gives the words for enum iscsi_err, the reason of a
// keventConnError.
func kernelError(code uint32) string {
	names := map[uint32]string{
		1001: "data out of sequence", 1002: "data offset", 1003: "MaxCmdSN", 1004: "ExpCmdSN",
		1005: "unknown opcode", 1006: "data length", 1007: "length of additional headers", 1008: "protocol error",
		1009: "logical unit", 1010: "unknown task tag", 1011: "connection failed", 1012: "R2T out of sequence",
		1013: "session failed", 1014: "header digest", 1015: "data digest", 1016: "unknown parameter",
		1017: "no such command", 1018: "invalid host", 1019: "sending failed", 1020: "TCP connection closed",
		1021: "session reset by the SCSI error handler", 1022: "no answer to a NOP within its time",
	}
	if n, ok := names[code]; ok {
		return n
	}
	return fmt.Sprintf("kernel error %d", code)
}
