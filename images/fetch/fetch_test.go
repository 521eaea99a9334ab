package fetch

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"hotspare"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var loopback = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}

func fetcher(t testing.TB, o Options) *Fetcher {
	t.Helper()
	if o.Wait == 0 {
		o.Wait = time.Millisecond
	}
	f, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.Close)
	return f
}

func noise(n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{1}).Read(b)
	return b
}

func serve(t testing.TB, h http.HandlerFunc) string {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s.URL
}

func read(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// cutting serves a file but ends every answer after some bytes.
func cutting(data []byte, at time.Time, after int, change func(h http.Header), asked *[]string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		*asked = append(*asked, r.Header.Get("Range"))
		change(w.Header())
		http.ServeContent(&cutter{w, after}, r, "", at, bytes.NewReader(data))
	}
}

type cutter struct {
	http.ResponseWriter
	left int
}

func (c *cutter) Write(p []byte) (int, error) {
	if c.left <= 0 {
		panic(http.ErrAbortHandler)
	}
	n, err := c.ResponseWriter.Write(p[:min(len(p), c.left)])
	if c.left -= n; c.left <= 0 {
		c.ResponseWriter.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	}
	return n, err
}

// A download that breaks off goes on where it ended.
func TestResume(t *testing.T) {
	data := noise(1 << 20)
	for _, c := range []struct {
		name   string
		header func(http.Header)
		again  bool // it can only begin anew
	}{
		{"ETag", func(h http.Header) { h.Set("ETag", `"one"`) }, false},
		{"Last-Modified", func(http.Header) {}, false},
		{"weak ETag", func(h http.Header) { h.Set("ETag", `W/"one"`) }, true},
		{"nothing", func(http.Header) {}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			var asked []string
			at := time.Time{}
			if c.name == "Last-Modified" {
				at = time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC)
			}
			url := serve(t, cutting(data, at, 400<<10, c.header, &asked))
			f := fetcher(t, Options{Allow: loopback, Tries: 3})
			dir := t.TempDir()
			path, err := f.Get(t.Context(), url+"/f", dir, nil)
			if c.again {
				if hotspare.CodeOf(err) != hotspare.CodeImageFetch || len(asked) < 3 || len(asked) > 4 {
					t.Errorf("%q, %v", asked, err)
				}
				return
			}
			if err != nil || !bytes.Equal(read(t, path), data) {
				t.Fatalf("%v, asked %q", err, asked)
			}
			if len(asked) != 3 || asked[1] != fmt.Sprintf("bytes=%d-", 400<<10) || asked[2] != fmt.Sprintf("bytes=%d-", 800<<10) {
				t.Errorf("asked %q", asked)
			}
		})
	}
}

// It goes on in another process, if the source has the same file still.
func TestResumeLater(t *testing.T) {
	data := noise(1 << 20)
	tag := `"one"`
	var asked []string
	after := 300 << 10
	url := serve(t, func(w http.ResponseWriter, r *http.Request) {
		cutting(data, time.Time{}, after, func(h http.Header) { h.Set("ETag", tag) }, &asked)(w, r)
	})
	dir := t.TempDir()
	first := fetcher(t, Options{Allow: loopback, Tries: 1, Wait: time.Hour})
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := first.Get(ctx, url+"/f", dir, nil); err == nil {
		t.Fatal("it did not break off")
	}
	after = 2 << 20
	path, err := fetcher(t, Options{Allow: loopback}).Get(t.Context(), url+"/f", dir, nil)
	if err != nil || !bytes.Equal(read(t, path), data) || asked[len(asked)-1] != fmt.Sprintf("bytes=%d-", 300<<10) {
		t.Fatalf("%v, asked %q", err, asked)
	}
	// All is here: nothing is sent again.
	if _, err := fetcher(t, Options{Allow: loopback}).Get(t.Context(), url+"/f", dir, nil); err != nil {
		t.Error(err)
	}
	tag, data = `"two"`, noise(2 << 20)[1<<20:]
	path, err = fetcher(t, Options{Allow: loopback}).Get(t.Context(), url+"/f", dir, nil)
	if err != nil || !bytes.Equal(read(t, path), data) {
		t.Errorf("another file under the URL: %v", err)
	}
}

