package main

import (
	"context"
	"path/filepath"

	"hotspare"
	"hotspare/cmd/hotspare-agent/disk"
	"hotspare/cmd/hotspare-agent/pid1"
	"hotspare/cmd/hotspare-agent/process"
	"hotspare/cmd/hotspare-agent/units"
)

const cgroupRoot = "/sys/fs/cgroup"

// beInit does for an image that is one process what its init would do: the agent
// runs the service group's commands itself.
func (a *agent) beInit(l *load) {
	var runner *process.Runner
	err := a.timed(l, "be init", func() (err error) {
		if err := process.MountImage(); err != nil {
			return err
		}
		runner, err = process.New(process.Options{
			Group: filepath.Join(cgroupRoot, "hotspare-"+l.app.Name), Logs: pid1.RunDir, Start: disk.StartPlain,
			Words: func(name, line string) { a.out.say("%s: %s", name, line) },
		})
		return err
	})
	l.mu.Lock()
	defer l.mu.Unlock()
	defer close(l.met)
	if l.managerErr = err; err != nil {
		return
	}
	l.manager = processes{runner}
	l.kill, l.managerErr = runner.KillSwitch()
}

// processes is services without a systemd.
type processes struct{ *process.Runner }

// Run runs a command to its end.
func (p processes) Run(ctx context.Context, c units.Command) error {
	return p.Runner.Run(ctx, c.Unit, c.Argv)
}

// Launch starts a command that goes on.
func (p processes) Launch(ctx context.Context, c units.Command) error {
	return p.Runner.Launch(ctx, c.Unit, c.Argv)
}

// Start refuses: units are systemd's.
func (p processes) Start(_ context.Context, unit string) error {
	return &hotspare.Error{
		Code: hotspare.CodeInvalid, What: "the image is one process and has no systemd that could start a unit", Where: unit,
		Fix: "give the resource the kind process and a command",
	}
}

// State says whether a command still runs.
func (p processes) State(_ context.Context, name string) (units.State, error) {
	running, why := p.Runner.State(name)
	if running {
		return units.State{Active: "active", Sub: "running"}, nil
	}
	return units.State{Active: "failed", Sub: "dead", Result: why}, nil
}
