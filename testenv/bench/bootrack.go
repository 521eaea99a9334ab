package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"hotspare/testenv/debian"
	"hotspare/testenv/images"
	"hotspare/testenv/lab"
	"hotspare/testenv/lab/site"
	"hotspare/ui/api"
)

// rack is a lab with the real appliance, for figures of machines.
type rack struct {
	lab  *lab.Lab
	site *site.Site
	bin  string
	dir  string // of what the run makes
	undo lab.Teardown
}

// rackPatience bounds each wait for the appliance and its machines: nothing that is
// measured comes near.
const rackPatience = 6 * time.Minute

// startRack makes a lab and starts the appliance in it.
func startRack(ctx context.Context, o options, name string, opts lab.Options) (_ *rack, err error) {
	r := &rack{bin: filepath.Dir(o.lab), dir: filepath.Join(o.work, name)}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.down())
		}
	}()
	if r.bin, err = filepath.Abs(r.bin); err != nil {
		return r, err
	}
	if err := os.MkdirAll(r.dir, 0o755); err != nil {
		return r, err
	}
	opts.Name, opts.Daemon = "bench", []string{filepath.Join(r.bin, "hotspare-lab"), "serve"}
	// Paths of sockets are short, and the consoles stay when something failed.
	if opts.Dir, err = filepath.Abs(filepath.Join("out", "bench", "lab")); err != nil {
		return r, err
	}
	if r.lab, err = lab.Up(ctx, opts); err != nil {
		return r, err
	}
	r.undo.Add("lab", r.lab.Down)
	if r.site, err = site.New(site.Options{Lab: r.lab, Bin: r.bin, State: filepath.Join(r.dir, "state")}); err != nil {
		return r, err
	}
	return r, r.site.Start(ctx)
}

func (r *rack) down() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	return r.undo.Run(ctx)
}

// apply applies documents.
func (r *rack) apply(ctx context.Context, text string) error {
	file := filepath.Join(r.dir, "apply.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		return err
	}
	_, err := r.site.Hotspare(ctx, "apply", "-f", file)
	return err
}

// takeImage imports a raw disk.
func (r *rack) takeImage(ctx context.Context, name, disk string) error {
	_, err := r.site.Hotspare(ctx, "image", "import", name, "--file", disk, "--format", "raw")
	return err
}

// until waits for a state of the appliance.
func (r *rack) until(ctx context.Context, what string, want func(api.Snapshot) bool) (api.Snapshot, error) {
	ctx, cancel := context.WithTimeout(ctx, rackPatience)
	defer cancel()
	return r.site.Until(ctx, what, want)
}

// parked waits until a node is in standby with all that it is to hold ready.
func (r *rack) parked(ctx context.Context, node string) error {
	_, err := r.until(ctx, node+" in standby", func(s api.Snapshot) bool {
		for _, n := range s.Nodes {
			if x := n.Status.Standby; n.Name == node && n.Status.Phase == "idle" && x != nil && x.State == api.StandbyParked && len(x.Loaded) > 0 {
				return true
			}
		}
		return false
	})
	return err
}

// off waits until a node is idle and off.
func (r *rack) off(ctx context.Context, node string) error {
	_, err := r.until(ctx, node+" idle and off", func(s api.Snapshot) bool {
		for _, n := range s.Nodes {
			if n.Name == node && n.Status.Phase == "idle" && n.Status.Standby == nil && n.Status.Power == "off" {
				return true
			}
		}
		return false
	})
	return err
}

// gone deletes an application and waits until it is no more and every node is
// free.
func (r *rack) gone(ctx context.Context, app string) error {
	if _, err := r.site.Hotspare(ctx, "delete", "application", app); err != nil {
		return err
	}
	_, err := r.until(ctx, app+" to be gone", func(s api.Snapshot) bool {
		_, there := site.Application(s, app)
		for _, n := range s.Nodes {
			there = there || n.Status.Phase != "idle"
		}
		return !there
	})
	return err
}

// started waits until an application runs and gives the record of its start.
func (r *rack) started(ctx context.Context, app string) (api.Failover, error) {
	var record api.Failover
	_, err := r.until(ctx, app+" to run", func(s api.Snapshot) bool {
		a, ok := site.Application(s, app)
		if !ok || a.Status.Phase != "running" {
			return false
		}
		for _, f := range s.Failovers {
			if f.Application == app && f.Epoch == a.Status.Epoch && f.EndedAt != nil {
				record = f
				return true
			}
		}
		return false
	})
	return record, err
}

// document is a node of the lab with its pool.
func nodeDocument(n lab.NodeSpec) string {
	return fmt.Sprintf(`kind: node
name: %s
uuid: %s
macs: [%q]
pool: rack1
arch: amd64
cpus: 1
memoryMiB: 512
approved: true
bmc: {protocol: ipmi, address: %s, user: %s, password: %s}
`, n.Name, n.UUID, n.MAC, n.BMCAddr, n.BMCUser, n.BMCPassword)
}

// tree holds what a kernel of an image brings: boot/ and lib/modules/.
func kernelOf(ctx context.Context, img images.Image, to string) (debian.Kernel, error) {
	for _, dir := range []struct{ from, to string }{{"/boot", ""}, {"/usr/lib/modules", "lib"}} {
		into := filepath.Join(to, dir.to)
		if err := os.MkdirAll(into, 0o755); err != nil {
			return debian.Kernel{}, err
		}
		// debugfs(8) says by its words alone what went wrong.
		out, err := exec.CommandContext(ctx, "debugfs", "-R", fmt.Sprintf("rdump %s %s", dir.from, into), img.Disk).CombinedOutput()
		if err != nil {
			return debian.Kernel{}, fmt.Errorf("debugfs: %w: %s", err, out)
		}
	}
	return debian.OpenKernel(to)
}

// ordersImage builds the demo's image of PostgreSQL, or finds it in the cache.
func ordersImage(ctx context.Context) (images.Image, error) {
	b, err := images.New(images.Options{CacheDir: filepath.Join("out", "cache", "images")})
	if err != nil {
		return images.Image{}, err
	}
	return b.Build(ctx, "orders")
}
