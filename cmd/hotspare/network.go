package main

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"hotspare/ui/api"
	"hotspare/ui/api/client"
)

func bootCommand(c *connection) *cobra.Command {
	cmd := &cobra.Command{Use: "boot", Short: "Prepare machines for booting"}
	cmd.AddCommand(bootCACommand(c))
	return cmd
}

func bootCACommand(c *connection) *cobra.Command {
	var form, file string
	cmd := &cobra.Command{
		Use:   "ca",
		Short: "Print the CA certificate that firmware enrols for HTTPS boot",
		Long: `Print the CA certificate that firmware enrols for HTTPS boot: as pem, as der for
the menus of firmware that want a .cer file, or as esl, the form of the UEFI variable
TlsCaCertificate. The fingerprint goes to standard error, to be compared with what the
firmware shows. It is no secret; what is enrolled decides whom the machine believes.`,
		Example: "  hotspare boot ca -o boot-ca.pem\n  hotspare boot ca --form der -o /media/usb/boot-ca.cer",
		Args:    wants(0, 0, "no argument"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if form != "pem" && form != "der" && form != "esl" {
				return &usageError{cmd.CommandPath(), fmt.Errorf("unknown form %q: use pem, der or esl", form)}
			}
			return c.with(func(cl *client.Client) error {
				var ca api.BootCA
				if err := cl.Get(cmd.Context(), "/api/v1/boot-ca", &ca); err != nil {
					return err
				}
				text := []byte(ca.Certificate)
				switch form {
				case "der":
					block, _ := pem.Decode(text)
					if block == nil {
						return errors.New("the appliance's answer holds no certificate")
					}
					if _, err := x509.ParseCertificate(block.Bytes); err != nil {
						return fmt.Errorf("the appliance's answer: %w", err)
					}
					text = block.Bytes
				case "esl":
					text = ca.SignatureList
				}
				fmt.Fprintf(cmd.ErrOrStderr(), "SHA-256 fingerprint %s, valid until %s\n", ca.Fingerprint, ca.NotAfter.Format("2006-01-02"))
				if file != "" {
					return os.WriteFile(file, text, 0o644)
				}
				_, err := cmd.OutOrStdout().Write(text)
				return err
			})
		},
	}
	cmd.Flags().StringVar(&form, "form", "pem", "pem, der or esl")
	cmd.Flags().StringVarP(&file, "file", "o", "", "file to write; without it standard output")
	return cmd
}

func linkRows(t *table, links []api.Link) {
	head := []string{"LINK", "STATE", "ADDRESS", "DHCP", "ADDRESSES", "OTHER SERVERS", "ALARMS"}
	if t.wide {
		head = append(head, "HTTPS", "ANSWERED", "CONFLICTS", "DROPPED")
	}
	t.row(head...)
	for _, l := range links {
		state := "up"
		if !l.Up {
			state = l.Why
		}
		var own, pools, foreign []string
		for _, a := range l.Addresses {
			own = append(own, a.String())
		}
		for _, p := range l.Pools {
			pools = append(pools, fmt.Sprintf("%d/%d", p.Used, p.Size))
		}
		for _, f := range l.Foreign {
			s := f.Server.String()
			if f.Expected {
				s += " (expected)"
			}
			foreign = append(foreign, s)
		}
		cells := []string{l.Interface, state, strings.Join(own, ","), l.DHCP, strings.Join(pools, ","), strings.Join(foreign, ","), fmt.Sprint(len(l.Alarms))}
		if t.wide {
			https, answered, conflicts, dropped := "off", "-", "-", "-"
			if l.HTTPS {
				https = "on"
			}
			if s := l.Counters; s != nil {
				answered, conflicts, dropped = fmt.Sprint(s.Answered), fmt.Sprint(s.Conflicts), fmt.Sprint(s.Dropped+s.Limited+s.Unknown)
			}
			cells = append(cells, https, answered, conflicts, dropped)
		}
		t.row(cells...)
	}
	for _, l := range links {
		for _, a := range l.Alarms {
			note(t, fmt.Sprintf("%s: %s: %s", l.Interface, a.Code, shown(a.Text)))
			if a.Fix != "" {
				note(t, "  fix: "+shown(a.Fix))
			}
		}
	}
}

// note writes a whole line below a table's rows.
func note(t *table, text string) { fmt.Fprintln(t.w, text) }
