package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"hotspare"
	"hotspare/boot"
)

// stormPhases are what a simulated machine goes through.
var stormPhases = []string{"DHCP, firmware", "loader by TFTP", "DHCP, iPXE", "script, kernel, initrd by HTTP", "iSCSI log-in", "reading the disk", "all"}

// stormBoot is what one machine saw.
type stormBoot struct {
	MAC     string
	Seconds map[string]float64
	Again   int    // questions that had to be asked again
	Error   string // of a machine that is lost
}

// serveMachines is `bench serve-machines`, in the machines' namespace: all boot
// at once, and the outcome goes to stdout.
func serveMachines(ctx context.Context, args []string) error {
	fs := flag.NewFlagSet("serve-machines", flag.ContinueOnError)
	list := fs.String("places", "", "")
	disk := fs.Int64("disk", 0, "")
	if err := fs.Parse(args); err != nil {
		return err
	}
	b, err := os.ReadFile(*list)
	if err != nil {
		return err
	}
	var places []stormPlace
	if err := json.Unmarshal(b, &places); err != nil {
		return err
	}
	link, err := netlink.LinkByName(stormPeer)
	if err != nil {
		return err
	}
	ask, err := listenDHCP(stormPeer)
	if err != nil {
		return err
	}
	defer ask.conn.Close()
	boots := make([]stormBoot, len(places))
	var wg sync.WaitGroup
	for i, p := range places {
		wg.Go(func() {
			m := &machine{mac: stormMAC(i), link: link, dhcp: ask, b: &boots[i], disk: *disk, place: place{
				portal: p.Portal, iqn: p.IQN, user: benchUser, secret: hotspare.NewSecret(benchSecret), initiator: fmt.Sprintf("iqn.2026-11.io.hotspare:m-%d", i),
			}}
			boots[i] = stormBoot{MAC: m.mac.String(), Seconds: map[string]float64{}}
			if err := m.boot(ctx); err != nil {
				boots[i].Error = err.Error()
			}
		})
	}
	wg.Wait()
	return json.NewEncoder(os.Stdout).Encode(boots)
}

// machine is one simulated PXE client.
type machine struct {
	mac   boot.MAC
	link  netlink.Link
	dhcp  *dhcpAsker
	place place
	disk  int64
	b     *stormBoot
	addr  netip.Addr
}

func (m *machine) boot(ctx context.Context) error {
	begin := time.Now()
	last := begin
	done := func(phase string) {
		now := time.Now()
		m.b.Seconds[phase] = now.Sub(last).Seconds()
		last = now
	}
	file, err := m.lease(ctx, false)
	if err != nil {
		return fmt.Errorf("DHCP of the firmware: %w", err)
	}
	done(stormPhases[0])
	f := &tftpFetch{server: netip.MustParseAddrPort(stormServer + ":69"), local: m.addr, name: file, block: 1456, window: 1}
	n, err := f.run()
	m.b.Again += f.again
	if err != nil || n != stormLoader {
		return fmt.Errorf("loader %q by TFTP: %d bytes, %w", file, n, err)
	}
	done(stormPhases[1])
	script, err := m.lease(ctx, true)
	if err != nil {
		return fmt.Errorf("DHCP of iPXE: %w", err)
	}
	done(stormPhases[2])
	if err := m.fetch(script); err != nil {
		return fmt.Errorf("HTTP: %w", err)
	}
	done(stormPhases[3])
	m.place.local = m.addr
	s, err := dial(m.place, 1)
	if err != nil {
		return err
	}
	done(stormPhases[4])
	if err := s.quiet(); err != nil {
		s.close()
		return err
	}
	o, err := run(s, work{size: 256 << 10, depth: 2, span: m.disk, ops: int(m.disk / (256 << 10))}, 1)
	if err != nil || int64(o.ops)*(256<<10) != m.disk {
		s.close()
		return fmt.Errorf("reading the disk: %d reads, %w", o.ops, err)
	}
	done(stormPhases[5])
	m.b.Seconds[stormPhases[6]] = time.Since(begin).Seconds()
	return s.logout()
}

// fetch runs a script as iPXE does: one connection for each file.
func (m *machine) fetch(script string) error {
	text, err := m.get(script, 64<<10)
	if err != nil {
		return err
	}
	urls := fetches(text)
	if len(urls) != 3 {
		return fmt.Errorf("the script loads %v:\n%s", urls, text)
	}
	for _, u := range urls {
		if _, err := m.get(u, 0); err != nil {
			return err
		}
	}
	return nil
}

// get fetches a URL, and keeps the first bytes of it.
func (m *machine) get(address string, keep int64) ([]byte, error) {
	u, err := url.Parse(address)
	if err != nil {
		return nil, err
	}
	host := u.Host
	if u.Port() == "" {
		host += ":80"
	}
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: m.addr.AsSlice()}, Timeout: 2 * time.Minute}
	c, err := d.Dial("tcp4", host)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Minute))
	if _, err := fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: iPXE/1.21.1\r\nConnection: keep-alive\r\n\r\n", u.RequestURI(), u.Host); err != nil {
		return nil, err
	}
	resp, err := http.ReadResponse(bufio.NewReaderSize(c, 64<<10), nil)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s", u.Path, resp.Status)
	}
	head, err := io.ReadAll(io.LimitReader(resp.Body, keep))
	if err != nil {
		return nil, err
	}
	n, err := io.Copy(io.Discard, resp.Body)
	if total := n + int64(len(head)); err != nil || total != resp.ContentLength {
		return nil, fmt.Errorf("%s: %d bytes of %d: %w", u.Path, total, resp.ContentLength, err)
	}
	return head, nil
}

