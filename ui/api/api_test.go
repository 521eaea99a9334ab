package api_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"go.uber.org/goleak"

	"hotspare"
	"hotspare/haengine"
	"hotspare/ui/api"
	"hotspare/ui/api/client"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		// fasthttp's clock of the server date has no stop, and a stopped worker
		// pool's cleaner wakes once more after 10 s.
		goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.updateServerDate.func1"),
		goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.(*workerPool).Start.func2"))
}

// site is an appliance that remembers what it was told.
type site struct {
	mu       sync.Mutex
	applied  []string
	by       string
	dry      bool
	commands []api.Command
	fail     error
	events   []api.Event
	news     chan api.Event
}

func (s *site) Snapshot(context.Context) (api.Snapshot, error) {
	return api.Snapshot{
		Nodes:  []api.Node{{Node: haengine.Node{Name: "n1"}, Status: api.NodeStatus{Phase: "idle", Power: "off"}}},
		Images: []api.Image{{Name: "web", Version: "1", Tested: &api.ImageTest{Text: `"><img src=x>`}}},
	}, s.fail
}

func (s *site) Apply(_ context.Context, file string, src []byte, by string, dry bool) ([]api.Applied, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail != nil {
		return nil, s.fail
	}
	s.applied, s.by, s.dry = append(s.applied, file), by, dry
	return []api.Applied{{Kind: "file", Name: file, Result: fmt.Sprintf("%d bytes", len(src))}}, nil
}

func (s *site) Delete(_ context.Context, kind, name, by string) error {
	return &hotspare.Error{Code: hotspare.CodeNotFound, What: "there is no such " + kind, Where: name, Fix: "look"}
}

func (s *site) ImportImage(context.Context, api.ImageImport, string) (api.Image, error) {
	return api.Image{Name: "orders", Version: "1"}, s.fail
}
func (s *site) DeleteImage(context.Context, string, string, string) error { return s.fail }

func (s *site) Command(_ context.Context, c api.Command) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.commands = append(s.commands, c)
	return "f1", s.fail
}

func (s *site) Explain(_ context.Context, kind, name string) (api.Explanation, error) {
	return api.Explanation{Subject: kind + " " + name, Verdict: "because"}, s.fail
}

func (s *site) Events(_ context.Context, after uint64, limit int) ([]api.Event, error) {
	var out []api.Event
	for _, e := range s.events {
		if e.ID > after && len(out) < limit {
			out = append(out, e)
		}
	}
	return out, nil
}

