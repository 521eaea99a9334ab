package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"hotspare/boot"
)

// shown makes a text harmless for a terminal: names, files and serial numbers
// come from machines.
func shown(s string) string {
	lines := strings.Split(s, "\n")
	for i, l := range lines {
		lines[i] = boot.Plain(l)
	}
	return strings.Join(lines, " ")
}

// climbed draws the boots of a machine, the newest whole and of the others a line
// each.
func climbed(out io.Writer, all []boot.Ladder) error {
	l := all[0]
	who := "unknown machine"
	if l.Node != "" {
		who = "node " + shown(l.Node)
	}
	fmt.Fprintf(out, "%s (%s), boot %d of %s: %s\n", l.MAC, who, l.Number, l.Began.Local().Format("2006-01-02 15:04:05"), strings.ToUpper(string(l.State)))
	if l.State != boot.LadderStuck { // else it is the first finding
		fmt.Fprintf(out, "%s\n", shown(l.Verdict))
	}
	for _, f := range l.Findings {
		fmt.Fprintf(out, "  %-5s  %s\n", f.Gravity, shown(f.String()))
		if f.Fix != "" {
			fmt.Fprintf(out, "  fix    %s\n", shown(f.Fix))
		}
	}
	fmt.Fprintln(out)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "RUNG\tSTATE\tAT\tTOOK\tWHAT")
	for _, r := range l.Rungs {
		at, took := seconds(r.At), seconds(r.Took)
		if r.State == boot.RungAhead || r.State == boot.RungSkipped {
			at, took = "-", "-"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", r.Name, r.State, at, took, brief(r.Text))
		for _, s := range r.Steps {
			fmt.Fprintf(w, "\t\t%s\t%s\t  %s\n", seconds(s.After), stepTook(s), stepText(s))
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if l.Dropped > 0 {
		fmt.Fprintf(out, "%d more requests were seen and are not kept\n", l.Dropped)
	}
	for _, e := range all[1:] {
		fmt.Fprintf(out, "earlier: boot %d of %s, %s: %s\n", e.Number, e.Began.Local().Format("2006-01-02 15:04:05"), e.State, brief(e.Verdict))
	}
	return nil
}

func stepText(s boot.RungStep) string {
	text := fmt.Sprintf("%s %s", s.Protocol, s.Request)
	if s.Again > 0 {
		text += fmt.Sprintf(" (%d times)", s.Again+1)
	}
	if s.Answer != "" {
		text += " -> " + s.Answer
	}
	if s.Reason != "" {
		text += ": " + s.Reason
	}
	if s.Failed {
		text = "! " + text
	}
	return shown(text)
}

func stepTook(s boot.RungStep) string {
	if s.Took == 0 {
		return ""
	}
	return seconds(s.Took)
}

func seconds(millis int64) string {
	d := time.Duration(millis) * time.Millisecond
	if d >= 10*time.Minute {
		return d.Round(time.Second).String()
	}
	return fmt.Sprintf("%.2fs", d.Seconds())
}

func bootRows(t *table, all []boot.Ladder) {
	head := []string{"MAC", "NODE", "BOOT", "STATE", "TOOK", "LAST", "VERDICT"}
	t.row(head...)
	for _, l := range all {
		last := l.Last
		t.row(l.MAC.String(), l.Node, number(l.Number), string(l.State), seconds(l.Total), ago(&last), l.Verdict)
	}
}
