// Package site runs the real appliance, as the process that operators run, in a
// lab: it writes its configuration, starts and kills it, and asks it through the
// same interface that the CLI uses. The demo and the end-to-end tests stand on
// it. All that they assume of the appliance's commands and answers is here.
package site

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"text/template"
	"time"

	"hotspare"
	"hotspare/storage"
	"hotspare/testenv/lab"
	"hotspare/ui/api"
	"hotspare/ui/api/client"
)

// Options of a Site.
type Options struct {
	Lab   *lab.Lab
	Bin   string // folder with hotspare and hotspare-agent
	State string // the appliance's state; made if it is missing

	Loaders string // folder of boot loaders that come before the installed ones; "": none

	Discovery string // image whose kernel machines boot that are no nodes; "": they wait
}

// Site is an appliance in a lab.
type Site struct {
	opts   Options
	config string
	socket string
	api    *client.Client
	proc   *lab.Process
}

// processName is that of the pid file and the log in the lab's directory.
const processName = "appliance"

// The nodes are emulated: the mitigations of real processors' faults only cost.
var configuration = template.Must(template.New("config").Parse(`# The appliance of the lab; see examples/hotspare.yaml for all fields.
state: {{.State}}
socket: {{.Socket}}
api: 127.0.0.1:8080
agent: {{.Agent}}
{{- with .Loaders}}
loaders: {{.}}
{{- end}}
{{- with .Discovery}}
discovery: {mode: environment, image: {{.}}}
{{- end}}
console: ttyS0,115200
cmdline: mitigations=off net.ifnames=0 panic=10
modules: lab
bmc: {timeout: 5s, readGap: 500ms, deadline: 20s, settle: 2s}
network:
  interface: {{.Bridge}}
  address: {{.Address}}
  routerAdvertisements: true
  dhcp: {mode: authoritative, from: {{.From}}, to: {{.To}}}
`))

// New prepares a site; Start starts its appliance.
func New(opts Options) (*Site, error) {
	for _, p := range []*string{&opts.Bin, &opts.State} {
		abs, err := filepath.Abs(*p)
		if err != nil {
			return nil, err
		}
		*p = abs
	}
	for _, name := range []string{"hotspare", "hotspare-agent"} {
		if _, err := os.Stat(filepath.Join(opts.Bin, name)); err != nil {
			return nil, &hotspare.Error{Code: hotspare.CodeMissingTool, What: "a program of hotspare is not built", Where: filepath.Join(opts.Bin, name), Fix: "make build", Err: err}
		}
	}
	if err := os.MkdirAll(opts.State, 0o700); err != nil {
		return nil, fmt.Errorf("state of the appliance: %w", err)
	}
	s := &Site{opts: opts, config: filepath.Join(opts.Lab.Dir(), "hotspare.yaml"), socket: filepath.Join(opts.Lab.Dir(), "api.sock")}
	s.api = client.New(client.Options{Socket: s.socket})
	return s, s.writeConfig()
}

func (s *Site) writeConfig() error {
	var b strings.Builder
	err := configuration.Execute(&b, map[string]any{
		"State": s.opts.State, "Loaders": s.opts.Loaders, "Discovery": s.opts.Discovery, "Socket": s.socket, "Agent": filepath.Join(s.opts.Bin, "hotspare-agent"),
		"Bridge": lab.Bridge, "Address": "10.77.0.1/24", "From": "10.77.0.100", "To": "10.77.0.199",
	})
	if err != nil {
		return err
	}
	return os.WriteFile(s.config, []byte(b.String()), 0o644)
}

// Start starts the appliance inside the lab's namespace and waits until it
// answers. The process outlives the caller; Down of the lab ends it.
func (s *Site) Start(ctx context.Context) error {
	proc, err := lab.StartProcess(ctx, lab.ProcessOptions{
		Name: processName, Dir: s.opts.Lab.Dir(), Namespace: s.opts.Lab.Namespace(),
		Args: []string{filepath.Join(s.opts.Bin, "hotspare"), "serve", "--config", s.config},
	})
	if err != nil {
		return fmt.Errorf("start the appliance: %w", err)
	}
	s.proc = proc
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		_, err := s.Snapshot(ctx)
		if err == nil {
			return nil
		}
		if !proc.Alive() {
			return &hotspare.Error{Code: hotspare.CodeUnavailable, What: "the appliance ended at once", Where: s.Log(), Why: s.logEnd(), Fix: "read its log"}
		}
		select {
		case <-ctx.Done():
			return &hotspare.Error{Code: hotspare.CodeUnavailable, What: "the appliance does not answer", Where: s.Log(), Why: s.logEnd(), Fix: "read its log", Err: err}
		case <-tick.C:
		}
	}
}

// Kill kills the appliance without warning.
func (s *Site) Kill(ctx context.Context) error { return s.proc.Kill(ctx) }

// Stop ends the appliance in order.
func (s *Site) Stop(ctx context.Context) error { return s.proc.Stop(ctx, 20*time.Second) }

// Process is the appliance's.
func (s *Site) Process() *lab.Process { return s.proc }

// API is a client of the appliance.
func (s *Site) API() *client.Client { return s.api }

// Socket is where the appliance listens.
func (s *Site) Socket() string { return s.socket }

// Log is the appliance's log.
func (s *Site) Log() string { return filepath.Join(s.opts.Lab.Dir(), processName+".log") }

