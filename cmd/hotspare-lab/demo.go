package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"hotspare/testenv/images"
	"hotspare/testenv/lab"
	"hotspare/testenv/lab/load"
	"hotspare/testenv/lab/site"
	"hotspare/testenv/lab/witness"
	"hotspare/ui/api"
)

// demoOptions are the flags of the demo.
type demoOptions struct {
	out     string // folder of everything that it makes
	bin     string // folder of the built programs
	docs    []string
	console string
	keep    bool
	accel   string
	fault   string
	name    string
	standby string
}

func demoCommand(p *place) *cobra.Command {
	var o demoOptions
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Show a failover of a real database from one machine to another",
		Long: `Show a failover: build the images, make the lab, start the appliance, run
PostgreSQL and nginx on two machines of a pool of four, insert rows without
pause, cut the power of the machine that runs PostgreSQL, and follow how the
appliance moves it. The last line gives the figures; ` + "`out/demo.json`" + ` has them too.`,
		Args: wants(0, 0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runDemo(cmd.Context(), cmd.OutOrStdout(), p, o)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.out, "out", "out", "folder for everything that the demo makes")
	f.StringVar(&o.bin, "bin", "out/bin", "folder of hotspare and hotspare-agent")
	f.StringArrayVarP(&o.docs, "filename", "f", []string{"examples/nodes.yaml", "examples/orders.yaml", "examples/web.yaml"}, "what is applied")
	f.StringVar(&o.console, "console", "127.0.0.1:8080", "where the appliance's page is reachable on the host")
	f.BoolVar(&o.keep, "keep", os.Getenv("KEEP") == "1", "leave everything running at the end ($KEEP=1)")
	f.StringVar(&o.accel, "accel", "auto", "auto, tcg or kvm")
	f.StringVar(&o.name, "name", "lab", "of the lab: namespaces are hs-NAME and hs-NAME-client")
	f.StringVar(&o.standby, "standby", os.Getenv("STANDBY"), "a pool's document with a standby policy: the failover begins when a node waits ($STANDBY)")
	f.StringVar(&o.fault, "fault", lab.PowerCut, "what happens to the machine")
	return cmd
}

// demo is one run.
type demo struct {
	opts  demoOptions
	say   *story
	undo  lab.Teardown
	lab   *lab.Lab
	site  *site.Site
	place *place
}

func runDemo(ctx context.Context, w io.Writer, p *place, o demoOptions) (err error) {
	d := &demo{opts: o, say: newStory(w), place: p}
	finished := false
	defer func() {
		if finished && o.keep {
			return
		}
		// Also after Ctrl-C: what was made is taken down, within a bound.
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		if terr := d.undo.Run(clean); terr != nil {
			err = errors.Join(err, terr)
		}
	}()
	result, err := d.run(ctx)
	if err != nil {
		d.say.line("the demo failed; logs are in %s", p.dir)
		return err
	}
	finished = true
	if err := result.write(filepath.Join(o.out, "demo.json")); err != nil {
		return err
	}
	if o.keep {
		d.hints()
	}
	fmt.Fprintln(w, result.line())
	return result.err()
}

// run is the story; each step says what it does.
func (d *demo) run(ctx context.Context) (*demoResult, error) {
	imgs, err := d.buildImages(ctx)
	if err != nil {
		return nil, err
	}
	if err := d.startLab(ctx, imgs["orders"].Kernel); err != nil {
		return nil, err
	}
	if err := d.startAppliance(ctx, imgs); err != nil {
		return nil, err
	}
	events, stop := context.WithCancel(ctx)
	var followed errgroup.Group
	defer func() { stop(); followed.Wait() }() // never an error
	followed.Go(func() error { d.site.Events(events, d.event); return nil })

	first, err := d.apply(ctx)
	if err != nil {
		return nil, err
	}
	client := load.Start(ctx, load.Options{Address: "10.77.0.50:5432", Dial: lab.Dialer(d.lab.ClientNamespace()), Name: "demo"})
	defer client.Stop()
	if err := d.warm(ctx, client, first.Status.Epoch); err != nil {
		return nil, err
	}
	if d.opts.standby != "" {
		if err := d.park(ctx); err != nil {
			return nil, err
		}
	}
	return d.failover(ctx, client, first)
}

