package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"hotspare"
	"hotspare/storage/cow"
	"hotspare/ui/api"
)

func (a *everything) ChangeVolume(_ context.Context, c api.VolumeChange) (api.Accepted, error) {
	a.note(c.Verb, c.Volume, c.As, fmt.Sprint(c.Size))
	return api.Accepted{Text: "done"}, nil
}

func (a *everything) BeginTask(_ context.Context, r api.TaskRequest) (api.Task, error) {
	if r.Kind == "scrub" {
		a.note(r.Kind, r.Volume, r.File, r.To, r.From, r.As, fmt.Sprint(r.Rate), fmt.Sprint(r.Local))
	} else {
		a.note(r.Kind, r.Volume, r.File+r.To, r.Format, r.From, r.As, fmt.Sprint(r.Rate), fmt.Sprint(r.Local))
	}
	return api.Task{ID: "t1", State: "done", Ended: &seen}, nil
}

func (a *everything) Storage(context.Context) (api.Storage, error) {
	a.note("storage")
	return api.Storage{Stopped: []api.Stopped{}}, nil
}

func (a *everything) Tasks(context.Context) ([]api.Task, error) { return nil, nil }

func (a *everything) Task(context.Context, string, uint64) (api.Task, error) {
	return api.Task{ID: "t1", State: "done", Ended: &seen}, nil
}

func (a *everything) AbortTask(_ context.Context, id, _ string) error {
	a.note("abort", id)
	return nil
}

func TestATaskIsFollowedToItsEnd(t *testing.T) {
	begun := api.Task{ID: "t1", Kind: "export", State: "running", Revision: 1}
	bad := api.Task{ID: "t1", Kind: "scrub", State: "done", Ended: &seen, Text: "1 volumes and 4 MiB read", Findings: []string{"volume orders.data: 4096 bytes at 8192 do not match their checksum"}}
	full := api.Task{ID: "t1", State: "failed", Ended: &seen, Problem: &api.Problem{Title: "no space is left for the file", Code: hotspare.CodeDiskFull, Where: "/srv/x", Fix: "free space there"}}
	for _, c := range []struct {
		name string
		args string
		end  api.Task
		code int
		says []string
	}{
		{"done", "volume export orders.data -f /srv/x", api.Task{ID: "t1", State: "done", Ended: &seen, Text: "orders.data is in /srv/x"}, 0, []string{"orders.data is in /srv/x"}},
		{"as JSON", "volume export orders.data -f /srv/x -o json", api.Task{ID: "t1", State: "done", Ended: &seen, Done: 77}, 0, []string{`"doneBytes": 77`}},
		{"not waited for", "volume export orders.data -f /srv/x --no-wait", api.Task{}, 0, []string{"t1\n"}},
		{"disk full", "volume export orders.data -f /srv/x", full, 1, []string{"STO-001", "/srv/x", "free space there"}},
		{"aborted by another", "volume copy orders.data --to /srv/b", api.Task{ID: "t1", State: "aborted", Ended: &seen, Text: "aborted by ann"}, 1, []string{"aborted by ann"}},
		{"a scrub with faults", "storage scrub orders.data", bad, 1, []string{"STO-002", "at 8192"}},
		{"no file", "volume export orders.data", api.Task{}, 2, []string{"-f FILE"}},
		{"both ways", "volume copy orders.data --to /a --from /b", api.Task{}, 2, []string{"either --to DIR or --from DIR"}},
		{"from without a name", "volume copy orders.data --from /b", api.Task{}, 2, []string{"--as NAME"}},
		{"no size", "volume resize orders.data big", api.Task{}, 2, []string{`"big" is no size`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			answers := map[string]any{"GET /api/v1/tasks/t1": c.end}
			for _, verb := range []string{"export", "copy", "scrub"} {
				answers["POST /api/v1/volumes/orders.data/actions/"+verb] = begun
			}
			code, out, errs := call(t, append(strings.Fields(c.args), "--socket", server(t, answers))...)
			if code != c.code {
				t.Fatalf("exit %d, want %d: %s", code, c.code, errs)
			}
			for _, s := range c.says {
				if !strings.Contains(out+errs, s) {
					t.Errorf("%q is missing in\n%s%s", s, out, errs)
				}
			}
		})
	}
}

