package main

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/spf13/cobra"

	"hotspare"
	"hotspare/ui/api"
	"hotspare/ui/api/client"
)

// labProgram is the lab's, which stands beside this one or in the path.
const labProgram = "hotspare-lab"

func imageTestCommand(c *connection) *cobra.Command {
	var lab string
	cmd := &cobra.Command{
		Use:   "test NAME:VERSION [-- FLAGS]",
		Short: "Start an image on a machine of an isolated lab and keep with it whether it came up",
		Long: `Start an image on an emulated machine with an appliance of its own, in a network
that nothing else is in, until its system is up. The appliance writes the image to
a temporary file for it, and the outcome is kept with the image: image list shows
it. It runs on the appliance's host, as root, with hotspare-lab and QEMU installed.
FLAGS are those of ` + "`hotspare-lab image test`" + `.`,
		Example: "  hotspare image test orders:1.2\n  hotspare image test app:1.4 -- --process /app --http /healthz --port 8080",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 || len(args) > 1 && cmd.ArgsLenAtDash() != 1 {
				return &usageError{cmd.CommandPath(), errors.New("test wants an image; flags of hotspare-lab come after --")}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if c.server != "" {
				return &usageError{cmd.CommandPath(), errors.New("an image is tested on the appliance's own host: without --server")}
			}
			var img api.Image
			if err := c.with(func(cl *client.Client) error {
				return cl.Get(cmd.Context(), "/api/v1/images/"+url.PathEscape(args[0]), &img)
			}); err != nil {
				return err
			}
			program, err := findLab(lab)
			if err != nil {
				return err
			}
			socket, err := filepath.Abs(c.socket)
			if err != nil {
				return err
			}
			x := exec.CommandContext(cmd.Context(), program, append([]string{"image", "test", "--ref", img.Name + ":" + img.Version, "--socket", socket}, args[1:]...)...)
			x.Stdin, x.Stdout, x.Stderr = os.Stdin, cmd.OutOrStdout(), cmd.ErrOrStderr()
			x.Cancel = func() error { return x.Process.Signal(os.Interrupt) } // it takes its lab down
			if err := x.Run(); err != nil {
				return &hotspare.Error{Code: hotspare.CodeOnlineFailed, What: "the image did not pass its test", Where: img.Name + ":" + img.Version, Fix: "read the lines above", Err: err}
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&lab, "lab", "", "the program hotspare-lab; default: beside this one, or in $PATH")
	return cmd
}

// findLab finds the lab's program.
func findLab(given string) (string, error) {
	if given != "" {
		return given, nil
	}
	if self, err := os.Executable(); err == nil {
		beside := filepath.Join(filepath.Dir(self), labProgram)
		if st, err := os.Stat(beside); err == nil && st.Mode().IsRegular() {
			return beside, nil
		}
	}
	p, err := exec.LookPath(labProgram)
	if err != nil {
		return "", &hotspare.Error{
			Code: hotspare.CodeMissingTool, What: "the lab is not installed", Where: labProgram, Err: err,
			Fix: fmt.Sprintf("install %s and qemu-system-x86 on the appliance's host, or test the image's file elsewhere: %[1]s image test FILE", labProgram),
		}
	}
	return p, nil
}
