package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"text/tabwriter"
)

// figure is one row of the report.
type figure struct {
	Name      string  `json:"name"`
	Value     float64 `json:"value"`
	Unit      string  `json:"unit"`
	Peer      string  `json:"peer"`       // what it is measured beside; "" for an absolute goal
	PeerValue float64 `json:"peer_value"` // in the same unit
	Ratio     float64 `json:"ratio"`      // value to peer_value, 0 without a peer
	Goal      float64 `json:"goal"`       // of the ratio, or of the value without a peer
	Better    string  `json:"better"`     // "higher" or "lower"; "" has no goal
}

// met says whether the goal is reached.
func (f figure) met() bool {
	got := f.Value
	if f.Peer != "" {
		got = f.Ratio
	}
	switch f.Better {
	case "lower":
		return got <= f.Goal
	case "higher":
		return got >= f.Goal
	}
	return true
}

// series collects the rounds of one figure.
type series struct {
	name, unit, peer, better string
	goal                     float64
	own, other               []float64
}

// figure gives medians; the ratio is the median of the rounds' ratios.
func (s *series) figure() figure {
	f := figure{Name: s.name, Unit: s.unit, Peer: s.peer, Goal: s.goal, Better: s.better, Value: median(s.own), PeerValue: median(s.other)}
	var ratios []float64
	for i := range min(len(s.own), len(s.other)) {
		if s.other[i] > 0 {
			ratios = append(ratios, s.own[i]/s.other[i])
		}
	}
	f.Ratio = median(ratios)
	return f
}

func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	v = slices.Sorted(slices.Values(v))
	return (v[len(v)/2] + v[(len(v)-1)/2]) / 2
}

// table prints the figures for people.
func table(w io.Writer, fs []figure) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "figure\tvalue\tunit\tbeside\tits value\tratio\tgoal\t")
	for _, f := range fs {
		sign, verdict := ">=", ""
		if f.Better == "lower" {
			sign = "<="
		}
		goal := sign + " " + short(f.Goal)
		if f.Better == "" {
			goal = ""
		}
		if !f.met() {
			verdict = "missed"
		}
		peer, value, ratio := "-", "", ""
		if f.Peer != "" {
			peer, value, ratio = f.Peer, short(f.PeerValue), fmt.Sprintf("%.2f", f.Ratio)
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", f.Name, short(f.Value), f.Unit, peer, value, ratio, goal, verdict)
	}
	return t.Flush()
}

func short(v float64) string {
	switch {
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

// save writes the figures as JSON.
func save(path string, fs []figure) error {
	b, err := json.MarshalIndent(fs, "", "  ")
	if err != nil {
		return err
	}
	return errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, append(b, '\n'), 0o644))
}
