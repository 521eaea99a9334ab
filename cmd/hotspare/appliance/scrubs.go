package appliance

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"hotspare"
	"hotspare/haengine"
	"hotspare/storage/cow"
	"hotspare/ui/api"
)

// StorageConfig is how the volume store is kept.
type StorageConfig struct {
	Scrub ScrubConfig `yaml:"scrub"`
}

// ScrubConfig says how often all volumes are read and compared with their
// checksums, and how fast.
type ScrubConfig struct {
	Off          bool              `yaml:"off"`          // not by itself; an operator still can
	Every        haengine.Duration `yaml:"every"`        // default 168h
	MiBPerSecond int64             `yaml:"mibPerSecond"` // default 32
}

func (c StorageConfig) withDefaults() StorageConfig {
	if c.Scrub.Every == 0 {
		c.Scrub.Every = haengine.Duration(7 * 24 * time.Hour)
	}
	if c.Scrub.MiBPerSecond == 0 {
		c.Scrub.MiBPerSecond = 32
	}
	return c
}

func (c StorageConfig) validate() error {
	switch {
	case c.Scrub.Every.D() < time.Hour:
		return errors.New("storage.scrub.every is less than 1h")
	case c.Scrub.MiBPerSecond < 1:
		return errors.New("storage.scrub.mibPerSecond is less than 1")
	}
	return nil
}

// scrubRest is how long after the start of the appliance, and after a scrub that
// could not begin, the next one is due at the earliest.
const scrubRest = 10 * time.Minute

// scrubs runs one scrub at a time, by order or by schedule, and remembers what
// the last whole one found.
type scrubs struct {
	cfg    ScrubConfig
	store  *cow.Store
	tasks  *tasks
	path   string // of the record
	log    *slog.Logger
	record func(ctx context.Context, code hotspare.Code, volume, text string)

	mu      sync.Mutex
	current *cow.Scrub
	known   scrubRecord
	next    time.Time // zero: none is due
}

// scrubRecord is the durable file.
type scrubRecord struct {
	Version int        `json:"version"` // 1
	Since   time.Time  `json:"since"`   // the schedule's begin
	Last    *scrubDone `json:"last,omitempty"`
}

type scrubDone struct {
	Ended    time.Time `json:"ended"`
	Volumes  int       `json:"volumes"`
	Bytes    int64     `json:"bytes"`
	OK       bool      `json:"ok"`
	Findings []string  `json:"findings,omitempty"`
}

// load reads the record. A damaged one is begun anew: it only says when the next
// scrub is due.
func (s *scrubs) load(now time.Time) error {
	b, err := os.ReadFile(s.path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("record of scrubs: %w", err)
	}
	if err == nil {
		if jerr := json.Unmarshal(b, &s.known); jerr != nil || s.known.Version != 1 {
			s.log.Warn("the record of scrubs is begun anew", "path", s.path, "err", jerr)
			s.known = scrubRecord{}
		}
	}
	if s.known.Version == 0 {
		s.known = scrubRecord{Version: 1, Since: now}
		return s.save(s.known)
	}
	return nil
}

func (s *scrubs) save(r scrubRecord) error {
	b, err := json.Marshal(r)
	if err == nil {
		err = writeFile(s.path, append(b, '\n'), 0o600)
	}
	if err != nil {
		return fmt.Errorf("record of scrubs: %w", err)
	}
	return nil
}

// due gives when the next scrub is due.
func (r scrubRecord) due(every time.Duration) time.Time {
	if r.Last != nil {
		return r.Last.Ended.Add(every)
	}
	return r.Since.Add(every)
}

// scheduled begins a scrub whenever one is due.
func (s *scrubs) scheduled(ctx context.Context) error {
	if s.cfg.Off {
		return nil
	}
	for earliest := time.Now().Add(scrubRest); ; earliest = time.Now().Add(scrubRest) {
		s.mu.Lock()
		s.next = s.known.due(s.cfg.Every.D())
		if s.next.Before(earliest) {
			s.next = earliest
		}
		wait := time.NewTimer(time.Until(s.next))
		s.mu.Unlock()
		select {
		case <-wait.C:
		case <-ctx.Done():
			wait.Stop()
			return nil
		}
		if s.fresh() { // an operator was faster
			continue
		}
		x, err := s.begin(api.TaskRequest{Kind: "scrub", By: "schedule"})
		if err != nil {
			s.log.WarnContext(ctx, "a scrub is due but does not begin", "err", err)
			continue
		}
		select {
		case <-x.done:
		case <-ctx.Done():
			return nil
		}
	}
}

func (s *scrubs) fresh() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return time.Now().Before(s.known.due(s.cfg.Every.D()))
}

