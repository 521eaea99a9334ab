// Command hotspare-lab is the QEMU lab for people and for CI: machines with
// virtual BMCs in a network namespace, the two demo images, plain iSCSI volumes
// of the real store, and the demo. Exit status: 0 done, 1 refused or failed (the
// message has a code), 2 wrong usage.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"hotspare"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	os.Exit(run(ctx, os.Args[1:]))
}

func run(ctx context.Context, args []string) int {
	root := command()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	var usage *usageError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &usage):
		fmt.Fprintf(os.Stderr, "hotspare-lab: %v\nSee `%s --help`.\n", err, usage.path)
		return 2
	case ctx.Err() != nil && errors.Is(err, context.Canceled):
		fmt.Fprintln(os.Stderr, "hotspare-lab: interrupted")
		return 130
	}
	report(err)
	return 1
}

// report prints an error card: what, where, why, fix.
func report(err error) {
	e, ok := errors.AsType[*hotspare.Error](err)
	if !ok {
		fmt.Fprintf(os.Stderr, "hotspare-lab: %v\n", err)
		return
	}
	fmt.Fprint(os.Stderr, "hotspare-lab: ", e.Card())
	if err.Error() != e.Error() {
		fmt.Fprintf(os.Stderr, "  %-6s%v\n", "all", err)
	}
}

// usageError is a wrong call of the command at path.
type usageError struct {
	path string
	err  error
}

func (u *usageError) Error() string { return u.err.Error() }
func (u *usageError) Unwrap() error { return u.err }

// wants checks the number of arguments.
func wants(least, most int, what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) < least || len(args) > most {
			return &usageError{cmd.CommandPath(), fmt.Errorf("%s wants %s", cmd.Name(), what)}
		}
		return nil
	}
}

// place is where a lab is.
type place struct {
	dir     string
	verbose bool
}

func (p *place) log() *slog.Logger {
	level := slog.LevelWarn
	if p.verbose {
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
}

func command() *cobra.Command {
	var p place
	root := &cobra.Command{
		Use:           "hotspare-lab",
		Short:         "A rack in a box: QEMU machines with virtual BMCs, to show, test and rehearse",
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return &usageError{cmd.CommandPath(), err} })
	root.PersistentFlags().StringVar(&p.dir, "dir", "out/lab", "the lab's directory")
	root.PersistentFlags().BoolVarP(&p.verbose, "verbose", "v", false, "say more")
	root.AddCommand(upCommand(&p), statusCommand(&p), failCommand(&p), healCommand(&p), powerCommand(&p), execCommand(&p), downCommand(&p),
		serveCommand(), imageCommand(&p), targetCommand(&p), demoCommand(&p))
	return root
}
