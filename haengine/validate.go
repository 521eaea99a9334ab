package haengine

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"hotspare"
)

// Defaults of monitors and policies.
const (
	DefaultEvery          = Duration(time.Second)
	DefaultTimeout        = Duration(2 * time.Second)
	DefaultHeartbeat      = Duration(4 * time.Second) // silence of the agent that counts as one failed channel
	DefaultFailures       = 2
	DefaultLease          = Duration(15 * time.Second)
	DefaultDropBound      = Duration(3 * time.Second)
	DefaultMargin         = Duration(2 * time.Second)
	DefaultFenceDeadline  = Duration(8 * time.Second)
	DefaultBootDeadline   = Duration(5 * time.Minute)
	DefaultOnlineDeadline = Duration(3 * time.Minute)
	DefaultRestarts       = 2
	DefaultRestartWindow  = Duration(5 * time.Minute)
	DefaultRestartTime    = Duration(30 * time.Second)
	DefaultMaxFailovers   = 5
	DefaultFailoverWindow = Duration(time.Hour)
	DefaultMaxAttempts    = 4
	DefaultRetryAfter     = Duration(2 * time.Minute)
	DefaultInstallLimit   = Duration(time.Hour)
)

// WithDefaults fills in what the operator left out.
func (p Policy) WithDefaults() Policy {
	if len(p.Evidence) == 0 {
		p.Evidence = []EvidenceKind{EvidencePower, EvidenceStorage}
	}
	order := OrderMeasured
	if len(p.Ways) > 0 {
		order = OrderListed
	}
	fill(&p.WayOrder, order)
	fill(&p.InstallLimit, DefaultInstallLimit)
	lease := DefaultLease
	if p.TolerateOutage > 0 {
		lease += p.TolerateOutage
	}
	fill(&p.Lease, lease)
	fill(&p.DropBound, DefaultDropBound)
	fill(&p.Margin, DefaultMargin)
	fill(&p.FenceDeadline, DefaultFenceDeadline)
	fill(&p.BootDeadline, DefaultBootDeadline)
	fill(&p.OnlineDeadline, DefaultOnlineDeadline)
	fill(&p.Restarts, DefaultRestarts)
	fill(&p.RestartWindow, DefaultRestartWindow)
	fill(&p.RestartTime, DefaultRestartTime)
	fill(&p.MaxFailovers, DefaultMaxFailovers)
	fill(&p.FailoverWindow, DefaultFailoverWindow)
	fill(&p.MaxAttempts, DefaultMaxAttempts)
	fill(&p.RetryAfter, DefaultRetryAfter)
	fill(&p.Previous, PreviousReturn)
	return p
}

// What becomes of the node that an application left.
const (
	PreviousReturn     = "return"
	PreviousKeep       = "keep"
	PreviousQuarantine = "quarantine"
)

// WithDefaults fills in what the operator left out.
func (m Monitor) WithDefaults() Monitor {
	if len(m.From) == 0 && m.Kind != MonitorHeartbeat {
		m.From = []Vantage{FromAppliance}
	}
	fill(&m.Every, DefaultEvery)
	if m.Kind == MonitorHeartbeat {
		fill(&m.Timeout, DefaultHeartbeat)
	}
	fill(&m.Timeout, DefaultTimeout)
	fill(&m.Failures, DefaultFailures)
	fill(&m.Successes, 1)
	switch m.Kind {
	case MonitorHTTP:
		fill(&m.Status, 200)
		fill(&m.URL, "/")
	case MonitorPostgres:
		fill(&m.Port, 5432)
		fill(&m.User, "postgres")
		fill(&m.Database, m.User)
		fill(&m.Query, "select 1")
	}
	return m
}

// WithDefaults fills in what the operator left out.
func (a Application) WithDefaults() Application {
	a.Policy = a.Policy.WithDefaults()
	ms := slices.Clone(a.Monitors)
	for i := range ms {
		ms[i] = ms[i].WithDefaults()
	}
	a.Monitors = ms
	return a
}

// WithDefaults fills in what the operator left out.
func (n Node) WithDefaults() Node {
	n.MACs = slices.Clone(n.MACs)
	for i := range n.MACs {
		n.MACs[i] = strings.ToLower(n.MACs[i])
	}
	n.UUID = strings.ToLower(n.UUID)
	fill(&n.Arch, "amd64")
	fill(&n.BMC.Protocol, "ipmi")
	if n.BMC.Protocol == "ipmi" {
		fill(&n.BMC.Port, 623)
		fill(&n.BMC.CipherSuite, 17)
	} else {
		fill(&n.BMC.Port, 443)
	}
	return n
}

// WithDefaults fills in what the operator left out.
func (s Site) WithDefaults() Site {
	fill(&s.StormNodes, 3)
	fill(&s.StormShare, 0.5)
	fill(&s.FenceBudget, 10)
	fill(&s.FenceWindow, Duration(10*time.Minute))
	fill(&s.PowerEvery, Duration(time.Minute))
	fill(&s.Grace, Duration(10*time.Second))
	return s
}

