package iscsi_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"hotspare"
	"hotspare/storage"
	"hotspare/storage/cow"
	"hotspare/storage/iscsi"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// site is a store, its exports and a target on two loopback ports.
type site struct {
	t       *testing.T
	dir     string
	options iscsi.Options
	store   *cow.Store
	exports *storage.Exports
	target  *iscsi.Target
	addr    string
	other   string // a second portal
	stop    func()
}

func newSite(t *testing.T, volumes ...string) *site {
	t.Helper()
	return newSiteWith(t, iscsi.Options{LoginTimeout: 2 * time.Second}, volumes...)
}

func newSiteWith(t *testing.T, o iscsi.Options, volumes ...string) *site {
	t.Helper()
	s := &site{t: t, dir: t.TempDir(), options: o}
	s.start()
	t.Cleanup(func() { s.stop() })
	for _, v := range volumes {
		if err := s.store.Create(context.Background(), v, 16<<20); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// start serves what is in the directory, as a process that begins does.
func (s *site) start() {
	s.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	store, err := cow.Open(ctx, filepath.Join(s.dir, "store"), cow.Options{})
	if err != nil {
		s.t.Fatal(err)
	}
	exports, err := storage.OpenExports(filepath.Join(s.dir, "exports.db"), storage.Options{Volumes: store})
	if err != nil {
		s.t.Fatal(err)
	}
	o := s.options
	o.Directory = exports
	s.store, s.exports, s.target = store, exports, iscsi.New(o)
	var served sync.WaitGroup
	for _, addr := range []*string{&s.addr, &s.other} {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			s.t.Fatal(err)
		}
		*addr = ln.Addr().String()
		served.Go(func() {
			if err := s.target.Serve(ctx, ln); err != nil {
				s.t.Error(err)
			}
		})
	}
	s.stop = func() {
		cancel()
		served.Wait()
		if err := errors.Join(exports.Close(), store.Close()); err != nil {
			s.t.Error(err)
		}
	}
}

// restart ends the target with all its sessions and begins anew, with the
// exports as they were before the end: nothing that was answered may wait for an
// orderly one.
func (s *site) restart() {
	s.t.Helper()
	path := filepath.Join(s.dir, "exports.db")
	before, err := os.ReadFile(path)
	if err != nil {
		s.t.Fatal(err)
	}
	s.stop()
	if err := os.WriteFile(path, before, 0o600); err != nil {
		s.t.Fatal(err)
	}
	s.start()
}

func grantOf(volume string, epoch uint64, who string) storage.Grant {
	return storage.Grant{Volume: volume, Epoch: epoch, Initiator: "iqn.test:" + who, User: "user-" + who,
		Secret: hotspare.NewSecret("secret-of-" + who), MutualUser: "target", MutualSecret: hotspare.NewSecret("secret-of-target"), Node: who}
}

func (s *site) grant(g storage.Grant) storage.Grant {
	s.t.Helper()
	if err := s.exports.Grant(context.Background(), g); err != nil {
		s.t.Fatal(err)
	}
	return g
}

func (s *site) iqn(volume string) string {
	s.t.Helper()
	n, err := s.exports.TargetName(volume)
	if err != nil {
		s.t.Fatal(err)
	}
	return n
}

// initiator is a small initiator that can also do what none should.
type initiator struct {
	t       *testing.T
	nc      net.Conn
	digests iscsi.Digests
	isid    byte
	cmdSN   uint32
	tag     uint32
	tsih    uint16
	lun     uint64
}

func (s *site) dial() *initiator { return s.dialAt(s.addr) }

func (s *site) dialAt(addr string) *initiator {
	s.t.Helper()
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { nc.Close() })
	nc.SetDeadline(time.Now().Add(20 * time.Second))
	return &initiator{t: s.t, nc: nc, isid: 1, cmdSN: 1}
}

