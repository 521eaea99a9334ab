package main

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"hotspare/testenv/plaintarget"
)

func targetCommand(p *place) *cobra.Command {
	var dir, listen, chap, mutual string
	var volumes, readOnly []string
	cmd := &cobra.Command{
		Use:     "target --dir DIR --listen HOST:PORT --volume NAME=SIZE",
		Short:   "Serve plain volumes of the real store to any iSCSI initiator",
		Long:    "Serve plain volumes of the real store to any iSCSI initiator until it is interrupted. It prints one JSON line per volume with portal, IQN and LUN, then `ready`. Volumes that are there already keep their contents.",
		Example: "  hotspare-lab target --dir out/target --listen 127.0.0.1:13260 --volume a=1G\n  iscsi-inq iscsi://127.0.0.1:13260/IQN/0",
		Args:    wants(0, 0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if len(volumes) == 0 {
				return &usageError{cmd.CommandPath(), fmt.Errorf("target needs --volume NAME=SIZE")}
			}
			o := plaintarget.Options{Dir: dir, Listen: listen, Volumes: map[string]int64{}, ReadOnly: readOnly, Out: cmd.OutOrStdout(), Log: p.log()}
			for _, v := range volumes {
				name, size, ok := strings.Cut(v, "=")
				bytes, err := parseSize(size)
				if !ok || name == "" || err != nil {
					return &usageError{cmd.CommandPath(), fmt.Errorf("--volume %q: write NAME=SIZE, e.g. a=512M", v)}
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
	f.StringVar(&dir, "dir", "out/target", "where the volumes are kept")
	f.StringVar(&listen, "listen", "127.0.0.1:3260", "portal; port 0 takes a free one")
	f.StringArrayVar(&volumes, "volume", nil, "NAME=SIZE, a size in bytes or with K, M, G, T (repeatable)")
	f.StringArrayVar(&readOnly, "read-only", nil, "serve this volume read-only (repeatable)")
	f.StringVar(&chap, "chap", "", "USER:SECRET that initiators must prove")
	f.StringVar(&mutual, "mutual", "", "USER:SECRET that the target proves when it is asked to")
	return cmd
}

// parseSize reads bytes, or a number with a power of 1024 behind it.
func parseSize(s string) (int64, error) {
	shift := 0
	if s != "" {
		if i := strings.IndexByte("KMGT", s[len(s)-1]); i >= 0 {
			shift, s = 10*(i+1), s[:len(s)-1]
		}
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return 0, err
	}
	if n <= 0 || n > 1<<62>>shift {
		return 0, fmt.Errorf("size %d is out of range", n)
	}
	return n << shift, nil
}
