package iscsi

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

// HeaderSize is the length of a basic header segment (RFC 7143, 11.2.1).
const HeaderSize = 48

// Opcode is the operation code of a PDU (RFC 7143, 11.2.1.2).
type Opcode byte

// Operation codes; those with 0x20 set are sent by the target.
const (
	OpNopOut       Opcode = 0x00
	OpSCSICommand  Opcode = 0x01
	OpTaskRequest  Opcode = 0x02
	OpLoginRequest Opcode = 0x03
	OpTextRequest  Opcode = 0x04
	OpDataOut      Opcode = 0x05
	OpLogout       Opcode = 0x06
	OpSNACK        Opcode = 0x10

	OpNopIn          Opcode = 0x20
	OpSCSIResponse   Opcode = 0x21
	OpTaskResponse   Opcode = 0x22
	OpLoginResponse  Opcode = 0x23
	OpTextResponse   Opcode = 0x24
	OpDataIn         Opcode = 0x25
	OpLogoutResponse Opcode = 0x26
	OpR2T            Opcode = 0x31
	OpAsync          Opcode = 0x32
	OpReject         Opcode = 0x3f
)

// ReservedTag is the task tag that stands for "no task".
const ReservedTag uint32 = 0xffffffff

// Header is a basic header segment as it stands on the wire. The accessors name
// the fields; which of them mean something depends on the opcode.
type Header [HeaderSize]byte

// Opcode gives the operation code.
func (h *Header) Opcode() Opcode { return Opcode(h[0] & 0x3f) }

// Immediate says whether the PDU is for immediate delivery.
func (h *Header) Immediate() bool { return h[0]&0x40 != 0 }

// SetOpcode sets the operation code and the immediate bit.
func (h *Header) SetOpcode(op Opcode, immediate bool) {
	h[0] = byte(op)
	if immediate {
		h[0] |= 0x40
	}
}

// Final gives the F bit (in log-in PDUs: T, transit).
func (h *Header) Final() bool { return h[1]&0x80 != 0 }

// Flags gives byte 1, whose meaning depends on the opcode.
func (h *Header) Flags() byte { return h[1] }

// SetFlags sets byte 1.
func (h *Header) SetFlags(f byte) { h[1] = f }

// AHSLength gives the length of the additional header segments in bytes.
func (h *Header) AHSLength() int { return int(h[4]) * 4 }

// DataLength gives the length of the data segment in bytes, without padding.
func (h *Header) DataLength() int { return int(h[5])<<16 | int(h[6])<<8 | int(h[7]) }

// SetDataLength sets the length of the data segment; n must be below 1<<24.
func (h *Header) SetDataLength(n int) { h[5], h[6], h[7] = byte(n>>16), byte(n>>8), byte(n) }

// LUN gives the logical unit field (8 bytes, SAM-5 4.7).
func (h *Header) LUN() uint64 { return binary.BigEndian.Uint64(h[8:]) }

// SetLUN sets the logical unit field.
func (h *Header) SetLUN(l uint64) { binary.BigEndian.PutUint64(h[8:], l) }

// TaskTag gives the initiator task tag.
func (h *Header) TaskTag() uint32 { return h.Uint32(16) }

// SetTaskTag sets the initiator task tag.
func (h *Header) SetTaskTag(t uint32) { h.PutUint32(16, t) }

// TransferTag gives the target transfer tag (bytes 20-23). In a SCSI command
// the same bytes are the expected data transfer length, in a task management
// request the referenced task tag.
func (h *Header) TransferTag() uint32 { return h.Uint32(20) }

// SetTransferTag sets bytes 20-23.
func (h *Header) SetTransferTag(t uint32) { h.PutUint32(20, t) }

// CmdSN gives the command sequence number of a request; StatSN has its place
// in a response.
func (h *Header) CmdSN() uint32 { return h.Uint32(24) }

// SetCmdSN sets bytes 24-27: CmdSN of a request.
func (h *Header) SetCmdSN(n uint32) { h.PutUint32(24, n) }

// StatSN gives the status sequence number of a response.
func (h *Header) StatSN() uint32 { return h.Uint32(24) }

// SetStatSN sets the status sequence number of a response.
func (h *Header) SetStatSN(n uint32) { h.PutUint32(24, n) }

// ExpStatSN gives the acknowledgement in a request.
func (h *Header) ExpStatSN() uint32 { return h.Uint32(28) }

// SetExpStatSN sets the acknowledgement in a request.
func (h *Header) SetExpStatSN(n uint32) { h.PutUint32(28, n) }

// ExpCmdSN gives the next command number that the target expects.
func (h *Header) ExpCmdSN() uint32 { return h.Uint32(28) }

// MaxCmdSN gives the last command number that the target admits.
func (h *Header) MaxCmdSN() uint32 { return h.Uint32(32) }

// SetWindow sets ExpCmdSN and MaxCmdSN of a response.
func (h *Header) SetWindow(expCmdSN, maxCmdSN uint32) {
	h.PutUint32(28, expCmdSN)
	h.PutUint32(32, maxCmdSN)
}

