package main

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"hotspare"
	"hotspare/ui/api"
	"hotspare/ui/api/client"
)

func machineCommand(c *connection) *cobra.Command {
	cmd := &cobra.Command{Use: "machine", Short: "Work with machines that are no nodes"}
	one := func(verb, short string) *cobra.Command {
		return &cobra.Command{
			Use: verb + " MACHINE", Short: short, Args: wants(1, 1, "a MAC address or UUID"),
			RunE: func(cmd *cobra.Command, args []string) error {
				return c.with(func(cl *client.Client) error {
					var out api.Accepted
					if err := cl.Post(cmd.Context(), machinePath(args[0])+"/actions/"+verb, nil, &out); err != nil {
						return err
					}
					fmt.Fprintln(cmd.OutOrStdout(), shown(out.Text))
					return nil
				})
			},
		}
	}
	cmd.AddCommand(
		one("ignore", "Give a machine nothing but a text on its screen"),
		one("unignore", "Take an ignore back"),
		&cobra.Command{
			Use: "forget MACHINE", Short: "Remove a machine from the list until it asks again", Args: wants(1, 1, "a MAC address or UUID"),
			RunE: func(cmd *cobra.Command, args []string) error {
				return c.with(func(cl *client.Client) error { return cl.Delete(cmd.Context(), machinePath(args[0])) })
			},
		},
	)
	return cmd
}

func machinePath(name string) string { return "/api/v1/machines/" + url.PathEscape(name) }

func approveCommand(c *connection) *cobra.Command {
	var in api.Approval
	var passwordFile, format string
	cmd := &cobra.Command{
		Use:   "approve MACHINE --name NAME --pool POOL --bmc ADDRESS",
		Short: "Make a node of a machine that asked to boot",
		Long: `Make an approved node of a machine that asked to boot: hotspare get machines
lists them. What the machine says of itself is taken as the node's document, and
flags win over it. That the BMC belongs to the machine is proven by the BMC.`,
		Example: "  hotspare node approve 52:54:00:77:00:05 --name n5 --pool rack1 --bmc 10.78.0.15 --bmc-user admin --bmc-password-file /root/bmc",
		Args:    wants(1, 1, "the machine's MAC address or UUID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			for _, need := range [][2]string{{"name", in.Name}, {"pool", in.Pool}, {"bmc", in.BMC.Address}} {
				if need[1] == "" {
					return &usageError{cmd.CommandPath(), errors.New("approve needs --" + need[0])}
				}
			}
			if passwordFile != "" {
				b, err := os.ReadFile(passwordFile)
				if err != nil {
					return &hotspare.Error{Code: hotspare.CodeNotFound, What: "the file with the BMC's password cannot be read", Where: passwordFile, Err: err, Fix: "check the path"}
				}
				in.BMC.Password = strings.TrimSpace(string(b))
			}
			return c.with(func(cl *client.Client) error {
				var out api.Applied
				if err := cl.Post(cmd.Context(), machinePath(args[0])+"/actions/approve", in, &out); err != nil {
					return err
				}
				return show(cmd.OutOrStdout(), format, []api.Applied{out}, func(t *table) { t.row(out.Kind+"/"+out.Name, out.Result) },
					func(a api.Applied) string { return a.Kind + "/" + a.Name })
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&in.Name, "name", "", "name of the node")
	f.StringVar(&in.Pool, "pool", "", "its pool")
	f.StringVar(&in.BMC.Address, "bmc", "", "address of its BMC")
	f.StringVar(&in.BMC.Protocol, "bmc-protocol", "ipmi", "ipmi or redfish")
	f.StringVar(&in.BMC.User, "bmc-user", "", "user of the BMC")
	f.StringVar(&passwordFile, "bmc-password-file", "", "file with the BMC's password; it is sealed and never shown again")
	f.Uint16Var(&in.BMC.Port, "bmc-port", 0, "port of the BMC; default: the protocol's own")
	f.BoolVar(&in.BMC.SharedPower, "bmc-shared-power", false, "the BMC loses its power with the machine")
	f.IntVar(&in.CPUs, "cpus", 0, "default: as the machine says")
	f.IntVar(&in.MemoryMiB, "memory", 0, "MiB; default: as the machine says")
	f.StringVar(&in.Arch, "arch", "", "amd64 or arm64; default: as the machine says")
	f.StringToStringVar(&in.Labels, "label", nil, "label of the node, key=value (repeatable)")
	f.BoolVar(&in.DryRun, "dry-run", false, "check on the appliance, change nothing")
	outputFlag(cmd, &format)
	return cmd
}

func machineRows(t *table, all []api.Machine) {
	head := []string{"MACHINE", "STATE", "SAYS IT IS", "CPUS", "MEMORY", "FIRMWARE", "ADDRESS", "SEEN"}
	if t.wide {
		head = append(head, "UUID", "SERIAL", "DISKS", "MACS", "NODE", "IGNORED BY")
	}
	t.row(head...)
	for _, m := range all {
		f := m.Facts
		if f == nil {
			f = &api.MachineFacts{}
		}
		cells := []string{
			m.ID, m.State, strings.TrimSpace(f.Vendor + " " + f.Product), number(uint64(max(0, f.CPUs))), memory(f.MemoryMiB), m.Firmware,
			address(m.Address.IsValid(), m.Address.String()), ago(&m.LastSeen),
		}
		if t.wide {
			var disks []string
			for _, d := range f.Disks {
				disks = append(disks, d.Name+" "+size(d.Bytes))
			}
			cells = append(cells, m.UUID, f.Serial, strings.Join(disks, ", "), strings.Join(m.MACs, ","), m.Node, m.IgnoredBy)
		}
		t.row(cells...)
	}
}

func memory(mib int) string {
	if mib <= 0 {
		return ""
	}
	return strconv.Itoa(mib) + "Mi"
}
