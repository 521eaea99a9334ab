package iscsi

// Stage is a phase of a connection (RFC 7143, 11.12.3).
type Stage byte

// Stages of log-in. Value 2 is reserved.
const (
	StageSecurity    Stage = 0
	StageOperational Stage = 1
	StageFullFeature Stage = 3
)

// LoginRequest is the header of a log-in request (RFC 7143, 11.12). The text
// travels in the data segment.
type LoginRequest struct {
	Transit, Continue bool
	Current, Next     Stage
	VersionMax        byte
	VersionMin        byte
	ISID              [6]byte
	TSIH              uint16
	TaskTag           uint32
	CID               uint16
	CmdSN, ExpStatSN  uint32
}

// Header gives the wire form. Log-in requests are always immediate.
func (l LoginRequest) Header() Header {
	var h Header
	h.SetOpcode(OpLoginRequest, true)
	h[1] = loginFlags(l.Transit, l.Continue, l.Current, l.Next)
	h[2], h[3] = l.VersionMax, l.VersionMin
	copy(h[8:14], l.ISID[:])
	h.PutUint16(14, l.TSIH)
	h.SetTaskTag(l.TaskTag)
	h.PutUint16(20, l.CID)
	h.SetCmdSN(l.CmdSN)
	h.SetExpStatSN(l.ExpStatSN)
	return h
}

// ParseLoginRequest reads the header of a log-in request; it does not check the
// opcode.
func ParseLoginRequest(h *Header) LoginRequest {
	l := LoginRequest{
		Transit: h[1]&0x80 != 0, Continue: h[1]&0x40 != 0,
		Current: Stage(h[1] >> 2 & 3), Next: Stage(h[1] & 3),
		VersionMax: h[2], VersionMin: h[3],
		TSIH: h.Uint16(14), TaskTag: h.TaskTag(), CID: h.Uint16(20),
		CmdSN: h.CmdSN(), ExpStatSN: h.ExpStatSN(),
	}
	copy(l.ISID[:], h[8:14])
	return l
}

// LoginResponse is the header of a log-in response (RFC 7143, 11.13).
type LoginResponse struct {
	Transit, Continue          bool
	Current, Next              Stage
	VersionMax, VersionActive  byte
	ISID                       [6]byte
	TSIH                       uint16
	TaskTag                    uint32
	StatSN, ExpCmdSN, MaxCmdSN uint32
	Status                     LoginStatus
}

// Header gives the wire form.
func (l LoginResponse) Header() Header {
	var h Header
	h.SetOpcode(OpLoginResponse, false)
	h[1] = loginFlags(l.Transit, l.Continue, l.Current, l.Next)
	h[2], h[3] = l.VersionMax, l.VersionActive
	copy(h[8:14], l.ISID[:])
	h.PutUint16(14, l.TSIH)
	h.SetTaskTag(l.TaskTag)
	h.SetStatSN(l.StatSN)
	h.SetWindow(l.ExpCmdSN, l.MaxCmdSN)
	h.PutUint16(36, uint16(l.Status))
	return h
}

// ParseLoginResponse reads the header of a log-in response; it does not check
// the opcode.
func ParseLoginResponse(h *Header) LoginResponse {
	l := LoginResponse{
		Transit: h[1]&0x80 != 0, Continue: h[1]&0x40 != 0,
		Current: Stage(h[1] >> 2 & 3), Next: Stage(h[1] & 3),
		VersionMax: h[2], VersionActive: h[3],
		TSIH: h.Uint16(14), TaskTag: h.TaskTag(),
		StatSN: h.StatSN(), ExpCmdSN: h.ExpCmdSN(), MaxCmdSN: h.MaxCmdSN(),
		Status: LoginStatus(h.Uint16(36)),
	}
	copy(l.ISID[:], h[8:14])
	return l
}

func loginFlags(transit, cont bool, current, next Stage) byte {
	f := byte(current&3)<<2 | byte(next&3)
	if transit {
		f |= 0x80
	}
	if cont {
		f |= 0x40
	}
	return f
}

// LoginStatus is status class (high byte) and detail (low byte) of a log-in
// response (RFC 7143, 11.13.5).
type LoginStatus uint16

// Log-in statuses.
const (
	LoginSuccess            LoginStatus = 0x0000
	LoginInitiatorError     LoginStatus = 0x0200
	LoginAuthFailure        LoginStatus = 0x0201
	LoginForbidden          LoginStatus = 0x0202
	LoginNotFound           LoginStatus = 0x0203
	LoginTargetRemoved      LoginStatus = 0x0204
	LoginUnsupportedVersion LoginStatus = 0x0205
	LoginTooManyConnections LoginStatus = 0x0206
	LoginMissingParameter   LoginStatus = 0x0207
	LoginCannotInclude      LoginStatus = 0x0208
	LoginSessionType        LoginStatus = 0x0209
	LoginNoSession          LoginStatus = 0x020a
	LoginInvalidRequest     LoginStatus = 0x020b
	LoginTargetError        LoginStatus = 0x0300
	LoginUnavailable        LoginStatus = 0x0301
	LoginOutOfResources     LoginStatus = 0x0302
)

// String gives the status in the words of the standard.
func (s LoginStatus) String() string {
	switch s {
	case LoginSuccess:
		return "success"
	case LoginInitiatorError:
		return "initiator error"
	case LoginAuthFailure:
		return "authentication failure"
	case LoginForbidden:
		return "authorization failure"
	case LoginNotFound:
		return "not found"
	case LoginTargetRemoved:
		return "target removed"
	case LoginUnsupportedVersion:
		return "unsupported version"
	case LoginTooManyConnections:
		return "too many connections"
	case LoginMissingParameter:
		return "missing parameter"
	case LoginCannotInclude:
		return "cannot include in session"
	case LoginSessionType:
		return "session type not supported"
	case LoginNoSession:
		return "session does not exist"
	case LoginInvalidRequest:
		return "invalid during log-in"
	case LoginTargetError:
		return "target error"
	case LoginUnavailable:
		return "service unavailable"
	case LoginOutOfResources:
		return "out of resources"
	}
	return "unknown status"
}
