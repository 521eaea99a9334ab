package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"hotspare"
	"hotspare/boot"
	"hotspare/boot/dhcp"
	"hotspare/boot/httpboot"
	"hotspare/boot/ipxe"
	"hotspare/boot/tftp"
	"hotspare/testenv/plaintarget"
)

// The segment of the storm: our servers in this network namespace, the machines
// in one of their own.
const (
	stormServer  = "10.178.0.1"
	stormNetwork = "10.178.0.0/16"
	stormFrom    = "10.178.1.0"
	stormTo      = "10.178.240.255"
	stormLink    = "hsstorm0"
	stormPeer    = "hsstorm1"
	stormLoader  = 96 << 10
)

// stormSize is what a machine fetches.
type stormSize struct {
	Machines int
	Kernel   int64
	Initrd   int64
	Disk     int64
}

func (z stormSize) String() string {
	return fmt.Sprintf("%d machines, %d MiB of files and %d MiB of disk each", z.Machines, (z.Kernel+z.Initrd)>>20, z.Disk>>20)
}

// stormFigures lets machines boot at the same moment, as after a power failure:
// DHCP and loader by TFTP as a firmware asks, DHCP again, script, kernel, initrd
// and join archive by HTTP as iPXE asks, log-in with CHAP and a read of the whole
// disk, each a clone of one image.
func stormFigures(ctx context.Context, o options) (_ []figure, err error) {
	z := stormSize{Machines: 1000, Kernel: 8 << 20, Initrd: 24 << 20, Disk: 64 << 20}
	if o.quick {
		z = stormSize{Machines: 100, Kernel: 1 << 20, Initrd: 3 << 20, Disk: 8 << 20}
	}
	holder, err := stormSegment(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { _ = holder.Process.Kill(); _ = holder.Wait() }()
	dir := filepath.Join(o.work, "storm")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	server, places, err := startStorm(ctx, dir, z)
	if err != nil {
		return nil, err
	}
	defer server.end()
	list, err := json.Marshal(places)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(dir, "places.json"), list, 0o600); err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, "nsenter", "-t", strconv.Itoa(holder.Process.Pid), "-n", self, "serve-machines", "-places", filepath.Join(dir, "places.json"), "-disk", fmt.Sprint(z.Disk))
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	start := time.Now()
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("the machines: %w", err)
	}
	var boots []stormBoot
	if err := json.Unmarshal(out, &boots); err != nil {
		return nil, err
	}
	return stormReport(z, boots, time.Since(start), o.verbose), nil
}

// stormReport gives how many were lost, and the p99 of each phase.
func stormReport(z stormSize, boots []stormBoot, took time.Duration, verbose bool) []figure {
	lost := z.Machines - len(boots)
	phases := map[string][]float64{}
	again := 0
	for _, b := range boots {
		if b.Error != "" {
			if lost++; verbose || lost < 4 {
				fmt.Printf("lost: %s: %s\n", b.MAC, b.Error)
			}
		}
		again += b.Again
		for phase, s := range b.Seconds {
			phases[phase] = append(phases[phase], s)
		}
	}
	if verbose {
		fmt.Printf("storm: %s, all in %s; %d questions were asked again\n", z, took.Round(100*time.Millisecond), again)
	}
	name := "boot storm of " + strconv.Itoa(z.Machines)
	out := []figure{{Name: name + ": machines lost", Value: float64(lost), Unit: "", Goal: 0, Better: "lower"}}
	for _, phase := range stormPhases {
		v := slices.Sorted(slices.Values(phases[phase]))
		if len(v) == 0 {
			continue
		}
		out = append(out, figure{Name: fmt.Sprintf("%s: p99 of %s", name, phase), Value: v[(len(v)-1)*99/100], Unit: "s"})
	}
	return out
}

