package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"runtime/pprof"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"hotspare/boot"
	"hotspare/boot/dhcp"
)

// The segment of the DHCP figures: the server under measurement is in this
// network namespace, perfdhcp in one of its own, a pair of interfaces between
// them. perfdhcp plays a relay with as many clients as it has transactions.
const (
	dhcpInterface = "hsdhcp0"
	dhcpServer    = "10.177.0.1"
	dhcpRelay     = "10.177.0.2"
	dhcpFrom      = "10.177.1.0"
	dhcpTo        = "10.177.240.255"
	dhcpNetwork   = "10.177.0.0/16"
	dhcpLoss      = 0.01 // that the rates are compared at
	dhcpClients   = 2000
)

// dhcpPeer is a DHCP server that can be started on the segment.
type dhcpPeer struct {
	name  string
	start func(ctx context.Context, dir string) (*exec.Cmd, error)
	cmd   *exec.Cmd
}

// dhcpFigures measures DHCP beside Kea and dnsmasq, turn by turn.
func dhcpFigures(ctx context.Context, o options) (_ []figure, err error) {
	seg, err := newDHCPSegment(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, seg.close()) }()
	own := &dhcpPeer{name: ours, start: startOurDHCP}
	peers := []*dhcpPeer{own, {name: "kea", start: startKea}, {name: "dnsmasq", start: startDnsmasq}}
	offers, leases := map[string][]float64{}, map[string][]float64{}
	var late, grown []float64
	for range o.rounds {
		for _, p := range peers {
			err := seg.with(ctx, o, p, func() error {
				n, err := seg.most(ctx, o, true)
				offers[p.name] = append(offers[p.name], n)
				return err
			})
			if err != nil {
				return nil, fmt.Errorf("offers of %s: %w", p.name, err)
			}
			err = seg.with(ctx, o, p, func() error {
				n, err := seg.most(ctx, o, false)
				leases[p.name] = append(leases[p.name], n)
				return err
			})
			if err != nil {
				return nil, fmt.Errorf("leases of %s: %w", p.name, err)
			}
		}
		err := seg.with(ctx, o, own, func() error {
			p99, growth, err := seg.steady(ctx, o, own)
			late, grown = append(late, p99), append(grown, growth)
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	var out []figure
	for _, peer := range []string{"kea", "dnsmasq"} {
		s := series{name: "DHCP offers a second at 1 % loss", unit: "1/s", peer: peer, goal: 1, better: "higher", own: offers[ours], other: offers[peer]}
		out = append(out, s.figure())
	}
	for _, peer := range []string{"kea", "dnsmasq"} {
		s := series{name: "DHCP leases a second at 1 % loss, ours durable", unit: "1/s", peer: peer, goal: 1, better: "higher", own: leases[ours], other: leases[peer]}
		out = append(out, s.figure())
	}
	return append(out,
		figure{Name: "DHCP p99 of an exchange at 1,000 new clients a second", Value: median(late), Unit: "ms", Goal: 5, Better: "lower"},
		figure{Name: "DHCP memory, second 10,000 renewals to the first", Value: median(grown), Unit: "x", Goal: 1.1, Better: "lower"},
	), nil
}

// dhcpSegment is the segment with the clients' end.
type dhcpSegment struct{ holder *exec.Cmd }

func newDHCPSegment(ctx context.Context) (*dhcpSegment, error) {
	holder := exec.CommandContext(ctx, "sleep", "infinity")
	holder.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if err := holder.Start(); err != nil {
		return nil, err
	}
	s := &dhcpSegment{holder: holder}
	pid := strconv.Itoa(holder.Process.Pid)
	for _, args := range [][]string{
		{"ip", "link", "add", dhcpInterface, "type", "veth", "peer", "name", "hsdhcp1", "netns", pid},
		{"ip", "address", "add", dhcpServer + "/16", "dev", dhcpInterface},
		{"ip", "link", "set", dhcpInterface, "up"},
		{"nsenter", "-t", pid, "-n", "ip", "address", "add", dhcpRelay + "/16", "dev", "hsdhcp1"},
		{"nsenter", "-t", pid, "-n", "ip", "link", "set", "hsdhcp1", "up"},
	} {
		if out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput(); err != nil {
			return nil, errors.Join(fmt.Errorf("%s: %w %s", strings.Join(args, " "), err, out), s.close())
		}
	}
	return s, nil
}

func (s *dhcpSegment) close() error {
	err := s.holder.Process.Kill()
	_ = s.holder.Wait() // "signal: killed"
	// Its end of the pair takes ours along.
	return err
}

// with runs f while p serves, from an empty lease file.
func (s *dhcpSegment) with(ctx context.Context, o options, p *dhcpPeer, f func() error) (err error) {
	work, err := filepath.Abs(o.work) // dnsmasq goes to the root directory before it opens its files
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp(work, "dhcp-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if p.cmd, err = p.start(ctx, dir); err != nil {
		return err
	}
	ended := make(chan struct{})
	go func() {
		_ = p.cmd.Wait() // each says by its own code that it was told to end
		close(ended)
	}()
	defer func() {
		_ = p.cmd.Process.Signal(syscall.SIGTERM)
		<-ended
	}()
	if err := s.ready(ctx, ended); err != nil {
		return err
	}
	return f()
}

// ready waits until the server answers.
func (s *dhcpSegment) ready(ctx context.Context, ended <-chan struct{}) (err error) {
	for range 20 {
		var r perfResult
		if r, err = s.perf(ctx, "-r", "20", "-R", "20", "-p", "1", "-i", "-b", "mac=00:0c:02:00:00:01"); err == nil && r.received > 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ended:
			return errors.New("the DHCP server has ended; it says why above")
		case <-time.After(50 * time.Millisecond):
		}
	}
	return errors.Join(errors.New("the DHCP server does not answer"), err)
}

// most finds the highest rate that loses no more than dhcpLoss: upwards by half
// until it loses more, then by halves between.
func (s *dhcpSegment) most(ctx context.Context, o options, initial bool) (float64, error) {
	seconds := min(2, max(1, int(o.slice.Seconds())))
	try := func(rate float64) (float64, bool, error) {
		// The same clients every time: what a site has, not what invents addresses.
		// Many more of them would measure how dnsmasq walks its list of leases.
		args := []string{"-r", strconv.Itoa(int(rate)), "-R", strconv.Itoa(dhcpClients), "-p", strconv.Itoa(seconds), "-b", "mac=00:0c:01:00:00:00"}
		if initial {
			args = append(args, "-i")
		}
		r, err := s.perf(ctx, args...)
		if err != nil {
			return 0, false, err
		}
		if o.verbose {
			fmt.Printf("  perfdhcp %v: asked %.0f/s, %d sent, %d answered, %.0f/s\n", initial, rate, r.sent, r.received, r.rate)
		}
		// The generator itself may be at its end: what counts is what was done.
		return r.rate, r.lossless(dhcpLoss) && float64(r.sent) >= 0.9*rate*float64(seconds), nil
	}
	// A rate is too high when it is so twice: what else goes on in this machine may
	// keep the generator from reading for a moment, and its socket holds little.
	twice := func(rate float64) (float64, bool, error) {
		got, good, err := try(rate)
		if err != nil || good {
			return got, good, err
		}
		again, good, err := try(rate)
		return max(got, again), good, err
	}
	// All clients once, slowly: that an address which is new to its machine is
	// probed first is measured by steady, and the peers do no such thing.
	if _, err := s.perf(ctx, "-r", "2000", "-R", strconv.Itoa(dhcpClients), "-p", strconv.Itoa(dhcpClients/2000), "-b", "mac=00:0c:01:00:00:00"); err != nil {
		return 0, err
	}
	best, low, high, least := 0.0, 0.0, 0.0, 0.0
	steps := 3
	if o.quick {
		steps = 1
	}
	for rate := 1000.0; rate < 200_000 && high == 0; rate *= 2 {
		got, good, err := twice(rate)
		if err != nil {
			return 0, err
		}
		if good {
			low, best = rate, max(best, got)
		} else {
			high, least = rate, got
		}
	}
	for range steps {
		got, good, err := twice((low + high) / 2)
		if err != nil {
			return 0, err
		}
		if good {
			low, best = (low+high)/2, max(best, got)
		} else {
			high, least = (low+high)/2, got
		}
	}
	if best == 0 { // it lost more at every rate: to its favour, what it did at the lowest
		best = least
	}
	return best, nil
}

// steady measures at 1,000 new clients a second: the p99 of both exchanges in
// milliseconds, and how the server's memory grows when the same clients come again.
func (s *dhcpSegment) steady(ctx context.Context, o options, p *dhcpPeer) (p99, growth float64, err error) {
	seconds := 10
	if o.quick {
		seconds = 3
	}
	args := func(round int) []string {
		a := []string{"-r", "1000", "-R", strconv.Itoa(1000 * seconds), "-p", strconv.Itoa(seconds), "-W", "500000", "-b", "mac=00:0c:f0:00:00:00"}
		if round == 0 {
			a = append(a, "-x", "t")
		}
		return a
	}
	var sizes []float64
	for round := range 3 {
		r, err := s.perf(ctx, args(round)...)
		if err != nil {
			return 0, 0, err
		}
		if !r.lossless(dhcpLoss) {
			return 0, 0, fmt.Errorf("at 1,000 clients a second %d of %d exchanges were lost", r.sent-r.received, r.sent)
		}
		if round == 0 {
			slices.Sort(r.times)
			if len(r.times) < 100 {
				return 0, 0, fmt.Errorf("perfdhcp reports %d times", len(r.times))
			}
			p99 = r.times[len(r.times)*99/100] * 1000
			if o.verbose {
				fmt.Printf("  at 1,000/s: median %.2f ms, p99 %.2f ms, most %.2f ms of %d\n", r.times[len(r.times)/2]*1000, p99, r.times[len(r.times)-1]*1000, len(r.times))
			}
		}
		kib, err := rss(p.cmd.Process.Pid)
		if err != nil {
			return 0, 0, err
		}
		sizes = append(sizes, kib)
	}
	if o.verbose {
		fmt.Printf("  memory %.0f KiB\n", sizes)
	}
	return p99, sizes[2] / sizes[1], nil
}

// rss gives the resident memory of a process in KiB.
func rss(pid int) (float64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(b), "VmRSS:")
	var n float64
	_, err = fmt.Sscan(rest, &n)
	return n, err
}

