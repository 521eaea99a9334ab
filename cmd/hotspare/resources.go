package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"hotspare"
	"hotspare/ui/api"
	"hotspare/ui/api/client"
)

// kinds maps every name that an operator may use to the API's path.
var kinds = map[string]string{
	"node": "nodes", "nodes": "nodes", "pool": "pools", "pools": "pools", "image": "images", "images": "images",
	"volume": "volumes", "volumes": "volumes", "app": "applications", "apps": "applications",
	"application": "applications", "applications": "applications", "failover": "failovers", "failovers": "failovers",
	"boot": "boots", "boots": "boots", "machine": "machines", "machines": "machines", "link": "links", "links": "links",
}

func kindOf(cmd *cobra.Command, word string) (string, error) {
	if k := kinds[strings.ToLower(word)]; k != "" {
		return k, nil
	}
	return "", &usageError{cmd.CommandPath(), fmt.Errorf("unknown kind %q: use nodes, pools, images, volumes, apps, failovers, boots, machines or links", word)}
}

func applyCommand(c *connection) *cobra.Command {
	var files []string
	var dryRun bool
	var format string
	cmd := &cobra.Command{
		Use:     "apply -f FILE",
		Short:   "Create or change nodes, pools and applications from YAML",
		Example: "  hotspare apply -f examples/nodes.yaml -f examples/orders.yaml\n  hotspare apply -f - < app.yaml",
		Args:    wants(0, 0, "files by -f only"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if len(files) == 0 {
				return &usageError{cmd.CommandPath(), fmt.Errorf("apply needs -f FILE")}
			}
			cl, err := c.open()
			if err != nil {
				return err
			}
			defer cl.Close()
			var all []api.Applied
			for _, f := range files {
				src, err := read(f)
				if err != nil {
					return err
				}
				out, err := cl.Apply(cmd.Context(), f, src, dryRun)
				if err != nil {
					return err
				}
				all = append(all, out...)
			}
			return show(cmd.OutOrStdout(), format, all, func(w *table) {
				for _, a := range all {
					w.row(a.Kind+"/"+a.Name, a.Result)
				}
			}, func(a api.Applied) string { return a.Kind + "/" + a.Name })
		},
	}
	cmd.Flags().StringArrayVarP(&files, "filename", "f", nil, "file with YAML documents, - for standard input (repeatable)")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "check on the appliance, change nothing")
	outputFlag(cmd, &format)
	return cmd
}

func read(file string) ([]byte, error) {
	if file == "-" {
		return io.ReadAll(os.Stdin)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, &hotspare.Error{Code: hotspare.CodeNotFound, What: "the file cannot be read", Where: file, Err: err, Fix: "check the path"}
	}
	return b, nil
}

func getCommand(c *connection) *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use:   "get KIND [NAME]",
		Short: "List nodes, pools, images, volumes, apps, failovers, boots, machines or links",
		Args:  wants(1, 2, "a kind and, if wanted, a name"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.named(cmd, args, func(cl *client.Client, kind, path string) error {
				var raw json.RawMessage
				if err := cl.Get(cmd.Context(), path, &raw); err != nil {
					return err
				}
				if len(args) == 2 && len(raw) > 0 && raw[0] == '{' && (format == "" || format == "wide" || format == "name") {
					raw = append(append([]byte{'['}, raw...), ']')
				}
				return listing(cmd.OutOrStdout(), kind, format, raw)
			})
		},
	}
	outputFlag(cmd, &format)
	return cmd
}

func describeCommand(c *connection) *cobra.Command {
	return &cobra.Command{
		Use:   "describe KIND NAME",
		Short: "Show everything about one resource",
		Args:  wants(2, 2, "a kind and a name"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.named(cmd, args, func(cl *client.Client, _, path string) error {
				var v json.RawMessage
				if err := cl.Get(cmd.Context(), path, &v); err != nil {
					return err
				}
				return encode(cmd.OutOrStdout(), "yaml", v)
			})
		},
	}
}

func deleteCommand(c *connection) *cobra.Command {
	return &cobra.Command{
		Use:   "delete KIND NAME",
		Short: "Delete a node, pool, application, image (name:version), or a snapshot or clone",
		Args:  wants(2, 2, "a kind and a name"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.named(cmd, args, func(cl *client.Client, _, path string) error { return cl.Delete(cmd.Context(), path) })
		},
	}
}