func stormSegment(ctx context.Context) (*exec.Cmd, error) {
	holder := exec.CommandContext(ctx, "sleep", "infinity")
	holder.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if err := holder.Start(); err != nil {
		return nil, err
	}
	pid := strconv.Itoa(holder.Process.Pid)
	for _, args := range [][]string{
		{"ip", "link", "add", stormLink, "type", "veth", "peer", "name", stormPeer, "netns", pid},
		{"ip", "address", "add", stormServer + "/16", "dev", stormLink}, {"ip", "link", "set", stormLink, "up"},
		{"nsenter", "-t", pid, "-n", "ip", "link", "set", stormPeer, "up"}, {"nsenter", "-t", pid, "-n", "ip", "link", "set", "lo", "up"},
	} {
		if out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput(); err != nil {
			_ = holder.Process.Kill()
			_ = holder.Wait()
			return nil, fmt.Errorf("%s: %w %s", strings.Join(args, " "), err, out)
		}
	}
	return holder, nil
}

// stormPlace is where a machine's disk is.
type stormPlace struct{ Portal, IQN string }

// startStorm starts the servers, fills the image and clones it for everybody.
func startStorm(ctx context.Context, dir string, z stormSize) (_ *peer, _ []stormPlace, err error) {
	p := &peer{name: ours, cmd: exec.CommandContext(ctx, "/proc/self/exe", "serve-storm", "-dir", dir, "-machines", strconv.Itoa(z.Machines),
		"-kernel", fmt.Sprint(z.Kernel), "-initrd", fmt.Sprint(z.Initrd), "-disk", fmt.Sprint(z.Disk))}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, nil, err
	}
	if err := p.start(); err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			p.end()
		}
	}()
	sc := bufio.NewScanner(out)
	var image struct{ Portal, IQN string }
	for sc.Scan() && sc.Text() != "ready" {
		if err := json.Unmarshal(sc.Bytes(), &image); err != nil {
			return nil, nil, fmt.Errorf("the storm's servers say %q: %w", sc.Text(), err)
		}
	}
	s, err := dial(place{portal: image.Portal, iqn: image.IQN, user: benchUser, secret: hotspare.NewSecret(benchSecret)}, 1)
	if err != nil {
		return nil, nil, err
	}
	if err := s.quiet(); err != nil {
		return nil, nil, err
	}
	if _, err := run(s, work{write: true, size: 256 << 10, depth: 8, span: z.Disk, ops: int(z.Disk / (256 << 10))}, 1); err != nil {
		return nil, nil, err
	}
	if err := s.logout(); err != nil {
		return nil, nil, err
	}
	c, err := net.Dial("unix", filepath.Join(dir, "control"))
	if err != nil {
		return nil, nil, err
	}
	defer c.Close()
	answers := bufio.NewScanner(c)
	tell := func(line string) (place stormPlace, err error) {
		if _, err := fmt.Fprintln(c, line); err != nil {
			return place, err
		}
		if !answers.Scan() {
			return place, fmt.Errorf("%s: %w", line, errors.Join(answers.Err(), io.ErrUnexpectedEOF))
		}
		var a struct {
			OK bool
			stormPlace
		}
		if err := json.Unmarshal(answers.Bytes(), &a); err != nil || !a.OK {
			return place, fmt.Errorf("%s: %s %w", line, answers.Bytes(), err)
		}
		return a.stormPlace, nil
	}
	if _, err := tell("snapshot image base"); err != nil {
		return nil, nil, err
	}
	var places []stormPlace
	for i := range z.Machines {
		at, err := tell(fmt.Sprintf("clone base m-%d", i))
		if err != nil {
			return nil, nil, err
		}
		if at.Portal == "" {
			at.Portal = image.Portal
		}
		places = append(places, at)
	}
	return p, places, nil
}

