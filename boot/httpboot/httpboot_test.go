package httpboot_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"hotspare"
	"hotspare/boot"
	"hotspare/boot/grub"
	"hotspare/boot/httpboot"
	"hotspare/boot/ipxe"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	goodToken  = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8"
	otherToken = "HxwdHhsaGRgXFhUUExIREA8ODQwLCgkIBwYFBAMCAQA"
)

type directorFunc func(boot.Request) (boot.Assignment, error)

func (f directorFunc) Assign(_ context.Context, r boot.Request) (boot.Assignment, error) { return f(r) }

type sourceFunc func(token string, a boot.Artefact) (httpboot.File, error)

func (f sourceFunc) Open(_ context.Context, token string, a boot.Artefact) (httpboot.File, error) {
	return f(token, a)
}

type memFile struct {
	*bytes.Reader
	closed *int
}

func (m memFile) Close() error { *m.closed++; return nil }

// fixture is a handler over one assigned start with its artefacts in memory.
type fixture struct {
	url      string
	kernel   []byte
	opened   int
	closed   int
	refetch  []httpboot.Refetch
	recorder *boot.Recorder

	mu         sync.Mutex
	assignment boot.Assignment
	assignErr  error
	sourceErr  error
}

func (f *fixture) set(a boot.Assignment, assignErr, sourceErr error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.assignment, f.assignErr, f.sourceErr = a, assignErr, sourceErr
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	f := &fixture{kernel: bytes.Repeat([]byte("0123456789abcdef"), 1<<16), recorder: boot.NewRecorder(0, 0)}
	f.assignment = boot.Assignment{Node: "n1", Approved: true, Kind: boot.KindStart, Token: goodToken, Kernel: "vmlinuz", Initrd: "initrd", Epoch: 9, Cmdline: "quiet"}
	h, err := httpboot.New(httpboot.Options{
		Site: boot.Site{Server: netip.MustParseAddr("127.0.0.1"), Loaders: boot.DefaultLoaders()},
		Director: directorFunc(func(r boot.Request) (boot.Assignment, error) {
			f.mu.Lock()
			defer f.mu.Unlock()
			if f.assignErr != nil {
				return boot.Assignment{}, f.assignErr
			}
			if !boot.SameToken(r.Path.Token, f.assignment.Token) {
				return boot.Assignment{}, nil
			}
			return f.assignment, nil
		}),
		Source: sourceFunc(func(_ string, a boot.Artefact) (httpboot.File, error) {
			f.mu.Lock()
			defer f.mu.Unlock()
			if f.sourceErr != nil {
				return httpboot.File{}, f.sourceErr
			}
			f.opened++
			b := f.kernel
			if a == boot.ArtefactJoin {
				b = []byte("the join secret")
			}
			return httpboot.File{ReadSeekCloser: memFile{bytes.NewReader(b), &f.closed}, ModTime: time.Unix(1700000000, 0), ETag: `"sha256-1"`}, nil
		}),
		Script: ipxe.Write, GRUB: grub.Write,
		Loader: func(name string) (io.ReadSeekCloser, error) {
			f.opened++
			return memFile{bytes.NewReader([]byte("loader " + name)), &f.closed}, nil
		},
		MACOf: func(netip.Addr) (boot.MAC, bool) { return boot.MAC{0x52, 0x54, 0, 0x77, 0, 1}, true },
		Refetch: func(_ context.Context, r httpboot.Refetch) {
			f.mu.Lock()
			f.refetch = append(f.refetch, r)
			f.mu.Unlock()
		},
		Recorder: f.recorder,
	})
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	f.url = s.URL
	return f
}

type response struct {
	*http.Response
	body string
}

