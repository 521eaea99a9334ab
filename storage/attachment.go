package storage

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"hotspare"
)

// Export is what a target needs to know about a volume while an initiator logs
// in.
type Export struct {
	Volume     string
	UID        string
	TargetName string
	NAA        [8]byte
	Epoch      uint64
	ReadOnly   bool
	// User and Secret are what the initiator must prove. An empty User means no
	// authentication; only lab exports have that.
	User         string
	Secret       hotspare.Secret
	MutualUser   string
	MutualSecret hotspare.Secret
}

// Login is a finished authentication that asks for a session.
type Login struct {
	Export    Export
	Initiator string
	Address   string // of the initiator, for people
	// Cut is called when the session must end at once (revocation, close). It
	// must not block and may be called more than once. The target then calls
	// Attachment.End when nothing of the session runs any more.
	Cut func()
}

// Visible gives the names of the targets that the initiator may log in to.
func (e *Exports) Visible(initiator string) []string {
	var names []string
	for _, v := range e.rows() {
		v.mu.Lock()
		if g := v.rec.Grant; g.admitsInitiator(initiator) {
			names = append(names, e.targetName(v.name, g.UID))
		}
		v.mu.Unlock()
	}
	return names
}

// Find gives the export behind a target name if the initiator has the live
// grant of it. Everything else, known or unknown, is the same CodeLoginRefused.
func (e *Exports) Find(initiator, target string) (Export, error) {
	for _, v := range e.rows() {
		v.mu.Lock()
		g := v.rec.Grant
		if g.admitsInitiator(initiator) && e.targetName(v.name, g.UID) == target {
			ex := e.export(v.name, *g)
			v.mu.Unlock()
			return ex, nil
		}
		v.mu.Unlock()
	}
	return Export{}, refused(initiator, target, "no live grant for this initiator and target")
}

func (g *grantRecord) admitsInitiator(name string) bool {
	return g != nil && (g.Initiator == name || g.Initiator == AnyInitiator)
}

func (e *Exports) export(volume string, g grantRecord) Export {
	gr := g.grant(volume)
	return Export{
		Volume: volume, UID: g.UID, TargetName: e.targetName(volume, g.UID), NAA: NAA(e.install, g.UID),
		Epoch: g.Epoch, ReadOnly: g.ReadOnly,
		User: gr.User, Secret: gr.Secret, MutualUser: gr.MutualUser, MutualSecret: gr.MutualSecret,
	}
}

func refused(initiator, target, why string) error {
	return &hotspare.Error{Code: hotspare.CodeLoginRefused, What: "a log-in is refused",
		Where: fmt.Sprintf("initiator %.223s, target %.223s", initiator, target), Why: why,
		Fix: "log in with the credentials of the current grant"}
}

