package tftp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	maxSegments = 64    // of one UDP_SEGMENT write, by the kernel
	maxDatagram = 65507 // bytes of it
)

// ownPort is a link with a socket of its own, connected to the client: packets
// of others never come in, and a closed port there is told by ICMP. Its calls
// block a thread each. That costs one system call for a packet out and one for
// a packet in; through the runtime's poller it would be twice as many, and in
// lock-step that is the whole price of a block.
type ownPort struct {
	fd  int
	mtu int // of the path, as ipHeads counts; 0 if not known
	in  [512]byte

	waits   time.Duration // SO_RCVTIMEO as it is set
	segment bool          // the kernel cuts a flight into packets

	mu      sync.Mutex
	stopped bool
	closed  bool
}

// openPort makes a socket at the address that the client asked.
func openPort(local netip.Addr, client netip.AddrPort) (*ownPort, error) {
	family, six := unix.AF_INET, client.Addr().Is6()
	if six {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("socket for a TFTP transfer: %w", err)
	}
	p := &ownPort{fd: fd, segment: true}
	if six {
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_FREEBIND, 1) // see listen
	}
	err = unix.Bind(fd, sockaddr(netip.AddrPortFrom(local, 0), six))
	if err == nil {
		err = unix.Connect(fd, sockaddr(client, six))
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("socket for a TFTP transfer from %s to %s: %w", local, client, err), unix.Close(fd))
	}
	if six {
		if mtu, err := unix.GetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MTU); err == nil {
			p.mtu = mtu - longer6
		}
	} else if mtu, err := unix.GetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU); err == nil {
		p.mtu = mtu
	}
	return p, nil
}

// longer6 is how much longer an IPv6 header is than that of IPv4.
const longer6 = 20

// sockaddr gives the kernel's form of an address; one that is not valid is any.
func sockaddr(a netip.AddrPort, six bool) unix.Sockaddr {
	if !six {
		s := &unix.SockaddrInet4{Port: int(a.Port())}
		if a.Addr().Is4() {
			s.Addr = a.Addr().As4()
		}
		return s
	}
	s := &unix.SockaddrInet6{Port: int(a.Port())}
	if a.Addr().Is6() {
		s.Addr = a.Addr().As16()
	}
	if zone := a.Addr().Zone(); zone != "" {
		if ifi, err := net.InterfaceByName(zone); err == nil {
			s.ZoneId = uint32(ifi.Index)
		}
	}
	return s
}

func (p *ownPort) send(parts [][]byte) error {
	if !p.segment || len(parts) == 2 {
		return p.each(parts)
	}
	size := len(parts[0]) + len(parts[1])
	group := 2 * min(maxSegments, maxDatagram/size)
	if group < 4 || p.mtu > 0 && size+ipHeads > p.mtu {
		return p.each(parts)
	}
	oob := segmentMessage(size)
	for len(parts) > 0 {
		n := min(group, len(parts))
		if n == 2 {
			return p.each(parts)
		}
		_, err := unix.SendmsgBuffers(p.fd, parts[:n], oob, nil, 0)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EIO), errors.Is(err, unix.EINVAL), errors.Is(err, unix.EMSGSIZE), errors.Is(err, unix.ENOPROTOOPT):
			p.segment = false // the device or the kernel cannot
			return p.each(parts)
		case err != nil:
			return sendError(err)
		}
		parts = parts[n:]
	}
	return nil
}

// each sends packet by packet.
func (p *ownPort) each(parts [][]byte) error {
	for len(parts) > 0 {
		_, err := unix.Writev(p.fd, parts[:2])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			if err = sendError(err); err != nil {
				return err
			}
		}
		parts = parts[2:]
	}
	return nil
}

// sendError sorts what sending can say. A full queue or a path that has become
// narrower is a lost packet: it is sent again in time, and the kernel knows the
// path then. A refusal of an earlier packet is told here too.
func sendError(err error) error {
	switch {
	case errors.Is(err, unix.ENOBUFS), errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EMSGSIZE), errors.Is(err, unix.EPERM):
		return nil
	case errors.Is(err, unix.ECONNREFUSED):
		return errGone
	case errors.Is(err, unix.EPIPE):
		return errStopped
	}
	return fmt.Errorf("send: %w", err)
}