func (f *fixture) do(t *testing.T, method, path string, header ...string) response {
	t.Helper()
	req, err := http.NewRequest(method, f.url+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	client := &http.Client{
		Transport:     &http.Transport{DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return errors.New("redirected: UEFI firmware would fail") },
	}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response{resp, string(b)}
}

func TestBootFilesAreServed(t *testing.T) {
	f := newFixture(t)
	kernel := "/boot/" + goodToken + "/kernel"
	whole := string(f.kernel)
	for _, c := range []struct {
		name, method, path string
		header             []string
		status             int
		body               string
	}{
		{"whole", "GET", kernel, nil, 200, whole},
		{"HEAD", "HEAD", kernel, nil, 200, ""},
		{"range", "GET", kernel, []string{"Range", "bytes=10-15"}, 206, "abcdef"},
		{"tail", "GET", kernel, []string{"Range", "bytes=-6"}, 206, "abcdef"},
		{"open end", "GET", kernel, []string{"Range", fmt.Sprintf("bytes=%d-", len(whole)-3)}, 206, "def"},
		{"range behind the end", "GET", kernel, []string{"Range", "bytes=99999999-"}, 416, ""},
		{"resume the same", "GET", kernel, []string{"Range", "bytes=0-2", "If-Range", `"sha256-1"`}, 206, "012"},
		{"resume after a change", "GET", kernel, []string{"Range", "bytes=0-2", "If-Range", `"sha256-0"`}, 200, whole},
		{"not modified", "GET", kernel, []string{"If-None-Match", `"sha256-1"`}, 304, ""},
		{"initrd", "GET", "/boot/" + goodToken + "/initrd", nil, 200, whole},
		{"loader", "GET", "/loader/snponly.efi", nil, 200, "loader snponly.efi"},
		{"doubled slash", "GET", "//loader/undionly.kpxe", nil, 200, "loader undionly.kpxe"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := f.do(t, c.method, c.path, c.header...)
			if r.StatusCode != c.status {
				t.Fatalf("%s: %s", r.Status, r.body)
			}
			if c.status/100 == 2 && r.body != c.body {
				t.Errorf("%d bytes, want %d", len(r.body), len(c.body))
			}
			if c.method == "HEAD" && r.ContentLength != int64(len(whole)) {
				t.Errorf("HEAD tells %d bytes", r.ContentLength)
			}
		})
	}
	if f.opened != f.closed || f.opened == 0 {
		t.Errorf("%d files opened, %d closed", f.opened, f.closed)
	}
	if ct := f.do(t, "HEAD", "/loader/snponly.efi").Header.Get("Content-Type"); ct != "application/efi" {
		t.Errorf("the EFI loader is %q", ct)
	}
}

func TestStrangersGetNothing(t *testing.T) {
	f := newFixture(t)
	for _, c := range []struct {
		method, path string
		status       int
	}{
		{"GET", "/boot/" + otherToken + "/kernel", 403},
		{"GET", "/boot/" + otherToken + "/initrd", 403},
		{"GET", "/boot/" + otherToken + "/join", 403},
		{"GET", "/ipxe/" + otherToken, 403},
		{"GET", "/boot/" + goodToken + "/kernel/", 404},
		{"GET", "/boot/" + goodToken + "/shadow", 404},
		{"GET", "/boot/" + goodToken + "/../" + goodToken + "/join", 404},
		{"GET", "/boot/%2e%2e/kernel", 404},
		{"GET", "/boot//kernel", 404},
		{"GET", "/loader/..%2f..%2fetc%2fpasswd", 404},
		{"GET", "/loader/grubx64.efi", 404},
		{"GET", "/", 404},
		{"GET", "/ipxe/", 404},
		{"GET", "/ipxe/unassigned/52-54-00-77-00-01", 404},
		{"POST", "/boot/" + goodToken + "/kernel", 405},
		{"PUT", "/loader/snponly.efi", 405},
		{"HEAD", "/boot/" + goodToken + "/join", 405},
	} {
		r := f.do(t, c.method, c.path)
		if r.StatusCode != c.status {
			t.Errorf("%s %s: %s, want %d", c.method, c.path, r.Status, c.status)
		}
		if c.method != "HEAD" && (len(r.body) < 10 || strings.Contains(r.body, goodToken) || strings.Contains(r.body, "secret")) {
			t.Errorf("%s %s: the text is %q", c.method, c.path, r.body)
		}
	}
	if f.opened != 0 {
		t.Errorf("%d artefacts were opened for strangers", f.opened)
	}
}

func TestScripts(t *testing.T) {
	f := newFixture(t)
	iPXE := []string{"User-Agent", "iPXE/1.0.0+git-20190125.36a4c85-5.1"}
	r := f.do(t, "GET", "/ipxe/"+goodToken, iPXE...)
	if r.StatusCode != 200 || !strings.HasPrefix(r.body, "#!ipxe\n") || !strings.Contains(r.body, "kernel http://127.0.0.1/boot/"+goodToken+"/kernel ") || r.Header.Get("Cache-Control") != "no-store" {
		t.Errorf("start: %s\n%s", r.Status, r.body)
	}
	waits := func(name string, r response, text string) {
		t.Helper()
		if r.StatusCode != 200 || !strings.Contains(r.body, text) || !strings.Contains(r.body, "chain ") || strings.Contains(r.body, "\nexit") || strings.Contains(r.body, goodToken) {
			t.Errorf("%s: %s\n%s", name, r.Status, r.body)
		}
	}
	waits("dead token", f.do(t, "GET", "/ipxe/"+otherToken, iPXE...), "BOOT-015")
	waits("unknown machine", f.do(t, "GET", "/ipxe/unassigned/52-54-00-77-00-09/0"), "does not know this machine")

	bad := f.assignment
	bad.Cmdline = "quiet || exit 0"
	f.set(bad, nil, nil)
	waits("arguments that iPXE would take apart", f.do(t, "GET", "/ipxe/"+goodToken, iPXE...), "CFG-002")

	f.set(bad, errors.New("the store is closed"), nil)
	waits("director fails", f.do(t, "GET", "/ipxe/"+goodToken, iPXE...), "cannot say now")
	if r := f.do(t, "GET", "/boot/"+goodToken+"/kernel"); r.StatusCode != 503 || strings.Contains(r.body, "store") {
		t.Errorf("director fails, kernel: %s %s", r.Status, r.body)
	}
	f.set(bad, &hotspare.Error{Code: hotspare.CodeBootToken, What: "no such token"}, nil)
	waits("director knows no token", f.do(t, "GET", "/ipxe/"+goodToken, iPXE...), "BOOT-015")
	if r := f.do(t, "GET", "/boot/"+goodToken+"/join"); r.StatusCode != 403 {
		t.Errorf("director knows no token, join: %s", r.Status)
	}
}