// lease asks DHCP as the firmware or as iPXE does, with PXE's patience (4, 8, 16,
// 32 s), takes the address, and gives the boot file.
func (m *machine) lease(ctx context.Context, iPXE bool) (string, error) {
	mods := []dhcpv4.Modifier{
		dhcpv4.WithBroadcast(true), dhcpv4.WithRequestedOptions(dhcpv4.OptionSubnetMask, dhcpv4.OptionRouter, dhcpv4.OptionTFTPServerName, dhcpv4.OptionBootfileName),
		dhcpv4.WithOption(dhcpv4.OptClassIdentifier("PXEClient:Arch:00000:UNDI:002001")),
		dhcpv4.WithGeneric(dhcpv4.OptionClientSystemArchitectureType, []byte{0, 0}), dhcpv4.WithGeneric(dhcpv4.OptionClientNetworkInterfaceIdentifier, []byte{1, 2, 1}),
	}
	if iPXE {
		mods = append(mods, dhcpv4.WithGeneric(dhcpv4.OptionUserClassInformation, []byte("iPXE")),
			dhcpv4.WithGeneric(dhcpv4.GenericOptionCode(175), []byte{0xb1, 5, 1, 0x1a, 0xf4, 0x10, 0, 0x13, 1, 1, 0x17, 1, 1, 0x11, 1, 1}))
	}
	discover, err := dhcpv4.NewDiscovery(m.mac[:], mods...)
	if err != nil {
		return "", err
	}
	offer, err := m.ask(ctx, discover, dhcpv4.MessageTypeOffer)
	if err != nil {
		return "", err
	}
	request, err := dhcpv4.NewRequestFromOffer(offer, mods...)
	if err != nil {
		return "", err
	}
	ack, err := m.ask(ctx, request, dhcpv4.MessageTypeAck)
	if err != nil {
		return "", err
	}
	addr, _ := netip.AddrFromSlice(ack.YourIPAddr.To4())
	if m.addr.IsValid() && m.addr != addr {
		return "", fmt.Errorf("iPXE got %s, the firmware had %s", addr, m.addr)
	}
	if !m.addr.IsValid() {
		a := &netlink.Addr{IPNet: &net.IPNet{IP: ack.YourIPAddr.To4(), Mask: net.CIDRMask(16, 32)}}
		if err := netlink.AddrAdd(m.link, a); err != nil {
			return "", fmt.Errorf("take %s: %w", addr, err)
		}
		m.addr = addr
	}
	file := ack.BootFileNameOption()
	if file == "" {
		file = ack.BootFileName
	}
	if file == "" {
		return "", errors.New("no boot file")
	}
	return file, nil
}

func (m *machine) ask(ctx context.Context, q *dhcpv4.DHCPv4, want dhcpv4.MessageType) (*dhcpv4.DHCPv4, error) {
	answers := m.dhcp.expect(q.TransactionID)
	defer m.dhcp.forget(q.TransactionID)
	for wait := 4 * time.Second; wait <= 32*time.Second; wait *= 2 {
		if err := m.dhcp.send(q); err != nil {
			return nil, err
		}
		t := time.NewTimer(wait)
		for waiting := true; waiting; {
			select {
			case a := <-answers:
				if a.MessageType() == want && a.ClientHWAddr.String() == m.mac.String() {
					t.Stop()
					return a, nil
				}
			case <-t.C:
				m.b.Again++
				waiting = false
			case <-ctx.Done():
				t.Stop()
				return nil, ctx.Err()
			}
		}
	}
	return nil, fmt.Errorf("no %s within a minute", want)
}

// dhcpAsker is the socket that all machines share; answers come by broadcast.
type dhcpAsker struct {
	conn *net.UDPConn
	mu   sync.Mutex
	wait map[dhcpv4.TransactionID]chan *dhcpv4.DHCPv4
}

func listenDHCP(device string) (*dhcpAsker, error) {
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		cerr := c.Control(func(fd uintptr) {
			err = errors.Join(unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_BROADCAST, 1), unix.BindToDevice(int(fd), device),
				unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20))
		})
		return errors.Join(err, cerr)
	}}
	conn, err := lc.ListenPacket(context.Background(), "udp4", "0.0.0.0:68")
	if err != nil {
		return nil, err
	}
	d := &dhcpAsker{conn: conn.(*net.UDPConn), wait: map[dhcpv4.TransactionID]chan *dhcpv4.DHCPv4{}}
	go d.receive()
	return d, nil
}

func (d *dhcpAsker) receive() {
	buf := make([]byte, 4096)
	for {
		n, err := d.conn.Read(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue
		}
		a, err := dhcpv4.FromBytes(append([]byte(nil), buf[:n]...))
		if err != nil {
			continue
		}
		d.mu.Lock()
		c := d.wait[a.TransactionID]
		d.mu.Unlock()
		select {
		case c <- a:
		default:
		}
	}
}

func (d *dhcpAsker) expect(x dhcpv4.TransactionID) chan *dhcpv4.DHCPv4 {
	c := make(chan *dhcpv4.DHCPv4, 4)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.wait[x] = c
	return c
}

func (d *dhcpAsker) forget(x dhcpv4.TransactionID) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.wait, x)
}

func (d *dhcpAsker) send(q *dhcpv4.DHCPv4) error {
	_, err := d.conn.WriteToUDP(q.ToBytes(), &net.UDPAddr{IP: net.IPv4bcast, Port: 67})
	return err
}
