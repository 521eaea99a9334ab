// Package lab is a rack in a box: QEMU machines on a bridge in a network
// namespace of its own, each with a virtual BMC that ipmitool speaks to, and a
// second namespace for clients. It is the demo, the test bench and the place to
// rehearse; everything it makes lives in its namespaces and its directory.
//
// One daemon per lab runs inside the namespace, holds the BMCs and owns the
// QEMU processes; Up starts it, and the Lab value is a client of it. The
// appliance is not part of the lab: it reaches the machines over the bridge and
// their BMCs, as it does in a rack. QEMU outlives the appliance.
//
// The wire of the BMCs is package bmcsim's; images are package testenv/images's.
package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"hotspare"
)

// NodeSpec is one machine.
type NodeSpec struct {
	Name        string        `json:"name"`
	MAC         string        `json:"mac"`
	UUID        string        `json:"uuid"`
	Serial      string        `json:"serial"` // SMBIOS serial number; default LAB-NAME
	BMCAddr     netip.Addr    `json:"bmc_addr"`
	BMCUser     string        `json:"bmc_user"`
	BMCPassword string        `json:"bmc_password"` // a fiction of the lab, printed on purpose
	MemoryMiB   int           `json:"memory_mib"`
	CPUs        int           `json:"cpus"`
	POSTDelay   time.Duration `json:"post_delay"`            // time that the firmware takes before it boots
	Arch        string        `json:"arch,omitempty"`        // amd64 (default), arm64
	Firmware    string        `json:"firmware,omitempty"`    // bios (default), uefi; arm64 is always uefi
	SecureBoot  bool          `json:"secure_boot,omitempty"` // UEFI with Microsoft's keys: starts signed loaders only
	HTTPBoot    bool          `json:"http_boot,omitempty"`   // UEFI boots over HTTP instead of PXE
	TrustCA     string        `json:"trust_ca,omitempty"`    // file with the certificates that UEFI trusts for HTTPS, an EFI signature list
	DiskMiB     int           `json:"disk_mib,omitempty"`    // local disk, kept over power cycles; 0: none
}

// Forward makes a TCP port of the namespace reachable on the host.
type Forward struct {
	Listen string `json:"listen"` // on the host, e.g. 127.0.0.1:8080; port 0: any
	To     string `json:"to"`     // inside the namespace
}

// Options of a lab.
type Options struct {
	Name     string       // namespaces are hs-NAME and hs-NAME-client; default lab
	Dir      string       // pid files, sockets, serial logs; required, at most 80 bytes long
	Nodes    []NodeSpec   // default: Nodes(4)
	Network  netip.Prefix // the bridge's address; default 10.77.0.1/24
	Client   netip.Prefix // the client's; default 10.77.0.2/24
	BMCs     netip.Prefix // the BMC network's; default 10.78.0.1/24
	Forwards []Forward    // held by the daemon
	Accel    string       // auto (default), tcg, kvm
	Kernel   string       // for the KVM probe; empty: auto means tcg
	Daemon   []string     // command that runs Serve, DIR is added; default: this program with "serve"
	QEMU     string       // default qemu-system-x86_64
	ROM      string       // iPXE option ROM; default that of package ipxe-qemu
	Log      *slog.Logger // nil: discard
}

// Nodes gives the first n machines of examples/nodes.yaml, 1 to 9.
func Nodes(n int) []NodeSpec {
	nodes := make([]NodeSpec, 0, n)
	for i := 1; i <= n; i++ {
		nodes = append(nodes, NodeSpec{
			Name: fmt.Sprintf("n%d", i), MAC: fmt.Sprintf("52:54:00:77:00:%02x", i),
			UUID:    fmt.Sprintf("00000000-0000-4000-8000-5254007700%02x", i),
			BMCAddr: netip.AddrFrom4([4]byte{10, 78, 0, byte(10 + i)}), BMCUser: "admin", BMCPassword: fmt.Sprintf("lab-n%d", i),
		})
	}
	return nodes
}