// SAFETY L1: the join secret leaves once; a second fetch is refused and told.
func TestJoinArchiveIsServedOnce(t *testing.T) {
	f := newFixture(t)
	path := "/boot/" + goodToken + "/join"
	f.set(f.assignment, nil, errors.New("disk error"))
	if r := f.do(t, "GET", path); r.StatusCode != 500 {
		t.Fatalf("source fails: %s", r.Status)
	}
	f.set(f.assignment, nil, nil)
	// A failed opening gave nothing away: the machine may try again.
	if r := f.do(t, "GET", path, "Range", "bytes=0-2"); r.StatusCode != 200 || r.body != "the join secret" || r.Header.Get("Cache-Control") != "no-store" {
		t.Fatalf("first fetch: %s %q", r.Status, r.body)
	}
	for range 2 {
		r := f.do(t, "GET", path)
		if r.StatusCode != 410 || strings.Contains(r.body, "secret") || !strings.Contains(r.body, "AGT-051") {
			t.Fatalf("second fetch: %s %q", r.Status, r.body)
		}
	}
	if len(f.refetch) != 2 || f.refetch[0].Node != "n1" || f.refetch[0].Epoch != 9 || !f.refetch[0].Client.IsLoopback() {
		t.Errorf("told: %+v", f.refetch)
	}
}

// The script with a volume's secret is fetched once too, and a boot with a
// kernel has none.
func TestSANScriptIsServedOnce(t *testing.T) {
	f := newFixture(t)
	path := "/boot/" + goodToken + "/san"
	if r := f.do(t, "GET", path); r.StatusCode != 404 || f.opened != 0 {
		t.Fatalf("a boot with a kernel: %s, opened %d", r.Status, f.opened)
	}
	a := f.assignment
	a.Kind = boot.KindSAN
	f.set(a, nil, nil)
	if r := f.do(t, "HEAD", path); r.StatusCode != 405 {
		t.Fatalf("HEAD: %s", r.Status)
	}
	if r := f.do(t, "GET", path, "Range", "bytes=0-2"); r.StatusCode != 200 || r.Header.Get("Cache-Control") != "no-store" || !strings.HasPrefix(r.Header.Get("Content-Type"), "text/plain") {
		t.Fatalf("first fetch: %s %v", r.Status, r.Header)
	}
	if r := f.do(t, "GET", path); r.StatusCode != 410 || len(f.refetch) != 1 {
		t.Fatalf("second fetch: %s, told %d times", r.Status, len(f.refetch))
	}
}

// GRUB gets its own language, and waits whatever fails.
func TestGRUBWaitsWhateverFails(t *testing.T) {
	f := newFixture(t)
	for _, path := range []string{"/grub/" + otherToken + "/grub.cfg", "/grub/unassigned/52-54-00-77-00-01/7/grub.cfg"} {
		for name, failure := range map[string]error{"refused": nil, "undecided": errors.New("store"), "token": &hotspare.Error{Code: hotspare.CodeBootToken}} {
			f.set(f.assignment, failure, nil)
			r := f.do(t, "GET", path, "User-Agent", "GRUB 2.06")
			if r.StatusCode != 200 || !strings.Contains(r.body, "echo 'hotspare: this machine waits'") || strings.Contains(r.body, "#!ipxe") {
				t.Errorf("%s %s: %s %q", name, path, r.Status, r.body)
			}
		}
	}
	f.set(f.assignment, nil, nil)
	if r := f.do(t, "GET", "/grub/"+goodToken+"/grub.cfg"); r.StatusCode != 200 || !strings.Contains(r.body, "if linux (tftp,127.0.0.1)/boot/"+goodToken+"/kernel") {
		t.Errorf("a start: %s %q", r.Status, r.body)
	}
	for _, failure := range []error{nil, errors.New("store")} {
		f.set(f.assignment, failure, nil)
		if r := f.do(t, "GET", "/grub/grub.cfg"); r.StatusCode != 200 || !strings.Contains(r.body, "while true") {
			t.Errorf("GRUB's own configuration: %s %q", r.Status, r.body)
		}
		if r := f.do(t, "GET", "/grub/"+otherToken+"/snponly.efi"); r.StatusCode != 200 || r.body != "loader snponly.efi" {
			t.Errorf("a loader from a machine's folder: %s %q", r.Status, r.body)
		}
	}
}

