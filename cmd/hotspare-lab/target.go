package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"hotspare/testenv/plaintarget"
)

const targetLong = `Serve plain volumes of the real store to any iSCSI initiator until it is interrupted.

It prints one JSON line per volume with portal, IQN and LUN, then "ready". All volumes in the directory are served, those that --volume
names are created if they are missing; what is there keeps its contents, its IQN and its grant, so initiators of an earlier run go on.

--sock takes one command per line and answers each with one line of JSON:
  snapshot NAME SNAP, clone NAME|SNAP NEW, revoke NAME EPOCH, grant NAME EPOCH, stats NAME, delete NAME, resize NAME SIZE, list, help`

func targetCommand(p *place) *cobra.Command {
	var o plaintarget.Options
	var chap, mutual string
	var volumes []string
	cmd := &cobra.Command{
		Use:   "target --dir DIR --listen HOST:PORT --volume NAME=SIZE",
		Short: "Serve plain volumes of the real store to any iSCSI initiator",
		Long:  targetLong,
		Example: `  hotspare-lab target --dir out/target --listen 127.0.0.1:13260 --volume a=1G --sock out/target.sock
  iscsi-inq iscsi://127.0.0.1:13260/iqn.2026-11.io.hotspare:a/0
  echo snapshot a monday | socat - UNIX-CONNECT:out/target.sock`,
		Args: wants(0, 0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.Out, o.Log, o.Volumes = cmd.OutOrStdout(), p.log(), map[string]int64{}
			for _, v := range volumes {
				name, size, ok := strings.Cut(v, "=")
				bytes, err := plaintarget.ParseSize(size)
				if !ok || name == "" || err != nil {
					return &usageError{cmd.CommandPath(), fmt.Errorf("--volume %q: write NAME=SIZE, e.g. a=512M", v)}
				}
				if _, twice := o.Volumes[name]; twice {
					return &usageError{cmd.CommandPath(), fmt.Errorf("--volume %s is given twice", name)}
				}
				o.Volumes[name] = bytes
			}
			var err error
			if o.Chap, err = plaintarget.ParseCredentials(chap); err != nil {
				return err
			}
			if o.Mutual, err = plaintarget.ParseCredentials(mutual); err != nil {
				return err
			}
			return plaintarget.Run(cmd.Context(), o)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.Dir, "dir", "out/target", "where the volumes are kept")
	f.StringVar(&o.Listen, "listen", "127.0.0.1:3260", "portal; port 0 takes a free one")
	f.StringArrayVar(&o.Portals, "portal", nil, "HOST:PORT of a further portal (repeatable)")
	f.StringArrayVar(&volumes, "volume", nil, "NAME=SIZE, a size in bytes or with K, M, G, T (repeatable)")
	f.StringArrayVar(&o.ReadOnly, "readonly", nil, "serve this volume read-only (repeatable)")
	f.BoolVar(&o.Memory, "shm", false, "keep the volumes in memory instead of --dir; they end with the run")
	f.StringVar(&o.Socket, "sock", "", "path of the control socket")
	f.StringVar(&chap, "chap", "", "USER:SECRET that initiators must prove; @FILE reads it from a file")
	f.StringVar(&mutual, "mutual", "", "USER:SECRET that the target proves when it is asked to; @FILE reads it from a file")
	return cmd
}