// Attach opens a session. It is refused when the grant that the log-in was
// authenticated under is no longer the live one.
func (e *Exports) Attach(ctx context.Context, l Login) (*Attachment, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	v, err := e.row(l.Export.Volume)
	if err != nil {
		return nil, err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	g := v.rec.Grant
	if !g.admitsInitiator(l.Initiator) || g.Epoch != l.Export.Epoch || g.UID != l.Export.UID || g.Epoch < v.rec.Epoch {
		return nil, refused(l.Initiator, l.Export.TargetName, "the grant was revoked while the initiator logged in")
	}
	if err := e.open(v, g.Trace); err != nil {
		return nil, err
	}
	a := &Attachment{
		exports: e, volume: v, dev: v.dev, gate: newGate(), cutFn: l.Cut, ended: make(chan struct{}),
		export: l.Export, initiator: l.Initiator, address: l.Address, since: e.opts.Now(),
		readOnly: g.ReadOnly, node: g.Node, bootID: g.BootID, watch: &e.watch,
	}
	if !e.opts.WithoutStatistics {
		a.stats = &v.stats
	}
	a.noWait, _ = v.dev.(NoWaiter)
	if g.Trace {
		a.trace = v.trace
	}
	v.attached[a] = struct{}{}
	e.opts.Log.Info("session opened", "volume", v.name, "epoch", g.Epoch, "initiator", l.Initiator, "address", l.Address)
	return a, nil
}

// open opens device and trace of v for its first session; v.mu is held.
func (e *Exports) open(v *volume, traced bool) error {
	if traced && v.trace == nil {
		t, err := openTrace(e.opts.TraceDir, v.name)
		if err != nil {
			return err
		}
		v.trace = t
	}
	if v.dev != nil {
		return nil
	}
	dev, err := e.opts.Volumes.OpenVolume(v.name)
	if err != nil {
		return err
	}
	v.dev = dev
	return nil
}

// Attachment is one session's way to its volume. Every command passes its gate;
// after a revocation each fails with ErrRevoked and nothing of it lands.
type Attachment struct {
	exports *Exports
	volume  *volume
	dev     Device
	noWait  NoWaiter // dev, nil if it is none
	trace   *trace
	gate    *gate
	stats   *counters // nil when nothing is measured
	watch   *stopwatch
	cutFn   func()

	export    Export
	initiator string
	address   string
	since     time.Time
	readOnly  bool
	node      string
	bootID    string
	lastWrite atomic.Int64 // tick of watch, 0 for never

	end   sync.Once
	ended chan struct{} // closed when the target has let go of the session
}

// Export gives what the session was opened for.
func (a *Attachment) Export() Export { return a.export }

// Initiator gives the name that logged in.
func (a *Attachment) Initiator() string { return a.initiator }

// ReadOnly says whether writes are refused.
func (a *Attachment) ReadOnly() bool { return a.readOnly }

// Revoked says whether the session's grant is gone.
func (a *Attachment) Revoked() bool { return a.gate.isShut() }

// Size gives the volume's size in bytes.
func (a *Attachment) Size() int64 { return a.dev.Size() }

// ReadAt reads through the gate.
func (a *Attachment) ReadAt(p []byte, off int64) (int, error) {
	if !a.gate.enter() {
		return 0, ErrRevoked
	}
	defer a.gate.leave()
	done := a.begin()
	n, err := a.dev.ReadAt(p, off)
	done.read(n)
	return n, err
}

// WriteAt writes through the gate, and notes the write in the trace if the
// grant asks for it. A write that the trace could not record has landed but
// returns an error.
func (a *Attachment) WriteAt(p []byte, off int64) (int, error) {
	if !a.gate.enter() {
		return 0, ErrRevoked
	}
	defer a.gate.leave()
	if a.readOnly {
		return 0, ErrReadOnly
	}
	done := a.begin()
	n, err := a.dev.WriteAt(p, off)
	at := a.watch.ticks()
	done.write(n, at, err)
	a.lastWrite.Store(at)
	if err == nil && a.trace != nil {
		err = a.trace.add(a, p, off, a.exports.opts.Now())
	}
	return n, err
}

// Flush makes the volume's acknowledged writes durable.
func (a *Attachment) Flush() error {
	if !a.gate.enter() {
		return ErrRevoked
	}
	defer a.gate.leave()
	done := a.begin()
	err := a.dev.Flush()
	done.flush(err)
	return err
}

// Discard discards through the gate.
func (a *Attachment) Discard(off, n int64) error {
	if !a.gate.enter() {
		return ErrRevoked
	}
	defer a.gate.leave()
	if a.readOnly {
		return ErrReadOnly
	}
	done := a.begin()
	err := a.dev.Discard(off, n)
	at := a.watch.ticks()
	done.discard(n, at, err)
	a.lastWrite.Store(at)
	if err == nil && a.trace != nil {
		err = a.trace.addDiscard(a, off, n, a.exports.opts.Now())
	}
	return err
}

// End tells that nothing of the session runs any more. It shuts the gate, and
// closes the device after the volume's last session. Calling it again does
// nothing.
func (a *Attachment) End() {
	a.end.Do(func() {
		a.gate.shut()
		<-a.gate.drained
		v := a.volume
		v.mu.Lock()
		delete(v.attached, a)
		if len(v.attached) == 0 && v.dev != nil {
			if err := v.dev.Close(); err != nil {
				a.exports.opts.Log.Error("volume did not close", "volume", v.name, "err", err)
			}
			v.dev = nil
		}
		v.mu.Unlock()
		a.exports.opts.Log.Info("session ended", "volume", v.name, "epoch", a.export.Epoch, "initiator", a.initiator)
		close(a.ended)
	})
}

func (a *Attachment) cut() {
	if a.cutFn != nil {
		a.cutFn()
	}
}
