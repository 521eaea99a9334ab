package appliance

import (
	"cmp"
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"hotspare"
	"hotspare/boot"
	"hotspare/boot/httpboot"
	"hotspare/boot/standby"
	"hotspare/cmd/hotspare/appliance/manifest"
	"hotspare/haengine"
	"hotspare/haengine/agentlink"
	"hotspare/haengine/agentlink/server"
	"hotspare/images"
	"hotspare/ui/api"
)

// DiscoveryConfig says what machines get that nobody has approved.
type DiscoveryConfig struct {
	Mode  string `yaml:"mode"`  // wait: a text on their screen; environment: an agent that tells what they are
	Image string `yaml:"image"` // whose kernel the environment has; empty: the appliance host's own
}

func (c DiscoveryConfig) validate() error {
	switch c.Mode {
	case "wait", "environment":
		return nil
	}
	return fmt.Errorf("discovery.mode %q is not known", c.Mode)
}

// discovery gives machines that are no approved nodes the discovery environment:
// a kernel, and an agent that has no secret and is given none. What it tells is a
// claim, shown to an operator.
type discovery struct {
	cfg      Config
	machines *machines
	images   *images.Repository
	cache    string // of initramfs
	ca       func() []byte
	byMAC    func(boot.MAC) (*haengine.NodeState, bool)
	leased   func(netip.Addr) (boot.MAC, bool)
	trouble  func(boot.MAC) string
	tell     func(boot.Entry)                              // to its trace
	host     func(context.Context) (standby.Kernel, error) // the host's own
	now      func() time.Time
	log      *slog.Logger

	mu     sync.Mutex
	tokens map[boot.MAC]discoveryToken
}

// discoveryToken opens kernel and initramfs of the environment for one machine.
type discoveryToken struct {
	token string
	used  time.Time
}

// Bounds of what strangers may take: tokens that live at once, and for how long
// one does that is not used.
const (
	maxDiscovering = 256
	discoveryLife  = time.Hour
)

// openDiscovery makes the discovery with its record of machines.
func (a *Appliance) openDiscovery(host *hostEnvironment) (err error) {
	log := a.log.With("part", "discovery")
	if a.machines, err = openMachines(filepath.Join(a.cfg.State, "machines.json"), log); err != nil {
		return err
	}
	a.parts.run("discovered machines", a.machines.keep)
	a.finder = &discovery{
		cfg: a.cfg, machines: a.machines, images: a.images, cache: filepath.Join(a.cfg.State, "initramfs"), byMAC: a.nodeByMAC,
		leased: a.ladders.lease, trouble: a.ladders.trouble, tell: a.recorder.Record, now: time.Now, log: log, tokens: map[boot.MAC]discoveryToken{},
		host: host.newest,
	}
	return nil
}

// stranger says what a machine gets that is no node.
func (d *discovery) stranger(r boot.Request) boot.Assignment {
	if d == nil {
		return boot.Assignment{}
	}
	if r.MAC.IsZero() {
		return boot.Assignment{}
	}
	x, ok := d.machines.seen(r)
	switch {
	case !ok:
		return boot.Assignment{Reason: "too many unknown machines ask at once"}
	case x.Ignored != "":
		return boot.Assignment{Reason: "an operator has told hotspare to ignore it"}
	}
	if a, ok := d.environment(r.MAC, ""); ok {
		return a
	}
	return boot.Assignment{Reason: d.trouble(r.MAC)}
}

// unapproved says what a node gets that an operator has declared and not yet
// approved; ok is false when it is to wait.
func (d *discovery) unapproved(mac boot.MAC, node string) (boot.Assignment, bool) {
	if d == nil {
		return boot.Assignment{}, false
	}
	return d.environment(mac, node)
}

// environment assigns the environment, with a token of its own for each machine.
func (d *discovery) environment(mac boot.MAC, node string) (boot.Assignment, bool) {
	if d.cfg.Discovery.Mode != "environment" {
		return boot.Assignment{}, false
	}
	k, err := d.kernel()
	if err != nil {
		d.log.Error("no kernel for the discovery environment", "err", err)
		return boot.Assignment{}, false
	}
	token, err := d.token(mac)
	if err != nil {
		d.log.Error("no token for the discovery environment", "err", err)
		return boot.Assignment{}, false
	}
	return boot.Assignment{
		Node: node, MAC: mac, Kind: boot.KindDiscovery, Token: token, Kernel: k.version, Initrd: "hotspare agent", Arch: k.arch, Cmdline: k.cmdline,
		Reason: "it tells what it is and waits for an operator",
	}, true
}

