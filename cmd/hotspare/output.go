package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/spf13/cobra"

	"hotspare/boot"
	"hotspare/ui/api"
)

func outputFlag(cmd *cobra.Command, format *string) {
	cmd.Flags().StringVarP(format, "output", "o", "", "json, yaml, wide or name; default: a table")
}

// table writes aligned columns.
type table struct {
	w    *tabwriter.Writer
	wide bool
}

func (t *table) row(cells ...string) {
	for i, c := range cells {
		if c = brief(c); c == "" {
			c = "-"
		}
		cells[i] = c
	}
	fmt.Fprintln(t.w, strings.Join(cells, "\t"))
}

// brief gives the first line of a text, at most 120 characters of it. The whole
// stands in -o json and in describe.
func brief(s string) string {
	s, _, more := strings.Cut(s, "\n")
	if r := []rune(s); len(r) > 120 {
		s, more = string(r[:117]), true
	}
	if more {
		s += "..."
	}
	return boot.Plain(s)
}

// show prints v in the wanted format: as it is (json, yaml), by name, or as the
// table that rows draws.
func show[T any](out io.Writer, format string, v []T, rows func(*table), name func(T) string) error {
	switch format {
	case "json", "yaml":
		return encode(out, format, v)
	case "name":
		for _, x := range v {
			if _, err := fmt.Fprintln(out, name(x)); err != nil {
				return err
			}
		}
		return nil
	case "", "wide":
		t := &table{w: tabwriter.NewWriter(out, 0, 0, 2, ' ', 0), wide: format == "wide"}
		rows(t)
		return t.w.Flush()
	}
	return &usageError{"hotspare get", fmt.Errorf("unknown output %q: use json, yaml, wide or name", format)}
}

