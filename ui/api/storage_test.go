package api_test

import (
	"context"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"hotspare"
	"hotspare/ui/api"
	"hotspare/ui/api/client"
)

// store is an appliance whose tasks never end.
type store struct {
	site
	asked api.TaskRequest
}

func (s *store) ChangeVolume(_ context.Context, c api.VolumeChange) (api.Accepted, error) {
	return api.Accepted{Text: c.Verb + " " + c.Volume + " " + c.By}, s.fail
}

func (s *store) BeginTask(_ context.Context, r api.TaskRequest) (api.Task, error) {
	s.asked = r
	return api.Task{ID: "t1", State: "running", Revision: 1}, s.fail
}

func (s *store) Storage(context.Context) (api.Storage, error) { return api.Storage{}, s.fail }
func (s *store) Tasks(context.Context) ([]api.Task, error)    { return nil, s.fail }

func (s *store) Task(ctx context.Context, _ string, after uint64) (api.Task, error) {
	if after > 0 {
		<-ctx.Done()
	}
	return api.Task{ID: "t1", State: "running", Revision: 1}, s.fail
}

func (s *store) AbortTask(context.Context, string, string) error { return s.fail }

func verbs(s *store) api.Verbs {
	return api.Verbs{Viewer: s, Resources: s, Images: s, Engine: s, Explainer: s, History: s, Keeper: s, Tasks: s}
}

func TestTheOperationsOnVolumes(t *testing.T) {
	s := &store{}
	srv, err := api.New(api.Options{
		Verbs: verbs(s), Token: hotspare.NewSecret(token),
		Metrics: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "canary_metric 1\n") }),
	})
	if err != nil {
		t.Fatal(err)
	}
	sock := filepath.Join(t.TempDir(), "api.sock")
	unix, err := net.Listen("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 2)
	for _, ln := range []net.Listener{unix, tcp} {
		go func() { served <- srv.Serve(ln) }()
	}
	near := client.New(client.Options{Socket: sock})
	far := client.New(client.Options{Server: "http://" + tcp.Addr().String(), Token: hotspare.NewSecret(token)})
	anybody := client.New(client.Options{Server: "http://" + tcp.Addr().String()})

	// Who asks, and from where, reaches the appliance.
	for _, c := range []struct {
		cl    *client.Client
		local bool
		by    string
	}{{near, true, "local operator"}, {far, false, "token"}} {
		if err := c.cl.Post(t.Context(), "/api/v1/volumes/orders.data@monday/actions/export", map[string]any{"file": "x", "format": "raw"}, nil); err != nil {
			t.Fatal(err)
		}
		if a := s.asked; a.Local != c.local || !strings.Contains(a.By, c.by) || a.Volume != "orders.data@monday" || a.File != "x" {
			t.Errorf("the appliance was asked for %+v", a)
		}
	}
	for _, path := range []string{"/api/v1/volumes/v/actions/snapshot", "/api/v1/volumes/v/actions/scrub", "/api/v1/storage/actions/scrub"} {
		if err := anybody.Post(t.Context(), path, map[string]any{"as": "x"}, nil); err == nil || !strings.Contains(err.Error(), "API-070") {
			t.Errorf("%s without the token: %v", path, err)
		}
	}
	for _, path := range []string{"/api/v1/volumes/v", "/api/v1/tasks/t1"} {
		if err := anybody.Delete(t.Context(), path); err == nil || !strings.Contains(err.Error(), "API-070") {
			t.Errorf("%s without the token: %v", path, err)
		}
		if err := near.Delete(t.Context(), path); err != nil {
			t.Errorf("%s: %v", path, err)
		}
	}
	for host, want := range map[string]int{"": 200, "evil.example": 401} {
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+tcp.Addr().String()+"/metrics", nil)
		req.Host = host
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != want || strings.Contains(string(b), "canary_metric") != (want == 200) {
			t.Errorf("metrics under %q: %d %s", host, resp.StatusCode, b)
		}
	}
	http.DefaultClient.CloseIdleConnections()

	// A reader that waits for a task does not hold up the end of the server.
	waits := make(chan error, 1)
	go func() { waits <- near.Get(context.WithoutCancel(t.Context()), "/api/v1/tasks/t1?after=1", nil) }()
	if err := near.Get(t.Context(), "/api/v1/tasks/t1", nil); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := srv.Shutdown(ctx); err != nil {
		t.Errorf("shutdown: %v", err)
	}
	<-waits
	<-served
	<-served
	for _, c := range []*client.Client{near, far, anybody} {
		c.Close()
	}
}

func TestVolumesWithoutAKeeper(t *testing.T) {
	r := start(t, nil)
	if err := r.socket.Get(t.Context(), "/api/v1/storage", nil); err == nil {
		t.Error("it answers")
	}
	s := &store{}
	v := verbs(s)
	v.Tasks = nil
	if _, err := api.New(api.Options{Verbs: v}); err == nil {
		t.Error("a keeper without tasks is taken")
	}
}
