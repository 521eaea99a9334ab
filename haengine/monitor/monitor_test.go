package monitor_test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"hotspare/haengine"
	"hotspare/haengine/monitor"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var loopback = netip.MustParseAddr("127.0.0.1")

func look(t *testing.T, m haengine.Monitor, within time.Duration) error {
	t.Helper()
	m.Timeout = haengine.Duration(within)
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	return monitor.Look(ctx, m, loopback)
}

// wants checks an outcome: "" is a good look.
func wants(t *testing.T, err error, text string) {
	t.Helper()
	if text == "" && err != nil {
		t.Fatalf("a good server is seen as bad: %v", err)
	}
	if text != "" && (err == nil || !strings.Contains(err.Error(), text)) {
		t.Fatalf("got %v, want %q", err, text)
	}
}

func TestHTTPAnswersAreJudgedByStatusAndBody(t *testing.T) {
	release := make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/ok":
			fmt.Fprint(w, "all is well with hotspare")
		case "/moved":
			http.Redirect(w, r, "/ok", http.StatusFound)
		case "/hang":
			<-release
		default:
			w.WriteHeader(http.StatusTeapot)
		}
	}))
	defer srv.Close()
	defer close(release)
	_, port, _ := net.SplitHostPort(srv.Listener.Addr().String())
	p, _ := strconv.Atoi(port)
	for _, c := range []struct {
		name string
		m    haengine.Monitor
		want string
	}{
		{"text found", haengine.Monitor{URL: "/ok", Expect: "hotspare"}, ""},
		{"text missing", haengine.Monitor{URL: "/ok", Expect: "orders"}, `does not hold "orders"`},
		{"wrong status", haengine.Monitor{URL: "/tea"}, "status 418, expected 200"},
		{"wanted status", haengine.Monitor{URL: "/tea", Status: 418}, ""},
		{"a redirect is no page", haengine.Monitor{URL: "/moved"}, "status 302"},
		{"a whole URL", haengine.Monitor{URL: srv.URL + "/ok"}, ""},
		{"no URL", haengine.Monitor{URL: "ftp://x/"}, "not an http URL"},
		{"a hang", haengine.Monitor{URL: "/hang"}, "no answer within 300ms"},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.m.Kind, c.m.Port = haengine.MonitorHTTP, uint16(p)
			wants(t, look(t, c.m, 300*time.Millisecond), c.want)
		})
	}
	wants(t, look(t, haengine.Monitor{Kind: haengine.MonitorHTTP, URL: "/", Port: closedPort(t)}, time.Second), "connection refused")
}

func closedPort(t *testing.T) uint16 {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return uint16(ln.Addr().(*net.TCPAddr).Port)
}

func TestTCPConnects(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	port := uint16(ln.Addr().(*net.TCPAddr).Port)
	wants(t, look(t, haengine.Monitor{Kind: haengine.MonitorTCP, Port: port}, time.Second), "")
	wants(t, look(t, haengine.Monitor{Kind: haengine.MonitorTCP, Port: closedPort(t)}, time.Second), "connection refused")
}

// TestPostgresIsAskedForReal runs Debian's server, asks it, hangs it by SIGSTOP
// and stops it.
func TestPostgresIsAskedForReal(t *testing.T) {
	port, pid := postgres(t)
	m := haengine.Monitor{Kind: haengine.MonitorPostgres, Port: port, Database: "postgres", User: "postgres", Query: "select 1", Expect: "1"}
	wants(t, look(t, m, 5*time.Second), "")

	other := m
	other.Expect = "2"
	wants(t, look(t, other, 5*time.Second), `the first column is "1", expected "2"`)
	other = m
	other.Query, other.Rows, other.Expect = "select generate_series(1,3)", 3, "1"
	wants(t, look(t, other, 5*time.Second), "")
	other.Rows = 4
	wants(t, look(t, other, 5*time.Second), "3 rows, expected 4")
	other = m
	other.Query = "select * from nothing_here"
	wants(t, look(t, other, 5*time.Second), "nothing_here")
	other = m
	other.User = "nobody_here"
	wants(t, look(t, other, 5*time.Second), "nobody_here")

	if err := syscall.Kill(-pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	wants(t, look(t, m, 500*time.Millisecond), "no answer within 500ms")
	if err := syscall.Kill(-pid, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	wants(t, look(t, m, 5*time.Second), "")
}

// postgres starts a server of its own on loopback in a process group of its own.
func postgres(t *testing.T) (port uint16, pid int) {
	t.Helper()
	bins, _ := filepath.Glob("/usr/lib/postgresql/*/bin")
	if len(bins) == 0 {
		t.Fatal("no PostgreSQL server: apt-get install postgresql")
	}
	bin := bins[len(bins)-1]
	dir, err := os.MkdirTemp("", "monitor-pg")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	attr := &syscall.SysProcAttr{Setpgid: true}
	if os.Getuid() == 0 { // the server refuses to run as root
		u, err := user.Lookup("nobody")
		if err != nil {
			t.Fatal(err)
		}
		uid, _ := strconv.Atoi(u.Uid)
		gid, _ := strconv.Atoi(u.Gid)
		attr.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
		if err := os.Chown(dir, uid, gid); err != nil {
			t.Fatal(err)
		}
	}
	initdb := exec.Command(filepath.Join(bin, "initdb"), "-D", dir+"/db", "-U", "postgres", "-A", "trust", "-N")
	initdb.SysProcAttr, initdb.Dir = attr, dir
	if out, err := initdb.CombinedOutput(); err != nil {
		t.Fatalf("initdb: %v\n%s", err, out)
	}
	port = closedPort(t)
	srv := exec.Command(filepath.Join(bin, "postgres"), "-D", dir+"/db", "-p", strconv.Itoa(int(port)), "-h", "127.0.0.1", "-k", dir, "-F")
	srv.SysProcAttr, srv.Dir = attr, dir
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	srv.Stdout, srv.Stderr = log, log
	if err := srv.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = syscall.Kill(-srv.Process.Pid, syscall.SIGCONT) // a test may have stopped it
		_ = srv.Process.Signal(syscall.SIGQUIT)             // at once, but its shared memory goes with it
		late := time.AfterFunc(10*time.Second, func() { _ = syscall.Kill(-srv.Process.Pid, syscall.SIGKILL) })
		defer late.Stop()
		_ = srv.Wait()
	})
	m := haengine.Monitor{Kind: haengine.MonitorPostgres, Port: port, Database: "postgres", User: "postgres", Query: "select 1", Expect: "1"}
	for deadline := time.Now().Add(30 * time.Second); look(t, m, time.Second) != nil; {
		if time.Now().After(deadline) {
			out, _ := os.ReadFile(log.Name())
			t.Fatalf("the server does not come up:\n%s", out)
		}
		time.Sleep(20 * time.Millisecond)
	}
	return port, srv.Process.Pid
}

