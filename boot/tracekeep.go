package boot

import (
	"cmp"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Changed gives a number that grows with what is kept of nodes.
func (c *Recorder) Changed() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.changed
}

// Keep gives the last boots of nodes, for a file that outlives the process: the
// nodes that were heard last come first.
func (c *Recorder) Keep() []Trace {
	c.mu.Lock()
	defer c.mu.Unlock()
	var all []Trace
	for m, r := range c.all {
		if r.node != "" && len(r.boots) > 0 {
			t := r.trace(m)
			t.Boots = t.Boots[max(0, len(t.Boots)-bootsInFile):]
			all = append(all, t)
		}
	}
	slices.SortFunc(all, func(a, b Trace) int { return cmp.Compare(c.all[b.MAC].seen, c.all[a.MAC].seen) })
	return all
}

// Restore takes traces that Keep gave. Machines that were heard since keep what
// is newer.
func (c *Recorder) Restore(all []Trace) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, t := range slices.Backward(all) { // the latest heard comes last, as it did
		boots := slices.DeleteFunc(slices.Clone(t.Boots), func(b Boot) bool { return len(b.Entries) == 0 })
		if c.all[t.MAC] != nil || t.MAC.IsZero() || len(c.all) >= c.machines || len(boots) == 0 {
			continue
		}
		boots = boots[max(0, len(boots)-bootsOfNode):]
		c.seq++
		for i := range boots {
			b := &boots[i]
			b.Entries = slices.Clone(b.Entries[max(0, len(b.Entries)-c.perBoot):])
			for j := range b.Entries {
				b.Entries[j] = cleaned(b.Entries[j])
			}
		}
		r := &record{node: t.Node, seen: c.seq, number: boots[len(boots)-1].Number, boots: boots}
		c.all[t.MAC] = r
		c.touch(t.MAC, r)
	}
}

// cleaned makes the texts of an entry harmless and short.
func cleaned(e Entry) Entry {
	for _, s := range []*string{&e.Request, &e.Answer, &e.Node, &e.Reason.Text, &e.Reason.Fix, &e.Detail.Mark, &e.Detail.BootID} {
		*s = Plain(*s)
	}
	if e.Step == StepScript && tellsToWait(e.Reason.Rule) {
		e.Step = StepWait
	}
	return e
}

// tellsToWait says whether a script that was sent for this reason starts nothing.
func tellsToWait(r Rule) bool {
	switch r {
	case RuleUnknown, RuleUnapproved, RuleNothing, RuleUndecided, RuleNoToken, RuleToken, RuleArch:
		return true
	}
	return false
}

// Plain gives a text in which nothing steers a terminal or hides what it says:
// control and format characters (of which some reverse the writing direction)
// become question marks, and the text is cut at 400 bytes.
func Plain(s string) string {
	if len(s) > maxText {
		cut := maxText
		for cut > 0 && !utf8.RuneStart(s[cut]) {
			cut--
		}
		s = s[:cut] + "…"
	}
	if plainASCII(s) {
		return s
	}
	return strings.Map(func(r rune) rune {
		if r == utf8.RuneError || unicode.IsControl(r) || unicode.Is(unicode.Cf, r) || unicode.Is(unicode.Co, r) || r == '\u2028' || r == '\u2029' {
			return '?'
		}
		return r
	}, s)
}

// plainASCII says that there is nothing in s to take out, as in nearly all texts.
func plainASCII(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}

// touch puts a record behind all others of its kind: of nodes, or of strangers. mu
// is held.
func (c *Recorder) touch(m MAC, r *record) {
	kind := &c.strangers
	if r.node != "" {
		kind = &c.nodes
	}
	if r.place != nil { // in one of the two
		c.strangers.Remove(r.place)
		c.nodes.Remove(r.place)
	}
	r.place = kind.PushBack(m)
}