func (o Options) withDefaults() Options {
	if o.Name == "" {
		o.Name = "lab"
	}
	if o.Nodes == nil {
		o.Nodes = Nodes(4)
	}
	o.Nodes = append([]NodeSpec(nil), o.Nodes...)
	for i := range o.Nodes {
		n := &o.Nodes[i]
		if n.MemoryMiB == 0 {
			n.MemoryMiB = 512
		}
		if n.CPUs == 0 {
			n.CPUs = 1
		}
		if n.Arch == "" {
			n.Arch = ArchAMD64
		}
		if n.Firmware == "" {
			n.Firmware = FirmwareBIOS
			if n.Arch == ArchARM64 {
				n.Firmware = FirmwareUEFI
			}
		}
		if n.Serial == "" {
			n.Serial = "LAB-" + n.Name
		}
	}
	if !o.Network.IsValid() {
		o.Network = netip.MustParsePrefix("10.77.0.1/24")
	}
	if !o.Client.IsValid() {
		o.Client = netip.MustParsePrefix("10.77.0.2/24")
	}
	if !o.BMCs.IsValid() {
		o.BMCs = netip.MustParsePrefix("10.78.0.1/24")
	}
	if o.Accel == "" {
		o.Accel = "auto"
	}
	if o.QEMU == "" {
		o.QEMU = "qemu-system-x86_64"
	}
	if o.ROM == "" {
		o.ROM = "/usr/lib/ipxe/qemu/pxe-virtio.rom"
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return o
}

var nameForm = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,15}$`)

func (o Options) validate() error {
	bad := func(field, why string) error {
		return &hotspare.Error{Code: hotspare.CodeInvalid, What: "the lab cannot be made like this", Where: field, Why: why, Fix: "give another value"}
	}
	switch {
	case !nameForm.MatchString(o.Name):
		return bad("name "+o.Name, "it must be 1 to 16 of a-z, 0-9 and -")
	case o.Dir == "":
		return bad("directory", "none given")
	case len(o.Dir) > 80:
		return bad("directory "+o.Dir, "paths of unix sockets end at 107 bytes; this one is too long")
	case o.Accel != "auto" && o.Accel != "tcg" && o.Accel != "kvm":
		return bad("accel "+o.Accel, "it must be auto, tcg or kvm")
	}
	seen := map[string]string{}
	for _, n := range o.Nodes {
		if len(n.Name) > 10 || !nameForm.MatchString(n.Name) {
			return bad("node "+n.Name, "a name must be 1 to 10 of a-z, 0-9 and -")
		}
		if _, err := net.ParseMAC(n.MAC); err != nil {
			return bad("node "+n.Name, err.Error())
		}
		if !o.BMCs.Contains(n.BMCAddr) {
			return bad("node "+n.Name, "its BMC address is not in "+o.BMCs.Masked().String())
		}
		if why := n.hardwareFault(); why != "" {
			return bad("node "+n.Name, why)
		}
		for _, key := range []string{n.Name, n.MAC, n.UUID, n.BMCAddr.String()} {
			if other, ok := seen[key]; ok {
				return bad("node "+n.Name, key+" is that of "+other+" too")
			}
			seen[key] = n.Name
		}
	}
	return nil
}

// spec is what Up leaves in the directory for the daemon and for later calls.
type spec struct {
	Version  int          `json:"version"` // 1
	Name     string       `json:"name"`
	Network  netip.Prefix `json:"network"`
	Client   netip.Prefix `json:"client"`
	BMCs     netip.Prefix `json:"bmcs"`
	Nodes    []NodeSpec   `json:"nodes"`
	Forwards []Forward    `json:"forwards,omitempty"`
	Accel    string       `json:"accel"` // decided: tcg or kvm
	QEMU     string       `json:"qemu"`
	ROM      string       `json:"rom"`
}

// Lab is a lab that runs.
type Lab struct {
	dir  string
	spec spec
	log  *slog.Logger
}

// Namespace is the one of the bridge, the BMCs and the appliance.
func (l *Lab) Namespace() string { return "hs-" + l.spec.Name }

// ClientNamespace is the one of the clients.
func (l *Lab) ClientNamespace() string { return "hs-" + l.spec.Name + "-client" }

// Dir is the lab's directory.
func (l *Lab) Dir() string { return l.dir }

// Nodes are the machines as they were asked for, defaults filled in.
func (l *Lab) Nodes() []NodeSpec { return l.spec.Nodes }

// Accel is tcg or kvm.
func (l *Lab) Accel() string { return l.spec.Accel }

// SerialLog is the file with all that a node has written to its serial console.
func (l *Lab) SerialLog(node string) string { return filepath.Join(l.dir, node, "serial.log") }

// Up makes the lab and starts its daemon; all machines are off. What an earlier
// lab of that name or directory left is removed first. On an error nothing is
// left behind.
func Up(ctx context.Context, opts Options) (lab *Lab, err error) {
	opts = opts.withDefaults()
	dir, err := filepath.Abs(opts.Dir)
	if err != nil {
		return nil, err
	}
	opts.Dir = dir
	if err := opts.validate(); err != nil {
		return nil, err
	}
	if err := Requirements(opts); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("lab directory: %w", err)
	}
	if err := Down(ctx, dir, opts.Name); err != nil {
		return nil, fmt.Errorf("remove what an earlier lab left: %w", err)
	}
	accel, err := chooseAccel(ctx, opts)
	if err != nil {
		return nil, err
	}
	l := &Lab{dir: dir, log: opts.Log, spec: spec{
		Version: 1, Name: opts.Name, Network: opts.Network, Client: opts.Client, BMCs: opts.BMCs,
		Nodes: opts.Nodes, Forwards: opts.Forwards, Accel: accel, QEMU: opts.QEMU, ROM: opts.ROM,
	}}
	var undo Teardown
	defer func() {
		if err != nil {
			clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), 20*time.Second)
			defer cancel()
			err = errors.Join(err, undo.Run(clean))
		}
	}()
	undo.Add("lab", func(ctx context.Context) error { return Down(ctx, dir, opts.Name) })
	if err := l.writeSpec(); err != nil {
		return nil, err
	}
	if err := l.makeNetwork(ctx); err != nil {
		return nil, err
	}
	if err := l.startDaemon(ctx, opts); err != nil {
		return nil, err
	}
	return l, nil
}

// Open gives the lab that runs from a directory.
func Open(ctx context.Context, dir string, log *slog.Logger) (*Lab, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	s, err := readSpec(dir)
	if err != nil {
		return nil, notUp(dir, err)
	}
	l := &Lab{dir: dir, spec: s, log: log}
	if _, err := l.Status(ctx); err != nil {
		return nil, notUp(dir, err)
	}
	return l, nil
}

func notUp(dir string, err error) error {
	return &hotspare.Error{Code: hotspare.CodeNotFound, What: "no lab runs here", Where: dir, Err: err, Fix: "hotspare-lab up"}
}

// Down ends a lab: the daemon, every QEMU, every process that StartProcess
// started in its directory, the namespaces. It works as well when half of it is
// gone, and does nothing when there is no lab. Logs stay.
func Down(ctx context.Context, dir, name string) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	s, err := readSpec(dir)
	if err == nil {
		name = s.Name
	}
	if !nameForm.MatchString(name) {
		return fmt.Errorf("lab name %q", name)
	}
	// The other way round as they were made.
	var errs []error
	procs, err := processes(dir)
	errs = append(errs, err)
	for _, p := range procs {
		errs = append(errs, p.Stop(ctx, 10*time.Second))
	}
	errs = append(errs, killLeftovers(ctx, dir), removeNetwork(ctx, name))
	if err := errors.Join(errs...); err != nil {
		return err
	}
	for _, f := range []string{specFile, socketFile} {
		if err := os.Remove(filepath.Join(dir, f)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

// Down ends this lab.
func (l *Lab) Down(ctx context.Context) error { return Down(ctx, l.dir, l.spec.Name) }

const (
	specFile   = "lab.json"
	socketFile = "control.sock"
)

func (l *Lab) writeSpec() error {
	b, err := json.MarshalIndent(l.spec, "", "  ")
	if err != nil {
		return err
	}
	file := filepath.Join(l.dir, specFile)
	if err := os.WriteFile(file+".new", append(b, '\n'), 0o600); err != nil {
		return fmt.Errorf("write the lab's description: %w", err)
	}
	return os.Rename(file+".new", file)
}

func readSpec(dir string) (spec, error) {
	b, err := os.ReadFile(filepath.Join(dir, specFile))
	if err != nil {
		return spec{}, err
	}
	var s spec
	if err := json.Unmarshal(b, &s); err != nil {
		return spec{}, fmt.Errorf("%s: %w", specFile, err)
	}
	if s.Version != 1 {
		return spec{}, fmt.Errorf("%s: version %d is not known", specFile, s.Version)
	}
	return s, nil
}

// startDaemon starts Serve in the namespace and waits until it answers.
func (l *Lab) startDaemon(ctx context.Context, opts Options) error {
	command := opts.Daemon
	if command == nil {
		self, err := os.Executable()
		if err != nil {
			return err
		}
		command = []string{self, "serve"}
	}
	// Listeners for forwards belong to the host's namespace, so they are opened
	// here and inherited by the daemon.
	var files []*os.File
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	for i, fw := range l.spec.Forwards {
		ln, err := net.Listen("tcp", fw.Listen)
		if err != nil {
			return &hotspare.Error{Code: hotspare.CodePortTaken, What: "the host's port for the console is taken", Where: fw.Listen, Err: err, Fix: "give another port, or 0 for any"}
		}
		l.spec.Forwards[i].Listen = ln.Addr().String()
		f, err := ln.(*net.TCPListener).File()
		ln.Close()
		if err != nil {
			return err
		}
		files = append(files, f)
	}
	if err := l.writeSpec(); err != nil {
		return err
	}
	proc, err := StartProcess(ctx, ProcessOptions{
		Name: "daemon", Dir: l.dir, Namespace: l.Namespace(),
		Args: append(append([]string(nil), command...), l.dir), Files: files,
	})
	if err != nil {
		return fmt.Errorf("start the lab's daemon: %w", err)
	}
	deadline, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if _, err = l.Status(deadline); err == nil {
			return nil
		}
		if !proc.Alive() {
			return fmt.Errorf("the lab's daemon ended at once: %s", tail(filepath.Join(l.dir, "daemon.log"), 5))
		}
		select {
		case <-deadline.Done():
			return fmt.Errorf("the lab's daemon does not answer: %w: %s", err, tail(filepath.Join(l.dir, "daemon.log"), 5))
		case <-tick.C:
		}
	}
}

// Forwards are the host's addresses that lead into the namespace.
func (l *Lab) Forwards() []Forward { return l.spec.Forwards }

func tail(file string, n int) string {
	b, err := os.ReadFile(file)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], " | ")
}
