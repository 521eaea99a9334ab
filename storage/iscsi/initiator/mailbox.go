package initiator

import (
	"sync"

	"hotspare/storage/iscsi"
)

// noticeOverrun is the kind of a notice that says: events may have been lost.
const noticeOverrun eventType = 0

// notice is one event of the kernel about one session.
type notice struct {
	kind eventType
	code uint32     // enum iscsi_err of a keventConnError
	pdu  *iscsi.PDU // of a keventRecvPDU
	err  error      // the PDU could not be read
}

// mailbox queues the notices of one session without bound and without
// blocking the reader: the kernel sends a handful per failure and per log-in.
type mailbox struct {
	wake chan struct{} // holds a token when there may be notices

	mu    sync.Mutex
	queue []notice
}

func newMailbox() *mailbox { return &mailbox{wake: make(chan struct{}, 1)} }

func (m *mailbox) post(n notice) {
	m.mu.Lock()
	m.queue = append(m.queue, n)
	m.mu.Unlock()
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// take gives the oldest notice.
func (m *mailbox) take() (notice, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.queue) == 0 {
		return notice{}, false
	}
	n := m.queue[0]
	m.queue = m.queue[1:]
	return n, true
}

// clear drops what is queued.
func (m *mailbox) clear() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.queue = nil
}