func fill[T comparable](p *T, v T) {
	var zero T
	if *p == zero {
		*p = v
	}
}

// nameRE is the grammar of names: they become parts of host names, paths, IQNs
// and systemd units.
var nameRE = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

var macRE = regexp.MustCompile(`^[0-9a-f]{2}(:[0-9a-f]{2}){5}$`)

// loaderRE is what the boot services take for the name of a file.
var loaderRE = regexp.MustCompile(`^[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}$`)

// invalid makes the error of a field with a value that is not allowed.
func invalid(where, field, why, fix string) error {
	return &hotspare.Error{Code: hotspare.CodeInvalid, What: field + " is not allowed", Where: where, Why: why, Fix: fix}
}

func checkName(where, name string) error {
	if nameRE.MatchString(name) {
		return nil
	}
	return invalid(where, "name", fmt.Sprintf("%q is not a name", name), "use 1 to 63 of a-z, 0-9 and -, not at the ends")
}

// Validate says what is wrong with a pool. Whether the applications and the image
// of its standby exist is for the appliance to say.
func (p Pool) Validate() error {
	where := "pool " + p.Name
	if err := checkName(where, p.Name); err != nil || p.Standby == nil {
		return err
	}
	s := *p.Standby
	where += " standby"
	switch {
	case s.Nodes < 0 || s.PowerBudget < 0 || s.AtOnce < 0:
		return invalid(where, "nodes, powerBudget or atOnce", "it is negative", "give 0 for none")
	case s.PowerBudget > 0 && s.Nodes > s.PowerBudget:
		return invalid(where, "nodes", fmt.Sprintf("%d nodes in standby are more than the %d that may be on", s.Nodes, s.PowerBudget), "raise powerBudget or lower nodes")
	}
	seen := map[string]bool{}
	for _, a := range s.For {
		if err := checkName(where+" for", a); err != nil {
			return err
		}
		if seen[a] {
			return invalid(where, "for", fmt.Sprintf("%q is named twice", a), "name each application once, the likeliest first")
		}
		seen[a] = true
	}
	return nil
}

// Validate says what is wrong with a node; call it after WithDefaults.
func (n Node) Validate() error {
	where := "node " + n.Name
	if err := checkName(where, n.Name); err != nil {
		return err
	}
	if len(n.MACs) == 0 {
		return invalid(where, "macs", "the list is empty", "name the MAC address of the port that boots")
	}
	for _, m := range n.MACs {
		if !macRE.MatchString(m) {
			return invalid(where, "macs", fmt.Sprintf("%q is not a MAC address", m), "write it as 52:54:00:77:00:01")
		}
	}
	if n.Pool == "" {
		return invalid(where, "pool", "it is empty", "name the pool that may use the node")
	}
	if n.Arch != "amd64" && n.Arch != "arm64" {
		return invalid(where, "arch", fmt.Sprintf("%q is unknown", n.Arch), "use amd64 or arm64")
	}
	if n.CPUs < 1 || n.MemoryMiB < 1 || n.DiskGiB < 0 {
		return invalid(where, "cpus, memoryMiB or diskGiB", "a node has at least 1 CPU and 1 MiB", "give what the machine has")
	}
	if n.Disk != nil {
		if err := n.Disk.validate(where); err != nil {
			return err
		}
	}
	if n.Loader != "" && !loaderRE.MatchString(n.Loader) {
		return invalid(where, "loader", fmt.Sprintf("%q is not a plain file name", n.Loader), "name a file such as ipxe.efi; docs/boot.md lists them")
	}
	if n.HTTPS != "" && n.HTTPS != "loader" && n.HTTPS != "all" {
		return invalid(where, "https", fmt.Sprintf("%q is unknown", n.HTTPS), "use loader or all, or leave it out; docs/boot.md tells what each needs")
	}
	if n.BMC.Protocol != "ipmi" && n.BMC.Protocol != "redfish" {
		return invalid(where, "bmc.protocol", fmt.Sprintf("%q is unknown", n.BMC.Protocol), "use ipmi or redfish")
	}
	if !n.BMC.Address.IsValid() {
		return invalid(where, "bmc.address", "it is empty", "give the BMC's IP address: a node is powered on and fenced through it")
	}
	if s := n.BMC.CipherSuite; n.BMC.Protocol == "ipmi" && s != 3 && s != 17 {
		return invalid(where, "bmc.cipherSuite", fmt.Sprintf("%d is not supported", s), "use 17, or 3 for an old BMC")
	}
	return nil
}

