package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"hotspare"
	"hotspare/ui/api"
	"hotspare/ui/api/client"
)

func volumeCommand(c *connection) *cobra.Command {
	cmd := &cobra.Command{Use: "volume", Short: "Work with volumes, also while they are in use"}
	cmd.AddCommand(
		volumeChange(c, "snapshot VOLUME NAME", "Keep the volume as it is now, as VOLUME@NAME", "a volume and a name", "as"),
		volumeChange(c, "clone VOLUME NEW", "Make a writable volume of a volume or snapshot", "a volume or snapshot, and the new volume's name", "as"),
		volumeChange(c, "resize VOLUME SIZE", "Let a volume grow, e.g. to 20Gi; it never shrinks", "a volume and a size", "sizeBytes"),
		volumeDeleteCommand(c), volumeExportCommand(c), volumeCopyCommand(c),
	)
	return cmd
}

func volumePath(name, verb string) string {
	return "/api/v1/volumes/" + url.PathEscape(name) + "/actions/" + verb
}

// volumeChange makes the command of what takes no time; its second argument goes
// into the field of the request.
func volumeChange(c *connection, use, short, takes, field string) *cobra.Command {
	verb, _, _ := strings.Cut(use, " ")
	return &cobra.Command{
		Use: use, Short: short, Args: wants(2, 2, takes),
		RunE: func(cmd *cobra.Command, args []string) error {
			var value any = args[1]
			if field == "sizeBytes" {
				n, err := bytesOf(args[1])
				if err != nil {
					return &usageError{cmd.CommandPath(), err}
				}
				value = n
			}
			return c.with(func(cl *client.Client) error {
				var out api.Accepted
				if err := cl.Post(cmd.Context(), volumePath(args[0], verb), map[string]any{field: value}, &out); err != nil {
					return err
				}
				fmt.Fprintln(cmd.OutOrStdout(), out.Text)
				return nil
			})
		},
	}
}

func volumeDeleteCommand(c *connection) *cobra.Command {
	return &cobra.Command{
		Use: "delete VOLUME", Short: "Delete a snapshot or a clone", Args: wants(1, 1, "a volume"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.with(func(cl *client.Client) error {
				return cl.Delete(cmd.Context(), "/api/v1/volumes/"+url.PathEscape(args[0]))
			})
		},
	}
}

func volumeExportCommand(c *connection) *cobra.Command {
	var format, file string
	var t taskFlags
	cmd := &cobra.Command{
		Use:   "export VOLUME --format raw|qcow2 -f FILE",
		Short: "Write what a volume or snapshot holds as a file",
		Long: `Write what a volume or snapshot holds as a disk image. A volume in use is
exported as it is at the beginning. The appliance writes the file; it appears when
it is whole, and never replaces another. With --server, FILE is a name in the
appliance's own folder of exports.`,
		Example: "  hotspare volume export orders.data --format qcow2 -f /srv/backup/orders.qcow2",
		Args:    wants(1, 1, "a volume"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if file == "" {
				return &usageError{cmd.CommandPath(), errors.New("export needs -f FILE")}
			}
			path, err := c.place(file)
			if err != nil {
				return err
			}
			return t.begin(cmd, c, volumePath(args[0], "export"), map[string]any{"file": path, "format": format})
		},
	}
	cmd.Flags().StringVar(&format, "format", "raw", "raw (sparse) or qcow2")
	cmd.Flags().StringVarP(&file, "filename", "f", "", "file to write")
	t.flags(cmd)
	return cmd
}

func volumeCopyCommand(c *connection) *cobra.Command {
	var to, from, as string
	var t taskFlags
	cmd := &cobra.Command{
		Use:   "copy VOLUME --to DIR | --from DIR",
		Short: "Copy a volume or snapshot to another folder, or from one",
		Long: `Copy a volume or snapshot to the volume store in another folder, which is made
when it is missing; or copy one from there into a new volume. A volume in use is
copied as it is at the beginning. hotspare storage check --store DIR proves a copy.`,
		Example: "  hotspare volume copy orders.data@monday --to /srv/backup\n  hotspare volume copy orders.data@monday --from /srv/backup --as orders-monday",
		Args:    wants(1, 1, "a volume"),
		RunE: func(cmd *cobra.Command, args []string) error {
			body := map[string]any{}
			for k, v := range map[string]string{"to": to, "from": from} {
				if v == "" {
					continue
				}
				path, err := c.place(v)
				if err != nil {
					return err
				}
				body[k] = path
			}
			if len(body) != 1 {
				return &usageError{cmd.CommandPath(), errors.New("copy needs either --to DIR or --from DIR")}
			}
			if from != "" && as == "" {
				return &usageError{cmd.CommandPath(), errors.New("copy --from needs --as NAME: the new volume")}
			}
			if as != "" {
				body["as"] = as
			}
			return t.begin(cmd, c, volumePath(args[0], "copy"), body)
		},
	}
	cmd.Flags().StringVar(&to, "to", "", "folder of the other store")
	cmd.Flags().StringVar(&from, "from", "", "folder of the store that has the volume")
	cmd.Flags().StringVar(&as, "as", "", "name of the copy; default with --to: the same")
	t.flags(cmd)
	return cmd
}