func TestWhatIsRefused(t *testing.T) {
	var hits atomic.Int32
	inside := serve(t, func(w http.ResponseWriter, r *http.Request) { hits.Add(1); io.WriteString(w, "secret") })
	f := fetcher(t, Options{})
	port := inside[strings.LastIndex(inside, ":"):]
	for _, url := range []string{
		"file:///etc/shadow", "ftp://example.com/x", "gopher://127.0.0.1/", "http:///x", "//host/x", "x", "http://user:pass@example.com/x",
		inside, "http://localhost" + port, "http://[::ffff:127.0.0.1]" + port, "http://0.0.0.0" + port, "http://[::]" + port, "http://[::1]" + port,
		"http://169.254.169.254/latest/meta-data", "http://10.0.0.1/x", "http://192.168.1.1/x", "http://172.20.0.1/", "http://100.64.0.1/", "http://[fe80::1%25lo]/", "http://[fd00::1]/",
		"http://224.0.0.1/", "http://255.255.255.255/", "http://[64:ff9b::7f00:1]/", "http://[2002:7f00:1::]/",
	} {
		_, err := f.Get(t.Context(), url, t.TempDir(), nil)
		if c := hotspare.CodeOf(err); c != hotspare.CodeImageSource {
			t.Errorf("%s: %v", url, err)
		}
		if err != nil && strings.Contains(err.Error(), "pass@") {
			t.Errorf("the password is shown: %v", err)
		}
	}
	if hits.Load() != 0 {
		t.Error("something was asked")
	}
	denied := fetcher(t, Options{Allow: loopback, Deny: loopback})
	if _, err := denied.Get(t.Context(), inside, t.TempDir(), nil); hotspare.CodeOf(err) != hotspare.CodeImageSource {
		t.Errorf("denied: %v", err)
	}
}

// A redirect is no way in, nor is a name that changes its address.
func TestRedirects(t *testing.T) {
	secret := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "secret") }))
	l, err := net.Listen("tcp", "127.0.0.2:0")
	if err != nil {
		t.Fatal(err)
	}
	secret.Listener.Close()
	secret.Listener = l
	secret.Start()
	t.Cleanup(secret.Close)
	to := ""
	url := serve(t, func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, to, http.StatusFound) })
	f := fetcher(t, Options{Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}})
	for _, where := range []string{secret.URL + "/x", "http://169.254.169.254/", "file:///etc/passwd", url + "/loop", "http://u:p@127.0.0.1/"} {
		to = where
		dir := t.TempDir()
		_, err := f.Get(t.Context(), url, dir, nil)
		if hotspare.CodeOf(err) != hotspare.CodeImageSource {
			t.Errorf("to %s: %v", where, err)
		}
		if b, err := os.ReadFile(filepath.Join(dir, "data")); err == nil && len(b) > 0 {
			t.Errorf("to %s: %q was stored", where, b)
		}
	}
	tls := httptest.NewTLSServer(http.RedirectHandler(url, http.StatusFound))
	t.Cleanup(tls.Close)
	f = fetcher(t, Options{Allow: loopback})
	f.http.Transport.(*http.Transport).TLSClientConfig = tls.Client().Transport.(*http.Transport).TLSClientConfig
	if _, err := f.Get(t.Context(), tls.URL, t.TempDir(), nil); hotspare.CodeOf(err) != hotspare.CodeImageSource || !strings.Contains(err.Error(), "https to http") {
		t.Errorf("down from https: %v", err)
	}
}

