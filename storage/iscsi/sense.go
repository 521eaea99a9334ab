package iscsi

import (
	"encoding/binary"
	"errors"

	"hotspare"
	"hotspare/storage"
)

// SCSI statuses (SAM-5, 5.3.1).
const (
	statusGood     = 0x00
	statusCheck    = 0x02
	statusConflict = 0x18
)

// result is the outcome of a command.
type result struct {
	status byte
	sense  sense
	data   []byte // to the initiator
	used   int    // bytes that the command moves by its CDB, either way
}

// sense is what went wrong (SPC-4, 4.5).
type sense struct {
	key, asc, ascq byte
	info           uint32 // INFORMATION field, if infoValid
	infoValid      bool
	pointer        uint16 // FIELD POINTER of an illegal request, if pointing is not 0
	pointing       byte   // what pointer counts in: pointsToCDB, pointsToData
}

// What a field pointer may point into (SPC-4, 4.5.2.4.2): SKSV and C/D.
const (
	pointsToCDB  = 0xc0
	pointsToData = 0x80
)

// inCDB points at the byte of the CDB that is wrong.
func (s sense) inCDB(at int) sense {
	s.pointer, s.pointing = uint16(at), pointsToCDB
	return s
}

// inData points at the byte of the parameter data that is wrong.
func (s sense) inData(at int) sense {
	s.pointer, s.pointing = uint16(at), pointsToData
	return s
}

// Sense keys.
const (
	keyNone      = 0x0
	keyMedium    = 0x3
	keyHardware  = 0x4
	keyIllegal   = 0x5
	keyAttention = 0x6
	keyProtect   = 0x7
	keyCopy      = 0xa
	keyAborted   = 0xb
	keyMiscomp   = 0xe
)

var (
	senseNone         = sense{}
	senseOpcode       = sense{key: keyIllegal, asc: 0x20}
	senseRange        = sense{key: keyIllegal, asc: 0x21}
	senseField        = sense{key: keyIllegal, asc: 0x24}
	senseNoLUN        = sense{key: keyIllegal, asc: 0x25}
	senseParamLength  = sense{key: keyIllegal, asc: 0x1a}
	senseParam        = sense{key: keyIllegal, asc: 0x26}
	senseRelease      = sense{key: keyIllegal, asc: 0x26, ascq: 0x04}
	senseRegistration = sense{key: keyIllegal, asc: 0x55, ascq: 0x04} // insufficient registration resources
	senseWriteProtect = sense{key: keyProtect, asc: 0x27}
	senseSpace        = sense{key: keyProtect, asc: 0x27, ascq: 0x07}
	senseReadError    = sense{key: keyMedium, asc: 0x11}
	senseWriteError   = sense{key: keyMedium, asc: 0x0c}
	senseFailure      = sense{key: keyHardware, asc: 0x44}
	senseMiscompare   = sense{key: keyMiscomp, asc: 0x1d}
	senseAborted      = sense{key: keyAborted}
	senseDataPhase    = sense{key: keyAborted, asc: 0x4b}

	attentionPowerOn    = sense{key: keyAttention, asc: 0x29}
	attentionReset      = sense{key: keyAttention, asc: 0x29, ascq: 0x03}
	attentionCleared    = sense{key: keyAttention, asc: 0x2f}
	attentionPreempted  = sense{key: keyAttention, asc: 0x2a, ascq: 0x05} // registrations preempted
	attentionReserved   = sense{key: keyAttention, asc: 0x2a, ascq: 0x03} // reservations preempted
	attentionReleased   = sense{key: keyAttention, asc: 0x2a, ascq: 0x04}
	attentionCapacity   = sense{key: keyAttention, asc: 0x2a, ascq: 0x09}
	attentionModeChange = sense{key: keyAttention, asc: 0x2a, ascq: 0x01}
)

const senseSize = 18

// fixed gives fixed-format sense data (SPC-4, 4.5.3).
func (s sense) fixed() []byte {
	b := make([]byte, senseSize)
	b[0] = 0x70
	if s.infoValid {
		b[0] |= 0x80
		binary.BigEndian.PutUint32(b[3:], s.info)
	}
	b[2] = s.key
	b[7] = senseSize - 8
	b[12], b[13] = s.asc, s.ascq
	if s.pointing != 0 {
		b[15] = s.pointing
		binary.BigEndian.PutUint16(b[16:], s.pointer)
	}
	return b
}

func good(data []byte) result     { return result{data: data, used: len(data)} }
func moved(n int) result          { return result{used: n} }
func check(s sense) result        { return result{status: statusCheck, sense: s} }
func reservationConflict() result { return result{status: statusConflict} }

// failed turns an error of the device into sense data.
func failed(err error, write bool) result {
	switch {
	case errors.Is(err, storage.ErrRevoked):
		return check(senseAborted)
	case errors.Is(err, storage.ErrReadOnly):
		return check(senseWriteProtect)
	}
	switch hotspare.CodeOf(err) {
	case hotspare.CodeDiskFull:
		return check(senseSpace)
	case hotspare.CodeVolumeFailed:
		return check(senseFailure)
	case hotspare.CodeVolumeBusy:
		return check(senseWriteProtect)
	}
	if write {
		return check(senseWriteError)
	}
	return check(senseReadError)
}