// perfResult is what a run of perfdhcp reports.
type perfResult struct {
	sent, received int       // exchanges begun, and those that came to their end
	rate           float64   // that came to their end, a second
	times          []float64 // seconds of single questions and answers, with -x t
}

// lossless says whether no more than a share of what was sent was lost.
func (r perfResult) lossless(share float64) bool {
	return r.sent > 0 && float64(r.sent-r.received) <= share*float64(r.sent)
}

var (
	perfRate   = regexp.MustCompile(`(?m)^Rate: ([\d.]+) `)
	perfCounts = regexp.MustCompile(`(?m)^(sent|received) packets: (\d+)`)
	perfTime   = regexp.MustCompile(`(?m)^sent / received: ([\d.]+) / ([\d.]+)`)
)

func parsePerf(out string) (r perfResult, err error) {
	m := perfRate.FindStringSubmatch(out)
	if m == nil {
		return r, fmt.Errorf("perfdhcp says no rate:\n%s", out)
	}
	if r.rate, err = strconv.ParseFloat(m[1], 64); err != nil {
		return r, err
	}
	for _, m := range perfCounts.FindAllStringSubmatch(out, -1) {
		n, err := strconv.Atoi(m[2])
		if err != nil {
			return r, err
		}
		switch {
		case m[1] == "received":
			r.received = n // of the last exchange
		case r.sent == 0:
			r.sent = n // of the first one
		}
	}
	for _, m := range perfTime.FindAllStringSubmatch(out, -1) {
		from, err1 := strconv.ParseFloat(m[1], 64)
		to, err2 := strconv.ParseFloat(m[2], 64)
		if err := errors.Join(err1, err2); err != nil {
			return r, err
		}
		r.times = append(r.times, to-from)
	}
	return r, nil
}

