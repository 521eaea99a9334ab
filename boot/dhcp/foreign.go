package dhcp

import (
	"bufio"
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/mdlayher/packet"
	"golang.org/x/net/bpf"

	"hotspare"
	"hotspare/boot"
)

// Foreign is another DHCP server on the segment: one that answers the question
// that is asked from time to time, whose answers are broadcast, or whose offers
// machines take.
type Foreign struct {
	Server  netip.Addr `json:"server"` // as it names itself
	MAC     boot.MAC   `json:"mac"`    // that its answers came from, or its relay; zero when none was seen
	Vendor  string     `json:"vendor,omitempty"`
	Address netip.Addr `json:"address,omitempty"` // that it offered last; none of a proxy
	Router  netip.Addr `json:"router,omitempty"`
	// What it tells machines to boot.
	NextServer string `json:"nextServer,omitempty"`
	BootFile   string `json:"bootFile,omitempty"`
	Class      string `json:"class,omitempty"` // option 60 of its answer

	First time.Time `json:"first"`
	Last  time.Time `json:"last"`
	Taker boot.MAC  `json:"taker"` // the machine that took its offer last
	Taken uint64    `json:"taken"` // offers of its that were taken
	Fix   string    `json:"fix,omitempty"`
}

// foreignMost bounds how many are remembered.
const foreignMost = 64

// name tells who it is.
func (f Foreign) name() string {
	s := f.Server.String()
	if !f.MAC.IsZero() {
		s += " (" + f.MAC.String()
		if f.Vendor != "" {
			s += ", " + f.Vendor
		}
		s += ")"
	}
	return s
}

// Offers tells what it was seen to offer.
func (f Foreign) Offers() string {
	var parts []string
	if f.Address.IsValid() {
		parts = append(parts, "address "+f.Address.String())
	}
	if f.Router.IsValid() {
		parts = append(parts, "router "+f.Router.String())
	}
	if f.BootFile != "" {
		parts = append(parts, "boot file "+f.BootFile)
	}
	if f.NextServer != "" {
		parts = append(parts, "from "+f.NextServer)
	}
	if f.Class != "" {
		parts = append(parts, "class "+f.Class)
	}
	if len(parts) == 0 {
		return "nothing that was seen here"
	}
	return strings.Join(parts, ", ")
}

// boots says whether machines may boot what it offers.
func (f Foreign) boots() bool { return f.BootFile != "" || strings.HasPrefix(f.Class, "PXEClient") }

// mend says what to do about it, and whether there is something to do at all: where
// we are a proxy, a server that gives addresses only is the one that is expected.
func (f Foreign) mend(mode Mode) (fix string, needed bool) {
	switch {
	case mode == Proxy && !f.boots():
		return "", false
	case mode == Proxy && f.BootFile == "":
		return fmt.Sprintf("take option 60 (%s) out of %s: firmware that reads it asks that server for boot files and waits", f.Class, f.Server), true
	case mode == Proxy:
		return fmt.Sprintf("take the boot file (options 66, 67, next-server) out of %s: machines may boot either", f.Server), true
	case !f.Address.IsValid() && f.boots():
		return fmt.Sprintf("stop the boot service on %s, or keep it off this segment: machines may boot either", f.Server), true
	}
	return fmt.Sprintf("stop the DHCP server %s or move it to another VLAN; or let it give the addresses: `mode: proxy`; or `mode: off` with the printed snippet in its configuration", f.Server), true
}

// listenServers opens a socket that sees what DHCP servers send to clients.
func listenServers(ifi *net.Interface) (*packet.Conn, error) {
	filter, err := bpf.Assemble([]bpf.Instruction{
		bpf.LoadAbsolute{Off: 12, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: etherIPv4, SkipTrue: 8},
		bpf.LoadAbsolute{Off: 23, Size: 1}, // protocol
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: 17, SkipTrue: 6},
		bpf.LoadMemShift{Off: 14},
		bpf.LoadIndirect{Off: 14, Size: 2}, // source port
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: portDHCP, SkipTrue: 3},
		bpf.LoadIndirect{Off: 16, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: portClient, SkipTrue: 1},
		bpf.RetConstant{Val: 4096},
		bpf.RetConstant{Val: 0},
	})
	if err != nil {
		return nil, fmt.Errorf("assemble the filter of DHCP answers: %w", err)
	}
	c, err := packet.Listen(ifi, packet.Raw, etherIPv4, &packet.Config{Filter: filter})
	if err != nil {
		return nil, fmt.Errorf("listen for other DHCP servers on %s: %w", ifi.Name, err)
	}
	return c, nil
}

