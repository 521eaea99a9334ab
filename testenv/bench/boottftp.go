package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"hotspare/boot/tftp"
)

// The segment of the TFTP figures: tftpd-hpa listens on no loopback address. The
// packets stay in this network namespace, and its MTU is the loopback's.
const (
	tftpHost  = "10.179.0.1"
	tftpBlock = 1468 // what fits into an Ethernet frame, as firmware asks
)

// tftpFigures sets our sender beside atftpd with and without a window, and
// beside tftpd-hpa, which has none; one client for all.
func tftpFigures(ctx context.Context, o options) ([]figure, error) {
	for _, args := range [][]string{
		{"link", "add", "hstftp0", "type", "veth", "peer", "name", "hstftp1"},
		{"address", "add", tftpHost + "/24", "dev", "hstftp0"},
		{"link", "set", "hstftp0", "up"}, {"link", "set", "hstftp1", "up"},
	} {
		if out, err := exec.CommandContext(ctx, "ip", args...).CombinedOutput(); err != nil {
			return nil, fmt.Errorf("ip %v: %w %s", args, err, out)
		}
	}
	defer func() { _ = exec.Command("ip", "link", "del", "hstftp0").Run() }()
	size := 128 << 20
	if o.quick {
		size = 16 << 20
	}
	content := make([]byte, size+1234)
	_, _ = rand.Read(content)
	if err := os.WriteFile(filepath.Join(o.memory, "loader.efi"), content, 0o644); err != nil {
		return nil, err
	}
	atftpd, err := find("atftpd", "atftpd")
	if err != nil {
		return nil, err
	}
	hpa, err := find("in.tftpd", "tftpd-hpa")
	if err != nil {
		return nil, err
	}
	peers := map[string]*peer{}
	defer func() {
		for _, p := range peers {
			p.end()
		}
	}()
	port := func(name string) netip.AddrPort {
		return netip.AddrPortFrom(netip.MustParseAddr(tftpHost), map[string]uint16{ours: 6901, "atftpd": 6902, "tftpd-hpa": 6903}[name])
	}
	for name, cmd := range map[string]*exec.Cmd{
		ours:     exec.CommandContext(ctx, "/proc/self/exe", "serve-tftp", "-listen", port(ours).String(), "-file", filepath.Join(o.memory, "loader.efi")),
		"atftpd": exec.CommandContext(ctx, atftpd, "--daemon", "--no-fork", "--bind-address", tftpHost, "--port", "6902", "--logfile", "/dev/null", "--user", "root", "--group", "root", o.memory),
		// It changes root, and would look for its user there.
		"tftpd-hpa": exec.CommandContext(ctx, hpa, "-L", "-4", "-u", "root", "-a", port("tftpd-hpa").String(), "-s", o.memory),
	} {
		p, err := runPeer(ctx, name, cmd, func() error {
			f := &tftpFetch{server: port(name), name: "loader.efi", block: 512, window: 1, most: 1}
			_, err := f.run()
			return err
		})
		if err != nil {
			return nil, err
		}
		peers[name] = p
	}
	var out []figure
	for _, c := range []struct {
		text, peer string
		window     int
		goal       float64
	}{
		{"TFTP, blksize 1468, windowsize 16", "atftpd", 16, 1.2}, {"TFTP, blksize 1468, windowsize 4", "atftpd", 4, 1.2},
		{"TFTP, blksize 1468, no window", "tftpd-hpa", 1, 1}, {"TFTP, blksize 1468, no window", "atftpd", 1, 1},
	} {
		if !o.pattern.MatchString(c.text) {
			continue
		}
		s := &series{name: c.text, unit: "MB/s", peer: c.peer, goal: c.goal, better: "higher"}
		for range o.rounds {
			for _, name := range []string{ours, c.peer} {
				f := &tftpFetch{server: port(name), name: "loader.efi", block: tftpBlock, window: c.window}
				if len(s.own) == 0 { // once, whether it is the file
					f.check = content
					if _, err := f.run(); err != nil {
						return out, fmt.Errorf("%s, %s: %w", name, c.text, err)
					}
					f.check = nil
				}
				var total int64
				start := time.Now()
				for time.Since(start) < o.slice/2 {
					n, err := f.run()
					if err != nil {
						return out, fmt.Errorf("%s, %s: %w", name, c.text, err)
					}
					total += n
				}
				v := float64(total) / 1e6 / time.Since(start).Seconds()
				if o.verbose {
					fmt.Printf("%-9s %-40s %8.1f MB/s, %d acknowledged, %d gaps\n", name, c.text, v, f.acks, f.gaps)
				}
				if name == ours {
					s.own = append(s.own, v)
				} else {
					s.other = append(s.other, v)
				}
			}
			if ctx.Err() != nil {
				return out, ctx.Err()
			}
		}
		out = append(out, s.figure())
	}
	return out, nil
}

// serveTFTP is our server alone: `bench serve-tftp`.
func serveTFTP(ctx context.Context, args []string) error {
	fs := flag.NewFlagSet("serve-tftp", flag.ContinueOnError)
	listen := fs.String("listen", "", "")
	file := fs.String("file", "", "")
	if err := fs.Parse(args); err != nil {
		return err
	}
	s, err := tftp.New(tftp.Options{
		Listen: *listen, Files: map[string]tftp.Opener{filepath.Base(*file): func() (io.ReadSeekCloser, error) { return os.Open(*file) }},
		Log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	})
	if err != nil {
		return err
	}
	return s.Serve(ctx)
}