// begin begins a scrub of one volume, or of all.
func (s *scrubs) begin(r api.TaskRequest) (*task, error) {
	o := cow.ScrubOptions{
		BytesPerSecond: r.Rate,
		Skip:           func(name string) bool { return strings.HasPrefix(name, taskPrefix) }, // they go soon, and share what they have
	}
	if o.BytesPerSecond == 0 {
		o.BytesPerSecond = s.cfg.MiBPerSecond << 20
	}
	v := api.Task{Kind: "scrub", Volume: r.Volume, By: r.By, Text: "reads all volumes"}
	if r.Volume != "" {
		info, err := s.store.Stat(r.Volume)
		if err != nil {
			return nil, err
		}
		o.Volumes, v.Total, v.Text = []string{r.Volume}, info.Allocated, "reads "+r.Volume
	}
	return s.tasks.begin("scrub", v, func(ctx context.Context, x *task) error { return s.run(ctx, x, o) })
}

func (s *scrubs) run(ctx context.Context, x *task, o cow.ScrubOptions) error {
	o.Progress = func(p cow.ScrubProgress) {
		x.progress(func(v *api.Task) {
			v.Done, v.Text = p.Bytes, fmt.Sprintf("reads %s, volume %d of %d", p.Volume, p.Done+1, p.Volumes)
		})
	}
	var maps cow.Report
	if o.Volumes == nil {
		var err error
		if maps, err = s.store.CheckMaps(ctx); err != nil {
			return err
		}
	}
	sc := s.store.NewScrub(o)
	s.mu.Lock()
	s.current = sc
	s.mu.Unlock()
	rep, err := sc.Run(ctx)
	s.mu.Lock()
	s.current = nil
	s.mu.Unlock()
	found := findings(maps, rep)
	x.set(func(v *api.Task) {
		v.Done, v.Findings = rep.Bytes, found
		if err == nil {
			v.Total, v.Text = rep.Bytes, verdict(maps, rep)
		}
	})
	for _, f := range rep.Unread {
		s.record(ctx, hotspare.CodeOf(f.Err), f.Volume, fmt.Sprintf("volume %s could not be scrubbed: %v", f.Volume, f.Err))
	}
	if err != nil {
		return err
	}
	if o.Volumes == nil {
		code := hotspare.Code("")
		if len(found) > 0 {
			code = hotspare.CodeCorrupt
		}
		s.record(ctx, code, "", "scrub of all volumes: "+verdict(maps, rep))
		return s.remember(scrubDone{Ended: time.Now(), Volumes: rep.Volumes, Bytes: rep.Bytes, OK: maps.OK() && rep.OK(), Findings: found})
	}
	return nil
}

func (s *scrubs) remember(d scrubDone) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.known.Last = &d
	return s.save(s.known)
}

func verdict(maps cow.Report, r cow.ScrubReport) string {
	var bad []string
	if !r.OK() {
		volumes := map[string]bool{}
		for _, b := range r.Bad {
			volumes[b.Volume] = true
		}
		bad = append(bad, fmt.Sprintf("%d with bad blocks, %d unreadable", len(volumes), len(r.Unread)))
	}
	if !maps.OK() {
		bad = append(bad, fmt.Sprintf("%d faults in the maps", len(maps.Problems)+int(min(maps.Leaked, 1))))
	}
	if bad == nil {
		bad = []string{"all sound"}
	}
	return fmt.Sprintf("%d volumes and %d MiB read, %s", r.Volumes, r.Bytes>>20, strings.Join(bad, ", "))
}

func findings(maps cow.Report, r cow.ScrubReport) []string {
	out := slices.Clone(maps.Problems)
	if maps.Leaked > 0 {
		out = append(out, fmt.Sprintf("%d slots of 64 KiB are used by nothing and not free", maps.Leaked))
	}
	for _, b := range r.Bad {
		out = append(out, fmt.Sprintf("volume %s: 4096 bytes at %d do not match their checksum", b.Volume, b.Off))
	}
	for _, f := range r.Unread {
		out = append(out, fmt.Sprintf("volume %s: %v", f.Volume, f.Err))
	}
	return out
}

// letGo makes a running scrub close a volume that is about to be deleted.
func (s *scrubs) letGo(volume string) {
	if s == nil {
		return
	}
	s.mu.Lock()
	sc := s.current
	s.mu.Unlock()
	if sc != nil {
		sc.LetGo(volume)
	}
}

func (s *scrubs) view() api.ScrubView {
	s.mu.Lock()
	defer s.mu.Unlock()
	v := api.ScrubView{Running: s.current != nil}
	if l := s.known.Last; l != nil {
		v.Last, v.Bytes, v.OK, v.Findings = &l.Ended, l.Bytes, l.OK, l.Findings
	}
	if !s.next.IsZero() {
		next := s.next
		if due := s.known.due(s.cfg.Every.D()); due.After(next) { // an operator was faster
			next = due
		}
		v.Next = &next
	}
	return v
}