// step sends one log-in request and gives the answer.
func (i *initiator) step(cur, next iscsi.Stage, transit bool, text iscsi.Pairs) (iscsi.LoginResponse, iscsi.Pairs, error) {
	h := iscsi.LoginRequest{Transit: transit, Current: cur, Next: next, ISID: [6]byte{0x80, 0, 0, 0, 0, i.isid}, TSIH: i.tsih, TaskTag: 7, CmdSN: i.cmdSN}
	if err := iscsi.WritePDU(i.nc, &iscsi.PDU{Header: h.Header(), Data: text.Encode()}, iscsi.Digests{}); err != nil {
		return iscsi.LoginResponse{}, nil, err
	}
	p, err := iscsi.ReadPDU(i.nc, iscsi.Digests{}, 65536)
	if err != nil {
		return iscsi.LoginResponse{}, nil, err
	}
	r := iscsi.ParseLoginResponse(&p.Header)
	ps, err := iscsi.ParseText(p.Data)
	if err == nil && r.Status != iscsi.LoginSuccess {
		err = fmt.Errorf("log-in status %#04x: %v", uint16(r.Status), r.Status)
	}
	return r, ps, err
}

func identity(who, target string) iscsi.Pairs {
	return iscsi.Pairs{{Key: "InitiatorName", Value: who}, {Key: "TargetName", Value: target}, {Key: "SessionType", Value: "Normal"}}
}

// authenticate goes through the security stage with CHAP, one way or both.
func (i *initiator) authenticate(g storage.Grant, target string, mutual bool) error {
	text := append(identity(g.Initiator, target), iscsi.Pair{Key: "AuthMethod", Value: "CHAP,None"})
	if _, _, err := i.step(iscsi.StageSecurity, iscsi.StageOperational, false, text); err != nil {
		return err
	}
	_, ps, err := i.step(iscsi.StageSecurity, iscsi.StageOperational, false, iscsi.Pairs{{Key: "CHAP_A", Value: "5"}})
	if err != nil {
		return err
	}
	theirs, err := iscsi.ParseChallenge(ps)
	if err != nil {
		return err
	}
	var answer iscsi.Pairs
	if err := theirs.Answer(&answer, g.User, g.Secret, nil, hotspare.Secret{}); err != nil {
		return err
	}
	ours := iscsi.Challenge{ID: 9, Value: []byte("0123456789abcdef")}
	if mutual {
		ours.Add(&answer)
	}
	_, ps, err = i.step(iscsi.StageSecurity, iscsi.StageOperational, true, answer)
	if err != nil {
		return err
	}
	if mutual {
		if r, _ := ps.Get("CHAP_R"); !ours.Verify(g.MutualSecret, r) {
			return errors.New("the target did not prove itself")
		}
	}
	return nil
}

// login logs in with CHAP, one way or both, and with digests if asked for.
func (i *initiator) login(g storage.Grant, target string, mutual, digests bool) error {
	if err := i.authenticate(g, target, mutual); err != nil {
		return err
	}
	text := iscsi.Pairs{{Key: "MaxRecvDataSegmentLength", Value: "65536"}, {Key: "InitialR2T", Value: "No"}}
	if digests {
		text.Add("HeaderDigest", "CRC32C,None")
		text.Add("DataDigest", "CRC32C,None")
	}
	r, _, err := i.step(iscsi.StageOperational, iscsi.StageFullFeature, true, text)
	i.digests = iscsi.Digests{Header: digests, Data: digests}
	if err == nil && (!r.Transit || r.TSIH == 0) {
		err = errors.New("no transit to the full feature phase")
	}
	i.tsih = r.TSIH
	return err
}

// session logs in as one of the initiator's ports.
func (s *site) session(g storage.Grant, isid byte) *initiator {
	s.t.Helper()
	i := s.dial()
	i.isid = isid
	if err := i.login(g, s.iqn(g.Volume), false, false); err != nil {
		s.t.Fatal(err)
	}
	return i
}

