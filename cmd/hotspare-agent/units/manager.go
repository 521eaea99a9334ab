package units

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/dbus"
	godbus "github.com/godbus/dbus/v5"
)

const privateSocket = "/run/systemd/private"

// Manager is a connection to the image's systemd, made anew when systemd
// re-executes itself.
type Manager struct {
	mu   sync.Mutex
	conn *dbus.Conn
}

// Connect waits until systemd answers.
func Connect(ctx context.Context) (*Manager, error) {
	if err := WaitFor(ctx, privateSocket); err != nil {
		return nil, fmt.Errorf("the image's systemd does not answer: %w", err)
	}
	m := &Manager{}
	for {
		_, err := m.connection(ctx)
		if err == nil {
			return m, nil
		}
		select { // the socket is there a moment before it listens
		case <-ctx.Done():
			return nil, fmt.Errorf("the image's systemd does not answer: %w", errors.Join(ctx.Err(), err))
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// Close ends the connection.
func (m *Manager) Close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.conn != nil {
		m.conn.Close()
		m.conn = nil
	}
}

func (m *Manager) connection(ctx context.Context) (*dbus.Conn, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.conn != nil && m.conn.Connected() {
		return m.conn, nil
	}
	if m.conn != nil {
		m.conn.Close()
		m.conn = nil
	}
	// The context ends the connection, not only the dialling: the caller's
	// would cut it for everybody.
	conn, err := dbus.NewSystemdConnectionContext(context.WithoutCancel(ctx))
	if err != nil {
		return nil, err
	}
	m.conn = conn
	return conn, nil
}

// State is what systemd says of a unit.
type State struct {
	Active   string // active, activating, inactive, failed, ...
	Sub      string // asked for only when the unit is not active, like Result
	Result   string // of a service: success, exit-code, signal, ...
	Restarts uint32 // by systemd itself, since the unit was started
}

// State asks for a unit's state.
func (m *Manager) State(ctx context.Context, unit string) (State, error) {
	conn, err := m.connection(ctx)
	if err != nil {
		return State{}, err
	}
	// Asking for a few properties one by one is far cheaper for systemd than
	// all of them at once, and this is asked twice a second.
	s := State{}
	if s.Active, err = text(ctx, conn, unit, "Unit", "ActiveState"); err != nil {
		return State{}, fmt.Errorf("state of %s: %w", unit, err)
	}
	if isService(unit) {
		p, err := conn.GetUnitTypePropertyContext(ctx, unit, "Service", "NRestarts")
		if err != nil {
			return State{}, fmt.Errorf("state of %s: %w", unit, err)
		}
		s.Restarts, _ = p.Value.Value().(uint32)
	}
	if s.Active == "active" {
		return s, nil
	}
	if s.Sub, err = text(ctx, conn, unit, "Unit", "SubState"); err != nil {
		return State{}, fmt.Errorf("state of %s: %w", unit, err)
	}
	if isService(unit) {
		if s.Result, err = text(ctx, conn, unit, "Service", "Result"); err != nil {
			return State{}, fmt.Errorf("state of %s: %w", unit, err)
		}
	}
	return s, nil
}

func isService(unit string) bool { return strings.HasSuffix(unit, ".service") }

// text asks for one property, a string, of the interface of a kind of units.
func text(ctx context.Context, conn *dbus.Conn, unit, kind, name string) (string, error) {
	var p *dbus.Property
	var err error
	if kind == "Unit" {
		p, err = conn.GetUnitPropertyContext(ctx, unit, name)
	} else {
		p, err = conn.GetUnitTypePropertyContext(ctx, unit, kind, name)
	}
	if err != nil {
		return "", err
	}
	s, _ := p.Value.Value().(string)
	return s, nil
}

// Start starts a unit and waits until it is active.
func (m *Manager) Start(ctx context.Context, unit string) error {
	conn, err := m.connection(ctx)
	if err != nil {
		return err
	}
	_ = conn.ResetFailedUnitContext(ctx, unit) // a start limit that was hit before does not count against this start
	if err := job(ctx, func(done chan<- string) error {
		_, err := conn.StartUnitContext(ctx, unit, "replace", done)
		return err
	}); err != nil {
		return fmt.Errorf("start %s: %w%s", unit, err, m.detail(ctx, unit))
	}
	s, err := m.State(ctx, unit)
	if err != nil {
		return err
	}
	if s.Active != "active" && s.Active != "reloading" {
		return fmt.Errorf("start %s: the unit is %s (%s) after its start; a condition of it may not hold", unit, s.Active, s.Sub)
	}
	return nil
}

// Stop stops a unit and waits until it has ended.
func (m *Manager) Stop(ctx context.Context, unit string) error {
	conn, err := m.connection(ctx)
	if err != nil {
		return err
	}
	if err := job(ctx, func(done chan<- string) error {
		_, err := conn.StopUnitContext(ctx, unit, "replace", done)
		return err
	}); err != nil {
		return fmt.Errorf("stop %s: %w", unit, err)
	}
	s, err := m.State(ctx, unit)
	if err != nil {
		return err
	}
	if s.Active != "inactive" && s.Active != "failed" {
		return fmt.Errorf("stop %s: the unit is still %s (%s)", unit, s.Active, s.Sub)
	}
	return nil
}

// job runs what queues a job of systemd's and waits for its end.
func job(ctx context.Context, queue func(chan<- string) error) error {
	done := make(chan string, 1)
	if err := queue(done); err != nil {
		return err
	}
	select {
	case result := <-done:
		if result != "done" {
			return errors.New("systemd says: " + result)
		}
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (m *Manager) detail(ctx context.Context, unit string) string {
	s, err := m.State(context.WithoutCancel(ctx), unit)
	if err != nil {
		return ""
	}
	return fmt.Sprintf(" (%s, %s, %s; `journalctl -u %s` on the node says more)", s.Active, s.Sub, s.Result, unit)
}

// Command is a command of the image that runs as a unit of its own.
type Command struct {
	Unit  string // name of the transient unit, ending in .service
	Slice string
	Argv  []string
}

// Run runs a command to its end.
func (m *Manager) Run(ctx context.Context, c Command) error { return m.transient(ctx, c, "oneshot") }

// Launch starts a command that goes on.
func (m *Manager) Launch(ctx context.Context, c Command) error { return m.transient(ctx, c, "exec") }

func (m *Manager) transient(ctx context.Context, c Command, kind string) error {
	conn, err := m.connection(ctx)
	if err != nil {
		return err
	}
	if len(c.Argv) == 0 || !filepath.IsAbs(c.Argv[0]) {
		return fmt.Errorf("command %q does not begin with an absolute path", c.Argv)
	}
	log := filepath.Join("/run/hotspare", c.Unit+".log")
	_ = os.Remove(log)
	_ = conn.ResetFailedUnitContext(ctx, c.Unit)
	properties := []dbus.Property{
		dbus.PropDescription("hotspare: " + c.Argv[0]),
		dbus.PropSlice(c.Slice),
		dbus.PropExecStart(c.Argv, false),
		{Name: "Type", Value: godbus.MakeVariant(kind)},
		{Name: "DefaultDependencies", Value: godbus.MakeVariant(false)},
		{Name: "StandardOutputFile", Value: godbus.MakeVariant(log)},
		{Name: "StandardErrorFile", Value: godbus.MakeVariant(log)},
	}
	if err := job(ctx, func(done chan<- string) error {
		_, err := conn.StartTransientUnitContext(ctx, c.Unit, "replace", properties, done)
		return err
	}); err != nil {
		return fmt.Errorf("%s: %w%s", c.Argv[0], err, tail(log))
	}
	return nil
}

// tail gives the last words of a log.
func tail(path string) string {
	text, err := os.ReadFile(path)
	if err != nil || len(text) == 0 {
		return ""
	}
	if len(text) > 500 {
		text = text[len(text)-500:]
	}
	return ": " + string(bytes.TrimSpace(text))
}

// KillSwitch opens the cgroup.kill of the group's slice, which is started first
// so that it exists and stays. Writing "1" to it kills all of the group.
func (m *Manager) KillSwitch(ctx context.Context, slice string) (*os.File, error) {
	if err := m.Start(ctx, slice); err != nil {
		return nil, err
	}
	conn, err := m.connection(ctx)
	if err != nil {
		return nil, err
	}
	group, err := text(ctx, conn, slice, "Slice", "ControlGroup")
	if err != nil {
		return nil, fmt.Errorf("control group of %s: %w", slice, err)
	}
	f, err := os.OpenFile(filepath.Join("/sys/fs/cgroup", group, "cgroup.kill"), os.O_WRONLY, 0)
	if err != nil {
		return nil, fmt.Errorf("the slice of the service group cannot be killed at once (Linux 5.14 and cgroup v2 are needed): %w", err)
	}
	return f, nil
}

// CommandName gives the name of the transient unit of a resource's command.
func CommandName(app, resource, verb string) string {
	return "hotspare-" + escape(app) + "-" + escape(resource) + "-" + verb + ".service"
}