// tftpFetch is a client that costs little: blocking system calls on one thread,
// no more than a receive for a packet and a send for a window. It asks again as
// firmware does.
type tftpFetch struct {
	server netip.AddrPort
	local  netip.Addr // to ask from; the zero value leaves it to the kernel
	name   string
	block  int
	window int
	most   int    // blocks to take before giving up politely, 0: all
	check  []byte // what must come, nil: not looked at

	acks, gaps, again int
}

func (f *tftpFetch) run() (int64, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	if f.local.IsValid() {
		if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: f.local.As4()}); err != nil {
			return 0, err
		}
	}
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 4<<20)
	buf := make([]byte, 65536)
	n, err := f.ask(fd, buf)
	if err != nil {
		return 0, err
	}
	window := 1
	if binary.BigEndian.Uint16(buf) == 6 {
		opts := bytes.Split(buf[2:n], []byte{0})
		block := 512
		for i := 0; i+1 < len(opts); i += 2 {
			switch string(bytes.ToLower(opts[i])) {
			case "blksize":
				block, err = strconv.Atoi(string(opts[i+1]))
			case "windowsize":
				window, err = strconv.Atoi(string(opts[i+1]))
			}
			if err != nil {
				return 0, err
			}
		}
		if block != f.block || window != max(1, f.window) {
			return 0, fmt.Errorf("asked for blocks of %d, window %d; got %d and %d", f.block, f.window, block, window)
		}
		return f.take(fd, buf, 0, window, true)
	}
	return f.take(fd, buf, n, 1, false)
}

// ask sends the request until something comes, and connects to who answers.
func (f *tftpFetch) ask(fd int, buf []byte) (int, error) {
	q := "\x00\x01" + f.name + "\x00octet\x00"
	if f.block != 512 || f.window > 1 {
		q += "blksize\x00" + strconv.Itoa(f.block) + "\x00"
	}
	if f.window > 1 {
		q += "windowsize\x00" + strconv.Itoa(f.window) + "\x00"
	}
	to := &unix.SockaddrInet4{Addr: f.server.Addr().As4(), Port: int(f.server.Port())}
	for wait := time.Second; ; wait *= 2 {
		if err := unix.Sendto(fd, []byte(q), 0, to); err != nil {
			return 0, err
		}
		if err := patience(fd, wait); err != nil {
			return 0, err
		}
		n, from, err := unix.Recvfrom(fd, buf, 0)
		for errors.Is(err, unix.EINTR) {
			n, from, err = unix.Recvfrom(fd, buf, 0)
		}
		switch {
		case errors.Is(err, unix.EAGAIN) && f.most == 0 && wait < 32*time.Second:
			f.again++
			continue
		case err != nil:
			return 0, err
		case n < 4 || binary.BigEndian.Uint16(buf) == 5:
			return 0, fmt.Errorf("answered by %q", buf[:n])
		}
		return n, errors.Join(unix.Connect(fd, from), patience(fd, 4*time.Second))
	}
}

func patience(fd int, d time.Duration) error {
	tv := unix.NsecToTimeval(d.Nanoseconds())
	return unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv)
}

// take receives the file. first is the length of a first block that is in buf
// already.
func (f *tftpFetch) take(fd int, buf []byte, first, window int, acknowledge bool) (int64, error) {
	var total int64
	var have uint64
	ack := [4]byte{0, 4}
	say := func() error {
		f.acks++
		binary.BigEndian.PutUint16(ack[2:], uint16(have))
		_, err := unix.Write(fd, ack[:])
		return err
	}
	if acknowledge {
		if err := say(); err != nil {
			return 0, err
		}
	}
	in, silent, gap := 0, 0, false
	for {
		n := first
		if first = 0; n == 0 {
			var err error
			n, err = unix.Read(fd, buf)
			if errors.Is(err, unix.EINTR) {
				continue
			}
			if errors.Is(err, unix.EAGAIN) && silent < 8 {
				silent++
				if err := say(); err != nil {
					return total, err
				}
				continue
			}
			if err != nil {
				return total, fmt.Errorf("after %d bytes: %w", total, err)
			}
		}
		silent = 0
		if n < 4 || binary.BigEndian.Uint16(buf) != 3 {
			if n >= 4 && binary.BigEndian.Uint16(buf) == 6 {
				continue // the options again
			}
			return total, fmt.Errorf("after %d bytes: %q", total, buf[:min(n, 80)])
		}
		if binary.BigEndian.Uint16(buf[2:]) != uint16(have+1) {
			if f.gaps++; !gap {
				if err := say(); err != nil {
					return total, err
				}
			}
			gap, in = true, 0
			continue
		}
		have++
		gap = false
		if f.check != nil && !bytes.Equal(f.check[total:min(total+int64(n-4), int64(len(f.check)))], buf[4:n]) {
			return total, fmt.Errorf("block %d is not the file's", have)
		}
		total += int64(n - 4)
		if f.most > 0 && have >= uint64(f.most) {
			_, err := unix.Write(fd, []byte("\x00\x05\x00\x00enough\x00"))
			return total, err
		}
		last := n-4 < f.block
		if in++; in == window || last {
			if in = 0; say() != nil && !last {
				return total, errors.New("acknowledging failed")
			}
		}
		if last {
			if f.check != nil && total != int64(len(f.check)) {
				return total, fmt.Errorf("%d bytes of %d", total, len(f.check))
			}
			return total, nil
		}
	}
}
