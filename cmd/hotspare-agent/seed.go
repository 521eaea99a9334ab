package main

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"hotspare"
	"hotspare/cmd/hotspare-agent/units"
)

// Where cloud-init looks, and what it says. ds-identify knows this one folder
// without any configuration; the flag is written by cloud-init's generator, before
// systemd starts anything, and the result at the end of its last stage.
const (
	seedDir        = "var/lib/cloud/seed/nocloud"
	cloudInitFlag  = "/run/cloud-init/enabled"
	cloudInitEnded = "/run/cloud-init/result.json"
)

// placeSeed puts the seed where cloud-init finds it. It lies in memory, over what
// the image may hold there: it is gone with this boot, and no copy of it stays on a
// local disk from which the image is started again.
func placeSeed(root string, seed map[string]hotspare.Secret) error {
	if len(seed) == 0 {
		return nil
	}
	inside, err := os.OpenRoot(root)
	if err != nil {
		return err
	}
	defer inside.Close()
	// A link in the image must not lead the mount out of it.
	if err := inside.MkdirAll(seedDir, 0o755); err != nil {
		return fmt.Errorf("make /%s in the image: %w", seedDir, err)
	}
	dir, err := inside.Open(seedDir)
	if err != nil {
		return fmt.Errorf("open /%s in the image: %w", seedDir, err)
	}
	defer dir.Close()
	if err := unix.Mount("tmpfs", fmt.Sprintf("/proc/self/fd/%d", dir.Fd()), "tmpfs", unix.MS_NODEV|unix.MS_NOSUID|unix.MS_NOEXEC, "mode=0700,size=2m"); err != nil {
		return fmt.Errorf("memory for cloud-init's data: %w", err)
	}
	for _, name := range slices.Sorted(maps.Keys(seed)) {
		if err := inside.WriteFile(filepath.Join(seedDir, name), []byte(seed[name].Reveal()), 0o600); err != nil {
			return fmt.Errorf("write cloud-init's %s: %w", name, err)
		}
	}
	return nil
}

// awaitCloudInit waits until the image's cloud-init has done what the seed says, so
// that no member of the service group runs without it. Where a module of it failed,
// cloud-init itself goes on, and so does this: whether the application works is for
// its checks to say.
func (a *agent) awaitCloudInit(ctx context.Context, l *load) error {
	if len(l.claim.Seed) == 0 {
		return nil
	}
	return a.timed(l, "cloud-init", func() error {
		if _, err := os.Lstat(cloudInitFlag); err != nil {
			return &hotspare.Error{
				Code: hotspare.CodeOnlineFailed, What: "the image does not run cloud-init", Where: l.app.Name, Err: err,
				Why: "it is not installed, it is disabled, or its datasource_list lacks NoCloud",
				Fix: "install cloud-init in the image and see its /run/cloud-init/ds-identify.log, or take cloudInit out of the documents",
			}
		}
		if err := units.WaitFor(ctx, cloudInitEnded); err != nil {
			return fmt.Errorf("cloud-init does not end: %w", err)
		}
		text, err := os.ReadFile(cloudInitEnded)
		if err != nil {
			return err
		}
		failed, err := cloudInitResult(text)
		if failed > 0 {
			a.out.say("cloud-init: %d modules failed; /var/log/cloud-init.log of this node says why", failed)
		}
		return err
	})
}

// cloudInitResult reads result.json and counts what failed. The texts of the
// failures are not passed on: they may hold what the user data holds.
func cloudInitResult(text []byte) (failed int, err error) {
	var result struct {
		V1 struct {
			Datasource string            `json:"datasource"`
			Errors     []json.RawMessage `json:"errors"`
		} `json:"v1"`
	}
	if err := json.Unmarshal(text, &result); err != nil {
		return 0, fmt.Errorf("%s: %w", cloudInitEnded, err)
	}
	if !strings.Contains(result.V1.Datasource, "NoCloud") {
		return 0, &hotspare.Error{
			Code: hotspare.CodeOnlineFailed, What: "cloud-init took its data from elsewhere", Where: fmt.Sprintf("%.80q", result.V1.Datasource),
			Fix: "let NoCloud stand first in the image's datasource_list",
		}
	}
	return len(result.V1.Errors), nil
}
