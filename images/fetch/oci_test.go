package fetch

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"hotspare"
)

// registry runs Debian's docker-registry and gives its address.
func registry(t *testing.T, auth string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	dir := t.TempDir()
	config := fmt.Sprintf("version: 0.1\nlog: {level: error}\nstorage:\n  filesystem: {rootdirectory: %s}\nhttp: {addr: %q}\n%s", dir, addr, auth)
	file := filepath.Join(dir, "config.yml")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("docker-registry", "serve", file)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatalf("%v (Debian package docker-registry)", err)
	}
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		cmd.Wait()
	})
	deadline := time.Now().Add(time.Minute)
	for {
		c, err := net.Dial("tcp", addr) // it does not say when it listens
		if err == nil {
			c.Close()
			return addr
		}
		if time.Now().After(deadline) {
			t.Fatalf("the registry does not listen: %s", said.String())
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// push puts a blob or a manifest into a registry.
type pusher struct {
	t    *testing.T
	base string
	auth func(*http.Request)
}

func (p pusher) do(method, url, kind string, b []byte) http.Header {
	p.t.Helper()
	req, err := http.NewRequest(method, url, bytes.NewReader(b))
	if err != nil {
		p.t.Fatal(err)
	}
	req.Header.Set("Content-Type", kind)
	if p.auth != nil {
		p.auth(req)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		p.t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode >= 300 {
		text, _ := io.ReadAll(resp.Body)
		p.t.Fatalf("%s %s: %s %s", method, url, resp.Status, text)
	}
	http.DefaultClient.CloseIdleConnections()
	return resp.Header
}

func (p pusher) blob(kind string, b []byte, annotations map[string]string) descriptor {
	p.t.Helper()
	at := p.do("POST", p.base+"/blobs/uploads/", "", nil).Get("Location")
	sep := "?"
	if strings.Contains(at, "?") {
		sep = "&"
	}
	p.do("PUT", at+sep+"digest="+digestOf(b), "application/octet-stream", b)
	return descriptor{MediaType: kind, Digest: digestOf(b), Size: int64(len(b)), Annotations: annotations}
}

func (p pusher) manifest(tag, kind string, m any) descriptor {
	p.t.Helper()
	b, err := json.Marshal(m)
	if err != nil {
		p.t.Fatal(err)
	}
	p.do("PUT", p.base+"/manifests/"+tag, kind, b)
	return descriptor{MediaType: kind, Digest: digestOf(b), Size: int64(len(b))}
}

type wire struct {
	SchemaVersion int          `json:"schemaVersion"`
	MediaType     string       `json:"mediaType"`
	Config        *descriptor  `json:"config,omitempty"`
	Layers        []descriptor `json:"layers,omitempty"`
	Manifests     []any        `json:"manifests,omitempty"`
}

func TestPullFromARegistry(t *testing.T) {
	addr := registry(t, "")
	p := pusher{t: t, base: "http://" + addr + "/v2/team/disk"}
	disk := noise(3 << 20)
	empty := p.blob("application/vnd.oci.empty.v1+json", []byte("{}"), nil)
	one := p.blob("application/vnd.hotspare.disk", disk, map[string]string{annotationTitle: "disk.qcow2"})
	two := p.blob("text/plain", []byte("notes"), map[string]string{annotationTitle: "notes.txt"})
	config := p.blob(typeOCIConfig, []byte(`{"architecture":"amd64","os":"linux"}`), nil)
	artifact := p.manifest("1", typeOCIManifest, wire{2, typeOCIManifest, &empty, []descriptor{one}, nil})
	p.manifest("two", typeOCIManifest, wire{2, typeOCIManifest, &empty, []descriptor{one, two}, nil})
	image := p.manifest("image", typeOCIManifest, wire{2, typeOCIManifest, &config, []descriptor{two, one}, nil})
	platform := func(d descriptor, arch string) any {
		return map[string]any{"mediaType": d.MediaType, "digest": d.Digest, "size": d.Size, "platform": map[string]string{"os": "linux", "architecture": arch}}
	}
	p.manifest("multi", typeOCIIndex, wire{2, typeOCIIndex, nil, nil, []any{platform(artifact, "arm64"), platform(image, "amd64")}})
	f := fetcher(t, Options{Allow: loopback})
	pull := func(ref string) (Artifact, error) {
		return f.Pull(t.Context(), "oci+http://"+addr+"/team/disk"+ref, t.TempDir(), "amd64", nil)
	}
	for _, ref := range []string{":1", "@" + artifact.Digest, ":two#disk.qcow2", ":1@" + artifact.Digest} {
		a, err := pull(ref)
		if err != nil || !bytes.Equal(read(t, a.File), disk) || len(a.Layers) != 0 {
			t.Errorf("%s: %+v, %v", ref, a, err)
		}
	}
	for _, ref := range []string{":image", ":multi"} {
		a, err := pull(ref)
		if err != nil || len(a.Layers) != 2 || string(read(t, a.Layers[0])) != "notes" || !bytes.Equal(read(t, a.Layers[1]), disk) {
			t.Errorf("%s: %+v, %v", ref, a, err)
		}
	}
	for ref, says := range map[string]string{":two": "disk.qcow2, notes.txt", ":none": "404", "@" + digestOf([]byte("x")): "404"} {
		if _, err := pull(ref); hotspare.CodeOf(err) != hotspare.CodeImageFetch || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v", ref, err)
		}
	}
	if _, err := fetcher(t, Options{}).Pull(t.Context(), "oci+http://"+addr+"/team/disk:1", t.TempDir(), "amd64", nil); hotspare.CodeOf(err) != hotspare.CodeImageSource {
		t.Errorf("without leave: %v", err)
	}
}

// A registry that hands out tokens, and one that lies.
func TestTokensAndLies(t *testing.T) {
	blob := []byte("layer")
	m, _ := json.Marshal(wire{2, typeOCIManifest, &descriptor{MediaType: "x"}, []descriptor{{MediaType: "y", Digest: digestOf(blob), Size: int64(len(blob))}}, nil})
	lie, realm := "", ""
	var scopes []string
	url := serve(t, func(w http.ResponseWriter, r *http.Request) {
		user, password, _ := r.BasicAuth()
		switch {
		case r.URL.Path == "/token":
			scopes = append(scopes, r.URL.Query().Get("scope"))
			if user != "puller" || password != "geheim" {
				w.WriteHeader(403)
				return
			}
			io.WriteString(w, `{"access_token":"t0ken"}`)
		case r.Header.Get("Authorization") != "Bearer t0ken":
			w.Header().Set("WWW-Authenticate", `Bearer realm="`+realm+`",service="s",scope="repository:other:push"`)
			w.WriteHeader(401)
		case strings.Contains(r.URL.Path, "/manifests/"):
			w.Write(m)
			if lie == "manifest" {
				io.WriteString(w, " ")
			}
		case lie == "blob":
			io.WriteString(w, "leyer")
		default:
			w.Write(blob)
		}
	})
	realm = url + "/token"
	host := strings.TrimPrefix(url, "http://")
	f := fetcher(t, Options{Allow: loopback, Tries: 2, Credentials: map[string]Credential{host: {"puller", hotspare.NewSecret("geheim")}}})
	pull := func(f *Fetcher, ref string) error {
		_, err := f.Pull(t.Context(), "oci+http://"+host+"/a"+ref, t.TempDir(), "amd64", nil)
		return err
	}
	if err := pull(f, "@"+digestOf(m)); err != nil {
		t.Fatal(err)
	}
	if len(scopes) != 1 || scopes[0] != "repository:a:pull" {
		t.Errorf("asked for %q", scopes)
	}
	for _, what := range []string{"manifest", "blob"} {
		lie = what
		if err := pull(f, "@"+digestOf(m)); hotspare.CodeOf(err) != hotspare.CodeImageDigest {
			t.Errorf("another %s: %v", what, err)
		}
	}
	lie = ""
	for _, at := range []string{"http://169.254.169.254/token", "file:///etc/shadow"} {
		realm = at
		if err := pull(f, ":1"); hotspare.CodeOf(err) != hotspare.CodeImageSource {
			t.Errorf("a token from %s: %v", at, err)
		}
	}
	realm = url + "/token"
	if err := pull(fetcher(t, Options{Allow: loopback}), ":1"); hotspare.CodeOf(err) != hotspare.CodeImageFetch || strings.Contains(err.Error(), "geheim") {
		t.Errorf("without a password: %v", err)
	}
}

func TestPullIsCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	url := serve(t, func(w http.ResponseWriter, r *http.Request) { cancel() })
	_, err := fetcher(t, Options{Allow: loopback}).Pull(ctx, "oci+http://"+strings.TrimPrefix(url, "http://")+"/a", t.TempDir(), "amd64", nil)
	if err == nil {
		t.Error("pulled")
	}
}