// good runs a command that must succeed, and gives its data.
func (i *initiator) good(cdb, out []byte, in int) []byte {
	i.t.Helper()
	st, data, err := i.do(cdb, out, in)
	if err != nil || st != 0 {
		i.t.Fatalf("command %x: status %#x, sense %x, %v", cdb, st, data, err)
	}
	return data
}

// fails runs a command that must end with the status and, for CHECK CONDITION,
// with sense key and codes as in "05/2400".
func (i *initiator) fails(cdb, out []byte, in int, status byte, want string) []byte {
	i.t.Helper()
	st, data, err := i.do(cdb, out, in)
	if err != nil || st != status {
		i.t.Fatalf("command %x: status %#x, not %#x; %x, %v", cdb, st, status, data, err)
	}
	if st == 2 && senseText(data) != want {
		i.t.Fatalf("command %x: sense %s, not %s", cdb, senseText(data), want)
	}
	return data
}

func senseText(b []byte) string {
	if len(b) < 18 {
		return fmt.Sprintf("%x", b)
	}
	return fmt.Sprintf("%02x/%02x%02x", b[2]&0xf, b[12], b[13])
}

func (i *initiator) send(h iscsi.Header, data []byte) error {
	return iscsi.WritePDU(i.nc, &iscsi.PDU{Header: h, Data: data}, i.digests)
}

func (i *initiator) receive() (*iscsi.PDU, error) { return iscsi.ReadPDU(i.nc, i.digests, 1<<24-1) }

// command gives the header of a SCSI command.
func (i *initiator) command(cdb []byte, edtl int, read, write bool) iscsi.Header {
	var h iscsi.Header
	h.SetOpcode(iscsi.OpSCSICommand, false)
	f := byte(0x80)
	if read {
		f |= 0x40
	}
	if write {
		f |= 0x20
	}
	h.SetFlags(f)
	i.tag++
	h.SetTaskTag(i.tag)
	h.SetTransferTag(uint32(edtl))
	h.SetCmdSN(i.cmdSN)
	h.SetLUN(i.lun)
	i.cmdSN++
	copy(h[32:], cdb)
	return h
}

// do runs a command with immediate data out, answers R2Ts, and gives status and
// data in (or sense data).
func (i *initiator) do(cdb, out []byte, in int) (status byte, data []byte, err error) {
	h := i.command(cdb, max(in, len(out)), in > 0, len(out) > 0)
	now := out[:min(len(out), 4096)]
	if err := i.send(h, now); err != nil {
		return 0, nil, err
	}
	for {
		p, err := i.receive()
		if err != nil {
			return 0, nil, err
		}
		switch p.Header.Opcode() {
		case iscsi.OpDataIn:
			data = append(data, p.Data...)
			if p.Header.Flags()&1 != 0 {
				return p.Header[3], data, nil
			}
		case iscsi.OpR2T:
			off, n := int(p.Header.Uint32(40)), int(p.Header.Uint32(44))
			for sn, end := uint32(0), off+n; off < end; sn++ {
				part := out[off:min(off+8192, end)]
				var d iscsi.Header
				d.SetOpcode(iscsi.OpDataOut, false)
				if off+len(part) == end {
					d.SetFlags(0x80)
				}
				d.SetTaskTag(p.Header.TaskTag())
				d.SetTransferTag(p.Header.TransferTag())
				d.PutUint32(36, sn)
				d.PutUint32(40, uint32(off))
				if err := i.send(d, part); err != nil {
					return 0, nil, err
				}
				off += len(part)
			}
		case iscsi.OpSCSIResponse:
			if p.Header[3] == 2 && len(p.Data) > 2 {
				return 2, p.Data[2:], nil
			}
			return p.Header[3], data, nil
		case iscsi.OpNopIn:
		default:
			return 0, nil, fmt.Errorf("opcode %#x", p.Header.Opcode())
		}
	}
}

func rw10(op byte, lba, n int) []byte {
	return []byte{op, 0, byte(lba >> 24), byte(lba >> 16), byte(lba >> 8), byte(lba), 0, byte(n >> 8), byte(n), 0}
}
