package plaintarget

import (
	"context"
	"time"

	"hotspare/storage"
)

// statistics answers the command stats. Counters begin with the run, rates with
// the stats command before this one.
type statistics struct {
	OK             bool           `json:"ok"`
	Name           string         `json:"name"`
	Size           int64          `json:"size"`      // bytes
	Allocated      int64          `json:"allocated"` // bytes that hold data, shared ones counted fully
	Epoch          uint64         `json:"epoch"`
	Granted        bool           `json:"granted"`
	Reads          uint64         `json:"reads"`
	Writes         uint64         `json:"writes"`
	Flushes        uint64         `json:"flushes"`
	Discards       uint64         `json:"discards"`
	BytesRead      uint64         `json:"bytes_read"`
	BytesWritten   uint64         `json:"bytes_written"`
	BytesDiscarded uint64         `json:"bytes_discarded"`
	InFlight       int64          `json:"in_flight"` // commands under way now
	LastWrite      *time.Time     `json:"last_write,omitempty"`
	LastFlush      *time.Time     `json:"last_flush,omitempty"`
	Rates          rates          `json:"rates"`
	Latency        map[string]any `json:"latency"` // of read, write, flush, discard: those that there were
	Sessions       []session      `json:"sessions"`
}

// rates are per second, over the last Seconds.
type rates struct {
	Seconds      float64 `json:"seconds"`
	Reads        float64 `json:"reads"`
	Writes       float64 `json:"writes"`
	Flushes      float64 `json:"flushes"`
	BytesRead    float64 `json:"bytes_read"`
	BytesWritten float64 `json:"bytes_written"`
	Queue        float64 `json:"queue"` // mean number of commands under way
}

// latency of one kind of command, in microseconds.
type latency struct {
	Mean    float64  `json:"mean_us"`
	P50     float64  `json:"p50_us"`
	P99     float64  `json:"p99_us"`
	Buckets []bucket `json:"buckets"` // those that are not empty
}

// bucket counts commands that took less than Below; the last one has no bound
// and says 0.
type bucket struct {
	Below float64 `json:"below_us"`
	Count uint64  `json:"count"`
}

type session struct {
	Initiator string     `json:"initiator"`
	Address   string     `json:"address"`
	Epoch     uint64     `json:"epoch"`
	Since     time.Time  `json:"since"`
	LastWrite *time.Time `json:"last_write,omitempty"`
	InFlight  int64      `json:"in_flight"`
}

// reading is what the stats command before saw.
type reading struct {
	at time.Time
	storage.Statistics
}

func (s *server) stats(_ context.Context, args []string) (any, error) {
	i, err := s.store.Stat(args[0])
	if err != nil {
		return nil, err
	}
	_, live := s.exports.Live(i.Name)
	c := reading{time.Now(), s.exports.Statistics(i.Name)}
	last, ok := s.readings[i.Name]
	if !ok {
		last.at = s.began
	}
	s.readings[i.Name] = c
	out := statistics{
		OK: true, Name: i.Name, Size: i.Size, Allocated: i.Allocated, Epoch: s.exports.Epoch(i.Name), Granted: live,
		Reads: c.Reads, Writes: c.Writes, Flushes: c.Flushes, Discards: c.Discards,
		BytesRead: c.BytesRead, BytesWritten: c.BytesWritten, BytesDiscarded: c.BytesDiscarded, InFlight: c.InFlight,
		LastWrite: known(c.LastWrite), LastFlush: known(c.LastFlush), Rates: ratesOf(last, c), Latency: map[string]any{}, Sessions: []session{},
	}
	for kind, h := range map[string]*storage.Histogram{"read": &c.ReadLatency, "write": &c.WriteLatency, "flush": &c.FlushLatency, "discard": &c.DiscardLatency} {
		if h.Count() > 0 {
			out.Latency[kind] = latencyOf(h)
		}
	}
	for _, x := range s.exports.Sessions(i.Name) {
		out.Sessions = append(out.Sessions, session{x.Initiator, x.Address, x.Epoch, x.Since, known(x.LastWrite), x.InFlight})
	}
	return out, nil
}

func ratesOf(last, now reading) rates {
	span := now.at.Sub(last.at)
	r := storage.RatesOf(last.Statistics, now.Statistics, span)
	return rates{span.Seconds(), r.Reads, r.Writes, r.Flushes, r.BytesRead, r.BytesWritten, r.Queue}
}

func latencyOf(h *storage.Histogram) latency {
	l := latency{Mean: micros(h.Sum) / float64(h.Count()), P50: micros(h.Quantile(0.5)), P99: micros(h.Quantile(0.99)), Buckets: []bucket{}}
	for i, count := range h.Counts {
		if count > 0 {
			l.Buckets = append(l.Buckets, bucket{max(0, micros(storage.HistogramBound(i))), count})
		}
	}
	return l
}

func micros(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

// known gives nil for the zero time.
func known(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}