func TestEveryMonitorOfThisVantageEmitsUntilForgotten(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	port := uint16(ln.Addr().(*net.TCPAddr).Port)
	every := haengine.Duration(time.Millisecond)
	app := haengine.Application{
		Name: "a", Address: netip.PrefixFrom(loopback, 8),
		Monitors: []haengine.Monitor{
			{Name: "up", Kind: haengine.MonitorTCP, Port: port, Every: every},
			{Name: "down", Kind: haengine.MonitorTCP, Port: closedPort(t), Every: every},
			{Name: "elsewhere", Kind: haengine.MonitorTCP, Port: port, Every: every, From: []haengine.Vantage{haengine.FromNode}},
			{Name: "voice", Kind: haengine.MonitorHeartbeat, Every: every},
		},
	}
	samples := make(chan haengine.Sample, 1000)
	var after atomic.Bool
	ms := monitor.New(haengine.FromAppliance, func(s haengine.Sample) {
		if after.Load() {
			t.Errorf("a sample of %s after it was forgotten", s.Monitor)
		}
		select {
		case samples <- s:
		default:
		}
	})
	defer ms.Close()
	ms.Watch(app, 3)
	seen := map[string]int{}
	for seen["up"] < 3 || seen["down"] < 3 {
		s := <-samples
		seen[s.Monitor]++
		if s.App != "a" || s.Epoch != 3 || s.From != haengine.FromAppliance || s.OK != (s.Monitor == "up") || (s.Why == "") != s.OK {
			t.Fatalf("sample %+v", s)
		}
	}
	if seen["elsewhere"]+seen["voice"] != 0 {
		t.Fatalf("samples of monitors that are not of this vantage: %v", seen)
	}
	ms.Watch(app, 4)
	for s := range samples {
		if s.Epoch == 4 {
			break
		}
	}
	ms.Forget("a")
	after.Store(true)
	time.Sleep(20 * time.Millisecond) // a late sample would fail the test above
}

// A sample under way when the epoch moves on still counts as the application's:
// Forget promises silence for all of them.
func TestForgetWaitsForTheSamplesOfEarlierEpochsToo(t *testing.T) {
	every := haengine.Duration(time.Millisecond)
	app := haengine.Application{
		Name: "a", Address: netip.PrefixFrom(loopback, 8),
		Monitors: []haengine.Monitor{{Name: "down", Kind: haengine.MonitorTCP, Port: closedPort(t), Every: every}},
	}
	under, hold := make(chan bool), make(chan bool)
	var once sync.Once
	var after atomic.Bool
	ms := monitor.New(haengine.FromAppliance, func(s haengine.Sample) {
		if s.Epoch == 3 {
			once.Do(func() { close(under) })
			<-hold
		}
		if after.Load() {
			t.Errorf("a sample of epoch %d after the application was forgotten", s.Epoch)
		}
	})
	ms.Watch(app, 3)
	<-under
	ms.Watch(app, 4)
	time.AfterFunc(30*time.Millisecond, func() { close(hold) })
	ms.Forget("a")
	after.Store(true)
	<-hold
	time.Sleep(20 * time.Millisecond) // a late sample would fail the test above
	ms.Close()
}