func (s *site) Follow(ctx context.Context, after uint64) (<-chan api.Event, error) {
	out := make(chan api.Event)
	if s.news == nil {
		close(out) // a browser that waits for a page to rest would wait for ever
		return out, nil
	}
	past, _ := s.Events(ctx, after, 1000)
	go func() {
		defer close(out)
		for _, e := range past {
			select {
			case out <- e:
			case <-ctx.Done():
				return
			}
		}
		for {
			select {
			case e := <-s.news:
				select {
				case out <- e:
				case <-ctx.Done():
					return
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	return out, nil
}

type running struct {
	site   *site
	socket *client.Client
	tcp    string // http://127.0.0.1:port
}

const token = "t0ken-of-the-test"

func start(t *testing.T, page fs.FS) running {
	t.Helper()
	s := &site{news: make(chan api.Event)}
	o := api.Options{
		Verbs: api.Verbs{Viewer: s, Resources: s, Images: s, Engine: s, Explainer: s, History: s, Booting: s, Discoverer: s},
		Token: hotspare.NewSecret(token),
	}
	if page != nil {
		o.Page = page
	}
	srv, err := api.New(o)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "api.sock")
	unix, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	for _, ln := range []net.Listener{unix, tcp} {
		serving.Go(func() { _ = srv.Serve(ln) })
	}
	c := client.New(client.Options{Socket: path})
	t.Cleanup(func() {
		c.Close()
		http.DefaultClient.CloseIdleConnections()
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := srv.Shutdown(ctx); err != nil {
			t.Errorf("shutdown: %v", err)
		}
		serving.Wait()
	})
	return running{s, c, "http://" + tcp.Addr().String()}
}

func TestApplyOverTheSocketNamesTheOperator(t *testing.T) {
	r := start(t, nil)
	src, err := os.ReadFile("../../examples/nodes.yaml")
	if err != nil {
		t.Fatal(err)
	}
	out, err := r.socket.Apply(t.Context(), "nodes.yaml", src, true)
	if err != nil {
		t.Fatal(err)
	}
	if len(out) != 1 || out[0].Name != "nodes.yaml" || out[0].Result != fmt.Sprintf("%d bytes", len(src)) || !r.site.dry || !strings.Contains(r.site.by, "local operator") {
		t.Fatalf("applied %v, by %q, dry %v", out, r.site.by, r.site.dry)
	}
}

func TestAnErrorKeepsCodePlaceAndFixAndHidesTheCause(t *testing.T) {
	r := start(t, nil)
	r.site.fail = &hotspare.Error{Code: hotspare.CodeYAML, What: "unknown field", Where: "a.yaml:3:1", Fix: "did you mean memoryMiB?", Err: errors.New("private")}
	_, err := r.socket.Apply(t.Context(), "a.yaml", []byte("kind: node\n"), false)
	var p *api.Problem
	if !errors.As(err, &p) || p.Status != 422 || p.Code != hotspare.CodeYAML || p.Where != "a.yaml:3:1" || !strings.Contains(p.Fix, "memoryMiB") || strings.Contains(err.Error(), "private") {
		t.Fatalf("got %v", err)
	}
	r.site.fail = errors.New("bolt: secret path /x broke")
	err = r.socket.Get(t.Context(), "/api/v1/nodes", &json.RawMessage{})
	if !errors.As(err, &p) || p.Status != 500 || p.Code != hotspare.CodeInternal || strings.Contains(err.Error(), "secret path") {
		t.Fatalf("got %v", err)
	}
	err = r.socket.Post(t.Context(), "/api/v1/images", map[string]any{"name": "x", "file": "/f", "colour": "red"}, nil)
	if !errors.As(err, &p) || p.Status != 422 || p.Code != hotspare.CodeInvalid || len(p.Errors) == 0 || !strings.Contains(p.Errors[0].Where, "colour") {
		t.Fatalf("a field that the schema lacks: %v %+v", err, p)
	}
	if err := r.socket.Delete(t.Context(), "/api/v1/nodes/n9"); !errors.As(err, &p) || p.Status != 404 {
		t.Fatalf("got %v", err)
	}
}

func TestOnlyTheTokenOpensTheNetworkForChanges(t *testing.T) {
	r := start(t, nil)
	for _, c := range []struct {
		name, method, path, host, auth string
		want                           int
	}{
		{"reading on loopback", "GET", "/api/v1/nodes", "", "", 200},
		{"reading under another site's name", "GET", "/api/v1/nodes", "evil.example", "", 401},
		{"changing without the token", "POST", "/api/v1/applications/a/actions/freeze", "", "", 401},
		{"changing with a wrong token", "POST", "/api/v1/applications/a/actions/freeze", "", "Bearer wrong", 401},
		{"changing with an empty token", "POST", "/api/v1/applications/a/actions/freeze", "", "Bearer ", 401},
		{"changing with the token", "POST", "/api/v1/applications/a/actions/freeze", "", "Bearer " + token, 202},
		{"deleting without the token", "DELETE", "/api/v1/nodes/n1", "", "", 401},
		{"no such path", "GET", "/api/v1/nothing/at/all", "", "", 404},
	} {
		t.Run(c.name, func(t *testing.T) {
			req, _ := http.NewRequestWithContext(t.Context(), c.method, r.tcp+c.path, strings.NewReader("{}"))
			req.Header.Set("Content-Type", "application/json")
			if c.host != "" {
				req.Host = c.host
			}
			if c.auth != "" {
				req.Header.Set("Authorization", c.auth)
			}
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			b, _ := io.ReadAll(resp.Body)
			if resp.StatusCode != c.want {
				t.Fatalf("status %d, want %d: %s", resp.StatusCode, c.want, b)
			}
		})
	}
	if len(r.site.commands) != 1 || r.site.commands[0].Kind != "application" || r.site.commands[0].By != "token" {
		t.Fatalf("commands: %+v", r.site.commands)
	}
}

func TestTheDocumentNamesEveryOperation(t *testing.T) {
	r := start(t, nil)
	var doc struct {
		OpenAPI string                    `json:"openapi"`
		Paths   map[string]map[string]any `json:"paths"`
	}
	if err := r.socket.Get(t.Context(), "/api/v1/openapi.json", &doc); err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(doc.OpenAPI, "3.1") {
		t.Fatalf("version %q", doc.OpenAPI)
	}
	for _, p := range []string{"/api/v1/apply", "/api/v1/nodes", "/api/v1/failovers/{name}", "/api/v1/explain/{kind}/{name}", "/api/v1/events/stream", "/api/v1/images"} {
		if doc.Paths[p] == nil {
			t.Errorf("%s is missing", p)
		}
	}
}

func TestFollowResumesAfterTheLastEventSeen(t *testing.T) {
	r := start(t, nil)
	for i := range 5 {
		r.site.events = append(r.site.events, api.Event{ID: uint64(i + 1), Kind: "k"})
	}
	stop := errors.New("enough")
	var seen []uint64
	last, err := r.socket.Follow(t.Context(), 2, func(e api.Event) error {
		seen = append(seen, e.ID)
		if e.ID == 5 {
			go func() { r.site.news <- api.Event{ID: 6, Kind: "news"} }()
		}
		if e.ID == 6 {
			return stop
		}
		return nil
	})
	if !errors.Is(err, stop) || last != 6 || len(seen) != 4 || seen[0] != 3 {
		t.Fatalf("seen %v, last %d, %v", seen, last, err)
	}
}

func TestThePageIsServedWithAStrictPolicy(t *testing.T) {
	r := start(t, fstest.MapFS{"index.html": {Data: []byte("<!doctype html><title>hotspare</title>")}})
	resp, err := http.Get(r.tcp + "/")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	csp := resp.Header.Get("Content-Security-Policy")
	if resp.StatusCode != 200 || !strings.Contains(string(b), "hotspare") || !strings.Contains(csp, "default-src 'none'") || strings.Contains(csp, "unsafe") {
		t.Fatalf("%d %s %q", resp.StatusCode, b, csp)
	}
}

func TestNoApplianceIsSaidClearly(t *testing.T) {
	c := client.New(client.Options{Socket: filepath.Join(t.TempDir(), "none.sock")})
	err := c.Get(t.Context(), "/api/v1/nodes", nil)
	if hotspare.CodeOf(err) != hotspare.CodeUnavailable || !strings.Contains(err.Error(), "hotspare serve") {
		t.Fatalf("got %v", err)
	}
}

// A listener whose turn comes when the server was shut down already is closed
// too: whoever waits for Serve would wait for ever.
func TestAServerThatWasShutServesNoFurtherListener(t *testing.T) {
	s := &site{}
	srv, err := api.New(api.Options{Verbs: api.Verbs{Viewer: s, Resources: s, Images: s, Engine: s, Explainer: s, History: s}})
	if err != nil {
		t.Fatal(err)
	}
	if err := srv.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ln) }()
	select {
	case err := <-served:
		if err != nil {
			t.Errorf("Serve: %v", err)
		}
	case <-time.After(5 * time.Second):
		ln.Close()
		<-served
		t.Fatal("it serves after its shutdown")
	}
	if c, err := net.Dial("tcp", ln.Addr().String()); err == nil {
		c.Close()
		t.Error("the listener is open")
	}
}
