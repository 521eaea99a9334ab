package storage

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"

	"hotspare"
)

// AnyInitiator as a grant's Initiator admits every initiator. Only exports
// opened with Options.Lab take such grants.
const AnyInitiator = "*"

// Options of OpenExports.
type Options struct {
	// Volumes gives the devices. Required.
	Volumes Volumes
	// TraceDir holds the traces of grants with Trace; default: "traces" beside
	// the file of the exports.
	TraceDir string
	// TargetName gives the iSCSI name of a volume; default: the function
	// TargetName with the installation's id.
	TargetName func(volume, uid string) string
	// Lab allows grants to AnyInitiator and grants without a secret.
	Lab bool
	// WithoutStatistics measures no command; for finding what measuring costs.
	WithoutStatistics bool
	// Log gets one line for every grant, revocation, log-in; nil discards.
	Log *slog.Logger
	// Now is the clock; default time.Now.
	Now func() time.Time
}

func (o Options) withDefaults(path string) Options {
	if o.TraceDir == "" {
		o.TraceDir = filepath.Join(filepath.Dir(path), "traces")
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return o
}

func (o Options) validate() error {
	if o.Volumes == nil {
		return errors.New("storage: Options.Volumes is missing")
	}
	return nil
}

// Grant is the right of one initiator to use one volume under one epoch. iSCSI
// carries no epoch, so Initiator, User and Secret must be unique to (volume,
// epoch, boot id): a ghost of an older grant then can never log in.
type Grant struct {
	Volume    string
	Epoch     uint64
	Initiator string          // iSCSI name of the initiator
	User      string          // CHAP user
	Secret    hotspare.Secret // CHAP secret, 12 to 64 bytes
	// MutualUser and MutualSecret are what the target proves itself with when
	// the initiator asks for it; optional.
	MutualUser   string
	MutualSecret hotspare.Secret
	Node         string // name of the node, for people
	BootID       string // boot id that the grant is bound to, for people
	ReadOnly     bool
	Trace        bool // record every write in traces/<volume>.jsonl
}

// Exports is the durable table of epochs and grants with the live sessions.
// Its methods are safe for concurrent use.
type Exports struct {
	opts    Options
	db      *bbolt.DB
	install string
	watch   stopwatch

	mu      sync.Mutex
	volumes map[string]*volume
	closed  bool
}

// volume is one row of the table. mu guards all but the counters.
type volume struct {
	name string

	mu       sync.Mutex
	rec      record
	attached map[*Attachment]struct{}
	dev      Device // open while attached is not empty
	trace    *trace
	stats    counters
}

// OpenExports opens or creates the table in the bbolt file at path (mode 0600:
// it holds CHAP secrets). Nobody has a session afterwards; whoever has a live
// grant of the current epoch may log in again.
func OpenExports(path string, opts Options) (*Exports, error) {
	watch := newStopwatch(opts.Now)
	opts = opts.withDefaults(path)
	if err := opts.validate(); err != nil {
		return nil, err
	}
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: time.Second})
	if errors.Is(err, berrors.ErrTimeout) {
		return nil, &hotspare.Error{Code: hotspare.CodeStoreLocked, What: "the table of exports is in use", Where: path,
			Why: "another process has it open", Fix: "stop the other hotspare process", Err: err}
	}
	if err != nil {
		return nil, &hotspare.Error{Code: hotspare.CodeCorrupt, What: "the table of exports does not open", Where: path,
			Fix: "restore exports.db from a backup; the engine raises every epoch again before it grants", Err: err}
	}
	e := &Exports{opts: opts, db: db, watch: watch, volumes: map[string]*volume{}}
	if err := e.load(); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return e, nil
}

// Close cuts all sessions and closes the file. Grants stay: their holders log in
// again after a restart.
func (e *Exports) Close() error {
	e.mu.Lock()
	if e.closed {
		e.mu.Unlock()
		return nil
	}
	e.closed = true
	vols := make([]*volume, 0, len(e.volumes))
	for _, v := range e.volumes {
		vols = append(vols, v)
	}
	e.mu.Unlock()
	var errs []error
	for _, v := range vols {
		v.mu.Lock()
		cut := make([]*Attachment, 0, len(v.attached))
		for a := range v.attached {
			a.gate.shut()
			cut = append(cut, a)
		}
		v.mu.Unlock()
		for _, a := range cut {
			a.cut()
			<-a.gate.drained
			a.End()
		}
		v.mu.Lock()
		errs = append(errs, v.trace.close())
		v.trace = nil
		v.mu.Unlock()
	}
	return errors.Join(append(errs, e.db.Close())...)
}

