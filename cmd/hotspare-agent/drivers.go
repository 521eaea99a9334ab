package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"hotspare/cmd/hotspare-agent/disk"
	"hotspare/cmd/hotspare-agent/group"
	"hotspare/cmd/hotspare-agent/units"
	"hotspare/haengine"
)

// drivers gives the driver of each kind of resource for one load.
func (a *agent) drivers(l *load) map[haengine.ResourceKind]group.Driver {
	return map[haengine.ResourceKind]group.Driver{
		haengine.ResourceMount:   mountDriver{l},
		haengine.ResourceAddress: addressDriver{a, l},
		haengine.ResourceSystemd: unitDriver{a, l},
		haengine.ResourceProcess: processDriver{l},
		haengine.ResourceScript:  &scriptDriver{l: l, last: map[string]time.Time{}},
		haengine.ResourceWitness: witnessDriver{a, l},
	}
}

// mountDriver mounts a volume of the application.
type mountDriver struct{ l *load }

// Online mounts, after formatting and checking as disk.Mount decides.
func (d mountDriver) Online(ctx context.Context, r haengine.Resource) error {
	v, ok := d.l.volume(r.Volume)
	if !ok {
		return fmt.Errorf("the claim has no volume %q", r.Volume)
	}
	device, err := d.l.device(r.Volume)
	if err != nil {
		return err
	}
	return disk.Mount(ctx, disk.Volume{
		Name: v.Name, Device: device, Format: v.Format, Target: targetPath(r.Target), Owner: r.Owner, Ro: v.ReadOnly,
	})
}

// Check looks for the mount, and for a file system that has given up writing.
func (d mountDriver) Check(_ context.Context, r haengine.Resource) (group.Health, error) {
	target := targetPath(r.Target)
	mounted, err := disk.Mounted(target)
	if err != nil {
		return group.Health{}, err
	}
	if !mounted {
		return group.Health{Why: "nothing is mounted at " + target}, nil
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(target, &fs); err != nil {
		return group.Health{}, err
	}
	if v, _ := d.l.volume(r.Volume); fs.Flags&unix.ST_RDONLY != 0 && !v.ReadOnly {
		return group.Health{Why: "the file system at " + target + " has become read-only after an error"}, nil
	}
	return group.Health{OK: true}, nil
}

// Offline unmounts.
func (d mountDriver) Offline(ctx context.Context, r haengine.Resource) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	return disk.Unmount(ctx, targetPath(r.Target))
}

// addressDriver holds the application's address.
type addressDriver struct {
	a *agent
	l *load
}

// Online probes, adds and announces the address.
func (d addressDriver) Online(ctx context.Context, _ haengine.Resource) error {
	return d.a.addresses.Add(ctx, d.l.app.Address)
}

// Check asks the kernel for the address.
func (d addressDriver) Check(context.Context, haengine.Resource) (group.Health, error) {
	has, err := d.a.addresses.Has(d.l.app.Address)
	return group.Health{OK: has, Why: "the address " + d.l.app.Address.String() + " is gone"}, err
}

// Offline removes the address.
func (d addressDriver) Offline(context.Context, haengine.Resource) error {
	return d.a.addresses.Remove(d.l.app.Address)
}

// unitDriver runs a unit of the image.
type unitDriver struct {
	a *agent
	l *load
}

// Online prepares, opens the gate and starts the unit.
func (d unitDriver) Online(ctx context.Context, r haengine.Resource) error {
	m, err := d.l.systemd(ctx)
	if err != nil {
		return err
	}
	if len(r.Prepare) > 0 {
		if err := d.a.timed(d.l, "prepare "+r.Name, func() error { return m.Run(ctx, d.l.command(r, "prepare", r.Prepare)) }); err != nil {
			return err
		}
	}
	if err := d.l.gate.Open(); err != nil {
		return fmt.Errorf("open the gate: %w", err)
	}
	return m.Start(ctx, r.Unit)
}

// Check asks systemd.
func (d unitDriver) Check(ctx context.Context, r haengine.Resource) (group.Health, error) {
	return d.l.unitHealth(ctx, r.Unit)
}

// Offline closes the gate and stops the unit.
func (d unitDriver) Offline(ctx context.Context, r haengine.Resource) error {
	return errors.Join(d.l.gate.Revoke(), d.l.stopUnit(ctx, r.Unit))
}

// stopUnit stops a unit; without a systemd nothing was started.
func (l *load) stopUnit(ctx context.Context, unit string) error {
	m, err := l.systemd(ctx)
	if err != nil {
		return err
	}
	return m.Stop(ctx, unit)
}

