package storage

import (
	"math/bits"
	"sync/atomic"
	"time"
)

// A histogram of durations is log-linear: the first bucket takes what is shorter
// than 1.024 us, each doubling above is cut into four buckets of equal width, and
// the last takes 34 s and longer. A quantile read from it is off by at most a
// quarter of its value.
const (
	histogramFirst  = 10 // log2 of the first bucket's bound in nanoseconds
	histogramLast   = 35 // log2 of the bound above which all is one bucket
	histogramCuts   = 4  // buckets of one doubling
	histogramShift  = 2  // log2 of histogramCuts
	HistogramLength = 2 + (histogramLast-histogramFirst)*histogramCuts
)

// Histogram counts durations by bucket.
type Histogram struct {
	Counts [HistogramLength]uint64
	Sum    time.Duration // of all durations
}

// bucketOf gives the bucket of a duration.
func bucketOf(d time.Duration) int {
	if d < 1<<histogramFirst {
		return 0
	}
	n := uint64(d)
	k := bits.Len64(n) - 1
	if k >= histogramLast {
		return HistogramLength - 1
	}
	return 1 + (k-histogramFirst)*histogramCuts + int(n>>(k-histogramShift))&(histogramCuts-1)
}

// HistogramBound gives the bound of bucket i: durations in it are shorter. The
// last bucket has none and gives a negative one.
func HistogramBound(i int) time.Duration {
	switch {
	case i <= 0:
		return 1 << histogramFirst
	case i >= HistogramLength-1:
		return -1
	}
	i--
	k := histogramFirst + i/histogramCuts
	return time.Duration(histogramCuts+1+i%histogramCuts) << (k - histogramShift)
}

// Count gives the number of durations.
func (h *Histogram) Count() uint64 {
	var n uint64
	for _, c := range h.Counts {
		n += c
	}
	return n
}

// Below gives the number of durations that lie in the buckets up to the one
// whose bound is at most d.
func (h *Histogram) Below(d time.Duration) uint64 {
	var n uint64
	for i, c := range h.Counts {
		if b := HistogramBound(i); b < 0 || b > d {
			break
		}
		n += c
	}
	return n
}

// Quantile gives the bound of the bucket that holds quantile q (0 to 1): at
// least that share of the durations was shorter. Without any it is 0.
func (h *Histogram) Quantile(q float64) time.Duration {
	total := h.Count()
	if total == 0 {
		return 0
	}
	want := uint64(q*float64(total) + 0.5)
	want = min(max(want, 1), total)
	for i, c := range h.Counts {
		if c >= want {
			if b := HistogramBound(i); b > 0 {
				return b
			}
			return 1 << histogramLast
		}
		want -= c
	}
	return 1 << histogramLast
}

// histogram is a Histogram that many goroutines add to without a lock.
type histogram struct {
	counts [HistogramLength]atomic.Uint64
	sum    atomic.Int64
}

func (h *histogram) add(d time.Duration) {
	h.counts[bucketOf(d)].Add(1)
	h.sum.Add(int64(d))
}

func (h *histogram) load(into *Histogram) {
	for i := range h.counts {
		into.Counts[i] = h.counts[i].Load()
	}
	into.Sum = time.Duration(h.sum.Load())
}