// Trace is the target's record of the writes to a volume of an application.
func (s *Site) Trace(app, volume string) string {
	return storage.TracePath(filepath.Join(s.opts.State, "traces"), app+"."+volume)
}

func (s *Site) logEnd() string {
	b, err := os.ReadFile(s.Log())
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return strings.Join(lines[max(0, len(lines)-5):], " | ")
}

// Hotspare runs the operator's command against the appliance and gives what it
// printed.
func (s *Site) Hotspare(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(s.opts.Bin, "hotspare"), append([]string{"--socket", s.socket}, args...)...)
	var errs strings.Builder
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		return string(out), fmt.Errorf("hotspare %s: %w\n%s", strings.Join(args, " "), err, strings.TrimSpace(errs.String()))
	}
	return string(out), nil
}

// Snapshot is everything that the appliance shows.
func (s *Site) Snapshot(ctx context.Context) (api.Snapshot, error) {
	var snap api.Snapshot
	err := s.api.Get(ctx, "/api/v1/snapshot", &snap)
	return snap, err
}

// Until waits until a snapshot satisfies want. It looks again at every event of
// the appliance, and every second should the stream break, as it does when the
// appliance is killed on purpose. what is for the error.
func (s *Site) Until(ctx context.Context, what string, want func(api.Snapshot) bool) (api.Snapshot, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	wake := make(chan struct{}, 1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.watch(ctx, wake)
	}()
	defer func() { cancel(); <-done }()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	var last api.Snapshot
	for {
		snap, err := s.Snapshot(ctx)
		if err == nil {
			if last = snap; want(snap) {
				return snap, nil
			}
		}
		select {
		case <-ctx.Done():
			return last, fmt.Errorf("waiting for %s: %w; the appliance says: %s", what, context.Cause(ctx), Brief(last))
		case <-wake:
		case <-tick.C:
		}
	}
}

// watch wakes its reader at every event.
func (s *Site) watch(ctx context.Context, wake chan<- struct{}) {
	var after uint64
	for ctx.Err() == nil {
		// An error is a broken stream; the ticker of Until covers the gap.
		last, _ := s.api.Follow(ctx, after, func(api.Event) error {
			select {
			case wake <- struct{}{}:
			default:
			}
			return nil
		})
		after = last
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

// Application finds one in a snapshot.
func Application(snap api.Snapshot, name string) (api.Application, bool) {
	for _, a := range snap.Applications {
		if a.Name == name {
			return a, true
		}
	}
	return api.Application{}, false
}

// Running waits until all of the named applications run.
func (s *Site) Running(ctx context.Context, apps ...string) (api.Snapshot, error) {
	return s.Until(ctx, strings.Join(apps, " and ")+" to run", func(snap api.Snapshot) bool {
		for _, name := range apps {
			if a, ok := Application(snap, name); !ok || a.Status.Phase != "running" {
				return false
			}
		}
		return true
	})
}

// Parked waits until a node waits in standby with all that its applications need,
// and gives its name.
func (s *Site) Parked(ctx context.Context) (node string, err error) {
	_, err = s.Until(ctx, "a node to wait in standby", func(snap api.Snapshot) bool {
		for _, n := range snap.Nodes {
			if x := n.Status.Standby; x != nil && x.State == api.StandbyParked && len(x.Loaded) > 0 {
				node = n.Name
				return true
			}
		}
		return false
	})
	return node, err
}

// Moved waits until an application runs under a higher epoch than before, and
// gives the record of the hand-over.
func (s *Site) Moved(ctx context.Context, app string, epoch uint64) (api.Application, api.Failover, error) {
	var moved api.Application
	var record api.Failover
	_, err := s.Until(ctx, app+" to run on another node", func(snap api.Snapshot) bool {
		a, ok := Application(snap, app)
		if !ok || a.Status.Phase != "running" || a.Status.Epoch <= epoch {
			return false
		}
		for _, f := range snap.Failovers {
			if f.Application == app && f.Epoch == a.Status.Epoch && f.EndedAt != nil {
				moved, record = a, f
				return true
			}
		}
		return false
	})
	return moved, record, err
}

// Brief is one line on how the applications and nodes are.
func Brief(snap api.Snapshot) string {
	var parts []string
	for _, a := range snap.Applications {
		parts = append(parts, strings.TrimSpace(fmt.Sprintf("%s is %s on %s, epoch %d %s", a.Name, a.Status.Phase, a.Status.Node, a.Status.Epoch, a.Status.Reason)))
	}
	for _, n := range snap.Nodes {
		parts = append(parts, strings.TrimSpace(fmt.Sprintf("%s is %s, power %s %s", n.Name, n.Status.Phase, n.Status.Power, n.Status.Reason)))
	}
	if len(parts) == 0 {
		return "nothing"
	}
	return strings.Join(parts, "; ")
}

// Events follows the appliance's events and hands them to fn until ctx ends; a
// broken stream is taken up again where it broke.
func (s *Site) Events(ctx context.Context, fn func(api.Event)) {
	var after uint64
	for ctx.Err() == nil {
		last, err := s.api.Follow(ctx, after, func(e api.Event) error { fn(e); return nil })
		after = last
		if err != nil && !errors.Is(err, context.Canceled) {
			select {
			case <-ctx.Done():
			case <-time.After(500 * time.Millisecond):
			}
		}
	}
}