// watch asks the segment who else serves DHCP, now and from time to time, and hears
// every answer that reaches us.
func (s *Server) watch(ctx context.Context) error {
	asker, cancel := context.WithCancel(ctx)
	asked := make(chan struct{})
	go func() {
		defer close(asked)
		s.askAround(asker)
	}()
	defer func() { cancel(); <-asked }()
	buf := make([]byte, longest)
	for {
		n, err := readFrame(ctx, s.link.spy, buf)
		if err != nil {
			return err
		}
		if f, ok := serverAnswer(buf[:n]); ok && f.Server != s.o.Server {
			s.foreignSeen(f)
		}
	}
}

// askAround sends a DISCOVER of our own that nobody here answers but others do. It
// always carries our own MAC address, so that a server holds one address at most.
func (s *Server) askAround(ctx context.Context) {
	again := time.NewTicker(s.o.Watch)
	defer again.Stop()
	for {
		if err := s.ask(); err != nil {
			s.o.Log.Warn("could not ask for other DHCP servers", "err", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-again.C:
		}
	}
}

func (s *Server) ask() error {
	own := s.link.ifi.HardwareAddr
	d, err := dhcpv4.New(
		dhcpv4.WithHwAddr(own), dhcpv4.WithMessageType(dhcpv4.MessageTypeDiscover), dhcpv4.WithBroadcast(true),
		dhcpv4.WithGeneric(dhcpv4.GenericOptionCode(55), []byte{1, 3, 6, 43, 54, 60, 66, 67}),
		dhcpv4.WithGeneric(dhcpv4.GenericOptionCode(60), []byte("PXEClient:Arch:00007:UNDI:003016")),
		dhcpv4.WithGeneric(dhcpv4.GenericOptionCode(93), []byte{0, 7}),
		dhcpv4.WithGeneric(dhcpv4.GenericOptionCode(94), []byte{1, 3, 16}),
	)
	if err != nil {
		return err
	}
	if _, err := rand.Read(d.TransactionID[:]); err != nil {
		return err
	}
	all := boot.MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	f, err := frame(own, all, netip.AddrPortFrom(netip.IPv4Unspecified(), portClient), netip.AddrPortFrom(limitedBroadcast, portDHCP), d.ToBytes())
	if err != nil {
		return err
	}
	_, err = s.link.raw.WriteTo(f, &packet.Addr{HardwareAddr: all[:]})
	return err
}

// serverAnswer reads a frame with an OFFER, ACK or NAK.
func serverAnswer(b []byte) (f Foreign, ok bool) {
	defer func() {
		if recover() != nil { // see parse
			f, ok = Foreign{}, false
		}
	}()
	if len(b) < 14+20+8 || b[14]>>4 != 4 {
		return f, false
	}
	head := 14 + 4*int(b[14]&15)
	if head < 34 || len(b) < head+8 {
		return f, false
	}
	d, err := dhcpv4.FromBytes(b[head+8:])
	if err != nil || d.OpCode != dhcpv4.OpcodeBootReply || d.MessageType() == dhcpv4.MessageTypeNone {
		return f, false
	}
	f = Foreign{
		Server: addrOf(d.Options[54]), Address: addrOf(d.YourIPAddr), Router: addrOf(first4(d.Options[3])),
		BootFile: printable([]byte(d.BootFileName)), Class: printable(d.Options[60]),
	}
	f.MAC, _ = boot.MACFrom(b[6:12])
	if file := printable(d.Options[67]); file != "" {
		f.BootFile = file
	}
	if f.BootFile != "" {
		f.NextServer = printable(d.Options[66])
		if a := addrOf(d.ServerIPAddr); a.IsValid() {
			f.NextServer = a.String()
		}
	}
	return f, f.Server.IsValid()
}

func first4(b []byte) []byte {
	if len(b) < 4 {
		return nil
	}
	return b[:4]
}

// foreignSeen notes an answer of another server.
func (s *Server) foreignSeen(seen Foreign) {
	seen.Vendor = s.vendor(seen.MAC) // before the lock: it may read a file
	s.mu.Lock()
	f := s.foreigner(seen.Server)
	if f == nil {
		s.mu.Unlock()
		return
	}
	seen.First, seen.Taker, seen.Taken, seen.Last = f.First, f.Taker, f.Taken, s.o.Now()
	if !seen.Address.IsValid() && seen.BootFile == "" { // a NAK tells nothing of offers
		seen.Address, seen.Router, seen.BootFile, seen.NextServer, seen.Class = f.Address, f.Router, f.BootFile, f.NextServer, f.Class
	}
	*f = seen
	s.tellForeign(f)
}

// foreignTaken notes that a machine took another server's offer.
func (s *Server) foreignTaken(server netip.Addr, m message) Foreign {
	s.mu.Lock()
	f := s.foreigner(server)
	if f == nil {
		s.mu.Unlock()
		return Foreign{Server: server}
	}
	f.Last, f.Taker, f.Taken = s.o.Now(), m.mac, f.Taken+1
	return s.tellForeign(f)
}

// foreigner gives the record of a server, nil when there are too many. The caller
// holds mu.
func (s *Server) foreigner(server netip.Addr) *Foreign {
	f := s.foreign[server]
	if f == nil && len(s.foreign) < foreignMost {
		f = &Foreign{Server: server, First: s.o.Now()}
		s.foreign[server] = f
	}
	return f
}

// tellForeign alarms where something is to be done, and gives mu back.
func (s *Server) tellForeign(f *Foreign) Foreign {
	var needed bool
	f.Fix, needed = f.mend(s.o.Mode)
	out, addressers := *f, 0
	for _, x := range s.foreign {
		if x.Address.IsValid() {
			addressers++
		}
	}
	s.mu.Unlock()
	if needed || s.o.Mode == Proxy && addressers > 1 && out.Address.IsValid() {
		fix := out.Fix
		if fix == "" {
			fix = "several servers give addresses here: keep one"
		}
		why := "it offers " + out.Offers()
		if out.Taken > 0 {
			why += fmt.Sprintf("; %s took an offer of its", out.Taker)
		}
		s.alarm(&hotspare.Error{Code: hotspare.CodeForeignDHCP, What: "another DHCP server answers on the segment", Where: out.name() + " on " + s.o.Interface, Why: why, Fix: fix})
	}
	return out
}

// ForeignServers gives the other DHCP servers that were noticed.
func (s *Server) ForeignServers() []Foreign {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]Foreign, 0, len(s.foreign))
	for _, f := range s.foreign {
		out = append(out, *f)
	}
	slices.SortFunc(out, func(a, b Foreign) int { return a.Server.Compare(b.Server) })
	return out
}