// park has a spare wait in standby.
func (d *demo) park(ctx context.Context) error {
	d.say.line("hotspare apply -f %s", d.opts.standby)
	if _, err := d.site.Hotspare(ctx, "apply", "-f", d.opts.standby); err != nil {
		return err
	}
	wait, cancel := context.WithTimeout(ctx, 4*time.Minute)
	defer cancel()
	begun := time.Now()
	node, err := d.site.Parked(wait)
	if err != nil {
		return err
	}
	d.say.line("%s waits in standby after %.0f s", node, time.Since(begun).Seconds())
	return nil
}

func (d *demo) buildImages(ctx context.Context) (map[string]images.Image, error) {
	d.say.line("images: %s (from the cache when their recipes have not changed)", strings.Join(images.Names(), ", "))
	b, err := images.New(images.Options{CacheDir: filepath.Join(d.opts.out, "cache", "images"), Log: d.place.log()})
	if err != nil {
		return nil, err
	}
	built := make([]images.Image, len(images.Names()))
	g, gctx := errgroup.WithContext(ctx)
	for i, name := range images.Names() {
		g.Go(func() (err error) {
			built[i], err = b.Build(gctx, name)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	all := map[string]images.Image{}
	for _, img := range built {
		all[img.Name] = img
		how := fmt.Sprintf("built in %.0f s", img.BuildS)
		if img.Reused {
			how = "from the cache"
		}
		d.say.line("  %s: Debian %s, %d packages, %s", img.Name, img.Suite, len(img.Packages), how)
	}
	return all, nil
}

func (d *demo) startLab(ctx context.Context, kernel string) error {
	d.say.line("lab: 4 machines with BMCs in a network namespace")
	o := lab.Options{Name: d.opts.name, Dir: d.place.dir, Accel: d.opts.accel, Kernel: kernel, Log: d.place.log(),
		Forwards: []lab.Forward{{Listen: d.opts.console, To: "127.0.0.1:8080"}}}
	l, err := lab.Up(ctx, o)
	if err != nil && isPortTaken(err) {
		o.Forwards[0].Listen = "127.0.0.1:0"
		l, err = lab.Up(ctx, o)
	}
	if err != nil {
		return err
	}
	d.lab = l
	d.undo.Add("lab", l.Down)
	d.say.line("  accelerator %s; serial consoles: %s", l.Accel(), filepath.Join(l.Dir(), "n*", "serial.log"))
	return nil
}

func (d *demo) startAppliance(ctx context.Context, imgs map[string]images.Image) error {
	state := filepath.Join(d.opts.out, "state")
	// The state of a demo is the demo's: each begins with an empty one.
	if err := os.RemoveAll(state); err != nil {
		return err
	}
	d.undo.Add("state", func(context.Context) error { return os.RemoveAll(state) })
	// Processes use files below the state: the lab, which ends them, goes first.
	d.undo.Add("lab", d.lab.Down)
	s, err := site.New(site.Options{Lab: d.lab, Bin: d.opts.bin, State: state})
	if err != nil {
		return err
	}
	d.site = s
	d.say.line("appliance: hotspare serve")
	if err := s.Start(ctx); err != nil {
		return err
	}
	d.say.line("  status page: http://%s", d.lab.Forwards()[0].Listen)
	for _, name := range images.Names() {
		begun := time.Now()
		if _, err := s.Hotspare(ctx, "image", "import", name, "--file", imgs[name].Disk, "--format", "raw"); err != nil {
			return err
		}
		d.say.line("  hotspare image import %s: %.1f s", name, time.Since(begun).Seconds())
	}
	return nil
}

// apply declares the applications and waits until they run.
func (d *demo) apply(ctx context.Context) (api.Application, error) {
	args := []string{"apply"}
	for _, f := range d.opts.docs {
		args = append(args, "-f", f)
	}
	d.say.line("hotspare %s", strings.Join(args, " "))
	if _, err := d.site.Hotspare(ctx, args...); err != nil {
		return api.Application{}, err
	}
	wait, cancel := context.WithTimeout(ctx, 8*time.Minute)
	defer cancel()
	begun := time.Now()
	snap, err := d.site.Running(wait, "orders", "web")
	if err != nil {
		return api.Application{}, err
	}
	orders, _ := site.Application(snap, "orders")
	web, _ := site.Application(snap, "web")
	d.say.line("running after %.0f s: orders on %s (epoch %d), web on %s (epoch %d)", time.Since(begun).Seconds(),
		orders.Status.Node, orders.Status.Epoch, web.Status.Node, web.Status.Epoch)
	return orders, nil
}

// warm lets the client insert for a while before anything happens.
func (d *demo) warm(ctx context.Context, client *load.Client, epoch uint64) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	if err := d.witnessed(ctx, epoch); err != nil {
		return err
	}
	if _, err := client.AckAfter(ctx, time.Now()); err != nil {
		return err
	}
	if _, err := client.AckAfter(ctx, time.Now().Add(5*time.Second)); err != nil {
		return err
	}
	d.say.line("client: %d rows acknowledged through 10.77.0.50, and it goes on", len(client.Acks()))
	return nil
}

// minWitnessed is the least number of witness writes of each grant: fewer prove
// nothing about it.
const minWitnessed = 20

// witnessed waits until the holder of an epoch has written to the witness volume
// often enough. It is the last resource of the group to come online.
func (d *demo) witnessed(ctx context.Context, epoch uint64) error {
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		seen, err := witness.ReadFile(d.site.Trace("orders", "witness"))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		for _, h := range seen.Holders {
			if h.Epoch == epoch && h.Writes >= minWitnessed {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the witness of epoch %d wrote too little: %w: %+v", epoch, ctx.Err(), seen.Holders)
		case <-tick.C:
		}
	}
}

// event prints what the appliance reports, as it comes.
func (d *demo) event(e api.Event) {
	d.say.at(e.At, "  %-14s %-10s %s", e.Kind, e.Subject, strings.TrimSpace(e.Code+" "+e.Text))
}

func (d *demo) failover(ctx context.Context, client *load.Client, before api.Application) (*demoResult, error) {
	node := before.Status.Node
	d.say.line("FAULT: %s of %s, which runs orders", d.opts.fault, node)
	cut := time.Now()
	if err := d.lab.Fail(ctx, node, d.opts.fault, "postgresql@15-main.service"); err != nil {
		return nil, err
	}
	wait, cancel := context.WithTimeout(ctx, 8*time.Minute)
	defer cancel()
	after, record, err := d.site.Moved(wait, "orders", before.Status.Epoch)
	if err != nil {
		return nil, err
	}
	ack, err := client.AckAfter(wait, cut.Add(afterCut))
	if err != nil {
		return nil, err
	}
	// Some more inserts, so that the new node has something to keep as well.
	if _, err := client.AckAfter(wait, time.Now().Add(2*time.Second)); err != nil {
		return nil, err
	}
	if err := d.witnessed(wait, after.Status.Epoch); err != nil {
		return nil, err
	}
	client.Stop()
	rows, err := client.Verify(wait)
	if err != nil {
		return nil, err
	}
	seen, err := witness.ReadFile(d.site.Trace("orders", "witness"))
	if err != nil {
		return nil, err
	}
	d.timeline(record)
	r := newDemoResult(cut, outage(client.Acks(), cut, ack), after, record, rows, seen)
	r.From, r.Fault = node, d.opts.fault
	return r, nil
}

func (d *demo) timeline(f api.Failover) {
	d.say.line("failover %s of %s: %s -> %s, epoch %d, evidence: %s", f.ID, f.Application, f.From, f.To, f.Epoch, f.Evidence)
	d.say.line("  cause: %s", f.Cause)
	for _, s := range f.Steps {
		d.say.line("  %+7.2f s  %-14s %s", s.After, s.Name, s.Text)
	}
}

// hints tell what to try on a lab that goes on.
func (d *demo) hints() {
	bin, _ := filepath.Abs(d.opts.bin)
	status, _ := d.site.Snapshot(context.Background())
	orders, _ := site.Application(status, "orders")
	d.say.line("everything goes on; try:")
	for _, h := range []string{
		"http://" + d.lab.Forwards()[0].Listen,
		fmt.Sprintf("%s/hotspare --socket %s get apps", bin, d.site.Socket()),
		fmt.Sprintf("%s/hotspare --socket %s explain app orders", bin, d.site.Socket()),
		fmt.Sprintf("%s/hotspare-lab --dir %s status", bin, d.lab.Dir()),
		fmt.Sprintf("%s/hotspare-lab --dir %s fail %s power-cut", bin, d.lab.Dir(), orders.Status.Node),
		fmt.Sprintf("%s/hotspare-lab --dir %s exec --client -- psql -h 10.77.0.50 -U orders orders -c 'select count(*) from entries'", bin, d.lab.Dir()),
		fmt.Sprintf("%s/hotspare-lab --dir %s down", bin, d.lab.Dir()),
	} {
		d.say.line("  %s", h)
	}
}
