package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"hotspare"
	"hotspare/cmd/hotspare-agent/disk"
	"hotspare/cmd/hotspare-agent/slots"
	"hotspare/haengine/agentlink"
	"hotspare/haengine/agentlink/diskstream"
)

// install writes an image to a local disk.
func (a *agent) install(ctx context.Context, o agentlink.Order) agentlink.Result {
	a.comesFirst("another installation", spareEnd)
	ctx, ended, err := a.occupyFor(ctx, "writes to a local disk", o.Epoch == 0)
	if err != nil {
		return failed(o, err, nil)
	}
	defer ended()
	a.forget()
	did := &steps{a: a}
	ctx, stop := a.whileGranted(ctx, o)
	defer stop()
	at, err := a.installTo(ctx, o, did)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil && ctx.Err() != nil {
			err = cause
		}
		return failed(o, err, did.all)
	}
	a.link.Poke()
	return agentlink.Result{OrderID: o.ID, OK: true, Steps: did.all, Installed: at}
}

// whileGranted ends a context when the grant of an order is over.
func (a *agent) whileGranted(ctx context.Context, o agentlink.Order) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	if o.Epoch != 0 {
		go func() {
			tick := time.NewTicker(200 * time.Millisecond)
			defer tick.Stop()
			for {
				select {
				case <-tick.C:
				case <-ctx.Done():
					return
				}
				if seen := a.link.Gate().Seen(o.App); seen > o.Epoch {
					cancel(&hotspare.Error{
						Code: hotspare.CodeStaleEpoch, What: "the grant is over", Where: o.App,
						Why: fmt.Sprintf("order %s is of epoch %d, and epoch %d was granted since", o.ID, o.Epoch, seen),
					})
				}
			}
		}()
	}
	return ctx, func() { cancel(nil) }
}

// recordEvery is how much is written before the disk's record says so: what may
// be written again after a cut of power.
const recordEvery = 256 << 20

// installation is one image on its way to a disk.
type installation struct {
	a    *agent
	o    agentlink.Order
	dev  *disk.Local
	rec  slots.Record
	part *disk.Part
	did  *steps

	divided bool // the disk had slots, and becomes one installation
}

func (a *agent) installTo(ctx context.Context, o agentlink.Order, did *steps) (at *agentlink.Installed, err error) {
	chosen, err := choose(localDisks(a.site()), o.Install.Disk)
	if err != nil {
		return nil, err
	}
	if there := installed(chosen, *o.Install, o.App); there != nil && o.Epoch == 0 {
		return there, nil
	}
	if o.Install.Layout != nil && o.Install.Slot == "" {
		order := *o.Install
		if order.Slot, err = freeSlot(chosen, order, o.App); err != nil {
			return nil, err
		}
		o.Install = &order
	}
	if err := mayWrite(chosen, *o.Install, o.App); err != nil {
		return nil, err
	}
	dev, err := disk.OpenLocal("/dev/" + chosen.Name)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", chosen.ID, err)
	}
	defer func() { err = errors.Join(err, dev.Close()) }()
	in := &installation{a: a, o: o, dev: dev, did: did}
	if err := did.timed("prepare "+chosen.ID, in.prepare); err != nil {
		return nil, err
	}
	if err := did.timed("write", func() error { return in.write(ctx) }); err != nil {
		return nil, err
	}
	if err := did.timed("verify", func() error { return in.verify(ctx) }); err != nil {
		return nil, err
	}
	if err := did.timed("activate", in.activate); err != nil {
		return nil, err
	}
	a.remember(chosen.ID, o.Install.Slot, o.Install.Source.Digest)
	return &agentlink.Installed{Disk: chosen.ID, Slot: o.Install.Slot}, nil
}