// CDB gives the first 16 bytes of the command descriptor block of a SCSI
// command.
func (h *Header) CDB() []byte { return h[32:48] }

// Uint32 reads the big-endian word at byte off.
func (h *Header) Uint32(off int) uint32 { return binary.BigEndian.Uint32(h[off:]) }

// PutUint32 writes the big-endian word at byte off.
func (h *Header) PutUint32(off int, v uint32) { binary.BigEndian.PutUint32(h[off:], v) }

// Uint16 reads the big-endian half-word at byte off.
func (h *Header) Uint16(off int) uint16 { return binary.BigEndian.Uint16(h[off:]) }

// PutUint16 writes the big-endian half-word at byte off.
func (h *Header) PutUint16(off int, v uint16) { binary.BigEndian.PutUint16(h[off:], v) }

// PDU is one protocol data unit: header, additional headers, data. Data is
// without padding.
type PDU struct {
	Header Header
	AHS    []byte
	Data   []byte
}

// Digests says which CRC32C digests a connection uses (RFC 7143, 13.1).
type Digests struct {
	Header bool
	Data   bool
}

// Errors of reading a PDU.
var (
	// ErrDataDigest: the data segment does not match its digest. The PDU was
	// read completely, so the connection may go on after a Reject.
	ErrDataDigest = errors.New("iscsi: data digest does not match")
	// ErrHeaderDigest: the header does not match its digest. The connection
	// must be dropped.
	ErrHeaderDigest = errors.New("iscsi: header digest does not match")
	// ErrTooLong: the data segment is longer than the reader declared.
	ErrTooLong = errors.New("iscsi: data segment longer than declared")
)

// crcTable is the polynomial of iSCSI digests.
var crcTable = crc32.MakeTable(crc32.Castagnoli)

// Digest gives the CRC32C of the parts, in the byte order of the wire when it
// is written with binary.LittleEndian (RFC 7143, 13.1 and appendix A.1).
func Digest(parts ...[]byte) uint32 {
	var c uint32
	for _, p := range parts {
		c = crc32.Update(c, crcTable, p)
	}
	return c
}

// pad gives the number of bytes up to the next multiple of four.
func pad(n int) int { return -n & 3 }

// ReadPDU reads one PDU from r. A data segment above maxData bytes gives
// ErrTooLong without being read. During log-in no digests are in use.
func ReadPDU(r io.Reader, d Digests, maxData int) (*PDU, error) {
	p := &PDU{}
	if _, err := io.ReadFull(r, p.Header[:]); err != nil {
		return nil, err
	}
	if n := p.Header.AHSLength(); n > 0 {
		p.AHS = make([]byte, n)
		if _, err := io.ReadFull(r, p.AHS); err != nil {
			return nil, noEOF(err)
		}
	}
	if d.Header {
		var b [4]byte
		if _, err := io.ReadFull(r, b[:]); err != nil {
			return nil, noEOF(err)
		}
		if binary.LittleEndian.Uint32(b[:]) != Digest(p.Header[:], p.AHS) {
			return nil, ErrHeaderDigest
		}
	}
	n := p.Header.DataLength()
	if n > maxData {
		return nil, fmt.Errorf("%w: %d bytes, at most %d", ErrTooLong, n, maxData)
	}
	if n == 0 {
		return p, nil
	}
	buf := make([]byte, n+pad(n), n+pad(n)+4)
	if d.Data {
		buf = buf[:n+pad(n)+4]
	}
	if _, err := io.ReadFull(r, buf); err != nil {
		return nil, noEOF(err)
	}
	p.Data = buf[:n:n]
	if d.Data && binary.LittleEndian.Uint32(buf[n+pad(n):]) != Digest(buf[:n+pad(n)]) {
		return p, ErrDataDigest
	}
	return p, nil
}

// noEOF makes an end inside a PDU distinct from an end between two.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// AppendPDU appends the wire form of p to b: it sets the two length fields of
// p's header, pads, and adds the digests that d asks for. len(p.AHS) must be a
// multiple of four.
func AppendPDU(b []byte, p *PDU, d Digests) []byte {
	p.Header[4] = byte(len(p.AHS) / 4)
	p.Header.SetDataLength(len(p.Data))
	b = append(b, p.Header[:]...)
	b = append(b, p.AHS...)
	if d.Header {
		b = binary.LittleEndian.AppendUint32(b, Digest(p.Header[:], p.AHS))
	}
	if len(p.Data) == 0 {
		return b
	}
	start := len(b)
	b = append(b, p.Data...)
	for range pad(len(p.Data)) {
		b = append(b, 0)
	}
	if d.Data {
		b = binary.LittleEndian.AppendUint32(b, Digest(b[start:]))
	}
	return b
}

// WritePDU writes p to w in one write.
func WritePDU(w io.Writer, p *PDU, d Digests) error {
	_, err := w.Write(AppendPDU(nil, p, d))
	return err
}
