package dhcp

import (
	"net/netip"
	"time"
)

// Addresses are probed before they are asked for, so that a machine that is new
// does not wait for the answer that nobody gives: the table keeps a stock of
// unused addresses on which nobody has answered lately. Probes go out as the stock
// is used; an idle segment of 200 free addresses sees one a second.
const (
	stockSize  = 4096
	stockFresh = 5 * time.Minute
	stockBatch = 1024
)

// isQuiet says whether nobody answered on a when it was probed lately.
func (t *table) isQuiet(a netip.Addr, now time.Time) bool {
	at, ok := t.quiet[a]
	return ok && now.Sub(at) < stockFresh
}

// toProbe gives addresses that the stock lacks. Those that will soon be too old
// are probed again in good time.
func (t *table) toProbe(now time.Time) []netip.Addr {
	good := 0
	for a, at := range t.quiet {
		switch age := now.Sub(at); {
		case age >= stockFresh:
			delete(t.quiet, a)
		case age < stockFresh*3/4:
			good++
		}
	}
	var out []netip.Addr
	lack := min(stockSize-good, stockBatch)
	size := uint32(t.pool.Size())
	for i := uint32(0); i < size && len(out) < lack; i++ {
		t.next = (t.next + 1) % size
		a := address(number(t.pool.From) + t.next)
		if l := t.byAddr[a]; l != nil || t.avoided(a, now) {
			continue
		}
		if at, ok := t.quiet[a]; ok && now.Sub(at) < stockFresh*3/4 {
			continue
		}
		if _, ok := t.reserved.Owner(a); ok || t.exclude(a) {
			continue
		}
		out = append(out, a)
	}
	return out
}

// setQuiet notes that nobody answered on a.
func (t *table) setQuiet(a netip.Addr, now time.Time) {
	if t.byAddr[a] == nil && t.pool.Contains(a) {
		t.quiet[a] = now
	}
}
