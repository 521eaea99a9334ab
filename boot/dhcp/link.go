package dhcp

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"

	"github.com/mdlayher/packet"
	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"

	"hotspare"
)

const (
	portDHCP   = 67   // server side of DHCP
	portClient = 68   // client side
	portPXE    = 4011 // PXE boot service
)

// link is the segment's side of the server: its sockets. Those that are not wanted
// are nil.
type link struct {
	ifi    *net.Interface
	server netip.Addr
	from   []byte // control message: send from server
	dhcp   *socket
	pxe    *socket      // not in authoritative mode
	raw    *packet.Conn // sends frames to clients without an address; nil off Ethernet
	arp    *arp         // authoritative mode, with probing
	spy    *packet.Conn // other servers' answers
	ra     *packet.Conn // IPv6 router solicitations
}

// socket is one UDP port, bound to the interface.
type socket struct {
	conn *net.UDPConn
	ctl  *ipv4.PacketConn
	in   []ipv4.Message // that read fills
}

// readMost is how many packets are read at once.
const readMost = 32

func openLink(o Options) (_ *link, err error) {
	ifi, err := net.InterfaceByName(o.Interface)
	if err != nil {
		return nil, &hotspare.Error{Code: hotspare.CodeNoInterface, What: "the segment's interface does not exist", Where: o.Interface, Fix: "name an interface that `ip link` shows", Err: err}
	}
	if err := hasAddress(ifi, o.Server); err != nil {
		return nil, err
	}
	l := &link{ifi: ifi, server: o.Server, from: (&ipv4.ControlMessage{Src: o.Server.AsSlice()}).Marshal()}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.close())
		}
	}()
	if o.Mode != Off {
		if l.dhcp, err = openSocket(ifi, portDHCP); err != nil {
			return nil, err
		}
	}
	if o.Mode != Authoritative {
		if l.pxe, err = openSocket(ifi, portPXE); err != nil {
			return nil, err
		}
	}
	if len(ifi.HardwareAddr) != 6 {
		return l, nil
	}
	// Protocol 0 receives nothing: the socket only sends.
	if l.raw, err = packet.Listen(ifi, packet.Raw, 0, nil); err != nil {
		return nil, fmt.Errorf("open a raw socket on %s: %w", ifi.Name, err)
	}
	if o.Mode == Authoritative && o.ProbeWait > 0 {
		if l.arp, err = openARP(ifi, o); err != nil {
			return nil, err
		}
	}
	if o.Mode != Off && o.Watch > 0 {
		if l.spy, err = listenServers(ifi); err != nil {
			return nil, err
		}
	}
	if o.RouterAdvertisement || o.IPv6 != nil {
		if l.ra, err = listenSolicitations(ifi); err != nil {
			return nil, err
		}
	}
	return l, nil
}

func hasAddress(ifi *net.Interface, a netip.Addr) error {
	addrs, err := ifi.Addrs()
	if err != nil {
		return fmt.Errorf("read the addresses of %s: %w", ifi.Name, err)
	}
	for _, x := range addrs {
		if p, err := netip.ParsePrefix(x.String()); err == nil && p.Addr() == a {
			return nil
		}
	}
	return &hotspare.Error{
		Code: hotspare.CodeNoInterface, What: "the DHCP server's address is not on the interface", Where: fmt.Sprintf("%s on %s", a, ifi.Name),
		Why: "answers would come from another address, which clients and relays refuse", Fix: fmt.Sprintf("ip address add %s/.. dev %s, or correct the configuration", a, ifi.Name),
	}
}

func openSocket(ifi *net.Interface, port uint16) (*socket, error) {
	conn, err := listenOn(ifi, "udp4", port, func(fd int) error {
		// A rack that is powered on at once must fit; without the right to have
		// that much, what the host allows is used.
		if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 4<<20) != nil {
			_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 4<<20)
		}
		return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BROADCAST, 1)
	})
	if err != nil {
		return nil, err
	}
	c := &socket{conn: conn, ctl: ipv4.NewPacketConn(conn), in: make([]ipv4.Message, readMost)}
	for i := range c.in {
		c.in[i].Buffers = [][]byte{make([]byte, longest+1)}
	}
	return c, nil
}

