package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"hotspare/cmd/hotspare/appliance"
)

func dhcpCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "dhcp", Short: "Work beside other DHCP servers"}
	cmd.AddCommand(dhcpSnippetCommand())
	return cmd
}

func dhcpSnippetCommand() *cobra.Command {
	var config, link string
	cmd := &cobra.Command{
		Use:   "snippet dnsmasq|kea|isc",
		Short: "Print what another DHCP server needs so that its machines boot here",
		Long: `Print what another DHCP server's configuration needs so that its machines boot
from this appliance, where network.dhcp.mode is off and network.dhcp.bootService is
true. The snippet holds no secret.`,
		Args: wants(1, 1, "one of dnsmasq, kea, isc"),
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, err := appliance.LoadConfig(config)
			if err != nil {
				return err
			}
			text, err := appliance.Snippet(cfg, args[0], link)
			if err != nil {
				return err
			}
			_, err = fmt.Fprint(cmd.OutOrStdout(), text)
			return err
		},
	}
	cmd.Flags().StringVar(&config, "config", "/etc/hotspare/hotspare.yaml", "configuration file")
	cmd.Flags().StringVar(&link, "link", "", "interface that the other server gives addresses on, where several are configured")
	return cmd
}
