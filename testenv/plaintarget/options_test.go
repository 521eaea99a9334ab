package plaintarget_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"hotspare"
	"hotspare/testenv/plaintarget"
)

func TestClearErrors(t *testing.T) {
	g := start(t, "")
	one := map[string]int64{"a": 1 << 20}
	chap := plaintarget.Credentials{User: "u", Secret: hotspare.NewSecret("secret-of-12-bytes")}
	for name, c := range map[string]struct {
		o    plaintarget.Options
		code hotspare.Code
	}{
		"a store in use":                    {plaintarget.Options{Dir: g.set.Dir, Volumes: one}, hotspare.CodeStoreLocked},
		"a portal in use":                   {plaintarget.Options{Dir: t.TempDir(), Listen: g.portals[0], Volumes: one}, hotspare.CodePortTaken},
		"a second portal in use":            {plaintarget.Options{Dir: t.TempDir(), Portals: g.portals, Volumes: one}, hotspare.CodePortTaken},
		"no volume at all":                  {plaintarget.Options{Dir: t.TempDir()}, hotspare.CodeInvalid},
		"no directory":                      {plaintarget.Options{Volumes: one}, hotspare.CodeInvalid},
		"a name that no IQN can have":       {plaintarget.Options{Dir: t.TempDir(), Volumes: map[string]int64{"a b": 1 << 20}}, hotspare.CodeInvalid},
		"a size that no volume can have":    {plaintarget.Options{Dir: t.TempDir(), Volumes: map[string]int64{"a": 1000}}, hotspare.CodeInvalid},
		"read-only is not there":            {plaintarget.Options{Dir: t.TempDir(), Volumes: one, ReadOnly: []string{"b"}}, hotspare.CodeNotFound},
		"mutual without CHAP":               {plaintarget.Options{Dir: t.TempDir(), Volumes: one, Mutual: chap}, hotspare.CodeInvalid},
		"both directions with one secret":   {plaintarget.Options{Dir: t.TempDir(), Volumes: one, Chap: chap, Mutual: chap}, hotspare.CodeInvalid},
		"a socket in no directory":          {plaintarget.Options{Dir: t.TempDir(), Volumes: one, Socket: "/nowhere/sock"}, hotspare.CodeInvalid},
		"a socket with a name too long":     {plaintarget.Options{Dir: t.TempDir(), Volumes: one, Socket: filepath.Join(t.TempDir(), strings.Repeat("x", 120))}, hotspare.CodeInvalid},
		"a portal that is not of this host": {plaintarget.Options{Dir: t.TempDir(), Volumes: one, Listen: "203.0.113.7:3260"}, hotspare.CodePortTaken},
	} {
		if c.o.Listen == "" {
			c.o.Listen = "127.0.0.1:0"
		}
		if err := plaintarget.Run(context.Background(), c.o); hotspare.CodeOf(err) != c.code {
			t.Errorf("%s: %v, want %s", name, err, c.code)
		}
	}
}

func TestCredentials(t *testing.T) {
	dir := t.TempDir()
	file := func(text string) string {
		name := filepath.Join(dir, "chap")
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return "@" + name
	}
	for _, text := range []string{"node:secret-of:12-bytes", file("node:secret-of:12-bytes\n"), file("node:secret-of:12-bytes\r\nmore"), file("node:secret-of:12-bytes")} {
		c, err := plaintarget.ParseCredentials(text)
		if err != nil || c.User != "node" || c.Secret.Reveal() != "secret-of:12-bytes" {
			t.Errorf("%s: %v, %v", text, c, err)
		}
	}
	if c, err := plaintarget.ParseCredentials(""); err != nil || c.User != "" {
		t.Errorf("none: %v, %v", c, err)
	}
	for _, text := range []string{"node", "node:hunter2", ":secret-of-12-bytes", "node:" + strings.Repeat("hunter2", 10), file(""), file("\nnode:secret-of-12-bytes")} {
		_, err := plaintarget.ParseCredentials(text)
		if hotspare.CodeOf(err) != hotspare.CodeInvalid || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v", text, err)
		}
	}
	if _, err := plaintarget.ParseCredentials("@" + filepath.Join(dir, "none")); hotspare.CodeOf(err) != hotspare.CodeNotFound {
		t.Errorf("a file that is missing: %v", err)
	}
}

func TestSizes(t *testing.T) {
	for text, want := range map[string]int64{"512": 512, "4K": 4096, "3M": 3 << 20, "1G": 1 << 30, "2T": 2 << 40, "64MiB": 64 << 20} {
		if got, err := plaintarget.ParseSize(text); err != nil || got != want {
			t.Errorf("%s: %d, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "G", "-1", "0", "1.5G", "9999999999T", "1g", "1MB", "1iB", "MiB"} {
		if got, err := plaintarget.ParseSize(text); err == nil {
			t.Errorf("%q is taken for %d", text, got)
		}
	}
}
