package dhcp

import (
	"context"
	"path/filepath"
	"testing"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"hotspare/boot"
)

// What one packet costs, from bytes to bytes, without sockets.
func BenchmarkPacket(b *testing.B) {
	for _, x := range []struct {
		name string
		kind dhcpv4.MessageType
		opts []opt
	}{{"discover", dhcpv4.MessageTypeDiscover, system}, {"discover of iPXE", dhcpv4.MessageTypeDiscover, iPXE}, {"renewal", dhcpv4.MessageTypeRequest, []opt{dhcpv4.WithClientIP(wantIP(ip("10.77.0.105")))}}} {
		b.Run(x.name, func(b *testing.B) {
			o := options()
			o.Site, o.Director = boot.Site{Server: o.Server, Loaders: boot.DefaultLoaders()}, directorFunc(starts)
			o.Recorder = boot.NewRecorder(0, 0)
			o = o.withDefaults()
			s := newServer(o)
			d, err := dhcpv4.New(append([]opt{dhcpv4.WithHwAddr(n1[:]), dhcpv4.WithMessageType(x.kind)}, x.opts...)...)
			if err != nil {
				b.Fatal(err)
			}
			packet := d.ToBytes()
			b.ReportAllocs()
			for b.Loop() {
				m, err := parse(packet, boot.DHCP)
				if err != nil {
					b.Fatal(err)
				}
				a := s.answer(context.Background(), m)
				if a.packet == nil {
					b.Fatalf("%+v", a)
				}
				encode(a.packet)
				s.record(m, boot.DHCP, a)
			}
		})
	}
}

// Changes that many wait for share syncs.
func BenchmarkCommit(b *testing.B) {
	lf, _, _, err := openLeases(filepath.Join(b.TempDir(), "leases"))
	if err != nil {
		b.Fatal(err)
	}
	b.SetParallelism(64)
	b.RunParallel(func(p *testing.PB) {
		for p.Next() {
			if err := lf.commit(lf.enter(Lease{MAC: n1, Addr: ip("10.77.0.100"), Expires: epoch, Bound: true}), func() []Lease { return nil }); err != nil {
				b.Error(err)
			}
		}
	})
}