// prepare makes the layout, if it is not there, and notes that the place is being
// written: nothing starts it from then on.
func (in *installation) prepare() error {
	want := in.o.Install
	old, err := slots.Read(in.dev, in.dev.Size)
	if err != nil && !errors.Is(err, slots.ErrNone) {
		return err
	}
	switch {
	case want.Layout == nil:
		in.divided = err == nil && old.Layout != nil
		if err == nil && !in.divided {
			in.rec = old
		} else if in.rec, err = slots.Whole(in.dev, in.dev.Size); err != nil {
			return err
		}
		if len(in.rec.Copies) == 0 {
			in.rec.Copies = []slots.Copy{{}}
		}
		if in.rec.Head != want.Head { // what stands there is of another image
			in.rec.Copies[0].State = agentlink.CopyEmpty
		}
		in.rec.Head, in.rec.Partitions = want.Head, want.Partitions
	case err == nil && old.Layout != nil && old.Table && sameLayout(*old.Layout, *want.Layout):
		in.rec = old
	case err == nil && old.Layout != nil && old.Table && want.Consent != agentlink.ConsentOverwrite:
		return &hotspare.Error{
			Code: hotspare.CodeDiskChoice, What: "the local disk is divided in another way", Where: in.dev.Path,
			Why: fmt.Sprintf("it has %d slots of %d bytes", len(old.Layout.Slots), old.Layout.SlotBytes), Fix: "ask for that layout, or give consent to overwrite the disk",
		}
	default:
		if in.rec, err = slots.Divide(in.dev, in.dev.Size, in.dev.Block, *want.Layout); err != nil {
			return err
		}
		if err := in.dev.Reread(); err != nil {
			return fmt.Errorf("the kernel does not take the new partition table: %w", err)
		}
	}
	at, length, err := in.rec.Place(want.Slot, in.dev.Size)
	if err != nil {
		return err
	}
	if want.Source.Bytes > length {
		return &hotspare.Error{
			Code: hotspare.CodeDiskChoice, What: "the image does not fit", Where: in.dev.Path,
			Why: fmt.Sprintf("it has %d bytes, there is room for %d", want.Source.Bytes, length), Fix: "choose a larger disk or larger slots",
		}
	}
	in.part = copyPart(in.dev, &in.rec, at, length)
	c := in.rec.Find(want.Slot)
	if c == nil {
		return fmt.Errorf("the record of the disk has no slot %q", want.Slot)
	}
	written := int64(0)
	if c.State == agentlink.CopyWriting && c.Digest == want.Source.Digest && c.Bytes == want.Source.Bytes {
		written = c.Written // it goes on where it ended
	}
	*c = slots.Copy{Written: written, Copy: agentlink.Copy{
		Slot: want.Slot, State: agentlink.CopyWriting, App: in.o.App, Epoch: in.o.Epoch, Image: want.Image, Kernel: want.Kernel,
		Digest: want.Source.Digest, Bytes: want.Source.Bytes,
	}}
	in.rec.Site = in.a.site()
	if err := in.rec.Write(in.dev); err != nil {
		return err
	}
	if in.divided { // the slots' record would be found first
		if err := in.dev.Zero(0, 2<<20); err != nil {
			return err
		}
	}
	if in.rec.Head == 0 {
		return in.dev.Sync()
	}
	// From here on nothing on the disk can be started by a firmware.
	return errors.Join(in.dev.Zero(at, in.rec.Head), in.dev.Sync())
}

// copyPart gives a copy on a disk as what it was installed from.
func copyPart(dev *disk.Local, rec *slots.Record, at, length int64) *disk.Part {
	return &disk.Part{Disk: dev, At: at, Length: length, Head: rec.Head, HeadAt: rec.HeadAt()}
}

func sameLayout(a, b agentlink.SlotLayout) bool {
	return a.SlotBytes == b.SlotBytes && strings.Join(a.Slots, " ") == strings.Join(b.Slots, " ")
}

// The stream is asked for again while it breaks, as long as an appliance may take
// to start anew, counted from the last byte that came.
const (
	streamPatience = 3 * time.Minute
	streamPause    = 500 * time.Millisecond
)

// write fetches what is missing, and goes on after a cut.
func (in *installation) write(ctx context.Context) error {
	c := in.rec.Find(in.o.Install.Slot)
	tell := in.a.progress(in.o.ID, "write", c.Bytes)
	noted := c.Written
	last := time.Now()
	for {
		at, err := in.stream(ctx, c.Written, tell)
		moved := at > c.Written
		c.Written = at &^ (diskstream.ChunkSize - 1)
		if err == nil {
			c.Written = c.Bytes
		}
		if moved {
			last = time.Now()
		}
		if err == nil || c.Written-noted >= recordEvery || ctx.Err() != nil {
			if err := errors.Join(in.dev.Sync(), in.rec.Write(in.dev)); err != nil {
				return err
			}
			noted = c.Written
		}
		switch {
		case err == nil:
			return nil
		case errors.Is(err, errPiece):
			continue
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case !errors.Is(err, diskstream.ErrBroken) || time.Since(last) > streamPatience:
			return in.contents("the image did not arrive", err)
		}
		in.a.out.say("installation: %v; going on at %d MiB", err, c.Written>>20)
		select {
		case <-time.After(streamPause):
		case <-ctx.Done():
		}
	}
}

