package appliance

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"hotspare"
	"hotspare/haengine"
	"hotspare/storage"
	"hotspare/storage/cow"
	"hotspare/ui/api"
)

// serveStorekeeping starts what looks after the volumes: tasks, scrubs by
// schedule, the store's notices, rates.
func (a *Appliance) serveStorekeeping(ctx context.Context) error {
	if err := a.dropTaskSnapshots(ctx); err != nil {
		return err
	}
	a.tasks = &tasks{log: a.log.With("part", "tasks")}
	a.scrubs = &scrubs{
		cfg: a.cfg.Storage.Scrub, store: a.store, tasks: a.tasks, path: filepath.Join(a.cfg.State, "scrub.json"),
		log: a.log.With("part", "scrub"), record: a.recordStorage,
	}
	if err := a.scrubs.load(time.Now()); err != nil {
		return err
	}
	a.volumes.letGo = a.scrubs.letGo
	a.parts.run("storage notices", a.storageNotices)
	a.parts.run("volume rates", a.rates.run(a.store, a.exports))
	a.parts.onStop("tasks", a.tasks.stop)
	a.parts.run("scrub schedule", a.scrubs.scheduled)
	return nil
}

// noticeRoom is how many notices of the store may wait to be recorded.
const noticeRoom = 64

// notice takes a notice of the store, which holds its locks meanwhile.
func (a *Appliance) notice(n cow.Notice) {
	select {
	case a.notices <- n:
	default: // it is in the log, by the store
	}
}