// The source remembers over a restart of the appliance.
func TestJoinArchiveSpentBeforeARestart(t *testing.T) {
	f := newFixture(t)
	f.set(f.assignment, nil, fmt.Errorf("token of n1: %w", boot.ErrSpent))
	if r := f.do(t, "GET", "/boot/"+goodToken+"/join"); r.StatusCode != 410 || len(f.refetch) != 1 {
		t.Errorf("%s, told %d times", r.Status, len(f.refetch))
	}
}

func TestManyAskForTheJoinArchiveAtOnce(t *testing.T) {
	f := newFixture(t)
	var wg sync.WaitGroup
	var mu sync.Mutex
	got := map[int]int{}
	for range 16 {
		wg.Go(func() {
			resp, err := http.Get(f.url + "/boot/" + goodToken + "/join")
			if err != nil {
				t.Error(err)
				return
			}
			resp.Body.Close()
			mu.Lock()
			got[resp.StatusCode]++
			mu.Unlock()
		})
	}
	wg.Wait()
	http.DefaultClient.CloseIdleConnections()
	if got[200] != 1 || got[410] != 15 {
		t.Errorf("answers %v", got)
	}
}

// The trace tells each step and no token.
func TestTrace(t *testing.T) {
	f := newFixture(t)
	f.do(t, "GET", "/ipxe/"+goodToken)
	f.do(t, "GET", "/boot/"+goodToken+"/kernel")
	f.do(t, "GET", "/boot/"+otherToken+"/join")
	trace, ok := f.recorder.Trace(boot.MAC{0x52, 0x54, 0, 0x77, 0, 1})
	if !ok || len(trace.Entries) != 3 {
		t.Fatalf("%+v", trace)
	}
	text := fmt.Sprintf("%+v", trace)
	if strings.Contains(text, goodToken) || strings.Contains(text, otherToken) {
		t.Errorf("a token shows: %s", text)
	}
	for _, want := range []string{"script: start", "200, 1048576 bytes", "403", "n1"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is missing in %s", want, text)
		}
	}
}

// A real client resumes a download that was cut.
func TestCurlResumes(t *testing.T) {
	f := newFixture(t)
	out := filepath.Join(t.TempDir(), "kernel")
	curl := func(args ...string) {
		t.Helper()
		b, err := exec.Command("curl", append(args, "-sS", "--fail", "-o", out, f.url+"/boot/"+goodToken+"/kernel")...).CombinedOutput()
		if err != nil {
			t.Fatalf("curl %v: %v %s", args, err, b)
		}
	}
	curl("-r", "0-99999")
	curl("-C", "-")
	sum, err := exec.Command("sha256sum", out).Output()
	if want := fmt.Sprintf("%x", sha256.Sum256(f.kernel)); err != nil || !strings.HasPrefix(string(sum), want) {
		t.Errorf("%s, want %s (%v)", sum, want, err)
	}
}

func TestOptionsAreChecked(t *testing.T) {
	_, err := httpboot.New(httpboot.Options{})
	if hotspare.CodeOf(err) != hotspare.CodeInvalid {
		t.Errorf("%v", err)
	}
}

func FuzzRequestPath(f *testing.F) {
	for _, s := range []string{"/", "//", "/boot/" + otherToken + "/join", "/loader/%00", "/ipxe/unassigned/52-54-00-77-00-01/0", "/boot/" + goodToken + "/kernel?x", "/\x00"} {
		f.Add(s)
	}
	h, err := httpboot.New(httpboot.Options{
		Site:     boot.Site{Server: netip.MustParseAddr("127.0.0.1"), Loaders: boot.DefaultLoaders()},
		Director: directorFunc(func(boot.Request) (boot.Assignment, error) { return boot.Assignment{}, nil }),
		Source: sourceFunc(func(string, boot.Artefact) (httpboot.File, error) {
			panic("an artefact was opened for a stranger")
		}),
		Script: ipxe.Write, GRUB: grub.Write,
		Loader: func(string) (io.ReadSeekCloser, error) { return nil, errors.New("none") },
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, path string) {
		r := httptest.NewRequest("GET", "/", nil)
		r.URL.Path = path
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code == 200 && !strings.HasPrefix(path, "/ipxe/unassigned/") && !strings.HasPrefix(path, "//ipxe/unassigned/") {
			t.Errorf("%q: %d %s", path, w.Code, w.Body)
		}
	})
}