func (d *discovery) token(mac boot.MAC) (string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := d.now()
	if t, ok := d.tokens[mac]; ok {
		t.used = now
		d.tokens[mac] = t
		return t.token, nil
	}
	if len(d.tokens) >= maxDiscovering {
		var oldest boot.MAC
		first := true
		for m, t := range d.tokens {
			if now.Sub(t.used) > discoveryLife {
				delete(d.tokens, m)
			} else if first || t.used.Before(d.tokens[oldest].used) {
				oldest, first = m, false
			}
		}
		if len(d.tokens) >= maxDiscovering {
			delete(d.tokens, oldest)
		}
	}
	token, err := boot.NewToken(rand.Reader)
	if err != nil {
		return "", err
	}
	d.tokens[mac] = discoveryToken{token, now}
	return token, nil
}

// byToken gives the assignment behind a token of the environment. A machine that
// was approved or ignored since has lost it.
func (d *discovery) byToken(token string) (boot.Assignment, bool) {
	if d == nil {
		return boot.Assignment{}, false
	}
	d.mu.Lock()
	var mac boot.MAC
	for m, t := range d.tokens {
		if boot.SameToken(t.token, token) {
			mac = m
		}
	}
	d.mu.Unlock()
	if mac.IsZero() {
		return boot.Assignment{}, false
	}
	node := ""
	if n, known := d.byMAC(mac); known {
		if n.Spec.Approved {
			return boot.Assignment{}, false
		}
		node = n.Spec.Name
	} else if x, err := d.machines.find(mac.String()); err == nil && x.Ignored != "" {
		return boot.Assignment{}, false
	}
	return d.environment(mac, node)
}

// discoveryKernel is the kernel of the environment, with what its initramfs is
// built from.
type discoveryKernel struct {
	version, arch, cmdline, digest string
	open                           func() (*os.File, error)
	request                        standby.Request
}

// kernel gives the configured image's kernel, or the newest that the host has
// with its modules.
func (d *discovery) kernel() (discoveryKernel, error) {
	args := strings.TrimSpace("panic=10 quiet loglevel=4 console=" + d.cfg.Console + " " + d.cfg.Cmdline)
	req := standby.Request{Agent: d.cfg.Agent, Set: standby.Set(d.cfg.Modules), Log: d.log}
	if name := d.cfg.Discovery.Image; name != "" {
		img, err := d.images.Resolve(name)
		if err != nil {
			return discoveryKernel{}, err
		}
		req.KernelVersion, req.ModulesTar, req.ModulesDigest = img.Kernel.Version, img.ModulesPath, img.Modules.Digest
		req.KernelConfig, req.Arch, req.RootFS = img.Kernel.ConfigPath, img.Arch, img.RootFS
		return discoveryKernel{
			version: img.Kernel.Version, arch: img.Arch, cmdline: args, digest: img.Kernel.Digest, request: req,
			open: func() (*os.File, error) { return d.images.OpenKernel(img) },
		}, nil
	}
	k, err := d.host(context.Background())
	if err != nil {
		return discoveryKernel{}, err
	}
	req.KernelVersion, req.ModulesDir, req.ModulesDigest = k.Version, k.ModulesDir, k.ModulesDigest
	req.KernelConfig, req.Arch = k.Config, runtime.GOARCH
	return discoveryKernel{
		version: k.Version, arch: runtime.GOARCH, cmdline: args, request: req,
		open: func() (*os.File, error) { return os.Open(k.Image) },
	}, nil
}

// initramfs builds or finds the archive of the environment. It holds the
// appliance's address and CA, and no secret.
func (d *discovery) initramfs(ctx context.Context, k discoveryKernel) (standby.Result, error) {
	text, err := agentlink.EncodeBootConfig(agentlink.BootConfig{Appliance: d.cfg.link(d.cfg.Network.asked(ctx)), CA: string(d.ca()), Mode: agentlink.ModeDiscovery})
	if err != nil {
		return standby.Result{}, err
	}
	k.request.Files = map[string][]byte{agentlink.BootConfigPath: text}
	return standby.Build(ctx, k.request, d.cache)
}