func TestSizesAreReadAsTheyAreWritten(t *testing.T) {
	for s, want := range map[string]int64{"512": 512, "64Ki": 64 << 10, "100Mi": 100 << 20, "20Gi": 20 << 30, "3Ti": 3 << 40} {
		if n, err := bytesOf(s); err != nil || n != want {
			t.Errorf("%s: %d, %v", s, n, err)
		}
	}
	for _, s := range []string{"", "0", "-1", "1.5Gi", "Gi", "20G", "9999999999Ti", "1 Gi"} {
		if n, err := bytesOf(s); err == nil {
			t.Errorf("%q is read as %d", s, n)
		}
	}
}

// The check of a store that nobody has open, sound and with a flipped bit.
func TestStorageCheckOffline(t *testing.T) {
	state := t.TempDir()
	dir := filepath.Join(state, "volumes")
	s, err := cow.Open(t.Context(), dir, cow.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Create(t.Context(), "orders.data", 1<<20); err != nil {
		t.Fatal(err)
	}
	d, err := s.OpenVolume("orders.data")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.WriteAt([]byte(strings.Repeat("rows", 4096)), 0); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(d.Flush(), d.Close()); err != nil {
		t.Fatal(err)
	}
	if code, _, errs := call(t, "storage", "check", "--state", state); code != 1 || !strings.Contains(errs, "STO-007") || !strings.Contains(errs, "stop the appliance first") {
		t.Fatalf("a store in use: exit %d, %s", code, errs)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if code, out, errs := call(t, "storage", "check", "--state", state); code != 0 || !strings.Contains(out, "16.0Ki") || !strings.Contains(out, "sound\n") {
		t.Fatalf("exit %d: %s%s", code, out, errs)
	}
	f, err := os.OpenFile(filepath.Join(dir, "data"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte{0xff}, 5000); err != nil {
		t.Fatal(err)
	}
	f.Close()
	code, out, errs := call(t, "storage", "check", "--store", dir)
	if code != 1 || !strings.Contains(out, "orders.data") || !strings.Contains(errs, "STO-002") {
		t.Fatalf("exit %d: %s%s", code, out, errs)
	}
	for _, args := range [][]string{{"--store", t.TempDir()}, {"--state", "/nowhere"}} {
		if code, _, errs := call(t, append([]string{"storage", "check"}, args...)...); code != 1 || !strings.Contains(errs, "CFG-005") {
			t.Errorf("%v: exit %d, %s", args, code, errs)
		}
	}
}

func TestStorageCheckOnlineTellsWhatIsBad(t *testing.T) {
	last := time.Now()
	sound := api.Storage{Folder: "/var/lib/hotspare/volumes", Volumes: 3, Snapshots: 2, Stopped: []api.Stopped{}, Scrub: api.ScrubView{Last: &last, OK: true, Bytes: 5 << 30}}
	stopped := sound
	stopped.Stopped = []api.Stopped{{Volume: "orders.data", Why: &api.Problem{Title: "a volume is stopped", Code: hotspare.CodeCorrupt, Why: "its data does not match its checksum"}}}
	faults := sound
	faults.Scrub.OK, faults.Scrub.Findings = false, []string{"volume web.data: 4096 bytes at 0 do not match their checksum"}
	for _, c := range []struct {
		name string
		s    api.Storage
		code int
		says []string
	}{
		{"sound", sound, 0, []string{"3, and 2 snapshots", "5.0Gi read, 0 faults"}},
		{"a stopped volume", stopped, 1, []string{"stopped: orders.data", "STO-002"}},
		{"faults", faults, 1, []string{"web.data", "STO-002"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			code, out, errs := call(t, "storage", "check", "--socket", server(t, map[string]any{"GET /api/v1/storage": c.s}))
			if code != c.code {
				t.Fatalf("exit %d: %s%s", code, out, errs)
			}
			for _, s := range c.says {
				if !strings.Contains(out+errs, s) {
					t.Errorf("%q is missing in\n%s%s", s, out, errs)
				}
			}
		})
	}
}