// serveStorm is `bench serve-storm`: the servers of the appliance in one process,
// over a store on the disk.
func serveStorm(ctx context.Context, args []string) error {
	fs := flag.NewFlagSet("serve-storm", flag.ContinueOnError)
	dir := fs.String("dir", "", "")
	machines := fs.Int("machines", 0, "")
	kernel := fs.Int64("kernel", 0, "")
	initrd := fs.Int64("initrd", 0, "")
	disk := fs.Int64("disk", 0, "")
	if err := fs.Parse(args); err != nil {
		return err
	}
	for name, size := range map[string]int64{"kernel": *kernel, "initrd": *initrd, "loader": stormLoader, "join": 300} {
		if _, err := writeRandom(filepath.Join(*dir, name), size); err != nil {
			return err
		}
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError}))
	director := stormDirector{}
	for i := range *machines {
		director[stormToken(i)] = i
	}
	site := boot.Site{Server: netip.MustParseAddr(stormServer), Loaders: boot.DefaultLoaders()}
	recorder := boot.NewRecorder(0, 0)
	d, err := dhcp.New(dhcp.Options{
		Interface: stormLink, Server: site.Server, Site: site, Director: director, Known: func(m boot.MAC) bool { _, ok := stormNumber(m); return ok },
		Subnet: dhcp.Subnet{Prefix: netip.MustParsePrefix(stormNetwork), Range: dhcp.Range{From: netip.MustParseAddr(stormFrom), To: netip.MustParseAddr(stormTo)}},
		Leases: filepath.Join(*dir, "leases"), Recorder: recorder, Log: log,
	})
	if err != nil {
		return err
	}
	t, err := tftp.New(tftp.Options{
		Listen: stormServer + ":69", MACOf: d.MACOf, Recorder: recorder, Log: log,
		Files: map[string]tftp.Opener{site.Loaders[boot.ArchBIOS]: func() (io.ReadSeekCloser, error) { return os.Open(filepath.Join(*dir, "loader")) }},
	})
	if err != nil {
		return err
	}
	h, err := httpboot.New(httpboot.Options{
		Site: site, Director: director, Source: stormFiles(*dir), Script: ipxe.Write, MACOf: d.MACOf, Recorder: recorder, Log: log,
		Loader: func(string) (io.ReadSeekCloser, error) { return os.Open(filepath.Join(*dir, "loader")) },
	})
	if err != nil {
		return err
	}
	ln, err := net.Listen("tcp4", stormServer+":80")
	if err != nil {
		return err
	}
	chap, err := plaintarget.ParseCredentials(benchUser + ":" + benchSecret)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	errs := make([]error, 4)
	for i, serve := range []func() error{
		func() error { return d.Serve(ctx) }, func() error { return t.Serve(ctx) },
		func() error { return httpboot.Serve(ctx, ln, h, httpboot.ServerOptions{Log: log}) },
		func() error {
			return plaintarget.Run(ctx, plaintarget.Options{
				Dir: filepath.Join(*dir, "store"), Listen: stormServer + ":3260", Volumes: map[string]int64{"image": *disk}, Chap: chap, Socket: filepath.Join(*dir, "control"), Out: os.Stdout, Log: log,
			})
		},
	} {
		wg.Go(func() {
			errs[i] = serve()
			cancel()
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// stormDirector starts every machine that it has a token for.
type stormDirector map[string]int

func (d stormDirector) Assign(_ context.Context, r boot.Request) (boot.Assignment, error) {
	i, ok := d[r.Path.Token]
	if !ok && r.Path.Token == "" {
		i, ok = stormNumber(r.MAC)
	}
	if !ok {
		return boot.Assignment{}, nil
	}
	return boot.Assignment{
		Node: fmt.Sprintf("m-%d", i), MAC: stormMAC(i), Approved: true, Kind: boot.KindStart, Token: stormToken(i), Epoch: 1,
		Kernel: "6.1.0-storm", Initrd: "hotspare agent", Cmdline: "quiet",
	}, nil
}

func stormMAC(i int) boot.MAC { return boot.MAC{0x52, 0x54, 0, 0x79, byte(i >> 8), byte(i)} }

func stormNumber(m boot.MAC) (int, bool) {
	i := int(m[4])<<8 | int(m[5])
	return i, m == stormMAC(i)
}

func stormToken(i int) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "storm %d", i))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// stormFiles is the folder with what machines fetch.
type stormFiles string

func (dir stormFiles) Open(_ context.Context, _ string, what boot.Artefact) (httpboot.File, error) {
	f, err := os.Open(filepath.Join(string(dir), string(what)))
	return httpboot.File{ReadSeekCloser: f, ETag: `"` + string(what) + `"`}, err
}

// fetches takes the URLs of what a script loads.
func fetches(script []byte) []string {
	var urls []string
	for _, line := range bytes.Split(script, []byte("\n")) {
		f := strings.Fields(string(line))
		for i, w := range f {
			if (w == "kernel" || w == "initrd") && i+1 < len(f) {
				for _, x := range f[i+1:] {
					if strings.HasPrefix(x, "http://") {
						urls = append(urls, x)
						break
					}
				}
				break
			}
		}
	}
	return urls
}
