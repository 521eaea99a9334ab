package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"hotspare/testenv/images"
	"hotspare/testenv/lab"
)

func upCommand(p *place) *cobra.Command {
	var nodes int
	var name, accel, cache, console string
	var post time.Duration
	cmd := &cobra.Command{
		Use: "up", Short: "Make the lab; all machines are off", Args: wants(0, 0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if nodes < 1 || nodes > 9 {
				return &usageError{cmd.CommandPath(), errors.New("--nodes is 1 to 9")}
			}
			o := lab.Options{Name: name, Dir: p.dir, Nodes: lab.Nodes(nodes), Accel: accel, Log: p.log()}
			for i := range o.Nodes {
				o.Nodes[i].POSTDelay = post
			}
			if console != "" {
				o.Forwards = []lab.Forward{{Listen: console, To: "127.0.0.1:8080"}}
			}
			if b, err := images.New(images.Options{CacheDir: cache}); err == nil {
				if img, ok := b.Cached("orders"); ok {
					o.Kernel = img.Kernel
				}
			}
			l, err := lab.Up(cmd.Context(), o)
			if err != nil {
				return err
			}
			return showStatus(cmd.Context(), cmd.OutOrStdout(), l, "")
		},
	}
	f := cmd.Flags()
	f.IntVar(&nodes, "nodes", 4, "how many machines")
	f.StringVar(&name, "name", "lab", "namespaces are hs-NAME and hs-NAME-client")
	f.StringVar(&accel, "accel", "auto", "auto, tcg or kvm; auto takes KVM only when it boots a kernel")
	f.StringVar(&cache, "cache", "out/cache/images", "where built images are; their kernel serves the KVM probe")
	f.StringVar(&console, "console", "", "make the appliance's page reachable on this address of the host, e.g. 127.0.0.1:8080")
	f.DurationVar(&post, "post", 0, "time that the machines' firmware takes before it boots, e.g. 60s")
	return cmd
}

func statusCommand(p *place) *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use: "status", Short: "Show the machines", Args: wants(0, 0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, err := lab.Open(cmd.Context(), p.dir, p.log())
			if err != nil {
				return err
			}
			return showStatus(cmd.Context(), cmd.OutOrStdout(), l, format)
		},
	}
	cmd.Flags().StringVarP(&format, "output", "o", "", "json; default: a table")
	return cmd
}

func showStatus(ctx context.Context, w io.Writer, l *lab.Lab, format string) error {
	s, err := l.Status(ctx)
	if err != nil {
		return err
	}
	if format == "json" {
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		return enc.Encode(s)
	}
	fmt.Fprintf(w, "lab %s: namespaces %s and %s, accelerator %s\n", s.Name, s.Namespace, s.ClientNamespace, s.Accel)
	for _, f := range s.Forwards {
		fmt.Fprintf(w, "http://%s leads to %s in %s\n", f.Listen, f.To, s.Namespace)
	}
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "NODE\tPOWER\tSINCE\tBOOTS\tMAC\tBMC\tFAULTS\tLAST END")
	for _, n := range s.Nodes {
		faults := make([]string, 0, len(n.Faults))
		for k, unit := range n.Faults {
			faults = append(faults, strings.TrimSpace(k+" "+unit))
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%d\t%s\t%s\t%s\t%s\n", n.Name, n.Power, n.Since.Format(time.TimeOnly), n.Boots, n.MAC, n.BMC, strings.Join(faults, ", "), n.LastEnd)
	}
	return t.Flush()
}

func failCommand(p *place) *cobra.Command {
	return &cobra.Command{
		Use:     "fail NODE FAULT [UNIT]",
		Short:   "Do a fault to a machine",
		Long:    "Do a fault to a machine. Faults: " + strings.Join(lab.Faults(), ", ") + "..",
		Example: "  hotspare-lab fail n1 power-cut\n  hotspare-lab fail n1 hang-service postgresql@15-main.service\n  hotspare-lab fail n2 bmc-lying-off",
		Args:    wants(2, 3, "a node, a fault and, for service faults, a unit"),
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := lab.Open(cmd.Context(), p.dir, p.log())
			if err != nil {
				return err
			}
			return l.Fail(cmd.Context(), args[0], args[1], strings.Join(args[2:], ""))
		},
	}
}

func healCommand(p *place) *cobra.Command {
	return &cobra.Command{
		Use: "heal NODE", Short: "Take all faults of a machine back", Args: wants(1, 1, "a node"),
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := lab.Open(cmd.Context(), p.dir, p.log())
			if err != nil {
				return err
			}
			return l.Heal(cmd.Context(), args[0])
		},
	}
}

func powerCommand(p *place) *cobra.Command {
	return &cobra.Command{
		Use: "power NODE on|off", Short: "Switch a machine by hand, past its BMC", Args: wants(2, 2, "a node, and on or off"),
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := lab.Open(cmd.Context(), p.dir, p.log())
			if err != nil {
				return err
			}
			switch args[1] {
			case "on":
				return l.PowerOn(cmd.Context(), args[0])
			case "off":
				return l.PowerOff(cmd.Context(), args[0])
			}
			return &usageError{cmd.CommandPath(), fmt.Errorf("%q is neither on nor off", args[1])}
		},
	}
}

func execCommand(p *place) *cobra.Command {
	var client bool
	cmd := &cobra.Command{
		Use: "exec -- COMMAND...", Short: "Run a command inside the lab's network", Args: wants(1, 1000, "a command"),
		Example: "  hotspare-lab exec -- ipmitool -I lanplus -C 17 -H 10.78.0.11 -U admin -P lab-n1 chassis status\n  hotspare-lab exec --client -- psql -h 10.77.0.50 -U orders orders",
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := lab.Open(cmd.Context(), p.dir, p.log())
			if err != nil {
				return err
			}
			ns := l.Namespace()
			if client {
				ns = l.ClientNamespace()
			}
			c := lab.Exec(cmd.Context(), ns, args[0], args[1:]...)
			c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr
			err = c.Run()
			if exit, ok := errors.AsType[*exec.ExitError](err); ok {
				os.Exit(exit.ExitCode())
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&client, "client", false, "in the clients' namespace, not the appliance's")
	return cmd
}

func downCommand(p *place) *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use: "down", Short: "End the lab and all that runs in it", Args: wants(0, 0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error { return lab.Down(cmd.Context(), p.dir, name) },
	}
	cmd.Flags().StringVar(&name, "name", "lab", "the lab's name, should its directory be gone")
	return cmd
}

func serveCommand() *cobra.Command {
	return &cobra.Command{
		Use: "serve DIR", Hidden: true, Args: wants(1, 1, "the lab's directory"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return lab.Serve(cmd.Context(), args[0], slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})))
		},
	}
}

func imageCommand(p *place) *cobra.Command {
	var cache string
	build := &cobra.Command{
		Use: "build " + strings.Join(images.Names(), "|"), Short: "Build a demo image, or find it in the cache", Args: wants(1, 1, "a recipe"),
		RunE: func(cmd *cobra.Command, args []string) error {
			o := images.Options{CacheDir: cache, Log: p.log()}
			if p.verbose {
				o.Out = os.Stderr
			}
			b, err := images.New(o)
			if err != nil {
				return err
			}
			img, err := b.Build(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), img.Disk)
			return nil
		},
	}
	build.Flags().StringVar(&cache, "cache", "out/cache/images", "where built images are kept")
	cmd := &cobra.Command{Use: "image", Short: "The demo images, and tests of any image"}
	cmd.AddCommand(build, imageTestCommand(p))
	return cmd
}