// listenOn binds a port on one interface. SO_REUSEADDR stays off, so that a server
// that has the port already is noticed and not starved.
func listenOn(ifi *net.Interface, network string, port uint16, more func(fd int) error) (*net.UDPConn, error) {
	lc := net.ListenConfig{Control: func(_, _ string, rc syscall.RawConn) error {
		var opt error
		err := rc.Control(func(fd uintptr) {
			opt = errors.Join(unix.SetsockoptString(int(fd), unix.SOL_SOCKET, unix.SO_BINDTODEVICE, ifi.Name), more(int(fd)))
		})
		return errors.Join(err, opt)
	}}
	pc, err := lc.ListenPacket(context.Background(), network, fmt.Sprintf(":%d", port))
	if errors.Is(err, syscall.EADDRINUSE) {
		who, herr := PortHolder("udp", port)
		if herr != nil || who == "" {
			who = "another process"
		}
		return nil, &hotspare.Error{
			Code: hotspare.CodePortTaken, What: fmt.Sprintf("UDP port %d is taken", port), Where: ifi.Name, Why: "held by " + who,
			Fix: "stop that service, bind it to other interfaces only, or serve this segment in proxy mode elsewhere", Err: err,
		}
	}
	if err != nil {
		return nil, fmt.Errorf("listen on UDP port %d of %s: %w", port, ifi.Name, err)
	}
	return pc.(*net.UDPConn), nil
}

// read waits for packets and gives each of those that are there. What is longer than
// the longest is cut; parse refuses it.
func (c *socket) read(each func(b []byte, from netip.AddrPort)) error {
	n, err := c.ctl.ReadBatch(c.in, 0)
	if err != nil {
		return err
	}
	for i := range c.in[:n] {
		m := &c.in[i]
		from, ok := m.Addr.(*net.UDPAddr)
		if !ok {
			continue
		}
		at := from.AddrPort()
		each(m.Buffers[0][:m.N], netip.AddrPortFrom(at.Addr().Unmap(), at.Port()))
	}
	return nil
}

// send sends one answer, always from the server's own address: with several
// addresses on the interface the kernel would choose, and relays and clients
// compare it with option 54.
func (l *link) send(c *socket, b []byte, to destination) error {
	if !to.frame.IsZero() && l.raw != nil {
		f, err := frame(l.ifi.HardwareAddr, to.frame, netip.AddrPortFrom(l.server, portDHCP), to.addr, b)
		if err != nil {
			return err
		}
		if _, err := l.raw.WriteTo(f, &packet.Addr{HardwareAddr: to.frame[:]}); err != nil {
			return fmt.Errorf("send frame: %w", err)
		}
		return nil
	}
	if !to.frame.IsZero() {
		to.addr = netip.AddrPortFrom(limitedBroadcast, to.addr.Port())
	}
	if _, _, err := c.conn.WriteMsgUDPAddrPort(b, l.from, to.addr); err != nil {
		return fmt.Errorf("send datagram: %w", err)
	}
	return nil
}

// readFrame reads from a raw socket. An interface that is taken down ends the read
// with an error, and the socket goes on when it is up again: so does the server.
func readFrame(ctx context.Context, c *packet.Conn, b []byte) (int, error) {
	for {
		n, _, err := c.ReadFrom(b)
		if !errors.Is(err, unix.ENETDOWN) || pause(ctx, time.Second) {
			return n, err
		}
	}
}

// unblock makes all readers return.
func (l *link) unblock() {
	past := time.Unix(1, 0)
	for _, c := range []*socket{l.dhcp, l.pxe} {
		if c != nil {
			_ = c.conn.SetReadDeadline(past)
		}
	}
	for _, c := range []*packet.Conn{l.ra, l.spy} {
		if c != nil {
			_ = c.SetReadDeadline(past)
		}
	}
	if l.arp != nil {
		_ = l.arp.conn.SetReadDeadline(past)
	}
}

func (l *link) close() error {
	var errs []error
	note := func(err error) {
		if err != nil && !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	for _, c := range []*socket{l.dhcp, l.pxe} {
		if c != nil {
			note(c.conn.Close())
		}
	}
	for _, c := range []*packet.Conn{l.raw, l.ra, l.spy} {
		if c != nil {
			note(c.Close())
		}
	}
	if l.arp != nil {
		note(l.arp.conn.Close())
	}
	return errors.Join(errs...)
}