// errPiece ends a stream on purpose: what was written is made durable first.
var errPiece = errors.New("a piece was written")

func (in *installation) contents(what string, err error) error {
	return &hotspare.Error{Code: hotspare.CodeContents, What: what, Where: in.o.Install.Image, Err: err, Fix: "start the installation again: it goes on where it ended"}
}

// stream fetches from an offset on, until the end, a cut, or the end of a piece.
func (in *installation) stream(ctx context.Context, from int64, tell func(int64)) (int64, error) {
	src := in.o.Install.Source
	if from >= src.Bytes {
		return from, nil
	}
	where := src.URL
	if from > 0 {
		sep := "?"
		if strings.Contains(where, "?") {
			sep = "&"
		}
		where += fmt.Sprintf("%sfrom=%d", sep, from)
	}
	piece, end := context.WithCancelCause(ctx)
	defer end(nil)
	req, err := http.NewRequestWithContext(piece, http.MethodGet, where, nil)
	if err != nil {
		return from, err
	}
	res, err := streamClient.Do(req)
	if err != nil {
		var at *url.Error
		if errors.As(err, &at) {
			err = at.Err // the URL holds a token
		}
		return from, fmt.Errorf("%w: %w", diskstream.ErrBroken, err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		err := fmt.Errorf("the server answers %s", res.Status)
		if res.StatusCode >= http.StatusInternalServerError {
			err = fmt.Errorf("%w: %w", diskstream.ErrBroken, err)
		}
		return from, err
	}
	body := newPatient(res.Body, end)
	defer body.stop()
	at, err := diskstream.Decode(piece, body, in.part, src.Bytes, from, src.Digest, func(offset int64) {
		tell(offset)
		if offset-from >= recordEvery && offset < src.Bytes {
			end(errPiece)
		}
	})
	return at, err
}

// streamClient has no deadline for a whole answer: an image takes as long as it
// takes. A connection that falls silent is seen by patient.
var streamClient = &http.Client{Transport: &http.Transport{DialContext: dialer.DialContext, ResponseHeaderTimeout: 30 * time.Second, DisableCompression: true}}

// silence is how long a stream may bring nothing.
const silence = 20 * time.Second

// patient ends a stream that falls silent.
type patient struct {
	from interface{ Read([]byte) (int, error) }
	t    *time.Timer
}

func newPatient(from interface{ Read([]byte) (int, error) }, end context.CancelCauseFunc) *patient {
	return &patient{from: from, t: time.AfterFunc(silence, func() {
		end(fmt.Errorf("%w: nothing came for %s", diskstream.ErrBroken, silence))
	})}
}

// Read reads, and waits anew.
func (p *patient) Read(b []byte) (int, error) {
	n, err := p.from.Read(b)
	p.t.Reset(silence)
	return n, err
}

func (p *patient) stop() { p.t.Stop() }

// progress gives what tells the appliance once a second how far a step is.
func (a *agent) progress(order, step string, total int64) func(int64) {
	const every = time.Second
	var last time.Duration
	return func(done int64) { // called by one at a time
		now := a.up()
		if now-last < every && done < total {
			return
		}
		last = now
		a.link.Progress(agentlink.Progress{OrderID: order, Step: step, Done: done, Total: total})
	}
}

// verify reads the contents back from the disk.
func (in *installation) verify(ctx context.Context) error {
	c := in.rec.Find(in.o.Install.Slot)
	got, err := diskstream.Digest(ctx, in.part, c.Bytes, in.a.progress(in.o.ID, "verify", c.Bytes))
	if err != nil {
		return err
	}
	if got != c.Digest {
		c.State, c.Written = agentlink.CopyFailed, 0
		return errors.Join(in.contents("what was read back from the disk differs", fmt.Errorf("it has the digest %s instead of %s", got, c.Digest)), in.rec.Write(in.dev))
	}
	return nil
}

func (in *installation) activate() error {
	c := in.rec.Find(in.o.Install.Slot)
	c.State, c.Written = agentlink.CopyReady, 0
	in.rec.Activate(c.Slot)
	if err := in.rec.Write(in.dev); err != nil {
		return err
	}
	if in.rec.Layout == nil {
		return in.dev.Reread() // what the kernel knew of before is gone
	}
	return nil
}