// open gives an artefact of the environment; ok is false when the token is none
// of it.
func (d *discovery) open(ctx context.Context, token string, what boot.Artefact) (f httpboot.File, ok bool, err error) {
	if _, ok := d.byToken(token); !ok {
		return httpboot.File{}, false, nil
	}
	k, err := d.kernel()
	if err != nil {
		return httpboot.File{}, true, err
	}
	var file *os.File
	etag := k.digest
	switch what {
	case boot.ArtefactKernel:
		file, err = k.open()
	case boot.ArtefactInitrd:
		var res standby.Result
		if res, err = d.initramfs(ctx, k); err == nil {
			etag = res.Digest
			file, err = os.Open(res.Path)
		}
	default:
		err = fmt.Errorf("no artefact %q in the discovery environment", what)
	}
	if err != nil {
		return httpboot.File{}, true, err
	}
	info, err := file.Stat()
	if err != nil {
		return httpboot.File{}, true, err
	}
	if etag != "" {
		etag = `"` + etag + `"`
	}
	return httpboot.File{ReadSeekCloser: file, ModTime: info.ModTime(), ETag: etag}, true, nil
}

// How soon a machine in the environment tells its facts anew.
const (
	announceAgain   = 30 * time.Second
	announceIgnored = 10 * time.Minute
)

// announced takes what a machine in the environment says of itself.
func (d *discovery) announced(_ context.Context, a server.Announcement) agentlink.Noted {
	from, err := netip.ParseAddrPort(a.Remote)
	if err != nil {
		return agentlink.Noted{Why: "the appliance does not see where this comes from"}
	}
	addr := from.Addr().Unmap()
	// Its lease says better which machine it is than its own word.
	mac, leased := d.leased(addr)
	if !leased {
		for _, s := range a.Facts.MACs {
			if mac, err = boot.ParseMAC(s); err == nil {
				break
			}
		}
	}
	if n, known := d.byMAC(mac); known && n.Spec.Approved {
		return agentlink.Noted{Boot: true, Why: "an operator has approved it as node " + n.Spec.Name + ": it boots again"}
	}
	x, ok := d.machines.announced(mac, addr, a.Facts)
	d.tell(boot.Entry{
		At: d.now(), MAC: mac, Protocol: boot.Agent, Step: boot.StepMark, Request: "tells what it is", Answer: "noted",
		Detail: boot.Detail{Mark: boot.MarkDiscovery, BootID: a.Facts.BootID},
	})
	switch {
	case !ok:
		return agentlink.Noted{Again: haengine.Duration(announceIgnored), Why: "the appliance knows too many machines that nobody has approved"}
	case x.Ignored != "":
		return agentlink.Noted{Again: haengine.Duration(announceIgnored), Why: "an operator has told hotspare to ignore it"}
	}
	return agentlink.Noted{
		Again: haengine.Duration(announceAgain), Why: fmt.Sprintf("nobody has approved it yet: hotspare node approve %s --name NAME --pool POOL", x.MAC),
	}
}

// Machines gives the machines that asked to boot and are no approved nodes.
func (a *Appliance) Machines(context.Context) ([]api.Machine, error) {
	out := []api.Machine{}
	for _, x := range a.machines.list() {
		if n, known := a.nodeByMAC(x.MAC); known && n.Spec.Approved {
			continue // it is a node by now
		}
		out = append(out, a.machineView(x))
	}
	return out, nil
}

// Machine gives one of them.
func (a *Appliance) Machine(_ context.Context, name string) (api.Machine, error) {
	x, err := a.machines.find(name)
	if err != nil {
		return api.Machine{}, err
	}
	return a.machineView(x), nil
}

func (a *Appliance) machineView(x machine) api.Machine {
	v := api.Machine{
		ID: x.MAC.String(), State: "waiting", UUID: x.UUID, Firmware: x.Firmware, Address: x.Address, FirstSeen: x.First, LastSeen: x.Last, IgnoredBy: x.Ignored,
	}
	for _, m := range x.MACs {
		v.MACs = append(v.MACs, m.String())
		if n, known := a.nodeByMAC(m); known {
			v.Node = n.Spec.Name
		}
	}
	if f := x.Facts; f != nil {
		v.State = "discovered"
		v.Facts = factsView(*f)
	}
	if x.Ignored != "" {
		v.State = "ignored"
	}
	return v
}

