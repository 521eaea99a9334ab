package fence

import (
	"sync"
	"time"
)

// Step is one effect of the drop. It must need nothing but what is open and in
// memory already: the volume may be dead.
type Step struct {
	Name string
	Do   func() error
}

// Outcome is what became of a step.
type Outcome struct {
	Name   string
	Err    error
	Hung   bool // it had not ended when its share of the bound was over
	Millis int64
}

// Dropper drops the service, once.
type Dropper struct {
	once  sync.Once
	steps []Step
	share time.Duration
	done  chan struct{}
	out   []Outcome
}

// NewDropper makes a Dropper whose steps together take at most bound.
func NewDropper(bound time.Duration, steps ...Step) *Dropper {
	share := bound
	if len(steps) > 0 {
		share = bound / time.Duration(len(steps)+1) // one share is left for the reset itself
	}
	return &Dropper{steps: steps, share: share, done: make(chan struct{})}
}

// Drop runs the steps in their order and returns when the last has had its
// share. A second call waits for the first.
func (d *Dropper) Drop() []Outcome {
	d.once.Do(func() {
		defer close(d.done)
		for _, s := range d.steps {
			d.out = append(d.out, d.run(s))
		}
	})
	<-d.done
	return d.out
}

// run gives a step its share of the bound and leaves it behind if it hangs.
func (d *Dropper) run(s Step) Outcome {
	start := time.Now()
	ended := make(chan error, 1)
	go func() { ended <- s.Do() }()
	timer := time.NewTimer(d.share)
	defer timer.Stop()
	o := Outcome{Name: s.Name}
	select {
	case o.Err = <-ended:
	case <-timer.C:
		o.Hung = true
	}
	o.Millis = time.Since(start).Milliseconds()
	return o
}