// run runs a command to its end.
func (l *load) run(ctx context.Context, c units.Command) error {
	m, err := l.systemd(ctx)
	if err != nil {
		return err
	}
	return m.Run(ctx, c)
}

func (l *load) unitHealth(ctx context.Context, unit string) (group.Health, error) {
	m, err := l.systemd(ctx)
	if err != nil {
		return group.Health{}, err
	}
	s, err := m.State(ctx, unit)
	if err != nil {
		return group.Health{}, err
	}
	h := group.Health{Restarts: s.Restarts, Why: fmt.Sprintf("unit %s is %s (%s, %s)", unit, s.Active, s.Sub, s.Result)}
	switch s.Active {
	case "active", "reloading":
		h.OK = true
	case "activating":
		h.Pending = true
	}
	return h, nil
}

// processDriver runs a command of the image as a unit of its own.
type processDriver struct{ l *load }

// Online launches the command.
func (d processDriver) Online(ctx context.Context, r haengine.Resource) error {
	m, err := d.l.systemd(ctx)
	if err != nil {
		return err
	}
	return m.Launch(ctx, d.l.command(r, "run", r.Command))
}

// Check asks systemd.
func (d processDriver) Check(ctx context.Context, r haengine.Resource) (group.Health, error) {
	return d.l.unitHealth(ctx, d.l.command(r, "run", nil).Unit)
}

// Offline stops it.
func (d processDriver) Offline(ctx context.Context, r haengine.Resource) error {
	return d.l.stopUnit(ctx, d.l.command(r, "run", nil).Unit)
}

// scriptEvery is the time between two runs of a script's check.
const scriptEvery = 5 * time.Second

// scriptDriver runs the operator's commands.
type scriptDriver struct {
	l *load

	mu   sync.Mutex
	last map[string]time.Time
}

// Online runs the online command.
func (d *scriptDriver) Online(ctx context.Context, r haengine.Resource) error {
	return d.l.run(ctx, d.l.command(r, "online", r.Online))
}

// Check runs the check command, every scriptEvery at most.
func (d *scriptDriver) Check(ctx context.Context, r haengine.Resource) (group.Health, error) {
	d.mu.Lock()
	due := time.Since(d.last[r.Name]) >= scriptEvery
	if due {
		d.last[r.Name] = time.Now()
	}
	d.mu.Unlock()
	if len(r.Check) == 0 || !due {
		return group.Health{OK: true}, nil
	}
	if err := d.l.run(ctx, d.l.command(r, "check", r.Check)); err != nil {
		return group.Health{Why: err.Error()}, nil
	}
	return group.Health{OK: true}, nil
}

// Offline runs the offline command.
func (d *scriptDriver) Offline(ctx context.Context, r haengine.Resource) error {
	if len(r.Offline) == 0 {
		return nil
	}
	return d.l.run(ctx, d.l.command(r, "offline", r.Offline))
}

// command names a command of a resource as a unit of the group.
func (l *load) command(r haengine.Resource, verb string, argv []string) units.Command {
	return units.Command{Unit: units.CommandName(l.app.Name, r.Name, verb), Slice: l.gate.Slice(), Argv: argv}
}

// witnessDriver writes the witness volume.
type witnessDriver struct {
	a *agent
	l *load
}

// Online opens the volume and starts writing.
func (d witnessDriver) Online(ctx context.Context, r haengine.Resource) error {
	device, err := d.l.device(r.Volume)
	if err != nil {
		return err
	}
	if err := d.Offline(ctx, r); err != nil {
		return err
	}
	w, err := disk.OpenWitness(ctx, device, d.a.link.Node(), d.a.facts.BootID, d.l.epoch)
	if err != nil {
		return err
	}
	if err := w.Start(ctx); err != nil {
		return errors.Join(err, w.Stop(ctx))
	}
	d.l.mu.Lock()
	d.l.witness = w
	d.l.mu.Unlock()
	return nil
}

// Check says whether it still writes.
func (d witnessDriver) Check(context.Context, haengine.Resource) (group.Health, error) {
	d.l.mu.Lock()
	w := d.l.witness
	d.l.mu.Unlock()
	if w == nil {
		return group.Health{Why: "the witness is not written"}, nil
	}
	if err := w.Err(); err != nil {
		return group.Health{Why: err.Error()}, nil
	}
	return group.Health{OK: true}, nil
}

// Offline ends the writing.
func (d witnessDriver) Offline(ctx context.Context, _ haengine.Resource) error {
	d.l.mu.Lock()
	w := d.l.witness
	d.l.witness = nil
	d.l.mu.Unlock()
	if w == nil {
		return nil
	}
	return w.Stop(ctx)
}