// InstallID gives the random identity of this table's installation.
func (e *Exports) InstallID() string { return e.install }

// TargetName gives the iSCSI name under which the volume is served.
func (e *Exports) TargetName(volume string) (string, error) {
	uid, err := e.opts.Volumes.VolumeUID(volume)
	if err != nil {
		return "", err
	}
	return e.targetName(volume, uid), nil
}

func (e *Exports) targetName(volume, uid string) string {
	if e.opts.TargetName != nil {
		return e.opts.TargetName(volume, uid)
	}
	return TargetName(e.install, uid)
}

// row gives the volume's row, making an empty one if there is none.
func (e *Exports) row(name string) (*volume, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return nil, errors.New("storage: exports are closed")
	}
	v := e.volumes[name]
	if v == nil {
		v = &volume{name: name, attached: map[*Attachment]struct{}{}}
		e.volumes[name] = v
	}
	return v, nil
}

// rows gives all rows.
func (e *Exports) rows() []*volume {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return nil
	}
	vs := make([]*volume, 0, len(e.volumes))
	for _, v := range e.volumes {
		vs = append(vs, v)
	}
	return vs
}

// Grant makes g the live grant of its volume, durably, and raises the volume's
// epoch to g's. The same grant again changes nothing. It is refused with
// CodeStaleEpoch below the durable epoch, with CodeVolumeBusy while another
// grant is live: revoke that one first.
func (e *Exports) Grant(ctx context.Context, g Grant) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := e.checkGrant(g); err != nil {
		return err
	}
	uid, err := e.opts.Volumes.VolumeUID(g.Volume)
	if err != nil {
		return err
	}
	v, err := e.row(g.Volume)
	if err != nil {
		return err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	gr := newGrantRecord(g, uid)
	if err := v.rec.admits(g, gr); err != nil {
		return err
	}
	if v.rec.Grant != nil && *v.rec.Grant == gr {
		return nil
	}
	next := v.rec
	next.Epoch, next.Grant = g.Epoch, &gr
	if err := e.save(v.name, next); err != nil {
		return fmt.Errorf("storage: grant %s to %s: %w", g.Volume, g.Initiator, err)
	}
	v.rec = next
	e.opts.Log.Info("volume granted", "volume", g.Volume, "epoch", g.Epoch, "initiator", g.Initiator, "node", g.Node, "boot_id", g.BootID)
	return nil
}

// checkGrant refuses grants that can never be right.
func (e *Exports) checkGrant(g Grant) error {
	bad := func(what string) error {
		return &hotspare.Error{Code: hotspare.CodeInvalid, What: what, Where: "grant of volume " + g.Volume, Fix: "make a new grant with all its parts"}
	}
	switch {
	case g.Volume == "" || g.Initiator == "":
		return bad("a grant lacks its volume or its initiator")
	case e.opts.Lab:
		return nil
	case g.Initiator == AnyInitiator:
		return bad("a grant names no single initiator")
	case g.Epoch == 0:
		return bad("a grant lacks its epoch")
	case g.User == "" || len(g.Secret.Reveal()) < 12 || len(g.Secret.Reveal()) > 64:
		return bad("a grant needs a CHAP user and a secret of 12 to 64 bytes")
	case !g.MutualSecret.IsZero() && g.MutualSecret.Equal(g.Secret):
		return bad("both directions of CHAP have the same secret")
	}
	return nil
}

// Epoch gives the durable epoch of the volume, 0 if it never had one.
func (e *Exports) Epoch(volume string) uint64 {
	e.mu.Lock()
	v := e.volumes[volume]
	e.mu.Unlock()
	if v == nil {
		return 0
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.rec.Epoch
}

// SetEpochAtLeast raises the durable epoch to epoch, for a start at which two
// records of it disagree: the higher one wins. It does not touch a live grant
// of an epoch at or above it; a lower one is revoked, with all that belongs to
// a revocation.
func (e *Exports) SetEpochAtLeast(ctx context.Context, volume string, epoch uint64) error {
	_, err := e.Revoke(ctx, volume, epoch)
	return err
}

// Live gives the live grant of the volume, without its secrets.
func (e *Exports) Live(volume string) (Grant, bool) {
	e.mu.Lock()
	v := e.volumes[volume]
	e.mu.Unlock()
	if v == nil {
		return Grant{}, false
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.rec.Grant == nil {
		return Grant{}, false
	}
	g := v.rec.Grant.grant(volume)
	g.Secret, g.MutualSecret = hotspare.Secret{}, hotspare.Secret{}
	return g, true
}
