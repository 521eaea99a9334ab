package initiator

import (
	"maps"
	"net"
	"os"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hotspare/storage/iscsi"
)

// fakeKernel stands for the kernel's initiator up to the data path: it takes
// the same messages and really sends and receives the PDUs over the socket that
// is bound. It refuses what the kernel refuses in the wrong order.
type fakeKernel struct {
	t *testing.T

	mu       sync.Mutex
	next     uint32
	boxes    map[uint32]*mailbox
	sessions map[uint32]*fakeSession
	story    []eventType
}

type fakeSession struct {
	conn    net.Conn // bound
	made    bool     // the connection was created
	started bool
	params  map[param]string
	reader  sync.WaitGroup
}

func newFakeKernel(t *testing.T) *fakeKernel {
	return &fakeKernel{t: t, next: 1, boxes: make(map[uint32]*mailbox), sessions: make(map[uint32]*fakeSession)}
}

func (k *fakeKernel) subscribe(sid uint32, m *mailbox) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.boxes[sid] = m
}

func (k *fakeKernel) unsubscribe(sid uint32) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.boxes, sid)
}

// post sends a notice to a session's owner.
func (k *fakeKernel) post(sid uint32, n notice) {
	k.mu.Lock()
	m := k.boxes[sid]
	k.mu.Unlock()
	if m != nil {
		m.post(n)
	}
}

// left gives the number of sessions in the kernel.
func (k *fakeKernel) left() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.sessions)
}

func (k *fakeKernel) param(sid uint32, p param) string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.sessions[sid].params[p]
}

func (k *fakeKernel) do(e uevent, payload []byte) (uevent, error) {
	k.mu.Lock()
	k.story = append(k.story, e.Type)
	if e.Type == ueventCreateSession {
		k.sessions[k.next] = &fakeSession{params: make(map[param]string)}
		native.PutUint32(e.Reply[0:], k.next)
		k.next++
		k.mu.Unlock()
		return e, nil
	}
	sid := native.Uint32(e.Request[0:])
	s := k.sessions[sid]
	k.mu.Unlock()
	if s == nil {
		return e, syscall.EINVAL
	}
	code, err := k.act(sid, s, &e, payload)
	if e.Type != ueventCreateConn {
		native.PutUint32(e.Reply[0:], uint32(-int32(code)))
	}
	return e, err
}

func (k *fakeKernel) act(sid uint32, s *fakeSession, e *uevent, payload []byte) (syscall.Errno, error) {
	switch e.Type {
	case ueventCreateConn:
		s.made = true
	case ueventBindConn:
		if s.conn != nil {
			return syscall.EEXIST, nil
		}
		return 0, k.bind(sid, s, int(native.Uint64(e.Request[8:])))
	case ueventSendPDU:
		if s.conn == nil {
			return syscall.ENOTCONN, nil
		}
		p, err := parsePDU(payload)
		if err != nil {
			return 0, syscall.EINVAL
		}
		p.Header.SetCmdSN(firstCmdSN)
		_ = iscsi.WritePDU(s.conn, p, iscsi.Digests{})
	case ueventSetParam:
		if s.conn == nil {
			return 0, syscall.ENOTCONN
		}
		k.mu.Lock()
		s.params[param(native.Uint32(e.Request[8:]))] = string(payload[:len(payload)-1])
		k.mu.Unlock()
	case ueventStartConn:
		if s.conn == nil {
			return syscall.ENOTCONN, nil
		}
		s.started = true
	case ueventStopConn:
		s.stop()
	case ueventUnbindSession:
		k.post(sid, notice{kind: keventUnbindSession})
	case ueventDestroyConn:
		if s.conn != nil || !s.made {
			k.t.Errorf("a connection is destroyed that is not stopped or not made")
		}
		s.made = false
	case ueventDestroySession:
		if s.made {
			return 0, syscall.EBUSY
		}
		k.mu.Lock()
		delete(k.sessions, sid)
		k.mu.Unlock()
	}
	return 0, nil
}

// bind takes a reference of its own to the socket and reads from it.
func (k *fakeKernel) bind(sid uint32, s *fakeSession, fd int) error {
	own, err := unix.Dup(fd)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(own), "bound socket")
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return err
	}
	s.conn = c
	s.reader.Go(func() {
		for {
			p, err := iscsi.ReadPDU(c, iscsi.Digests{}, 1<<20)
			if err != nil {
				k.post(sid, notice{kind: keventConnError, code: 1020})
				return
			}
			k.post(sid, notice{kind: keventRecvPDU, pdu: p})
		}
	})
	return nil
}

func (s *fakeSession) stop() {
	if s.conn == nil {
		return
	}
	s.conn.Close()
	s.reader.Wait()
	s.conn, s.started = nil, false
}

// count gives how often a request was made.
func (k *fakeKernel) count(e eventType) int {
	k.mu.Lock()
	defer k.mu.Unlock()
	n := 0
	for _, x := range k.story {
		if x == e {
			n++
		}
	}
	return n
}

// await waits until n more requests of the kind were made.
func (k *fakeKernel) await(e eventType, n int) {
	k.t.Helper()
	want := k.count(e) + n
	for deadline := time.Now().Add(20 * time.Second); k.count(e) < want; time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			k.t.Fatalf("%d of %d requests %v", k.count(e), want, e)
		}
	}
}

// cut drops the connection as a dying network would.
func (k *fakeKernel) cut(sid uint32) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.sessions[sid].conn.Close()
}

// stopAll ends what a closed initiator left behind.
func (k *fakeKernel) stopAll() {
	k.mu.Lock()
	left := slices.Collect(maps.Values(k.sessions))
	k.mu.Unlock()
	for _, s := range left {
		s.stop() // its reader posts, which takes the lock
	}
}
