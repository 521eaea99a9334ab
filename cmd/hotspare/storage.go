package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"hotspare"
	"hotspare/storage/cow"
	"hotspare/ui/api"
	"hotspare/ui/api/client"
)

func storageCommand(c *connection) *cobra.Command {
	cmd := &cobra.Command{Use: "storage", Short: "Look after the volume store"}
	cmd.AddCommand(storageCheckCommand(c), storageScrubCommand(c))
	return cmd
}

func storageScrubCommand(c *connection) *cobra.Command {
	var t taskFlags
	cmd := &cobra.Command{
		Use:   "scrub [VOLUME]",
		Short: "Read a volume, or all, and compare them with their checksums",
		Long: `Read a volume, or all of them, and compare the data with its checksums, while
it is in use. A volume with a block that differs is stopped and named; the others
go on. The appliance does this by itself too, every week by default.`,
		Args: wants(0, 1, "a volume, or nothing for all"),
		RunE: func(cmd *cobra.Command, args []string) error {
			path := "/api/v1/storage/actions/scrub"
			if len(args) == 1 {
				path = volumePath(args[0], "scrub")
			}
			return t.begin(cmd, c, path, map[string]any{})
		},
	}
	t.flags(cmd)
	return cmd
}

func storageCheckCommand(c *connection) *cobra.Command {
	var state, store, format string
	cmd := &cobra.Command{
		Use:   "check [--state DIR | --store DIR]",
		Short: "Prove that the volume store is sound",
		Long: `With --state or --store, while no appliance has the store open: read all of it,
compare all data with its checksums, and account for every slot: nothing is used
twice, nothing has leaked. What a killed process left is repaired first, as at any
start.

Without them, ask the running appliance: which volumes are stopped, and what the
last scrub found. hotspare storage scrub reads everything now.`,
		Example: "  hotspare storage check --state /var/lib/hotspare\n  hotspare storage check --store /srv/backup",
		Args:    wants(0, 0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case state != "" && store != "":
				return &usageError{cmd.CommandPath(), errors.New("give --state or --store, not both")}
			case state != "":
				store = filepath.Join(state, "volumes")
			case store == "":
				return c.with(func(cl *client.Client) error { return checkOnline(cmd, cl, format) })
			}
			return checkOffline(cmd.Context(), cmd.OutOrStdout(), store, format)
		},
	}
	cmd.Flags().StringVar(&state, "state", "", "state folder of a stopped appliance, e.g. /var/lib/hotspare")
	cmd.Flags().StringVar(&store, "store", "", "folder of a volume store, e.g. of a copy")
	outputFlag(cmd, &format)
	return cmd
}

func checkOffline(ctx context.Context, out io.Writer, dir, format string) error {
	if _, err := os.Stat(filepath.Join(dir, "super")); err != nil { // opening would make an empty store
		return &hotspare.Error{Code: hotspare.CodeNotFound, What: "there is no volume store", Where: dir, Err: err, Fix: "give the folder that holds the file `super`"}
	}
	s, err := cow.Open(ctx, dir, cow.Options{})
	if err != nil {
		if hotspare.CodeOf(err) == hotspare.CodeStoreLocked {
			return &hotspare.Error{
				Code: hotspare.CodeStoreLocked, What: "the volume store is in use", Where: dir, Why: "another process has it open", Err: err,
				Fix: "stop the appliance first, or ask it: hotspare storage check without a folder, hotspare storage scrub",
			}
		}
		return err
	}
	defer s.Close()
	r, err := s.Check(ctx)
	if err != nil {
		return err
	}
	if format == "json" || format == "yaml" {
		if err := encode(out, format, r); err != nil {
			return err
		}
	} else {
		w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
		for _, row := range [][2]string{
			{"volumes", strconv.Itoa(r.Volumes)}, {"maps", fmt.Sprintf("%d nodes", r.Nodes)}, {"in use", fmt.Sprintf("%d slots of 64 KiB", r.Slots)},
			{"compared", size(r.Blocks * 4096)}, {"to be reclaimed", fmt.Sprintf("%d slots", r.Orphans)}, {"leaked", fmt.Sprintf("%d slots", r.Leaked)},
		} {
			fmt.Fprintf(w, "%s\t%s\n", row[0], row[1])
		}
		if err := w.Flush(); err != nil {
			return err
		}
		for _, p := range r.Problems {
			fmt.Fprintln(out, p)
		}
	}
	if !r.OK() {
		return &hotspare.Error{
			Code: hotspare.CodeCorrupt, What: "the volume store is not sound", Where: dir,
			Why: fmt.Sprintf("%d problems, %d leaked slots", len(r.Problems), r.Leaked), Fix: "check the disk; restore what is named above from a copy",
		}
	}
	if format == "" || format == "wide" {
		fmt.Fprintln(out, "sound")
	}
	return nil
}

func checkOnline(cmd *cobra.Command, cl *client.Client, format string) error {
	var s api.Storage
	if err := cl.Get(cmd.Context(), "/api/v1/storage", &s); err != nil {
		return err
	}
	out := cmd.OutOrStdout()
	if format == "json" || format == "yaml" {
		if err := encode(out, format, s); err != nil {
			return err
		}
	} else if err := storageRows(out, s); err != nil {
		return err
	}
	for _, x := range s.Stopped {
		if x.Why == nil {
			continue
		}
		return &hotspare.Error{
			Code: x.Why.Code, What: fmt.Sprintf("%d volumes are stopped", len(s.Stopped)), Where: "volume " + x.Volume, Why: x.Why.Why, Fix: x.Why.Fix,
		}
	}
	if s.Scrub.Last != nil && !s.Scrub.OK {
		return &hotspare.Error{
			Code: hotspare.CodeCorrupt, What: "the last scrub found faults", Where: s.Folder, Why: first(s.Scrub.Findings),
			Fix: "check the disk, restore what is bad, then hotspare storage scrub",
		}
	}
	return nil
}

func first(s []string) string {
	if len(s) == 0 {
		return ""
	}
	return s[0]
}

func storageRows(out io.Writer, s api.Storage) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	row := func(name, text string) { fmt.Fprintf(w, "%s\t%s\n", name, text) }
	row("folder", s.Folder)
	row("free", fmt.Sprintf("%s of %s", size(s.FreeBytes), size(s.TotalBytes)))
	row("volumes", fmt.Sprintf("%d, and %d snapshots", s.Volumes, s.Snapshots))
	row("reclaimed", fmt.Sprintf("%s since the start, %s/s now, about %s wait", size(s.Reclaim.FreedBytes), size(int64(s.Reclaim.PerSecond)), size(s.Reclaim.WaitingBytes)))
	row("stopped", strconv.Itoa(len(s.Stopped)))
	last := "never"
	if l := s.Scrub.Last; l != nil {
		last = fmt.Sprintf("%s, %s read, %d faults", l.Format(time.RFC3339), size(s.Scrub.Bytes), len(s.Scrub.Findings))
	}
	row("last scrub", last)
	next := "by hand only"
	switch {
	case s.Scrub.Running:
		next = "runs now"
	case s.Scrub.Next != nil:
		next = s.Scrub.Next.Format(time.RFC3339)
	}
	row("next scrub", next)
	if err := w.Flush(); err != nil {
		return err
	}
	for _, x := range s.Stopped {
		fmt.Fprintf(out, "stopped: %s\n", x.Volume)
	}
	for _, f := range s.Scrub.Findings {
		fmt.Fprintln(out, f)
	}
	return nil
}