// storageNotices records what the store tells, and notifies the administrator.
func (a *Appliance) storageNotices(ctx context.Context) error {
	say := notifier{a.log.With("part", "notify")}
	for {
		select {
		case n := <-a.notices:
			x := noticeOf(n)
			a.recordStorage(ctx, x.Code, n.Volume, x.Text)
			if err := say.Notify(ctx, x); err != nil {
				a.log.WarnContext(ctx, "a notice was not delivered", "err", err)
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// noticeOf gives a notice of the store the shape of all others.
func noticeOf(n cow.Notice) haengine.Notice {
	x := haengine.Notice{Incident: string(n.Kind), Code: hotspare.CodeOf(n.Err), At: haengine.Stamp{Wall: time.Now()}}
	room := fmt.Sprintf("%d of %d MiB are free", n.Free>>20, n.Total>>20)
	switch n.Kind {
	case cow.VolumeStopped:
		x.Incident += "/" + n.Volume
		x.Text, x.Fix = fmt.Sprintf("volume %s is stopped: %v", n.Volume, n.Err), "check the disk; restore the volume from a checkpoint"
	case cow.StoreStopped:
		x.Text, x.Fix = fmt.Sprintf("all volumes are stopped: %v", n.Err), "check the disk and its log, then restart hotspare"
	case cow.SpaceHigh:
		x.Incident, x.Code, x.Text, x.Fix = "space", hotspare.CodeDiskFull, "space for volumes runs out: "+room, "add space, or delete snapshots and volumes"
	case cow.SpaceFull:
		x.Incident, x.Code, x.Text, x.Fix = "space", hotspare.CodeDiskFull, "no space is left for volumes, writes are refused: "+room, "add space, or delete snapshots and volumes; nothing acknowledged is lost"
	case cow.SpaceLow:
		x.Incident, x.Text, x.Resolved = "space", "there is space for volumes again: "+room, true
	default:
		x.Text = fmt.Sprintf("%s: %v", n.Kind, n.Err)
	}
	return x
}

// recordStorage writes an event about the storage into the history.
func (a *Appliance) recordStorage(ctx context.Context, code hotspare.Code, volume, text string) {
	app := ""
	if owner, _, ok := strings.Cut(volume, "."); ok && a.engine.Snapshot().Durable.Apps[owner] != nil {
		app = owner
	}
	e := haengine.Entry{Stamp: haengine.Stamp{Wall: time.Now()}, App: app, Code: code, Text: text}
	if err := a.state.Save(context.WithoutCancel(ctx), haengine.Delta{Entries: []haengine.Entry{e}}); err != nil {
		a.log.ErrorContext(ctx, "an event is not in the history", "text", text, "err", err)
	}
}

func (a *Appliance) storeFolder() string { return filepath.Join(a.cfg.State, "volumes") }

// Storage says how the volume store is.
func (a *Appliance) Storage(context.Context) (api.Storage, error) {
	v := api.Storage{Folder: a.storeFolder(), Stopped: []api.Stopped{}, Scrub: a.scrubs.view()}
	var err error
	if v.FreeBytes, v.TotalBytes, err = space(v.Folder); err != nil {
		return v, err
	}
	r := a.store.Reclaiming()
	v.Reclaim = api.Reclaim{
		Running: r.Running, FreedBytes: r.SlotsFreed * slotSize, PerSecond: a.rates.reclaimed(),
		WaitingBytes: r.Waiting * slotSize, PendingBytes: r.PendingBytes,
	}
	if r.Err != nil {
		v.Reclaim.Why = api.ProblemOf(r.Err).Title
	}
	for _, i := range a.store.List() {
		if v.Volumes++; i.Snapshot {
			v.Snapshots++
			v.Volumes--
		}
		if i.Failed != nil {
			v.Stopped = append(v.Stopped, api.Stopped{Volume: i.Name, Why: api.ProblemOf(i.Failed)})
		}
	}
	return v, nil
}

// slotSize is the unit in which the store takes and frees space.
const slotSize = 64 << 10

// rateSpan is the time over which rates are taken.
const rateSpan = 5 * time.Second

// rates keeps the volumes' rates of the last span.
type rates struct {
	mu    sync.Mutex
	now   map[string]storage.Rates
	freed float64 // bytes per second that the store gave back
}

func (r *rates) reclaimed() float64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.freed
}

func (r *rates) of(volume string) storage.Rates {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.now[volume]
}

func (r *rates) run(store *cow.Store, exports *storage.Exports) func(context.Context) error {
	return func(ctx context.Context) error {
		tick := time.NewTicker(rateSpan)
		defer tick.Stop()
		last, at := map[string]storage.Statistics{}, time.Now()
		slots := store.Reclaiming().SlotsFreed
		for {
			select {
			case <-tick.C:
			case <-ctx.Done():
				return nil
			}
			read, span := map[string]storage.Statistics{}, time.Since(at)
			at = time.Now()
			now := map[string]storage.Rates{}
			for _, i := range store.List() {
				s := exports.Statistics(i.Name)
				if s.Reads+s.Writes+s.Flushes+s.Discards == 0 {
					continue
				}
				read[i.Name], now[i.Name] = s, storage.RatesOf(last[i.Name], s, span)
			}
			last = read
			freed := store.Reclaiming().SlotsFreed
			r.mu.Lock()
			r.now, r.freed = now, float64((freed-slots)*slotSize)/span.Seconds()
			r.mu.Unlock()
			slots = freed
		}
	}
}

// activity shows the statistics of a volume; nil when there was no command.
func activity(s *storage.Statistics, r storage.Rates) *api.VolumeStats {
	if s.Reads+s.Writes+s.Flushes+s.Discards == 0 {
		return nil
	}
	kind := func(h *storage.Histogram, bytes uint64, perSecond, bytesPerSecond float64) api.CommandStats {
		micros := func(q float64) float64 { return float64(h.Quantile(q)) / float64(time.Microsecond) }
		return api.CommandStats{
			Count: h.Count(), Bytes: bytes, PerSecond: perSecond, BytesPerSecond: bytesPerSecond,
			P50Micros: micros(0.5), P99Micros: micros(0.99), MaxMicros: micros(1),
		}
	}
	return &api.VolumeStats{
		Read:     kind(&s.ReadLatency, s.BytesRead, r.Reads, r.BytesRead),
		Write:    kind(&s.WriteLatency, s.BytesWritten, r.Writes, r.BytesWritten),
		Flush:    kind(&s.FlushLatency, 0, r.Flushes, 0),
		Discard:  kind(&s.DiscardLatency, s.BytesDiscarded, 0, 0),
		InFlight: s.InFlight, Queue: r.Queue,
	}
}
