package api_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"hotspare"
	"hotspare/boot"
	"hotspare/ui"
	"hotspare/ui/api"
)

// hostile is what a machine might call itself.
const hostile = `<script>document.title='owned'</script><img src=x onerror="document.title='owned'">`

func (s *site) Boots(context.Context) ([]boot.Ladder, error) {
	rec := boot.NewRecorder(0, 0)
	rec.Record(boot.Entry{At: time.Unix(0, 0), MAC: boot.MAC{2, 0, 0, 0, 0, 1}, Node: hostile, Protocol: boot.HTTP, Step: boot.StepWait, Request: hostile, Answer: hostile, Reason: boot.Reason{Rule: boot.RuleToken, Code: hotspare.CodeBootToken, Text: hostile, Fix: hostile}})
	trace, _ := rec.Trace(boot.MAC{2, 0, 0, 0, 0, 1})
	return boot.Ladders(trace, boot.Circumstances{Now: time.Unix(60, 0)}), s.fail
}

func (s *site) BootsOf(ctx context.Context, name string) ([]boot.Ladder, error) {
	if name != "02:00:00:00:00:01" {
		return nil, &hotspare.Error{Code: hotspare.CodeNotFound, What: "no such machine", Where: name}
	}
	return s.Boots(ctx)
}

func (s *site) Machines(context.Context) ([]api.Machine, error) {
	return []api.Machine{{ID: "02:00:00:00:00:01", State: "discovered", MACs: []string{hostile}, UUID: hostile, Firmware: hostile, Facts: &api.MachineFacts{Vendor: hostile, Product: hostile, Serial: hostile, Arch: hostile}}}, s.fail
}

func (s *site) Machine(ctx context.Context, name string) (api.Machine, error) {
	all, err := s.Machines(ctx)
	if name != all[0].ID {
		err = &hotspare.Error{Code: hotspare.CodeNotFound, What: "no such machine", Where: name}
	}
	return all[0], err
}

func (s *site) ApproveMachine(_ context.Context, name string, in api.Approval, by string) (api.Applied, error) {
	s.note("approve", name, in.Name, in.BMC.Password, by)
	return api.Applied{Kind: "node", Name: in.Name, Result: "created"}, s.fail
}

func (s *site) IgnoreMachine(_ context.Context, name, by string, undo bool) error {
	s.note("ignore", name, by, map[bool]string{true: "undo"}[undo])
	return s.fail
}

func (s *site) ForgetMachine(_ context.Context, name, by string) error {
	s.note("forget", name, by)
	return s.fail
}

func (s *site) note(words ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.applied = append(s.applied, strings.Join(words, " "))
}

func TestBootsAndMachinesByAnySpelling(t *testing.T) {
	r := start(t, nil)
	for _, path := range []string{"/api/v1/boots/02:00:00:00:00:01", "/api/v1/boots/02%3A00%3A00%3A00%3A00%3A01", "/api/v1/boots"} {
		var all []boot.Ladder
		if err := r.socket.Get(t.Context(), path, &all); err != nil || len(all) != 1 || all[0].State != boot.LadderStuck || len(all[0].Rungs) != 9 || all[0].MAC.String() != "02:00:00:00:00:01" {
			t.Errorf("%s: %+v, %v", path, all, err)
		}
	}
	for _, path := range []string{"/api/v1/machines/02:00:00:00:00:01", "/api/v1/machines/02%3A00%3A00%3A00%3A00%3A01"} {
		var m api.Machine
		if err := r.socket.Get(t.Context(), path, &m); err != nil || m.Facts == nil || m.Facts.Vendor != hostile {
			t.Errorf("%s: %+v, %v", path, m, err)
		}
	}
	var p *api.Problem
	if err := r.socket.Get(t.Context(), "/api/v1/machines/nobody", &api.Machine{}); !errors.As(err, &p) || p.Status != http.StatusNotFound {
		t.Errorf("got %v", err)
	}
}

func TestOrdersAboutMachines(t *testing.T) {
	r := start(t, nil)
	in := api.Approval{Name: "n5", Pool: "p", BMC: api.ApprovalBMC{Address: "10.78.0.15", Password: "pw"}}
	if err := r.socket.Post(t.Context(), "/api/v1/machines/02:00:00:00:00:01/actions/approve", in, nil); err != nil {
		t.Fatal(err)
	}
	for _, verb := range []string{"ignore", "unignore"} {
		if err := r.socket.Post(t.Context(), "/api/v1/machines/02:00:00:00:00:01/actions/"+verb, nil, nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.socket.Delete(t.Context(), "/api/v1/machines/02:00:00:00:00:01"); err != nil {
		t.Fatal(err)
	}
	got := strings.Join(r.site.applied, "\n")
	for _, want := range []string{"approve 02:00:00:00:00:01 n5 pw ", "ignore 02:00:00:00:00:01 ", "undo", "forget 02:00:00:00:00:01 "} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is missing in\n%s", want, got)
		}
	}
	var p *api.Problem
	for name, in := range map[string]any{"without a name": map[string]any{"pool": "p", "bmc": map[string]any{"address": "a"}}, "a field too many": map[string]any{"name": "n", "pool": "p", "bmc": map[string]any{"address": "a"}, "approved": true}} {
		if err := r.socket.Post(t.Context(), "/api/v1/machines/02:00:00:00:00:01/actions/approve", in, nil); !errors.As(err, &p) || p.Status != http.StatusUnprocessableEntity {
			t.Errorf("%s: %v", name, err)
		}
	}
	if s := in.BMC.String(); strings.Contains(s, "pw") {
		t.Error("a BMC's password prints")
	}
}

// The page writes text nodes only, so a name is never markup.
func TestThePageHasNoWayForMarkup(t *testing.T) {
	page, err := ui.Page()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"page.js", "boots.js", "index.html"} {
		f, err := page.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, way := range []string{"innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function", "DOMParser", "javascript:", " onclick=", " onload=", " style="} {
			if strings.Contains(string(text), way) {
				t.Errorf("%s has %q", name, way)
			}
		}
	}
}

// With a real browser, where one is installed for the long run.
func TestHostileNamesStayTextInABrowser(t *testing.T) {
	if os.Getenv("HOTSPARE_TEST_FULL") == "" {
		t.Skip("runs with HOTSPARE_TEST_FULL=1")
	}
	browser, err := exec.LookPath("chromium")
	if err != nil {
		t.Fatal("the package chromium is not installed: ", err)
	}
	page, err := ui.Page()
	if err != nil {
		t.Fatal(err)
	}
	r := start(t, page)
	r.site.news = nil
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
		"--disable-component-update", "--disable-sync", "--user-data-dir="+t.TempDir(), "--virtual-time-budget=5000", "--dump-dom", r.tcp+"/")
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	dom := string(out)
	if strings.Contains(dom, "<title>owned") || strings.Contains(dom, "<img") || strings.Contains(dom, "<script>document") {
		t.Errorf("a machine's name became markup:\n%s", dom)
	}
	if !strings.Contains(dom, `<span class="word bad">failed</span>`) {
		t.Errorf("the page does not show that an image's test failed:\n%s", dom)
	}
	if !strings.Contains(dom, "&lt;script&gt;document.title='owned'") {
		t.Errorf("the page does not show the machine:\n%s", dom)
	}
}
