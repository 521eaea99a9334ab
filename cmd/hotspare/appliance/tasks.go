package appliance

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"sync"
	"time"

	"hotspare"
	"hotspare/ui/api"
)

const (
	maxTasks   = 4                      // that run at a time
	keptTasks  = 50                     // that ended and are still shown
	taskTell   = 250 * time.Millisecond // at most one revision for progress in this time
	taskWait   = 10 * time.Second       // how long a reader waits for the next revision
	abortedWhy = "aborted by "
)

// tasks runs what takes its time and shows how far it is. They live in memory.
type tasks struct {
	log *slog.Logger

	mu      sync.Mutex
	all     []*task // oldest first
	next    int
	stopped bool
	running sync.WaitGroup
}

// task is one operation. Its mutex guards view.
type task struct {
	key    string // no two tasks of one key run at a time
	cancel context.CancelCauseFunc
	done   chan struct{}

	mu      sync.Mutex
	view    api.Task
	told    time.Time
	changed chan struct{} // closed at the next revision
}

// errAborted is the cause of a task's end by an operator; errStops of one by the
// end of the appliance.
var (
	errAborted = errors.New("aborted")
	errStops   = errors.New("the appliance stops")
)

// begin runs fn in the background as a new task. It is refused while another with
// the same key runs.
func (t *tasks) begin(key string, v api.Task, fn func(context.Context, *task) error) (*task, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.stopped {
		return nil, &hotspare.Error{Code: hotspare.CodeUnavailable, What: "the appliance stops", Fix: "try again when it is back"}
	}
	active := 0
	for _, o := range t.all {
		if !o.active() {
			continue
		}
		if active++; o.key == key {
			return nil, &hotspare.Error{
				Code: hotspare.CodeConflict, What: "the same is under way already", Where: "task " + o.view.ID, Why: key,
				Fix: "wait for it to end, or end it: hotspare tasks abort " + o.view.ID,
			}
		}
	}
	if active >= maxTasks {
		return nil, &hotspare.Error{
			Code: hotspare.CodeConflict, What: "too many tasks run already", Where: fmt.Sprintf("%d of %d", active, maxTasks),
			Fix: "wait for one to end, or end one: hotspare tasks abort ID",
		}
	}
	t.next++
	v.ID, v.State, v.Begun, v.Revision = "t"+strconv.Itoa(t.next), "running", time.Now(), 1
	ctx, cancel := context.WithCancelCause(context.Background())
	x := &task{key: key, cancel: cancel, done: make(chan struct{}), view: v, changed: make(chan struct{})}
	t.all = append(t.all, x)
	t.forget()
	t.log.InfoContext(ctx, "task begun", "task", v.ID, "kind", v.Kind, "volume", v.Volume, "by", v.By)
	t.running.Go(func() {
		defer cancel(nil)
		err := fn(ctx, x)
		if err != nil && ctx.Err() != nil {
			err = context.Cause(ctx) // what it made of its end does not matter
		}
		x.end(err)
		v := x.snapshot()
		t.log.InfoContext(ctx, "task ended", "task", v.ID, "state", v.State, "text", v.Text, "err", err)
	})
	return x, nil
}

// forget drops the oldest tasks that ended; t.mu is held.
func (t *tasks) forget() {
	for over := len(t.all) - keptTasks - maxTasks; over > 0; over-- {
		i := slices.IndexFunc(t.all, func(x *task) bool { return !x.active() })
		if i < 0 {
			return
		}
		t.all = slices.Delete(t.all, i, i+1)
	}
}

// stop ends all tasks and waits for them.
func (t *tasks) stop(ctx context.Context) error {
	t.mu.Lock()
	t.stopped = true
	for _, x := range t.all {
		x.cancel(errStops)
	}
	t.mu.Unlock()
	ended := make(chan struct{})
	go func() {
		t.running.Wait()
		close(ended)
	}()
	select {
	case <-ended:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (t *tasks) find(id string) (*task, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, x := range t.all {
		if x.view.ID == id { // never changes
			return x, nil
		}
	}
	return nil, &hotspare.Error{
		Code: hotspare.CodeNotFound, What: "there is no such task", Where: id,
		Why: "tasks that ended are forgotten after a while and at a restart", Fix: "hotspare tasks lists them",
	}
}

func (x *task) active() bool {
	select {
	case <-x.done:
		return false
	default:
		return true
	}
}

func (x *task) snapshot() api.Task {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.view
}

// set changes the view and tells who waits.
func (x *task) set(change func(*api.Task)) {
	x.mu.Lock()
	defer x.mu.Unlock()
	change(&x.view)
	x.tell()
}

// progress changes the view but tells of it only now and then.
func (x *task) progress(change func(*api.Task)) {
	x.mu.Lock()
	defer x.mu.Unlock()
	change(&x.view)
	if now := time.Now(); now.Sub(x.told) >= taskTell {
		x.told = now
		x.tell()
	}
}

func (x *task) tell() {
	x.view.Revision++
	close(x.changed)
	x.changed = make(chan struct{})
}

func (x *task) end(err error) {
	x.set(func(v *api.Task) {
		now := time.Now()
		v.Ended = &now
		var aborted *abort
		switch {
		case err == nil:
			v.State = "done"
		case errors.As(err, &aborted):
			v.State, v.Text = "aborted", abortedWhy+aborted.by
		case errors.Is(err, errStops):
			v.State, v.Text = "aborted", errStops.Error()
		default:
			v.State, v.Problem = "failed", api.ProblemOf(err)
			v.Text = v.Problem.Title
		}
		close(x.done) // before anybody is told: who sees the end may begin the same again
	})
}

// abort is the cause of the end of a task that an operator ended.
type abort struct{ by string }

func (a *abort) Error() string { return abortedWhy + a.by }
func (a *abort) Unwrap() error { return errAborted }

// Tasks gives all tasks, newest first.
func (a *Appliance) Tasks(context.Context) ([]api.Task, error) {
	a.tasks.mu.Lock()
	defer a.tasks.mu.Unlock()
	out := make([]api.Task, 0, len(a.tasks.all))
	for _, x := range slices.Backward(a.tasks.all) {
		out = append(out, x.snapshot())
	}
	return out, nil
}

// Task gives a task, when it has a later revision than after, ends, or some
// seconds are over.
func (a *Appliance) Task(ctx context.Context, id string, after uint64) (api.Task, error) {
	x, err := a.tasks.find(id)
	if err != nil {
		return api.Task{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, taskWait)
	defer cancel()
	for {
		x.mu.Lock()
		v, changed := x.view, x.changed
		x.mu.Unlock()
		if after == 0 || v.Revision > after || v.Ended != nil {
			return v, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return v, nil
		}
	}
}

// AbortTask ends a task and waits until it has cleaned up, for a while.
func (a *Appliance) AbortTask(ctx context.Context, id, by string) error {
	x, err := a.tasks.find(id)
	if err != nil {
		return err
	}
	if !x.active() {
		return &hotspare.Error{Code: hotspare.CodeConflict, What: "the task has ended", Where: id, Why: x.snapshot().Text, Fix: "nothing"}
	}
	x.cancel(&abort{by})
	ctx, cancel := context.WithTimeout(ctx, taskWait)
	defer cancel()
	select {
	case <-x.done:
	case <-ctx.Done(): // it ends when the disk answers
	}
	return nil
}
