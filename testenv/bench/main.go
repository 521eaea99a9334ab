package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime/pprof"
	"strings"
	"syscall"
	"time"

	"hotspare/testenv/plaintarget"
)

// options of a run.
type options struct {
	lab     string // the program hotspare-lab
	work    string // directory on the disk that is measured
	memory  string // directory in memory
	out     string
	only    *regexp.Regexp // names of groups to measure
	pattern *regexp.Regexp // names of patterns that both targets run
	quick   bool
	rounds  int
	runs    int           // of each start of a machine
	slice   time.Duration // of one pattern
	span    int64         // bytes of a volume
	extents int           // of the fragmented volume of the store's figures
	depth   int           // of sequential patterns
	verbose bool
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	signal.Ignore(syscall.SIGPIPE) // a reader that has seen enough does not keep us from cleaning up
	if len(os.Args) > 1 && os.Args[1] == "target" {
		if err := target(ctx, os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, "bench: target:", err)
			os.Exit(1)
		}
		return
	}
	if len(os.Args) > 1 && os.Args[1] == "dhcp" {
		if err := serveDHCP(ctx, os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, "bench: dhcp:", err)
			os.Exit(1)
		}
		return
	}
	if kind, ok := strings.CutPrefix(firstArgument(), "serve-"); ok {
		if err := bootServer(ctx, kind, os.Args[2:]); err != nil {
			fmt.Fprintf(os.Stderr, "bench: serve-%s: %v\n", kind, err)
			os.Exit(1)
		}
		return
	}
	var o options
	part := flag.String("part", "storage", "what to measure")
	only := flag.String("only", "", "regular expression: measure these groups only (storage: memory, logins, file, store; boot: tftp, http, dhcp, import, storm, install, ways, demo)")
	pattern := flag.String("pattern", "", "regular expression: measure these patterns only")
	profile := flag.String("profile", "", "write a CPU profile of our target to this file")
	flag.StringVar(&o.lab, "lab", "out/bin/hotspare-lab", "the program whose target is measured")
	flag.StringVar(&o.work, "work", "out/bench", "directory on the disk to measure")
	flag.StringVar(&o.memory, "memory", "/dev/shm", "directory in memory")
	flag.StringVar(&o.out, "out", "", "where the figures go (out/bench-PART.json)")
	flag.IntVar(&o.rounds, "rounds", 3, "rounds of each pattern")
	flag.IntVar(&o.runs, "runs", 10, "starts of a machine in each way")
	flag.IntVar(&o.depth, "depth", 8, "commands outstanding in sequential patterns")
	flag.DurationVar(&o.slice, "slice", 3*time.Second, "time of one pattern")
	flag.BoolVar(&o.verbose, "v", false, "print every round")
	flag.Parse()
	o.quick = os.Getenv("BENCH_QUICK") == "1"
	o.span, o.extents = 1<<30, 1_000_000
	if o.quick {
		o.rounds, o.slice, o.span, o.extents = 1, time.Second, 256<<20, 50_000
	}
	o.only, o.pattern = regexp.MustCompile(*only), regexp.MustCompile(*pattern)
	if *profile != "" {
		self, err := os.Executable()
		if err != nil {
			self = os.Args[0]
		}
		o.lab = self
		if err := os.Setenv("BENCH_PROFILE", *profile); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			os.Exit(1)
		}
	}
	run, ok := map[string]func(context.Context, options) error{"storage": storagePart, "boot": bootPart}[*part]
	if !ok {
		fmt.Fprintf(os.Stderr, "bench: no part %q; fix: PART=storage or PART=boot\n", *part)
		os.Exit(2)
	}
	if o.out == "" {
		o.out = "out/bench-" + *part + ".json"
	}
	if inside, code := ownNetwork(); !inside {
		os.Exit(code)
	}
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func firstArgument() string {
	if len(os.Args) < 2 {
		return ""
	}
	return os.Args[1]
}

// storagePart measures all that is asked for, and reports what it has even when
// something failed.
func storagePart(ctx context.Context, o options) (err error) {
	if err := os.MkdirAll(o.work, 0o755); err != nil {
		return err
	}
	if o.work, err = os.MkdirTemp(o.work, "run-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(o.work)) }()
	if o.memory, err = os.MkdirTemp(o.memory, "hotspare-bench-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(o.memory)) }()
	var figures []figure
	for _, g := range []struct {
		name string
		run  func(context.Context, options) ([]figure, error)
	}{{"memory", memoryFigures}, {"logins", loginFigures}, {"file", fileFigures}, {"store", storeFigures}} {
		if !o.only.MatchString(g.name) {
			continue
		}
		fs, gerr := g.run(ctx, o)
		figures = append(figures, fs...)
		if gerr != nil {
			err = errors.Join(err, fmt.Errorf("%s: %w", g.name, gerr))
		}
		if ctx.Err() != nil {
			break
		}
	}
	return errors.Join(err, table(os.Stdout, figures), save(o.out, figures))
}

// target is `hotspare-lab target` inside this program, with a profile.
func target(ctx context.Context, args []string) error {
	var o plaintarget.Options
	fs := flag.NewFlagSet("target", flag.ContinueOnError)
	fs.StringVar(&o.Dir, "dir", "", "")
	fs.StringVar(&o.Listen, "listen", "", "")
	volume := fs.String("volume", "", "")
	chap := fs.String("chap", "", "")
	if err := fs.Parse(args); err != nil {
		return err
	}
	name, size, _ := strings.Cut(*volume, "=")
	var n int64
	if _, err := fmt.Sscan(size, &n); err != nil {
		return err
	}
	var err error
	if o.Chap, err = plaintarget.ParseCredentials(*chap); err != nil {
		return err
	}
	o.Volumes, o.Out = map[string]int64{name: n}, os.Stdout
	if path := os.Getenv("BENCH_PROFILE"); path != "" {
		f, err := os.Create(filepath.Clean(path))
		if err != nil {
			return err
		}
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	return plaintarget.Run(ctx, o)
}
