package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"hotspare/ui/api"
)

// order makes the command of one verb on a resource of kind.
func order(c *connection, kind, verb, short string, flags func(*cobra.Command, *orderBody)) *cobra.Command {
	var b orderBody
	args, use := wants(1, 1, "a name"), verb+" NAME"
	if kind == "site" {
		args, use = wants(0, 0, "no arguments"), verb
	}
	cmd := &cobra.Command{
		Use: use, Short: short, Args: args,
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := c.open()
			if err != nil {
				return err
			}
			defer cl.Close()
			name := "-"
			if len(args) == 1 {
				name = args[0]
			}
			path := "/api/v1/site/-/actions/" + verb
			if kind != "site" {
				path = fmt.Sprintf("/api/v1/%s/%s/actions/%s", kind, url.PathEscape(name), verb)
			}
			var out api.Accepted
			if err := cl.Post(cmd.Context(), path, b, &out); err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), strings.TrimSpace(out.Text+" "+out.ID))
			return nil
		},
	}
	if flags != nil {
		flags(cmd, &b)
	}
	return cmd
}

type orderBody struct {
	To     string `json:"to,omitempty"`
	Way    string `json:"way,omitempty"`
	Reason string `json:"reason,omitempty"`
	For    string `json:"for,omitempty"`
}

func reason(cmd *cobra.Command, b *orderBody) {
	cmd.Flags().StringVar(&b.Reason, "reason", "", "why, for the record")
}

func freezing(cmd *cobra.Command, b *orderBody) {
	reason(cmd, b)
	cmd.Flags().StringVar(&b.For, "for", "", "how long, e.g. 2h; default: until lifted")
}

func appCommand(c *connection) *cobra.Command {
	cmd := &cobra.Command{Use: "app", Short: "Give orders about an application"}
	cmd.AddCommand(
		order(c, "applications", "failover", "Move it to another node now", func(cmd *cobra.Command, b *orderBody) {
			reason(cmd, b)
			cmd.Flags().StringVar(&b.To, "to", "", "the wanted node; default: the best candidate")
			cmd.Flags().StringVar(&b.Way, "way", "", "start it in this way only, e.g. slot; default: the one expected to be fastest")
		}),
		order(c, "applications", "freeze", "No effects until lifted", freezing),
		order(c, "applications", "unfreeze", "Lift a freeze", reason),
	)
	return cmd
}

func nodeCommand(c *connection) *cobra.Command {
	cmd := &cobra.Command{Use: "node", Short: "Give orders about a node"}
	cmd.AddCommand(
		approveCommand(c),
		order(c, "nodes", "confirm-off", "Vouch that a node is off: evidence that the engine accepts", reason),
		order(c, "nodes", "unquarantine", "Let a node be chosen again", reason),
	)
	return cmd
}

func siteCommand(c *connection) *cobra.Command {
	cmd := &cobra.Command{Use: "site", Short: "Give orders about the whole site"}
	cmd.AddCommand(
		order(c, "site", "freeze", "No effects anywhere until lifted", freezing),
		order(c, "site", "unfreeze", "Lift the freeze of the site", reason),
	)
	return cmd
}

func explainCommand(c *connection) *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use:     "explain app|failover|node|boot NAME",
		Short:   "Say why something is so, or why nothing happens",
		Example: "  hotspare explain app orders\n  hotspare explain failover f3\n  hotspare explain boot n1\n  hotspare explain boot 52:54:00:77:00:01 -o json",
		Args:    wants(2, 2, "app, failover, node or boot, and a name"),
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := c.open()
			if err != nil {
				return err
			}
			defer cl.Close()
			var e api.Explanation
			if err := cl.Get(cmd.Context(), "/api/v1/explain/"+url.PathEscape(args[0])+"/"+url.PathEscape(args[1]), &e); err != nil {
				return err
			}
			if format == "json" || format == "yaml" {
				return encode(cmd.OutOrStdout(), format, e)
			}
			if len(e.Boots) > 0 {
				return climbed(cmd.OutOrStdout(), e.Boots)
			}
			return explain(cmd.OutOrStdout(), e)
		},
	}
	outputFlag(cmd, &format)
	return cmd
}

func explain(out io.Writer, e api.Explanation) error {
	fmt.Fprintln(out, shown(strings.TrimSuffix(e.Subject+": "+e.Verdict, ": ")))
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, r := range e.Rows {
		fmt.Fprintf(w, "  %s\t%s\t%s\n", r.At, r.Name, shown(r.Text))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, c := range e.Candidates {
		verdict := "not eligible"
		if c.Eligible {
			verdict = fmt.Sprintf("eligible, rank %d", c.Rank)
		}
		if c.Nearest != "" {
			verdict += " (" + c.Nearest + ")"
		}
		fmt.Fprintf(out, "candidate %s: %s\n", c.Node, verdict)
		for _, r := range c.Rules {
			mark := "pass"
			if !r.OK {
				mark = "FAIL"
			}
			fmt.Fprintf(out, "    %s  %-14s %s\n", mark, r.Name, r.Why)
		}
	}
	return nil
}

func eventsCommand(c *connection) *cobra.Command {
	var follow bool
	var after uint64
	var limit int
	var format string
	cmd := &cobra.Command{
		Use:   "events",
		Short: "Show what happened, and with --follow what happens",
		Args:  wants(0, 0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, err := c.open()
			if err != nil {
				return err
			}
			defer cl.Close()
			line := func(e api.Event) error {
				if format == "json" {
					return json.NewEncoder(cmd.OutOrStdout()).Encode(e)
				}
				_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s  %-18s %-14s %s\n", e.At.Format(time.RFC3339), e.Kind, e.Subject, strings.TrimSpace(string(e.Code)+" "+e.Text))
				return err
			}
			var past []api.Event
			if err := cl.Get(cmd.Context(), fmt.Sprintf("/api/v1/events?after=%d&limit=%d", after, limit), &past); err != nil {
				return err
			}
			for _, e := range past {
				if err := line(e); err != nil {
					return err
				}
				after = e.ID
			}
			if !follow {
				return nil
			}
			_, err = cl.Follow(cmd.Context(), after, line)
			return err
		},
	}
	f := cmd.Flags()
	f.BoolVar(&follow, "follow", false, "go on with new events")
	f.Uint64Var(&after, "after", 0, "only events after this id")
	f.IntVar(&limit, "limit", 200, "at most this many past events")
	f.StringVarP(&format, "output", "o", "", "json: one object per line")
	return cmd
}
