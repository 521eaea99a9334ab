package appliance

import (
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"hotspare/storage"
	"hotspare/storage/cow"
)

// metrics answers /metrics: what the volumes do, in the text format of Prometheus
// or as OpenMetrics. Labels are names of volumes and kinds of command. Only
// volume_session_info names initiators: one series for each session that there
// is now.
func (a *Appliance) metrics() http.Handler {
	r := prometheus.NewRegistry()
	r.MustRegister(volumeMetrics{a.store, a.exports, a.scrubs, a.storeFolder()}, networkMetrics{a}, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return promhttp.HandlerFor(r, promhttp.HandlerOpts{EnableOpenMetrics: true, MaxRequestsInFlight: 4, DisableCompression: true})
}

// volumeMetrics reads the statistics when it is asked.
type volumeMetrics struct {
	store   *cow.Store
	exports *storage.Exports
	scrubs  *scrubs
	folder  string // of the store
}

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("hotspare_"+name, help, labels, nil)
}

var (
	descSize       = desc("volume_size_bytes", "Size of the volume.", "volume")
	descAllocated  = desc("volume_allocated_bytes", "Bytes of the volume that hold data; what volumes share counts for each.", "volume")
	descStopped    = desc("volume_stopped", "1 when the volume is stopped: a checksum differed or a write to the disk failed.", "volume")
	descEpoch      = desc("volume_epoch", "Durable epoch: no grant below it is admitted.", "volume")
	descSessions   = desc("volume_sessions", "iSCSI sessions on the volume.", "volume")
	descSession    = desc("volume_session_info", "1 for each iSCSI session that there is now.", "volume", "initiator", "address", "node", "epoch")
	descInFlight   = desc("volume_commands_in_flight", "Commands under way now: the queue depth.", "volume")
	descDuration   = desc("volume_command_duration_seconds", "Time of a command from the gate of its session to the device's answer.", "volume", "command")
	descRead       = desc("volume_read_bytes_total", "Bytes read by initiators.", "volume")
	descWritten    = desc("volume_written_bytes_total", "Bytes written by initiators.", "volume")
	descDiscarded  = desc("volume_discarded_bytes_total", "Bytes discarded by initiators.", "volume")
	descLastWrite  = desc("volume_last_write_timestamp_seconds", "When the last write or discard succeeded.", "volume")
	descLastFlush  = desc("volume_last_flush_timestamp_seconds", "When the last flush succeeded.", "volume")
	descFree       = desc("storage_free_bytes", "Free bytes of the file system of the volume store.")
	descTotal      = desc("storage_size_bytes", "Bytes of the file system of the volume store.")
	descFreed      = desc("storage_reclaimed_bytes_total", "Bytes that deleted and overwritten volumes gave back.")
	descWaiting    = desc("storage_reclaim_waiting_bytes", "Bytes, about, that the next pass of the reclaimer will look for.")
	descSnapshots  = desc("storage_snapshots", "Snapshots in the volume store.")
	descScrubAt    = desc("storage_scrub_last_timestamp_seconds", "When the last scrub of all volumes ended.")
	descScrubSound = desc("storage_scrub_last_sound", "1 when the last scrub of all volumes found nothing bad.")
	descScrubNow   = desc("storage_scrub_running", "1 while a scrub runs.")
)

// Describe sends nothing: which series there are depends on the volumes.
func (m volumeMetrics) Describe(chan<- *prometheus.Desc) {}

// durationBounds are the bounds of the exposed histogram: every second doubling
// of the finer one that is kept.
var durationBounds = func() []time.Duration {
	var out []time.Duration
	for d := time.Duration(1) << 14; d <= 1<<34; d <<= 2 { // 16 us to 17 s
		out = append(out, d)
	}
	return out
}()

// Collect sends the values of all volumes.
func (m volumeMetrics) Collect(out chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	count := func(d *prometheus.Desc, v uint64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	snapshots := 0
	for _, i := range m.store.List() {
		epoch := m.exports.Epoch(i.Name)
		if i.Snapshot {
			snapshots++
			if epoch == 0 && i.Failed == nil { // there may be thousands, and they do nothing
				continue
			}
		}
		gauge(descSize, float64(i.Size), i.Name)
		gauge(descAllocated, float64(i.Allocated), i.Name)
		gauge(descStopped, truth(i.Failed != nil), i.Name)
		if epoch == 0 { // never granted, so it never served anybody
			continue
		}
		gauge(descEpoch, float64(epoch), i.Name)
		sessions := m.exports.Sessions(i.Name)
		gauge(descSessions, float64(len(sessions)), i.Name)
		for _, x := range each(sessions) {
			gauge(descSession, 1, i.Name, x.Initiator, x.Address, x.Node, strconv.FormatUint(x.Epoch, 10))
		}
		s := m.exports.Statistics(i.Name)
		gauge(descInFlight, float64(s.InFlight), i.Name)
		count(descRead, s.BytesRead, i.Name)
		count(descWritten, s.BytesWritten, i.Name)
		count(descDiscarded, s.BytesDiscarded, i.Name)
		if !s.LastWrite.IsZero() {
			gauge(descLastWrite, float64(s.LastWrite.UnixNano())/1e9, i.Name)
		}
		if !s.LastFlush.IsZero() {
			gauge(descLastFlush, float64(s.LastFlush.UnixNano())/1e9, i.Name)
		}
		out <- duration(&s.ReadLatency, i.Name, "read")
		out <- duration(&s.WriteLatency, i.Name, "write")
		out <- duration(&s.FlushLatency, i.Name, "flush")
		out <- duration(&s.DiscardLatency, i.Name, "discard")
	}
	gauge(descSnapshots, float64(snapshots))
	if free, total, err := space(m.folder); err == nil {
		gauge(descFree, float64(free))
		gauge(descTotal, float64(total))
	}
	r := m.store.Reclaiming()
	count(descFreed, uint64(r.SlotsFreed)*slotSize)
	gauge(descWaiting, float64(r.Waiting*slotSize))
	v := m.scrubs.view()
	gauge(descScrubNow, truth(v.Running))
	if v.Last != nil {
		gauge(descScrubAt, float64(v.Last.Unix()))
		gauge(descScrubSound, truth(v.OK))
	}
}

// each gives the sessions as the metrics show them: without ports, which change
// at every reconnection, and each combination once.
func each(sessions []storage.Session) []storage.Session {
	seen := map[storage.Session]bool{}
	var out []storage.Session
	for _, s := range sessions {
		s = storage.Session{Initiator: s.Initiator, Address: s.Address, Node: s.Node, Epoch: s.Epoch}
		if host, _, err := net.SplitHostPort(s.Address); err == nil {
			s.Address = host
		}
		if !seen[s] {
			seen[s] = true
			out = append(out, s)
		}
	}
	return out
}

func duration(h *storage.Histogram, volume, command string) prometheus.Metric {
	buckets := make(map[float64]uint64, len(durationBounds))
	for _, b := range durationBounds {
		buckets[b.Seconds()] = h.Below(b)
	}
	return prometheus.MustNewConstHistogram(descDuration, h.Count(), h.Sum.Seconds(), buckets, volume, command)
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
