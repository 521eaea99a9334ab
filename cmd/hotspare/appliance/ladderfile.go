package appliance

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"hotspare/boot"
)

// tracesVersion is that of the file of traces.
const tracesVersion = 1

type tracesFile struct {
	Version int          `json:"version"`
	Traces  []boot.Trace `json:"traces"`
}

// maxTraces bounds the file; what was heard longest ago is left out.
const maxTraces = 8 << 20

// load takes the traces of an earlier process. They explain, they decide nothing:
// a file that cannot be read is left behind with a word in the log.
func (l *ladders) load(path string) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	var f tracesFile
	if err == nil {
		err = json.Unmarshal(b, &f)
	}
	if err == nil && f.Version != tracesVersion {
		err = fmt.Errorf("version %d, this appliance reads %d", f.Version, tracesVersion)
	}
	if err != nil {
		l.log.Warn("earlier boot traces are not read", "path", path, "err", err)
		return
	}
	l.rec.Restore(f.Traces)
}

// save writes the traces of nodes.
func (l *ladders) save(path string) error {
	f := tracesFile{Version: tracesVersion}
	size := 0
	for _, t := range l.rec.Keep() {
		b, err := json.Marshal(t)
		if err != nil {
			return fmt.Errorf("boot traces: %w", err)
		}
		if size += len(b); size > maxTraces {
			break
		}
		f.Traces = append(f.Traces, t)
	}
	b, err := json.Marshal(f)
	if err == nil {
		err = writeFile(path, b, 0o600)
	}
	if err != nil {
		return fmt.Errorf("boot traces: %w", err)
	}
	return nil
}

// keep writes the traces while the appliance runs, and once more at its end.
func (l *ladders) keep(path string) func(context.Context) error {
	return func(ctx context.Context) error {
		return keepSaved(ctx, l.log, "boot traces", l.rec.Changed, func() error { return l.save(path) })
	}
}