// quiet waits until no answer has come for a while: a server that was asked for
// more than it can do is still answering when perfdhcp has ended.
func (s *dhcpSegment) quiet(ctx context.Context) error {
	last, since := "", time.Now()
	for begun := time.Now(); time.Since(begun) < time.Minute; {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/snmp", s.holder.Process.Pid))
		if err != nil {
			return err
		}
		if string(b) != last {
			last, since = string(b), time.Now()
		} else if time.Since(since) > 300*time.Millisecond {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
	return errors.New("the DHCP server goes on answering after a minute without a question")
}

// perf runs perfdhcp in the clients' namespace. A late answer of the run before
// makes it give up ("Packets exchange not specified"): it is run again.
func (s *dhcpSegment) perf(ctx context.Context, args ...string) (perfResult, error) {
	all := append([]string{"-t", strconv.Itoa(s.holder.Process.Pid), "-n", "--", "perfdhcp", "-4", "-l", dhcpRelay}, args...)
	for tries := 1; ; tries++ {
		if err := s.quiet(ctx); err != nil {
			return perfResult{}, err
		}
		out, err := patient(exec.CommandContext(ctx, "nsenter", append(all, dhcpServer)...))
		if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && exit.ExitCode() == 3 {
			err = nil // some exchanges were not completed
		}
		switch {
		case err == nil:
			return parsePerf(string(out))
		case tries == 5 || ctx.Err() != nil || !strings.Contains(string(out), "Packets exchange not specified"):
			return perfResult{}, fmt.Errorf("perfdhcp: %w (Debian package kea-admin)\n%s", err, out)
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// patient runs perfdhcp with room in its socket. By default that holds some 160
// answers, and what is measured is how often the generator was let in.
func patient(cmd *exec.Cmd) ([]byte, error) {
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	for range 200 { // it opens its socket before it sends
		if ok, err := makeRoom(cmd.Process.Pid); err != nil || ok {
			break // without it, the figures are those of a small socket
		}
		time.Sleep(time.Millisecond)
	}
	err := cmd.Wait()
	return out.Bytes(), err
}

// makeRoom gives a process's UDP socket 8 MiB for what it has not read yet, and
// says whether it has one.
func makeRoom(pid int) (bool, error) {
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		return false, err
	}
	self, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return false, err
	}
	defer unix.Close(self)
	for _, e := range fds {
		n, err := strconv.Atoi(e.Name())
		if err != nil {
			return false, err
		}
		fd, err := unix.PidfdGetfd(self, n, 0)
		if err != nil {
			continue // closed meanwhile
		}
		kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
		found := err == nil && kind == unix.SOCK_DGRAM
		if found {
			err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20)
		}
		_ = unix.Close(fd)
		if found {
			return true, err
		}
	}
	return false, nil
}

// serveDHCP is our server alone, in a process of its own: `bench dhcp`. It has the
// product's defaults; the clients count as nodes.
func serveDHCP(ctx context.Context, args []string) error {
	fs := flag.NewFlagSet("dhcp", flag.ContinueOnError)
	leases := fs.String("leases", "", "")
	profile := fs.String("profile", "", "")
	if err := fs.Parse(args); err != nil {
		return err
	}
	if *profile != "" {
		f, err := os.Create(filepath.Clean(*profile))
		if err != nil {
			return err
		}
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	// Alone, the server has a heap of 4 MB, which would be collected every thousand
	// packets; inside the appliance it shares a larger one.
	debug.SetGCPercent(800)
	s, err := dhcp.New(dhcp.Options{
		Interface: dhcpInterface, Server: netip.MustParseAddr(dhcpServer),
		Subnet: dhcp.Subnet{
			Prefix: netip.MustParsePrefix(dhcpNetwork), Range: dhcp.Range{From: netip.MustParseAddr(dhcpFrom), To: netip.MustParseAddr(dhcpTo)},
		},
		Site: boot.Site{Loaders: boot.DefaultLoaders()}, Director: everyNode{}, Known: func(boot.MAC) bool { return true },
		Leases: *leases, Recorder: boot.NewRecorder(0, 0), Log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
	})
	if err != nil {
		return err
	}
	err = s.Serve(ctx)
	if os.Getenv("BENCH_VERBOSE") != "" {
		fmt.Fprintf(os.Stderr, "dhcp: %+v\n", s.Stats())
	}
	return err
}

// everyNode is a Director to whom every machine is an approved node with nothing
// to start.
type everyNode struct{}

func (everyNode) Assign(context.Context, boot.Request) (boot.Assignment, error) {
	return boot.Assignment{Node: "node", Approved: true}, nil
}

func startOurDHCP(ctx context.Context, dir string) (*exec.Cmd, error) {
	args := []string{"dhcp", "-leases", filepath.Join(dir, "leases")}
	if p := os.Getenv("BENCH_DHCP_PROFILE"); p != "" {
		args = append(args, "-profile", p)
	}
	return startPeer(exec.CommandContext(ctx, "/proc/self/exe", args...))
}

// startKea runs Debian's Kea with a lease file, which it writes without syncing,
// and as many threads as processors.
func startKea(ctx context.Context, dir string) (*exec.Cmd, error) {
	conf := filepath.Join(dir, "kea.json")
	err := os.WriteFile(conf, fmt.Appendf(nil, `{"Dhcp4":{
		"interfaces-config":{"interfaces":[%q],"dhcp-socket-type":"udp"},
		"multi-threading":{"enable-multi-threading":true,"thread-pool-size":2,"packet-queue-size":64},
		"lease-database":{"type":"memfile","persist":true,"name":%q,"lfc-interval":0},
		"valid-lifetime":3600,
		"subnet4":[{"subnet":%q,"pools":[{"pool":"%s - %s"}]}],
		"loggers":[{"name":"kea-dhcp4","severity":"FATAL","output_options":[{"output":"/dev/null"}]}]}}`,
		dhcpInterface, filepath.Join(dir, "leases.csv"), dhcpNetwork, dhcpFrom, dhcpTo), 0o644)
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, "kea-dhcp4", "-c", conf)
	cmd.Env = append(os.Environ(), "KEA_PIDFILE_DIR="+dir, "KEA_LOCKFILE_DIR="+dir)
	return startPeer(cmd)
}

// startDnsmasq runs Debian's dnsmasq without its own probe by ICMP, which is one
// packet at a time.
func startDnsmasq(ctx context.Context, dir string) (*exec.Cmd, error) {
	return startPeer(exec.CommandContext(ctx, "dnsmasq", "-k", "-p", "0", "-C", "/dev/null", "-i", dhcpInterface, "--bind-interfaces", "--no-ping", "--quiet-dhcp",
		"--dhcp-range="+dhcpFrom+","+dhcpTo+",255.255.0.0,1h", "--dhcp-leasefile="+filepath.Join(dir, "leases"), "--dhcp-authoritative",
		"--dhcp-lease-max=60000", "--log-facility="+filepath.Join(dir, "log"), "-u", "root"))
}

func startPeer(cmd *exec.Cmd) (*exec.Cmd, error) {
	cmd.Stderr = os.Stderr // why it ended, if it did
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("%w (Debian packages kea-dhcp4-server, kea-admin, dnsmasq-base)", err)
	}
	return cmd, nil
}
