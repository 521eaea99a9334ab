package dhcp

import (
	"flag"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"hotspare"
	"hotspare/boot"
)

var update = flag.Bool("update", false, "write the golden snippets anew; commit them only if you understand the difference")

func snippetSite() boot.Site {
	return boot.Site{Server: ip("10.77.0.1"), HTTPPort: 8080, Loaders: map[boot.Arch]string{
		boot.ArchBIOS: "undionly.kpxe", boot.ArchUEFI64: "snponly.efi", boot.ArchHTTP64: "snponly.efi",
	}}
}

// The snippets word by word; and each server accepts its own.
func TestSnippets(t *testing.T) {
	dir := t.TempDir()
	check := map[string]func(snippet string) *exec.Cmd{
		"dnsmasq": func(s string) *exec.Cmd { return exec.Command("dnsmasq", "--test", "-C", write(t, dir, s)) },
		"kea": func(s string) *exec.Cmd {
			i := strings.Index(s, `"client-classes"`)
			c := exec.Command("kea-dhcp4", "-t", write(t, dir, `{"Dhcp4":{"valid-lifetime":60,"lease-database":{"type":"memfile","persist":false},"subnet4":[],`+s[i:]+`}}`))
			c.Env = append(os.Environ(), "KEA_PIDFILE_DIR="+dir, "KEA_LOCKFILE_DIR="+dir)
			return c
		},
		"isc": func(s string) *exec.Cmd {
			return exec.Command("dhcpd", "-t", "-cf", write(t, dir, s+"subnet 10.77.0.0 netmask 255.255.255.0 { range 10.77.0.50 10.77.0.60; }\n"))
		},
	}
	for _, name := range Snippets() {
		t.Run(name, func(t *testing.T) {
			got, err := Snippet(name, snippetSite())
			if err != nil {
				t.Fatal(err)
			}
			golden := filepath.Join("testdata", "snippet-"+name+".txt")
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil || string(want) != got {
				t.Errorf("the snippet is (%v)\n%s", err, got)
			}
			if out, err := check[name](got).CombinedOutput(); err != nil {
				t.Errorf("the server refuses it: %v\n%s\n%s", err, out, got)
			}
		})
	}
}

func write(t *testing.T, dir, text string) string {
	t.Helper()
	path := filepath.Join(dir, "conf")
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestSnippetsThatCannotBeWritten(t *testing.T) {
	nowhere, odd := snippetSite(), snippetSite()
	nowhere.Server = netip.Addr{}
	odd.Loaders[boot.ArchBIOS] = "a\";}\nfilename \"b"
	for name, c := range map[string]struct {
		server string
		site   boot.Site
	}{"an unknown server": {"windows", snippetSite()}, "no address": {"kea", nowhere}, "a loader with a quote": {"isc", odd}} {
		if s, err := Snippet(c.server, c.site); hotspare.CodeOf(err) != hotspare.CodeInvalid || s != "" {
			t.Errorf("%s: %v", name, err)
		}
	}
}