// nameMAC gives a MAC address with the maker of its card.
func (s *Server) nameMAC(m boot.MAC) string {
	if v := s.vendor(m); v != "" {
		return m.String() + " (" + v + ")"
	}
	return m.String()
}

// makersMost bounds the makers that are remembered.
const makersMost = 256

// vendor gives the maker of a network card. The caller does not hold mu.
func (s *Server) vendor(m boot.MAC) string {
	if s.o.Vendor != nil {
		return s.o.Vendor(m)
	}
	key := [3]byte(m[:3])
	s.makers.Lock()
	defer s.makers.Unlock()
	name, ok := s.makers.of[key]
	if !ok {
		if s.makers.of == nil || len(s.makers.of) >= makersMost {
			s.makers.of = map[[3]byte]string{}
		}
		name = VendorIn("/usr/share/ieee-data/oui.txt", m)
		s.makers.of[key] = name
	}
	return name
}

// VendorIn looks up the maker of a network card in a list in IEEE's form ("00-00-0C
// (hex)  Cisco Systems, Inc"). "" means that the list or the maker is not there, or
// that the address was given by software.
func VendorIn(path string, m boot.MAC) string {
	if m[0]&2 != 0 {
		return ""
	}
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	want := strings.ToUpper(m.Hyphens()[:8])
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		if rest, ok := strings.CutPrefix(sc.Text(), want); ok {
			if _, name, ok := strings.Cut(rest, "(hex)"); ok {
				return printable([]byte(strings.TrimSpace(name)))
			}
		}
	}
	return "" // also when the list cannot be read: the name is a courtesy
}