func encode(out io.Writer, format string, v any) error {
	if format == "yaml" {
		// By way of JSON, whose field names and numbers are the API's.
		b, err := json.Marshal(v)
		if err == nil {
			b, err = yaml.JSONToYAML(b)
		}
		if err != nil {
			return fmt.Errorf("encode: %w", err)
		}
		_, err = out.Write(b)
		return err
	}
	e := json.NewEncoder(out)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// listing prints the list of one kind as the API sent it.
func listing(out io.Writer, kind, format string, raw json.RawMessage) error {
	switch kind {
	case "nodes":
		return typed(out, format, raw, nodeRows, func(n api.Node) string { return "node/" + n.Name })
	case "pools":
		return typed(out, format, raw, poolRows, func(p api.Pool) string { return "pool/" + p.Name })
	case "images":
		return typed(out, format, raw, imageRows, func(i api.Image) string { return "image/" + i.Name + ":" + i.Version })
	case "volumes":
		return typed(out, format, raw, volumeRows, func(v api.Volume) string { return "volume/" + v.Name })
	case "applications":
		return typed(out, format, raw, applicationRows, func(a api.Application) string { return "application/" + a.Name })
	case "machines":
		return typed(out, format, raw, machineRows, func(m api.Machine) string { return "machine/" + m.ID })
	case "links":
		return typed(out, format, raw, linkRows, func(l api.Link) string { return "link/" + l.Interface })
	case "boots":
		return typed(out, format, raw, bootRows, func(l boot.Ladder) string { return "boot/" + l.MAC.String() })
	}
	return typed(out, format, raw, failoverRows, func(f api.Failover) string { return "failover/" + f.ID })
}

func typed[T any](out io.Writer, format string, raw json.RawMessage, rows func(*table, []T), name func(T) string) error {
	if format == "json" || format == "yaml" {
		return encode(out, format, raw)
	}
	var v []T
	if err := json.Unmarshal(raw, &v); err != nil {
		return fmt.Errorf("answer: %w", err)
	}
	return show(out, format, v, func(t *table) { rows(t, v) }, name)
}

func nodeRows(t *table, nodes []api.Node) {
	head := []string{"NAME", "POOL", "STATE", "POWER", "APP", "EPOCH", "ADDRESS", "SEEN"}
	if t.wide {
		head = append(head, "MAC", "BMC", "CPUS", "MEMORY", "WHY")
	}
	t.row(head...)
	for _, n := range nodes {
		s := n.Status
		cells := []string{n.Name, n.Pool, nodeState(s), s.Power, s.Application, number(s.Epoch), address(s.Address.IsValid(), s.Address.String()), ago(s.LastSeen)}
		if t.wide {
			cells = append(cells, strings.Join(n.MACs, ","), n.BMC.Address.String(), strconv.Itoa(n.CPUs), strconv.Itoa(n.MemoryMiB)+"Mi", s.Reason)
		}
		t.row(cells...)
	}
}

func poolRows(t *table, pools []api.Pool) {
	t.row("NAME", "NODES", "IDLE")
	for _, p := range pools {
		t.row(p.Name, strconv.Itoa(p.Nodes), strconv.Itoa(p.Idle))
	}
}

func imageRows(t *table, images []api.Image) {
	head := []string{"NAME", "VERSION", "OS", "KERNEL", "SIZE", "ARCH", "TESTED"}
	if t.wide {
		head = append(head, "DIGEST", "CREATED")
	}
	t.row(head...)
	for _, i := range images {
		tested := "-"
		if i.Tested != nil {
			if tested = "failed"; i.Tested.OK {
				tested = "ok"
			}
			tested += " " + i.Tested.At.Local().Format(time.DateOnly)
		}
		cells := []string{i.Name, i.Version, i.OS, i.Kernel, size(i.SizeBytes), i.Arch, tested}
		if t.wide {
			cells = append(cells, i.Digest, i.Created.Format(time.RFC3339))
		}
		t.row(cells...)
	}
}

func volumeRows(t *table, volumes []api.Volume) {
	head := []string{"NAME", "SIZE", "USED", "STATE", "GRANT", "EPOCH", "SESSIONS", "LAST WRITE"}
	if t.wide {
		head = append(head, "READS/S", "WRITES/S", "QUEUE", "WRITE P99", "LAST FLUSH", "PARENT", "TARGET")
	}
	t.row(head...)
	for _, v := range volumes {
		cells := []string{v.Name, size(v.SizeBytes), size(v.Allocated), volumeState(v), v.GrantNode, number(v.Epoch), strconv.Itoa(len(v.Sessions)), ago(v.LastWrite)}
		if t.wide {
			a := v.Activity
			if a == nil {
				a = &api.VolumeStats{}
			}
			p99 := time.Duration(a.Write.P99Micros * float64(time.Microsecond)).Round(time.Microsecond)
			cells = append(cells, fmt.Sprintf("%.0f", a.Read.PerSecond), fmt.Sprintf("%.0f", a.Write.PerSecond), fmt.Sprintf("%.1f", a.Queue),
				p99.String(), ago(v.LastFlush), v.Parent, v.Target)
		}
		t.row(cells...)
	}
}

func volumeState(v api.Volume) string {
	switch {
	case v.Stopped != nil:
		return "stopped"
	case v.Snapshot:
		return "snapshot"
	case v.ReadOnly:
		return "sealed"
	}
	return "ok"
}

func applicationRows(t *table, apps []api.Application) {
	head := []string{"NAME", "STATE", "NODE", "EPOCH", "ADDRESS", "WAY", "SINCE"}
	if t.wide {
		head = append(head, "IMAGE", "EVIDENCE", "WHY")
	}
	t.row(head...)
	for _, a := range apps {
		s := a.Status
		cells := []string{a.Name, s.Phase, s.Node, number(s.Epoch), a.Address.String(), s.Way, ago(s.Since)}
		if t.wide {
			cells = append(cells, a.Image, s.Evidence, s.Reason)
		}
		t.row(cells...)
	}
}

func failoverRows(t *table, all []api.Failover) {
	head := []string{"ID", "APP", "FROM", "TO", "OUTCOME", "SECONDS", "STARTED"}
	if t.wide {
		head = append(head, "EPOCH", "WAY", "EVIDENCE", "CAUSE")
	}
	t.row(head...)
	for _, f := range all {
		cells := []string{f.ID, f.Application, f.From, f.To, f.Outcome, fmt.Sprintf("%.1f", f.Seconds["total"]), f.StartedAt.Format(time.RFC3339)}
		if t.wide {
			cells = append(cells, number(f.Epoch), f.Way, f.Evidence, f.Cause)
		}
		t.row(cells...)
	}
}

func number(n uint64) string {
	if n == 0 {
		return ""
	}
	return strconv.FormatUint(n, 10)
}

func address(ok bool, s string) string {
	if !ok {
		return ""
	}
	return s
}

func ago(t *time.Time) string {
	if t == nil || t.IsZero() {
		return ""
	}
	return time.Since(*t).Round(time.Second).String()
}

// size prints bytes in binary units as resource documents write them.
func size(n int64) string {
	for _, u := range []struct {
		name string
		of   int64
	}{{"Ti", 1 << 40}, {"Gi", 1 << 30}, {"Mi", 1 << 20}, {"Ki", 1 << 10}} {
		if n >= u.of {
			return strconv.FormatFloat(float64(n)/float64(u.of), 'f', 1, 64) + u.name
		}
	}
	return strconv.FormatInt(n, 10)
}

// nodeState tells an idle node that waits in standby from one that is off.
func nodeState(s api.NodeStatus) string {
	switch {
	case s.Standby == nil:
		return s.Phase
	case s.Standby.State == api.StandbyParked:
		return "standby"
	}
	return s.Phase + ", to standby"
}