// Validate says what is wrong with an application; call it after WithDefaults.
// Whether its image and pools exist is for the appliance to say.
func (a Application) Validate() error {
	where := "application " + a.Name
	if err := checkName(where, a.Name); err != nil {
		return err
	}
	if a.Image == "" {
		return invalid(where, "image", "it is empty", "name an imported image")
	}
	if len(a.Pools) == 0 {
		return invalid(where, "pools", "the list is empty", "name at least one pool")
	}
	if !a.Address.IsValid() {
		return invalid(where, "address", "it is empty or has no prefix length", "write it as 10.77.0.50/24")
	}
	if a.Requires.CPUs < 0 || a.Requires.MemoryMiB < 0 || a.Requires.DiskGiB < 0 {
		return invalid(where, "requires", "a requirement is negative", "give 0 for none")
	}
	if err := a.validateVolumes(where); err != nil {
		return err
	}
	if err := a.validateResources(where); err != nil {
		return err
	}
	if err := a.validateMonitors(where); err != nil {
		return err
	}
	return a.Policy.validate(where)
}

func (a Application) validateVolumes(where string) error {
	seen := map[string]bool{"root": true}
	for _, v := range a.Volumes {
		if err := checkName(where+" volume "+v.Name, v.Name); err != nil {
			return err
		}
		if seen[v.Name] {
			return invalid(where, "volumes", fmt.Sprintf("the name %q is taken", v.Name), "give each volume a name of its own; root is the image's")
		}
		seen[v.Name] = true
		if v.SizeMiB < 1 {
			return invalid(where+" volume "+v.Name, "sizeMiB", "it is below 1", "give the size in MiB")
		}
		if v.Format != "" && v.Format != "ext4" {
			return invalid(where+" volume "+v.Name, "format", fmt.Sprintf("%q is not supported", v.Format), "use ext4, or leave it out")
		}
	}
	return nil
}

func (a Application) validateResources(where string) error {
	volumes := map[string]bool{}
	for _, v := range a.Volumes {
		volumes[v.Name] = true
	}
	all := map[string]bool{}
	for _, r := range a.Resources {
		all[r.Name] = true
	}
	seen := map[string]bool{}
	for _, r := range a.Resources {
		at := where + " resource " + r.Name
		if err := checkName(at, r.Name); err != nil {
			return err
		}
		if seen[r.Name] {
			return invalid(where, "resources", fmt.Sprintf("the name %q is taken", r.Name), "give each resource a name of its own")
		}
		for _, after := range r.After {
			if !seen[after] {
				why := fmt.Sprintf("%q is listed later", after)
				if !all[after] {
					why = fmt.Sprintf("there is no resource %q", after)
				}
				return invalid(at, "after", why, "list resources in the order in which they come online")
			}
		}
		seen[r.Name] = true
		if err := r.validate(at, volumes); err != nil {
			return err
		}
	}
	return nil
}

func (r Resource) validate(at string, volumes map[string]bool) error {
	switch r.Kind {
	case ResourceMount:
		if !strings.HasPrefix(r.Target, "/") || r.Target == "/" {
			return invalid(at, "target", fmt.Sprintf("%q is not a mount point", r.Target), "give an absolute path other than /")
		}
	case ResourceSystemd:
		if !strings.Contains(r.Unit, ".") || strings.ContainsAny(r.Unit, "/ \n") {
			return invalid(at, "unit", fmt.Sprintf("%q is not a unit name", r.Unit), "write it in full: nginx.service")
		}
	case ResourceProcess:
		if len(r.Command) == 0 {
			return invalid(at, "command", "it is empty", "give the program and its arguments")
		}
	case ResourceScript:
		if len(r.Online) == 0 || len(r.Offline) == 0 {
			return invalid(at, "online or offline", "it is empty", "a script needs both, and should have check")
		}
	case ResourceAddress, ResourceWitness:
	default:
		return invalid(at, "kind", fmt.Sprintf("%q is unknown", r.Kind), "use mount, address, systemd, process, script or witness")
	}
	if (r.Kind == ResourceMount || r.Kind == ResourceWitness) && !volumes[r.Volume] {
		return invalid(at, "volume", fmt.Sprintf("the application has no volume %q", r.Volume), "declare it under volumes")
	}
	return nil
}

func (a Application) validateMonitors(where string) error {
	seen := map[string]bool{}
	for _, m := range a.Monitors {
		at := where + " monitor " + m.Name
		if err := checkName(at, m.Name); err != nil {
			return err
		}
		if seen[m.Name] {
			return invalid(where, "monitors", fmt.Sprintf("the name %q is taken", m.Name), "give each monitor a name of its own")
		}
		seen[m.Name] = true
		switch m.Kind {
		case MonitorHTTP, MonitorPostgres, MonitorHeartbeat:
		case MonitorTCP:
			if m.Port == 0 {
				return invalid(at, "port", "it is 0", "give the port to connect to")
			}
		default:
			return invalid(at, "kind", fmt.Sprintf("%q is unknown", m.Kind), "use http, tcp, postgres or heartbeat")
		}
		for _, v := range m.From {
			if v != FromAppliance && v != FromNode {
				return invalid(at, "from", fmt.Sprintf("%q is not a vantage", v), "use appliance or node")
			}
		}
		if m.Every < Duration(100*time.Millisecond) || m.Timeout < 0 || m.Failures < 1 || m.Successes < 1 {
			return invalid(at, "every, timeout, failures or successes", "a value is too small", "every is at least 100ms, the others are positive")
		}
	}
	return nil
}
