// Command hotspare is the appliance (`hotspare serve`) and its client. Exit
// status: 0 done, 1 refused or failed (the message has a code), 2 wrong usage.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"hotspare"
	"hotspare/ui/api"
)

// version is set by the linker: -X main.version=…
var version = "0.1.0-dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
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
	case errors.Is(err, context.Canceled) && ctx.Err() != nil:
		return 130
	case errors.As(err, &usage):
		fmt.Fprintf(os.Stderr, "hotspare: %v\nSee `%s --help`.\n", err, usage.path)
		return 2
	}
	report(err)
	return 1
}

// report prints an error card: what, where, why, fix.
func report(err error) {
	var p *api.Problem
	var e *hotspare.Error
	switch {
	case errors.As(err, &p):
		e = &hotspare.Error{Code: p.Code, What: p.Title, Where: p.Where, Why: p.Why, Fix: p.Fix}
		for _, f := range p.Errors {
			e.Why += fmt.Sprintf("%s %s; ", f.Where, f.What)
		}
	case errors.As(err, &e):
	default:
		fmt.Fprintf(os.Stderr, "hotspare: %v\n", err)
		return
	}
	fmt.Fprint(os.Stderr, "hotspare: ", e.Card())
}

// usageError is a wrong call of the command at path.
type usageError struct {
	path string
	err  error
}

func (u *usageError) Error() string { return u.err.Error() }
func (u *usageError) Unwrap() error { return u.err }

// wants checks the number of arguments and names them in the error.
func wants(lo, hi int, what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) < lo || len(args) > hi {
			return &usageError{cmd.CommandPath(), fmt.Errorf("%s takes %s", cmd.CommandPath(), what)}
		}
		return nil
	}
}

func command() *cobra.Command {
	var c connection
	root := &cobra.Command{
		Use:           "hotspare",
		Short:         "Bare metal with a spare tyre: provisioning and high availability from one appliance",
		SilenceErrors: true,
		SilenceUsage:  true,
		Version:       version,
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return &usageError{cmd.CommandPath(), err} })
	f := root.PersistentFlags()
	f.StringVar(&c.socket, "socket", env("HOTSPARE_SOCKET", "/run/hotspare/api.sock"), "unix socket of the appliance ($HOTSPARE_SOCKET)")
	f.StringVar(&c.server, "server", os.Getenv("HOTSPARE_SERVER"), "address of the appliance instead, e.g. http://10.77.0.1:8080 ($HOTSPARE_SERVER)")
	f.StringVar(&c.tokenFile, "token-file", os.Getenv("HOTSPARE_TOKEN_FILE"), "file with the token for --server ($HOTSPARE_TOKEN_FILE)")
	root.AddCommand(
		serveCommand(), dhcpCommand(), bootCommand(&c),
		applyCommand(&c), getCommand(&c), describeCommand(&c), deleteCommand(&c),
		imageCommand(&c), appCommand(&c), nodeCommand(&c), machineCommand(&c), siteCommand(&c),
		volumeCommand(&c), storageCommand(&c), tasksCommand(&c),
		explainCommand(&c), eventsCommand(&c),
	)
	return root
}

func env(name, otherwise string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return otherwise
}
