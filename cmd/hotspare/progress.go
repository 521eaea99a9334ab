package main

import (
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"hotspare/ui/api"
)

// progress draws one line on a terminal, over and over; elsewhere nothing.
type progress struct {
	out   io.Writer // nil: no terminal
	begun time.Time
	first int64 // bytes done at the begin
}

func newProgress(out io.Writer) *progress {
	p := &progress{begun: time.Now(), first: -1}
	if f, ok := out.(*os.File); ok {
		if _, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS); err == nil {
			p.out = out
		}
	}
	return p
}

func (p *progress) line(t api.Task) {
	if p.out == nil {
		return
	}
	if p.first < 0 {
		p.first = t.Done
	}
	text := fmt.Sprintf("%s %s: %s", t.ID, t.Kind, size(t.Done))
	if t.Total > 0 {
		text += fmt.Sprintf(" of %s (%d %%)", size(t.Total), min(100, t.Done*100/t.Total))
	}
	if s := time.Since(p.begun).Seconds(); s >= 1 {
		text += fmt.Sprintf(", %s/s", size(int64(float64(t.Done-p.first)/s)))
	}
	fmt.Fprintf(p.out, "\r%.78s\x1b[K", text)
}

func (p *progress) clear() {
	if p.out != nil {
		fmt.Fprint(p.out, "\r\x1b[K")
	}
}
