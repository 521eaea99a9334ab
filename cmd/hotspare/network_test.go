package main

import (
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"hotspare/boot/httpboot"
	"hotspare/ui/api"
)

func (a *everything) Links(context.Context) ([]api.Link, error) {
	a.note("links")
	return []api.Link{}, nil
}

func (a *everything) BootCA(context.Context) (api.BootCA, error) {
	a.note("boot-ca")
	return api.BootCA{}, nil
}

func TestGetShowsTheLinks(t *testing.T) {
	links := []api.Link{{
		Interface: "eno2", Addresses: []netip.Addr{netip.MustParseAddr("10.77.0.1")}, Up: true, DHCP: "authoritative", HTTPS: true,
		Pools: []api.AddressPool{{Prefix: netip.MustParsePrefix("10.77.0.0/24"), Size: 100, Used: 7}}, Counters: &api.DHCPCounters{Answered: 12},
		Foreign: []api.ForeignDHCP{{Server: netip.MustParseAddr("10.77.0.9")}},
		Alarms:  []api.NetworkAlarm{{Code: "NET-005", Text: "another DHCP server answers on the segment (10.77.0.9 on eno2): it offers boot file \x1b[2Jpwned", Fix: "stop the DHCP server 10.77.0.9"}},
	}, {Interface: "eno3", Addresses: []netip.Addr{netip.MustParseAddr("10.88.0.1")}, Why: "the interface eno3 has no link", DHCP: "off"}}
	sock := server(t, map[string]any{"GET /api/v1/links": links, "GET /api/v1/links/eno2": links[0]})
	for _, args := range [][]string{{"get", "links"}, {"get", "link", "eno2"}, {"get", "links", "-o", "wide"}} {
		code, out, errs := call(t, append(args, "--socket", sock)...)
		for _, want := range []string{"eno2", "7/100", "10.77.0.9", "NET-005", "fix: stop the DHCP server 10.77.0.9"} {
			if code != 0 || !strings.Contains(out, want) || strings.Contains(out, "\x1b") {
				t.Errorf("%v: %d %s, without %q\n%s", args, code, errs, want, out)
			}
		}
	}
	if _, out, _ := call(t, "get", "links", "--socket", sock); !strings.Contains(out, "has no link") {
		t.Errorf("nobody sees that a link is down:\n%s", out)
	}
}

// The CA comes in the form that each firmware wants, and its fingerprint beside it.
func TestBootCAForms(t *testing.T) {
	ca, err := httpboot.NewAuthority(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	sock := server(t, map[string]any{"GET /api/v1/boot-ca": api.BootCA{
		Certificate: string(ca.CertificatePEM()), SignatureList: httpboot.SignatureList(ca.Certificate), Fingerprint: "AA:BB", NotAfter: ca.Certificate.NotAfter,
	}})
	for form, want := range map[string]string{"pem": string(ca.CertificatePEM()), "der": string(ca.Certificate.Raw), "esl": string(httpboot.SignatureList(ca.Certificate))} {
		file := filepath.Join(t.TempDir(), "ca")
		if code, out, errs := call(t, "boot", "ca", "--form", form, "-o", file, "--socket", sock); code != 0 || !strings.Contains(errs, "AA:BB") || out != "" {
			t.Fatalf("%s: %d %s %s", form, code, errs, out)
		}
		if b, err := os.ReadFile(file); err != nil || string(b) != want {
			t.Errorf("%s: %d bytes, %v", form, len(b), err)
		}
		if _, out, _ := call(t, "boot", "ca", "--form", form, "--socket", sock); out != want {
			t.Errorf("%s on standard output: %d bytes", form, len(out))
		}
	}
	if code, _, errs := call(t, "boot", "ca", "--form", "p7b", "--socket", sock); code == 0 || !strings.Contains(errs, "pem, der or esl") {
		t.Errorf("an unknown form: %d %s", code, errs)
	}
}