func segmentMessage(size int) []byte {
	b := make([]byte, unix.CmsgSpace(2))
	binary.NativeEndian.PutUint64(b, uint64(unix.CmsgLen(2)))
	binary.NativeEndian.PutUint32(b[8:], unix.IPPROTO_UDP)
	binary.NativeEndian.PutUint32(b[12:], unix.UDP_SEGMENT)
	binary.NativeEndian.PutUint16(b[unix.CmsgLen(0):], uint16(size))
	return b
}

func (p *ownPort) recv(wait time.Duration) ([]byte, error) {
	if wait != p.waits {
		tv := unix.NsecToTimeval(wait.Nanoseconds())
		if err := unix.SetsockoptTimeval(p.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
			return nil, fmt.Errorf("receive: %w", err)
		}
		p.waits = wait
	}
	n, err := unix.Read(p.fd, p.in[:])
	for errors.Is(err, unix.EINTR) {
		n, err = unix.Read(p.fd, p.in[:])
	}
	switch {
	case p.isStopped():
		return nil, errStopped
	case errors.Is(err, unix.EAGAIN):
		return nil, errTimeout
	case errors.Is(err, unix.ECONNREFUSED):
		return nil, errGone
	case errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.ENETUNREACH):
		return p.in[:0], nil // a router says so of one packet; the timeout decides
	case err != nil:
		return nil, fmt.Errorf("receive: %w", err)
	}
	return p.in[:n], nil
}

func (p *ownPort) careful() { p.segment = false }

func (p *ownPort) isStopped() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.stopped
}

// stop wakes recv, from any goroutine.
func (p *ownPort) stop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stopped = true; !p.closed {
		_ = unix.Shutdown(p.fd, unix.SHUT_RD) // ENOTCONN, and wakes the reader all the same
	}
}

func (p *ownPort) close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	return unix.Close(p.fd)
}

// sharedPort is a link over the server's own port: firewalls and load balancers
// see one port only.
type sharedPort struct {
	conn   *net.UDPConn
	client netip.AddrPort
	oob    []byte // the source address
	in     chan []byte
	done   chan struct{}
	once   sync.Once
	packet []byte
}

func newSharedPort(conn *net.UDPConn, local netip.Addr, client netip.AddrPort) *sharedPort {
	return &sharedPort{conn: conn, client: client, oob: sourceMessage(local), in: make(chan []byte, 16), done: make(chan struct{})}
}

func (p *sharedPort) send(parts [][]byte) error {
	for ; len(parts) > 0; parts = parts[2:] {
		p.packet = append(append(p.packet[:0], parts[0]...), parts[1]...)
		if _, _, err := p.conn.WriteMsgUDPAddrPort(p.packet, p.oob, p.client); err != nil {
			if errors.Is(err, net.ErrClosed) {
				return errStopped
			}
			if errors.Is(err, unix.ECONNREFUSED) { // of another client
				continue
			}
			if err := sendError(err); err != nil {
				return err
			}
		}
	}
	return nil
}

func (p *sharedPort) recv(wait time.Duration) ([]byte, error) {
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case b := <-p.in:
		return b, nil
	case <-p.done:
		return nil, errStopped
	case <-t.C:
		return nil, errTimeout
	}
}

// deliver hands over a packet that the server's port received; one too many is
// lost, as on a wire.
func (p *sharedPort) deliver(b []byte) {
	select {
	case p.in <- b:
	default:
	}
}

func (p *sharedPort) careful() {}
func (p *sharedPort) stop()    { p.once.Do(func() { close(p.done) }) }

// sourceMessage makes the kernel send from local.
func sourceMessage(local netip.Addr) []byte {
	switch {
	case !local.IsValid() || local.IsUnspecified():
		return nil
	case local.Is6():
		return unix.PktInfo6(&unix.Inet6Pktinfo{Addr: local.As16()})
	}
	return unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: local.As4()})
}

// pathMTU asks the kernel for the MTU of the way to a client, 0 if not known.
func pathMTU(local netip.Addr, client netip.AddrPort) int {
	p, err := openPort(local, client)
	if err != nil {
		return 0
	}
	defer p.close()
	return p.mtu
}