func TestLimits(t *testing.T) {
	endless := func(w http.ResponseWriter, r *http.Request) {
		for {
			if _, err := w.Write(make([]byte, 64<<10)); err != nil {
				return
			}
		}
	}
	stalled := make(chan struct{})
	for _, c := range []struct {
		name string
		h    http.HandlerFunc
		o    Options
		says string
	}{
		{"endless", endless, Options{MaxBytes: 1 << 20}, "too large"},
		{"announced", func(w http.ResponseWriter, r *http.Request) { w.Header().Set("Content-Length", "2000000") }, Options{MaxBytes: 1 << 20}, "too large"},
		{"stalled", func(w http.ResponseWriter, r *http.Request) {
			w.(http.Flusher).Flush()
			select {
			case <-stalled:
			case <-r.Context().Done():
			}
		}, Options{Idle: 50 * time.Millisecond, Tries: 2}, "brought nothing"},
		{"slow", func(w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				w.Write([]byte("x"))
				w.(http.Flusher).Flush()
				select {
				case <-time.After(10 * time.Millisecond):
				case <-stalled:
				}
			}
		}, Options{Timeout: 200 * time.Millisecond}, "longer than"},
		{"not found", http.NotFound, Options{}, "404"},
		{"down", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(503) }, Options{Tries: 3}, "3 tries"},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.o.Allow = loopback
			_, err := fetcher(t, c.o).Get(t.Context(), serve(t, c.h)+"/x?token=geheim", t.TempDir(), nil)
			if hotspare.CodeOf(err) != hotspare.CodeImageFetch || !strings.Contains(err.Error(), c.says) || strings.Contains(err.Error(), "geheim") {
				t.Errorf("got %v", err)
			}
		})
	}
	close(stalled)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := fetcher(t, Options{Allow: loopback}).Get(ctx, serve(t, endless), t.TempDir(), nil); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// A proxy is used when the configuration names one, and never because of the
// environment.
func TestProxy(t *testing.T) {
	t.Setenv("HTTP_PROXY", "http://127.0.0.1:1")
	t.Setenv("http_proxy", "http://127.0.0.1:1")
	url := serve(t, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "direct "+r.Host) })
	if path, err := fetcher(t, Options{Allow: loopback}).Get(t.Context(), url, t.TempDir(), nil); err != nil || !strings.HasPrefix(string(read(t, path)), "direct") {
		t.Errorf("direct: %v", err)
	}
	proxy := serve(t, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "by proxy for "+r.RequestURI) })
	f := fetcher(t, Options{Proxy: proxy})
	if path, err := f.Get(t.Context(), "http://images.example/x", t.TempDir(), nil); err != nil || string(read(t, path)) != "by proxy for http://images.example/x" {
		t.Errorf("by proxy: %v", err)
	}
	if _, err := f.Get(t.Context(), "http://169.254.169.254/x", t.TempDir(), nil); hotspare.CodeOf(err) != hotspare.CodeImageSource {
		t.Errorf("an address by proxy: %v", err)
	}
}

func TestReferences(t *testing.T) {
	d := "sha256:" + strings.Repeat("a", 64)
	for text, want := range map[string]Reference{
		"oci://r.example/a/b:1":             {"https", "r.example", "a/b", "1", "", ""},
		"oci://r.example:5000/a@" + d:       {"https", "r.example:5000", "a", "", d, ""},
		"oci://r.example/a":                 {"https", "r.example", "a", "latest", "", ""},
		"oci+http://[::1]:5000/a:t#x.qcow2": {"http", "[::1]:5000", "a", "t", "", "x.qcow2"},
		"oci://docker.io/debian:12":         {"https", "registry-1.docker.io", "library/debian", "12", "", ""},
	} {
		if got, err := ParseReference(text); err != nil || got != want {
			t.Errorf("%s: %+v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "oci://", "oci://h", "oci://h/", "oci://h/../x", "oci://h/A", "oci://h/a:", "oci://h/a@sha256:12", "oci://u@h/a", "oci://h:x/a", "http://h/a", "oci://h/a?b"} {
		if r, err := ParseReference(text); err == nil {
			t.Errorf("%q is taken: %+v", text, r)
		}
	}
}

func FuzzReference(f *testing.F) {
	f.Add("oci://r.example:5000/a/b:1@sha256:" + strings.Repeat("a", 64) + "#t")
	f.Fuzz(func(t *testing.T, s string) {
		r, err := ParseReference(s)
		if err == nil && (strings.ContainsAny(r.Host+r.Name+r.Tag+r.Digest, " ?#@\n") || strings.Contains(r.Name, "..")) {
			t.Errorf("%q gives %+v", s, r)
		}
		challengeWords(s)
		contentRange(s)
	})
}

func digestOf(b []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(b)) }