func factsView(f agentlink.Facts) *api.MachineFacts {
	v := &api.MachineFacts{
		Vendor: boot.Plain(f.Vendor), Product: boot.Plain(f.Product), Serial: boot.Plain(f.Serial), CPUModel: boot.Plain(f.CPUModel), CPUs: f.CPUs, MemoryMiB: f.MemoryMiB,
		Arch: boot.Plain(f.Arch), Kernel: boot.Plain(f.Kernel), Firmware: boot.Plain(string(f.Firmware)), SecureBoot: f.SecureBoot,
	}
	for _, d := range f.Disks {
		v.Disks = append(v.Disks, api.MachineDisk{ID: boot.Plain(d.ID), Name: boot.Plain(d.Name), Model: boot.Plain(d.Model), Bytes: d.Bytes, Holds: boot.Plain(d.Holds)})
	}
	for _, n := range f.NICs {
		v.NICs = append(v.NICs, api.MachineNIC{Name: boot.Plain(n.Name), MAC: boot.Plain(n.MAC), Link: n.Link, SpeedMbps: n.SpeedMbps, Driver: boot.Plain(n.Driver)})
	}
	return v
}

// IgnoreMachine keeps a machine from being discovered, or with undo lets it be.
func (a *Appliance) IgnoreMachine(ctx context.Context, name, by string, undo bool) error {
	who := cmp.Or(by, "operator")
	if undo {
		who = ""
	}
	if err := a.machines.ignore(name, who); err != nil {
		return err
	}
	a.log.InfoContext(ctx, "machine ignored", "machine", name, "undo", undo, "by", by)
	return nil
}

// ForgetMachine removes a machine from the list.
func (a *Appliance) ForgetMachine(ctx context.Context, name, by string) error {
	a.log.InfoContext(ctx, "machine forgotten", "machine", name, "by", by)
	return a.machines.forget(name)
}

// ApproveMachine makes a node of a machine: its claims become a node document,
// which is checked like any other. That its BMC belongs to it is proven by the
// BMC, not by the claim.
func (a *Appliance) ApproveMachine(ctx context.Context, name string, in api.Approval, by string) (api.Applied, error) {
	x, err := a.machines.find(name)
	if err != nil {
		return api.Applied{}, err
	}
	n := haengine.Node{
		Name: in.Name, Pool: in.Pool, UUID: strings.ToLower(x.UUID), Approved: true, Labels: in.Labels, CPUs: in.CPUs, MemoryMiB: in.MemoryMiB, Arch: in.Arch,
		BMC: haengine.BMC{Protocol: cmp.Or(in.BMC.Protocol, "ipmi"), Port: in.BMC.Port, User: in.BMC.User, CipherSuite: in.BMC.CipherSuite, SharedPower: in.BMC.SharedPower},
	}
	if n.BMC.Address, err = netip.ParseAddr(in.BMC.Address); err != nil {
		return api.Applied{}, &hotspare.Error{Code: hotspare.CodeInvalid, What: fmt.Sprintf("%.80q is not the address of a BMC", in.BMC.Address), Where: "bmc.address", Fix: "give its IP address"}
	}
	for _, m := range x.MACs {
		n.MACs = append(n.MACs, m.String())
	}
	if f := x.Facts; f != nil {
		n.CPUs, n.MemoryMiB, n.Arch = cmp.Or(n.CPUs, f.CPUs), cmp.Or(n.MemoryMiB, f.MemoryMiB), cmp.Or(n.Arch, f.Arch)
		n.SecureBoot = f.SecureBoot
	}
	if n.CPUs == 0 || n.MemoryMiB == 0 {
		return api.Applied{}, &hotspare.Error{
			Code: hotspare.CodeInvalid, What: "the machine has not told its hardware", Where: x.MAC.String(), Why: "it did not boot the discovery environment",
			Fix: "give --cpus and --memory, or set `discovery.mode: environment` and boot it once",
		}
	}
	doc := manifest.Document{Kind: "node", Source: "machine " + x.MAC.String(), Node: &n, BMCPassword: hotspare.NewSecret(in.BMC.Password)}
	if in.BMC.Password == "" {
		doc.BMCPassword = hotspare.Secret{}
	}
	if st := a.engine.Snapshot(); st.Durable.Nodes[n.Name] != nil {
		// Adopted is a declared node that this machine belongs to already; any other
		// of that name is another machine.
		if y, known := a.nodeByMAC(x.MAC); !known || y.Spec.Name != n.Name {
			return api.Applied{}, &hotspare.Error{Code: hotspare.CodeConflict, What: "a node of that name exists", Where: n.Name, Fix: "give the machine another name"}
		}
		n.CloudInit = st.Durable.Nodes[n.Name].Spec.CloudInit
	}
	out, err := a.applyDocuments(ctx, []manifest.Document{doc}, by, in.DryRun)
	if err != nil || in.DryRun {
		return first(out), err
	}
	return first(out), a.machines.forget(x.MAC.String())
}

func first(all []api.Applied) api.Applied {
	if len(all) == 0 {
		return api.Applied{}
	}
	return all[0]
}
