package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"hotspare"
	"hotspare/testenv/lab"
	"hotspare/testenv/lab/site"
	"hotspare/ui/api"
	"hotspare/ui/api/client"
)

// imageTestOptions are the flags of image test.
type imageTestOptions struct {
	file    string // a disk, as an operator would import it
	ref     string // or a version of a repository
	socket  string // of the appliance that has it
	bin     string
	accel   string
	format  string
	keep    bool
	memory  int
	timeout time.Duration
	app     imageTestApp
}

func imageTestCommand(p *place) *cobra.Command {
	var o imageTestOptions
	var output string
	cmd := &cobra.Command{
		Use:   "test FILE | test --ref NAME:VERSION",
		Short: "Start an image on a machine and say whether its system came up",
		Long: `Start an image on an emulated machine (BIOS) with an appliance of its own, in a
network that nothing else is in. The image has passed when its systemd has reached
the default target, or, of an image that is one process, when the process (--process)
runs; with --http or --tcp also that answers on the service address; with --expect,
when the machine's serial console shows a text. The way cold-san has no agent inside
and is judged by --expect alone.

With --ref the image is one of an appliance on this host, which writes it to a
temporary file; the outcome is kept with the image there.`,
		Example: "  hotspare-lab image test web.qcow2 --http /\n  hotspare-lab image test windows.vhdx --way cold-san --expect 'SAC>' --memory 4096",
		Args: func(cmd *cobra.Command, args []string) error {
			if (len(args) == 1) == (o.ref != "") || len(args) > 1 {
				return &usageError{cmd.CommandPath(), errors.New("test wants a file, or --ref NAME:VERSION")}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			o.file = strings.Join(args, "")
			if err := o.app.validate(); err != nil {
				return &usageError{cmd.CommandPath(), err}
			}
			return runImageTest(cmd.Context(), cmd.OutOrStdout(), p, o, output == "json")
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.ref, "ref", "", "a version of an appliance's repository")
	f.StringVar(&o.socket, "socket", "/run/hotspare/api.sock", "that appliance's socket")
	f.StringVar(&o.bin, "bin", "", "folder of hotspare and hotspare-agent; default: this program's")
	f.StringVar(&o.accel, "accel", "auto", "auto, tcg or kvm")
	f.StringVar(&o.format, "format", "auto", "of FILE, as in hotspare image import")
	f.BoolVar(&o.keep, "keep", false, "keep the lab's folder with all logs")
	f.IntVar(&o.memory, "memory", 1024, "of the machine, in MiB")
	f.DurationVar(&o.timeout, "timeout", 15*time.Minute, "from power on to the verdict")
	f.StringVar(&o.app.way, "way", "", "cold-iscsi, cold-san or ram; default: what the image offers, in this order")
	f.StringVar(&o.app.http, "http", "", "path that must answer with status 200 on the service address")
	f.IntVar(&o.app.tcp, "tcp", 0, "port that must take connections on the service address")
	f.IntVar(&o.app.port, "port", 80, "of --http")
	f.StringVar(&o.app.process, "process", "", "command line of an image that is one process")
	f.StringVar(&o.app.expect, "expect", "", "text that the serial console must show")
	f.StringVarP(&output, "output", "o", "", "json; default: for people")
	return cmd
}

// imageTestResult is what is told at the end.
type imageTestResult struct {
	Version  int             `json:"version"` // 1
	Image    string          `json:"image"`   // the file, or name:version
	Digest   string          `json:"digest"`
	SHA256   string          `json:"sha256"` // of the file
	Way      string          `json:"way"`
	Machine  string          `json:"machine"`
	OK       bool            `json:"ok"`
	Text     string          `json:"text"` // what was seen, or why not
	Seconds  float64         `json:"seconds"`
	Boots    json.RawMessage `json:"boots,omitempty"` // the machine's ladder
	Console  []string        `json:"console,omitempty"`
	explain  string
	recorded string
}

// imageTester is one test.
type imageTester struct {
	opts imageTestOptions
	dir  string
	undo lab.Teardown
	lab  *lab.Lab
	site *site.Site
	out  io.Writer
}

func runImageTest(ctx context.Context, w io.Writer, p *place, o imageTestOptions, asJSON bool) (err error) {
	if o.bin == "" {
		self, err := os.Executable()
		if err != nil {
			return err
		}
		o.bin = filepath.Dir(self)
	}
	t := &imageTester{opts: o, out: os.Stderr}
	if t.dir, err = os.MkdirTemp("", "hs-test-"); err != nil {
		return err
	}
	defer func() {
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		err = errors.Join(err, t.undo.Run(clean))
		if !o.keep {
			err = errors.Join(err, os.RemoveAll(t.dir))
		}
	}()
	r, err := t.run(ctx, p)
	if err != nil {
		return err
	}
	if asJSON {
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		err = enc.Encode(r)
	} else {
		r.print(w)
	}
	if err == nil && !r.OK {
		err = &hotspare.Error{Code: hotspare.CodeOnlineFailed, What: "the image did not come up", Where: r.Image, Why: r.Text, Fix: "see the ladder and the end of the serial console; --keep keeps all logs"}
	}
	return err
}

func (t *imageTester) say(format string, args ...any) { fmt.Fprintf(t.out, format+"\n", args...) }

func (t *imageTester) run(ctx context.Context, p *place) (*imageTestResult, error) {
	operator := client.New(client.Options{Socket: t.opts.socket})
	defer operator.Close()
	r := &imageTestResult{Version: 1, Image: t.opts.file, Machine: "QEMU, BIOS"}
	file, format := t.opts.file, t.opts.format
	var original api.Image
	if t.opts.ref != "" {
		r.Image = t.opts.ref
		var err error
		if original, file, err = t.fetch(ctx, operator); err != nil {
			return nil, err
		}
		format = "raw"
	}
	if err := t.start(ctx, p); err != nil {
		return nil, err
	}
	t.say("import %s", r.Image)
	abs, err := filepath.Abs(file)
	if err != nil {
		return nil, err
	}
	if _, err := t.site.Hotspare(ctx, "image", "import", "tested", "--version", "1", "--file", abs, "--format", format); err != nil {
		return nil, err
	}
	var img api.Image
	if err := t.site.API().Get(ctx, "/api/v1/images/tested:1", &img); err != nil {
		return nil, err
	}
	r.Digest, r.SHA256 = img.Digest, img.SourceSHA256
	if err := t.judge(ctx, img, r); err != nil {
		return nil, err
	}
	if t.opts.ref != "" {
		if err := t.record(ctx, operator, original, r); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// fetch has the operator's appliance write the image's disk to a file.
func (t *imageTester) fetch(ctx context.Context, operator *client.Client) (img api.Image, file string, err error) {
	if err := operator.Get(ctx, "/api/v1/images/"+url.PathEscape(t.opts.ref), &img); err != nil {
		return img, "", err
	}
	if img.Volume == "" {
		return img, "", &hotspare.Error{Code: hotspare.CodeInvalid, What: "the image has no disk", Where: t.opts.ref, Why: "it runs from memory", Fix: "test the file that it was imported from: hotspare-lab image test FILE"}
	}
	file = filepath.Join(t.dir, "disk.raw")
	t.say("the appliance writes %s to %s", t.opts.ref, file)
	var task api.Task
	if err := operator.Post(ctx, "/api/v1/volumes/"+url.PathEscape(img.Volume)+"/actions/export", map[string]any{"file": file, "format": "raw"}, &task); err != nil {
		return img, "", err
	}
	tick := time.NewTicker(300 * time.Millisecond)
	defer tick.Stop()
	for task.Ended == nil {
		select {
		case <-ctx.Done():
			return img, "", ctx.Err()
		case <-tick.C:
		}
		if err := operator.Get(ctx, "/api/v1/tasks/"+url.PathEscape(task.ID), &task); err != nil {
			return img, "", err
		}
	}
	if task.Problem != nil {
		return img, "", task.Problem
	}
	return img, file, nil
}

// start makes the lab with one machine and its appliance.
func (t *imageTester) start(ctx context.Context, p *place) error {
	nodes := lab.Nodes(1)
	nodes[0].MemoryMiB = t.opts.memory
	t.say("lab: one machine with %d MiB in a network of its own", t.opts.memory)
	l, err := lab.Up(ctx, lab.Options{Name: fmt.Sprintf("it%d", os.Getpid()), Dir: filepath.Join(t.dir, "lab"), Nodes: nodes, Accel: t.opts.accel, Log: p.log()})
	if err != nil {
		return err
	}
	t.lab = l
	t.undo.Add("lab", l.Down)
	if t.site, err = site.New(site.Options{Lab: l, Bin: t.opts.bin, State: filepath.Join(t.dir, "state")}); err != nil {
		return err
	}
	return t.site.Start(ctx)
}

// record keeps the outcome with the image that was tested.
func (t *imageTester) record(ctx context.Context, operator *client.Client, img api.Image, r *imageTestResult) error {
	in := map[string]any{"digest": img.Digest, "ok": r.OK, "way": r.Way, "machine": r.Machine, "text": fmt.Sprintf("%.1500s", r.Text)}
	if err := operator.Post(ctx, "/api/v1/images/"+url.PathEscape(t.opts.ref)+"/actions/record-test", in, nil); err != nil {
		return fmt.Errorf("keep the outcome: %w", err)
	}
	r.recorded = t.opts.ref
	return nil
}

func (r *imageTestResult) print(w io.Writer) {
	fmt.Fprintln(w, strings.TrimRight(r.explain, "\n"))
	if !r.OK && len(r.Console) > 0 {
		fmt.Fprintln(w, "\nthe end of the serial console:")
		for _, l := range r.Console {
			fmt.Fprintln(w, "  "+l)
		}
	}
	verdict := "FAILED"
	if r.OK {
		verdict = "PASSED"
	}
	fmt.Fprintf(w, "\n%s: %s by %s on %s after %.1f s: %s\n", verdict, r.Image, r.Way, r.Machine, r.Seconds, r.Text)
	if r.recorded != "" {
		fmt.Fprintf(w, "kept with %s\n", r.recorded)
	}
}
