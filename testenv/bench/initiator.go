package main

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"

	"golang.org/x/sys/unix"

	"hotspare"
	"hotspare/storage/iscsi"
)

// place is a logical unit of a running target, and what proves us to it.
type place struct {
	portal string
	iqn    string
	lun    int
	user   string
	secret hotspare.Secret

	initiator string     // its name, "" for the one that all others share
	local     netip.Addr // to connect from; the zero value leaves it to the kernel
}

// session is a connection in the full feature phase, driven by one thread with
// blocking system calls: the generator must cost less than what it measures.
type session struct {
	fd    int
	place place
	cmdSN uint32
	// What the target agreed to.
	segment    int // its MaxRecvDataSegmentLength
	firstBurst int
	initialR2T bool
	immediate  bool
}

// wire reads and writes a socket without the runtime's poller.
type wire int

func (w wire) Read(p []byte) (int, error) {
	for {
		n, err := unix.Read(int(w), p)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if n == 0 && err == nil {
			return 0, errors.New("the target closed the connection")
		}
		return max(n, 0), err
	}
}

func (w wire) Write(p []byte) (int, error) {
	done := 0
	for done < len(p) {
		n, err := unix.Write(int(w), p[done:])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return done, err
		}
		done += n
	}
	return done, nil
}

// dial connects and logs in with CHAP, with the parameters that open-iscsi
// offers. isid keeps sessions of one run apart.
func dial(p place, isid uint16) (*session, error) {
	addr, err := net.ResolveTCPAddr("tcp4", p.portal)
	if err != nil {
		return nil, err
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	if p.local.IsValid() {
		if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: p.local.As4()}); err != nil {
			unix.Close(fd)
			return nil, err
		}
	}
	to := &unix.SockaddrInet4{Port: addr.Port, Addr: [4]byte(addr.IP.To4())}
	if err := errors.Join(unix.Connect(fd, to), unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)); err != nil {
		unix.Close(fd)
		return nil, err
	}
	s := &session{fd: fd, place: p, cmdSN: 1, segment: 8192, firstBurst: 65536, initialR2T: true, immediate: true}
	if err := s.login(isid); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("log-in at %s: %w", p.portal, err)
	}
	return s, nil
}

func (s *session) close() { unix.Close(s.fd) }

// login is the exchange of RFC 7143, 6.3, as open-iscsi leads it.
func (s *session) login(isid uint16) error {
	r := bufio.NewReaderSize(wire(s.fd), 4096)
	step := func(cur, next iscsi.Stage, transit bool, text iscsi.Pairs) (iscsi.Pairs, error) {
		h := iscsi.LoginRequest{Transit: transit, Current: cur, Next: next, ISID: [6]byte{0x80, 0, 0, 0, byte(isid >> 8), byte(isid)}, TaskTag: 7, CmdSN: s.cmdSN}
		if err := iscsi.WritePDU(wire(s.fd), &iscsi.PDU{Header: h.Header(), Data: text.Encode()}, iscsi.Digests{}); err != nil {
			return nil, err
		}
		p, err := iscsi.ReadPDU(r, iscsi.Digests{}, 65536)
		if err != nil {
			return nil, err
		}
		a := iscsi.ParseLoginResponse(&p.Header)
		if p.Header.Opcode() != iscsi.OpLoginResponse || a.Status != iscsi.LoginSuccess {
			return nil, fmt.Errorf("status %#04x: %s", uint16(a.Status), a.Status)
		}
		return iscsi.ParseText(p.Data)
	}
	if _, err := step(iscsi.StageSecurity, iscsi.StageOperational, false, iscsi.Pairs{
		{Key: "InitiatorName", Value: cmp.Or(s.place.initiator, "iqn.2026-11.io.hotspare:bench")}, {Key: "TargetName", Value: s.place.iqn},
		{Key: "SessionType", Value: "Normal"}, {Key: "AuthMethod", Value: "CHAP"}}); err != nil {
		return err
	}
	ps, err := step(iscsi.StageSecurity, iscsi.StageOperational, false, iscsi.Pairs{{Key: "CHAP_A", Value: "5"}})
	if err != nil {
		return err
	}
	theirs, err := iscsi.ParseChallenge(ps)
	if err != nil {
		return err
	}
	var answer iscsi.Pairs
	if err := theirs.Answer(&answer, s.place.user, s.place.secret, nil, hotspare.Secret{}); err != nil {
		return err
	}
	if _, err = step(iscsi.StageSecurity, iscsi.StageOperational, true, answer); err != nil {
		return err
	}
	ps, err = step(iscsi.StageOperational, iscsi.StageFullFeature, true, iscsi.Pairs{
		{Key: "HeaderDigest", Value: "None"}, {Key: "DataDigest", Value: "None"},
		{Key: "DefaultTime2Wait", Value: "2"}, {Key: "DefaultTime2Retain", Value: "0"},
		{Key: "IFMarker", Value: "No"}, {Key: "OFMarker", Value: "No"}, {Key: "ErrorRecoveryLevel", Value: "0"},
		{Key: "InitialR2T", Value: "No"}, {Key: "ImmediateData", Value: "Yes"}, {Key: "MaxBurstLength", Value: "16776192"},
		{Key: "FirstBurstLength", Value: "262144"}, {Key: "MaxOutstandingR2T", Value: "1"}, {Key: "MaxConnections", Value: "1"},
		{Key: "DataPDUInOrder", Value: "Yes"}, {Key: "DataSequenceInOrder", Value: "Yes"}, {Key: "MaxRecvDataSegmentLength", Value: "262144"}})
	if err != nil {
		return err
	}
	for _, kv := range ps {
		switch kv.Key {
		case "MaxRecvDataSegmentLength":
			s.segment, err = strconv.Atoi(kv.Value)
		case "FirstBurstLength":
			s.firstBurst, err = strconv.Atoi(kv.Value)
		case "InitialR2T":
			s.initialR2T = kv.Value == "Yes"
		case "ImmediateData":
			s.immediate = kv.Value == "Yes"
		}
		if err != nil {
			return fmt.Errorf("%s=%q: %w", kv.Key, kv.Value, err)
		}
	}
	if r.Buffered() > 0 {
		return errors.New("the target spoke unasked")
	}
	return nil
}

// logout ends the session as open-iscsi does.
func (s *session) logout() error {
	defer s.close()
	var h iscsi.Header
	h.SetOpcode(iscsi.OpLogout, true)
	h.SetFlags(0x80)
	h.SetTaskTag(9)
	h.SetCmdSN(s.cmdSN)
	if err := iscsi.WritePDU(wire(s.fd), &iscsi.PDU{Header: h}, iscsi.Digests{}); err != nil {
		return err
	}
	p, err := iscsi.ReadPDU(wire(s.fd), iscsi.Digests{}, 65536)
	if err != nil {
		return err
	}
	if p.Header.Opcode() != iscsi.OpLogoutResponse {
		return fmt.Errorf("opcode %#x answers a log-out", p.Header.Opcode())
	}
	return nil
}