// place gives a path as the appliance sees it: absolute on this machine, as it is
// for another one, which takes plain names only.
func (c *connection) place(path string) (string, error) {
	if c.server != "" {
		return path, nil
	}
	return filepath.Abs(path)
}

// taskFlags are those of commands that begin a task.
type taskFlags struct {
	rate   string
	noWait bool
	format string
}

func (t *taskFlags) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&t.rate, "rate", "", "at most this much per second, e.g. 50Mi")
	cmd.Flags().BoolVar(&t.noWait, "no-wait", false, "print the task's id and go: hotspare tasks shows it")
	outputFlag(cmd, &t.format)
}

// begin begins a task and follows it to its end. An interrupt aborts it.
func (t *taskFlags) begin(cmd *cobra.Command, c *connection, path string, body map[string]any) error {
	if t.rate != "" {
		n, err := bytesOf(t.rate)
		if err != nil {
			return &usageError{cmd.CommandPath(), err}
		}
		body["bytesPerSecond"] = n
	}
	return c.with(func(cl *client.Client) error {
		var task api.Task
		if err := cl.Post(cmd.Context(), path, body, &task); err != nil {
			return err
		}
		if t.noWait {
			fmt.Fprintln(cmd.OutOrStdout(), task.ID)
			return nil
		}
		task, err := follow(cmd, cl, task)
		if err != nil {
			return err
		}
		if t.format == "json" || t.format == "yaml" {
			err = encode(cmd.OutOrStdout(), t.format, task)
		} else {
			for _, f := range task.Findings {
				fmt.Fprintln(cmd.OutOrStdout(), f)
			}
			if task.State == "done" {
				fmt.Fprintln(cmd.OutOrStdout(), task.Text)
			}
		}
		return errors.Join(err, outcome(task))
	})
}

// outcome says why a task that ended is no success.
func outcome(t api.Task) error {
	switch {
	case t.Problem != nil:
		return t.Problem
	case t.State == "aborted":
		return &hotspare.Error{Code: hotspare.CodeUnavailable, What: "the task was ended", Where: t.ID, Why: t.Text, Fix: "begin it again"}
	case len(t.Findings) > 0:
		return &hotspare.Error{
			Code: hotspare.CodeCorrupt, What: fmt.Sprintf("the scrub found %d faults", len(t.Findings)), Where: t.ID,
			Why: t.Findings[0], Fix: "check the disk; restore the stopped volumes from a checkpoint",
		}
	}
	return nil
}

// follow waits for the end of a task and shows its progress on a terminal.
func follow(cmd *cobra.Command, cl *client.Client, t api.Task) (api.Task, error) {
	show := newProgress(cmd.ErrOrStderr())
	defer show.clear()
	for t.Ended == nil {
		show.line(t)
		path := "/api/v1/tasks/" + t.ID
		err := cl.Get(cmd.Context(), path+"?after="+strconv.FormatUint(t.Revision, 10), &t)
		if err != nil && cmd.Context().Err() != nil {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(cmd.Context()), 15*time.Second)
			defer cancel()
			if aerr := cl.Delete(ctx, path); aerr != nil {
				return t, errors.Join(err, fmt.Errorf("abort task %s: %w", t.ID, aerr))
			}
			return t, err
		}
		if err != nil {
			return t, err
		}
	}
	return t, nil
}

// bytesOf reads a number of bytes as resource documents write it: 512, 64Ki, 20Gi.
func bytesOf(s string) (int64, error) {
	n, unit := s, int64(1)
	for u, of := range map[string]int64{"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40} {
		if rest, ok := strings.CutSuffix(s, u); ok {
			n, unit = rest, of
		}
	}
	v, err := strconv.ParseInt(n, 10, 64)
	if err != nil || v <= 0 || v > (1<<62)/unit {
		return 0, fmt.Errorf("%q is no size: write it as 512, 64Ki, 100Mi or 20Gi", s)
	}
	return v * unit, nil
}

func tasksCommand(c *connection) *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use: "tasks", Short: "Show what takes its time: exports, copies, scrubs", Args: wants(0, 0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.with(func(cl *client.Client) error {
				var raw json.RawMessage
				if err := cl.Get(cmd.Context(), "/api/v1/tasks", &raw); err != nil {
					return err
				}
				return typed(cmd.OutOrStdout(), format, raw, taskRows, func(t api.Task) string { return "task/" + t.ID })
			})
		},
	}
	outputFlag(cmd, &format)
	cmd.AddCommand(&cobra.Command{
		Use: "abort ID", Short: "End a task; what it made so far is removed", Args: wants(1, 1, "a task's id"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.with(func(cl *client.Client) error {
				return cl.Delete(cmd.Context(), "/api/v1/tasks/"+url.PathEscape(args[0]))
			})
		},
	})
	return cmd
}

func taskRows(t *table, all []api.Task) {
	t.row("ID", "KIND", "VOLUME", "STATE", "DONE", "OF", "BEGUN", "TEXT")
	for _, x := range all {
		of := ""
		if x.Total > 0 {
			of = size(x.Total)
		}
		t.row(x.ID, x.Kind, x.Volume, x.State, size(x.Done), of, x.Begun.Format(time.RFC3339), x.Text)
	}
}
