package main

import (
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"hotspare/cmd/hotspare/appliance"
)

func serveCommand() *cobra.Command {
	var config, level string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the appliance",
		Long: `Run the appliance in the foreground: DHCP, TFTP, HTTP boot, iSCSI, the agents'
link, the failover engine, the REST interface and the status page. It stops on
SIGTERM or SIGINT; running nodes keep their disks over a restart.`,
		Args: wants(0, 0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			var l slog.Level
			if err := l.UnmarshalText([]byte(level)); err != nil {
				return &usageError{cmd.CommandPath(), err}
			}
			o := &slog.HandlerOptions{Level: l}
			var h slog.Handler = slog.NewTextHandler(os.Stderr, o)
			if asJSON {
				h = slog.NewJSONHandler(os.Stderr, o)
			}
			cfg, err := appliance.LoadConfig(config)
			if err != nil {
				return err
			}
			return appliance.Run(cmd.Context(), appliance.Options{Config: cfg, Version: version, Log: slog.New(h)})
		},
	}
	cmd.Flags().StringVar(&config, "config", "/etc/hotspare/hotspare.yaml", "configuration file")
	cmd.Flags().StringVar(&level, "log-level", "info", "debug, info, warn or error")
	cmd.Flags().BoolVar(&asJSON, "log-json", false, "log JSON lines")
	return cmd
}
