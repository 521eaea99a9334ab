package bmcsim

import (
	"context"
	"encoding/binary"
	"sync"
	"time"

	"github.com/bougou/go-ipmi/pkg/handlers"
	"github.com/bougou/go-ipmi/pkg/types"
)

// event is a power unit event (IPMI v2.0 table 42-3, sensor type 09h, offset 0:
// power off / power down), asserted for off and deasserted for on.
type event uint8

const (
	eventPowerOff event = 0x6f
	eventPowerOn  event = 0x6f | 0x80
)

// maxEvents bounds the log; the oldest go first.
const maxEvents = 64

// eventLog is the system event log (IPMI v2.0 section 31): enough for
// `ipmitool sel info|list|clear`.
type eventLog struct {
	mu      sync.Mutex
	records [][16]byte
	lastID  uint16
	erased  time.Time
}

func (l *eventLog) add(e event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lastID++
	if l.lastID == 0 || l.lastID == 0xffff {
		l.lastID = 1
	}
	var r [16]byte
	binary.LittleEndian.PutUint16(r[0:], l.lastID)
	r[2] = 0x02                                                     // system event record
	binary.LittleEndian.PutUint32(r[3:], uint32(time.Now().Unix())) // wraps in 2106, as the specification has it
	r[7] = 0x20                                                     // generator: the BMC
	r[9] = 0x04                                                     // event message revision, IPMI v2.0
	r[10] = 0x09                                                    // power unit
	r[11] = 0x01                                                    // sensor number
	r[12] = byte(e)
	r[14], r[15] = 0xff, 0xff
	l.records = append(l.records, r)
	if len(l.records) > maxEvents {
		l.records = l.records[1:]
	}
}

func registerOwn(r *handlers.Registry, l *eventLog) {
	r.RegisterFunc(types.CommandGetSELInfo, l.info)
	r.RegisterFunc(types.CommandReserveSEL, l.reserve)
	r.RegisterFunc(types.CommandGetSELEntry, l.entry)
	r.RegisterFunc(types.CommandClearSEL, l.clear)
	r.RegisterFunc(types.CommandGetSELTime, l.time)
	r.RegisterFunc(types.CommandColdReset, coldReset)
	r.RegisterFunc(types.CommandGetSystemGUID, systemGUID)
}

// coldReset answers the command that restarts the BMC itself, which go-ipmi
// would hand to the machine.
func coldReset(context.Context, *request, []byte) ([]byte, types.CompletionCode, error) {
	return nil, types.CodeOK, nil
}

// systemGUID is Get System GUID (IPMI v2.0 section 22.14), which go-ipmi's
// server does not have; ipmitool's `mc guid` and freeipmi's bmc-info ask for it.
func systemGUID(_ context.Context, h *request, _ []byte) ([]byte, types.CompletionCode, error) {
	return append([]byte(nil), h.BMC.GUID[:]...), types.CodeOK, nil
}

type request = handlers.HandlerContext

func (l *eventLog) info(context.Context, *request, []byte) ([]byte, types.CompletionCode, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := make([]byte, 14)
	out[0] = 0x51 // version 1.5, LS nibble first
	binary.LittleEndian.PutUint16(out[1:], uint16(len(l.records)))
	binary.LittleEndian.PutUint16(out[3:], uint16((maxEvents-len(l.records))*16))
	if n := len(l.records); n > 0 {
		copy(out[5:9], l.records[n-1][3:7])
	}
	if !l.erased.IsZero() {
		binary.LittleEndian.PutUint32(out[9:], uint32(l.erased.Unix()))
	}
	out[13] = 0x02 // Reserve SEL is supported
	return out, types.CodeOK, nil
}

func (l *eventLog) reserve(context.Context, *request, []byte) ([]byte, types.CompletionCode, error) {
	return []byte{1, 0}, types.CodeOK, nil
}

// entry gives one record: request bytes 3-4 are its id (0 the first, FFFFh the
// last), byte 5 the offset, byte 6 the length (FFh: all).
func (l *eventLog) entry(_ context.Context, _ *request, req []byte) ([]byte, types.CompletionCode, error) {
	if len(req) < 6 {
		return nil, types.CodeRequestDataTruncated, nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	i := l.findLocked(binary.LittleEndian.Uint16(req[2:]))
	if i < 0 {
		return nil, types.CodeRequestedDataNotPresent, nil
	}
	next := uint16(0xffff)
	if i+1 < len(l.records) {
		next = binary.LittleEndian.Uint16(l.records[i+1][0:])
	}
	from, n := int(req[4]), int(req[5])
	if from > 16 {
		return nil, types.CodeParameterOutOfRange, nil
	}
	rec := l.records[i][from:]
	if n < len(rec) {
		rec = rec[:n]
	}
	return append(binary.LittleEndian.AppendUint16(nil, next), rec...), types.CodeOK, nil
}

func (l *eventLog) findLocked(id uint16) int {
	switch {
	case len(l.records) == 0:
		return -1
	case id == 0:
		return 0
	case id == 0xffff:
		return len(l.records) - 1
	}
	for i, r := range l.records {
		if binary.LittleEndian.Uint16(r[0:]) == id {
			return i
		}
	}
	return -1
}

func (l *eventLog) clear(_ context.Context, _ *request, req []byte) ([]byte, types.CompletionCode, error) {
	if len(req) < 6 || string(req[2:5]) != "CLR" {
		return nil, types.CodeRequestDataFieldInvalid, nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if req[5] == 0xaa { // AAh: erase; 00h: how far is it
		l.records, l.erased = nil, time.Now()
	}
	return []byte{1}, types.CodeOK, nil // erasure completed
}

func (l *eventLog) time(context.Context, *request, []byte) ([]byte, types.CompletionCode, error) {
	return binary.LittleEndian.AppendUint32(nil, uint32(time.Now().Unix())), types.CodeOK, nil
}
