package firmware

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"hotspare/testenv/images"
	"hotspare/testenv/lab"
	"hotspare/testenv/lab/site"
	"hotspare/ui/api"
)

// patience bounds every wait: far above what a quiet machine needs, so that only
// a machine that is stuck ends here. What a boot took is printed, never asserted.
const patience = 8 * time.Minute

// full says whether the machines of `make test-full` are wanted too.
func full() bool { return os.Getenv("HOTSPARE_TEST_FULL") == "1" }

// world is a lab with an appliance.
type world struct {
	t     *testing.T
	dir   string
	lab   *lab.Lab
	site  *site.Site
	image images.Image
}

// newWorld builds the programs and the image, and brings lab and appliance up.
// name keeps worlds apart; loaders is a folder of further boot loaders, or "".
func newWorld(t *testing.T, name, loaders string, nodes []lab.NodeSpec, more ...func(*site.Options)) *world {
	t.Helper()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	bin := t.TempDir()
	compile := func(arch string, args ...string) {
		build := exec.CommandContext(t.Context(), "go", append([]string{"build", "-trimpath", "-o"}, args...)...)
		build.Dir = root
		build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOARCH="+arch)
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("build: %v\n%s", err, out)
		}
	}
	compile(runtime.GOARCH, bin+"/", "./cmd/hotspare", "./cmd/hotspare-agent", "./cmd/hotspare-lab")
	for _, n := range nodes {
		if n.Arch != "" && n.Arch != runtime.GOARCH {
			compile(n.Arch, bin+"/hotspare-agent-"+n.Arch, "./cmd/hotspare-agent")
		}
	}
	b, err := images.New(images.Options{CacheDir: filepath.Join(root, "out", "cache", "images")})
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, dir: filepath.Join(root, "out", "firmware-"+name)}
	if w.image, err = b.Build(t.Context(), "web"); err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError}))
	w.lab, err = lab.Up(t.Context(), lab.Options{
		Name: "fw-" + name, Dir: filepath.Join(w.dir, "lab"), Nodes: nodes, Kernel: w.image.Kernel, Daemon: []string{filepath.Join(bin, "hotspare-lab"), "serve"}, Log: log,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.down)
	state := filepath.Join(w.dir, "state")
	if err := os.RemoveAll(state); err != nil {
		t.Fatal(err)
	}
	o := site.Options{Lab: w.lab, Bin: bin, State: state, Loaders: loaders}
	for _, set := range more {
		set(&o)
	}
	if w.site, err = site.New(o); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := w.site.Start(ctx); err != nil {
		t.Fatal(err)
	}
	w.hotspare("image", "import", "web", "--file", w.image.Disk, "--format", "raw")
	return w
}

// down ends everything; the logs of a failed test stay.
func (w *world) down() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if w.t.Failed() && w.site != nil {
		w.t.Logf("the appliance's log is %s, the machines' consoles are beside it", w.site.Log())
	}
	if err := w.lab.Down(ctx); err != nil {
		w.t.Errorf("lab down: %v", err)
	}
	if !w.t.Failed() {
		if err := os.RemoveAll(w.dir); err != nil {
			w.t.Errorf("clean up: %v", err)
		}
	}
}

// hotspare runs the operator's command.
func (w *world) hotspare(args ...string) string {
	w.t.Helper()
	out, err := w.site.Hotspare(w.t.Context(), args...)
	if err != nil {
		w.t.Fatalf("hotspare %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// apply gives a document to the appliance.
func (w *world) apply(text string) {
	w.t.Helper()
	file := filepath.Join(w.t.TempDir(), "document.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		w.t.Fatal(err)
	}
	w.hotspare("apply", "-f", file)
}

// addNode makes a machine of the lab a node, in a pool of its own; more are further
// lines of its document.
func (w *world) addNode(n lab.NodeSpec, more ...string) {
	w.t.Helper()
	w.apply(fmt.Sprintf(`kind: pool
name: %[1]s
---
kind: node
name: %[1]s
uuid: %[2]s
macs: ["%[3]s"]
pool: %[1]s
arch: %[4]s
cpus: %[5]d
memoryMiB: %[6]d
approved: true
secureBoot: %[7]v
bmc: {protocol: ipmi, address: %[8]s, user: %[9]s, password: %[10]s}
%[11]s`, n.Name, n.UUID, n.MAC, n.Arch, n.CPUs, n.MemoryMiB, n.SecureBoot, n.BMCAddr, n.BMCUser, n.BMCPassword, strings.Join(more, "\n")))
}

// address is the service address of the application on a node.
func address(n lab.NodeSpec) netip.Addr {
	return netip.AddrFrom4([4]byte{10, 77, 0, 40 + n.BMCAddr.As4()[3] - 10})
}

// addApp gives a node an application of its own.
func (w *world) addApp(n lab.NodeSpec) string {
	w.t.Helper()
	name := "web-" + n.Name
	w.apply(fmt.Sprintf(`kind: application
name: %s
image: web
pools: [%s]
priority: 50
address: %s/24
resources:
  - {name: address, kind: address}
  - {name: server, kind: systemd, after: [address], unit: nginx.service}
monitors:
  - {name: page, kind: http, from: [appliance], url: /, expect: hotspare, every: 1s, timeout: 2s, failures: 2}
  - {name: agent, kind: heartbeat, every: 1s, timeout: 4s}
policy: {evidence: [power], bootDeadline: 6m}
`, name, n.Name, address(n)))
	return name
}

// running waits until an application runs, and asks it itself.
func (w *world) running(app string, n lab.NodeSpec) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), patience)
	defer cancel()
	if _, err := w.site.Running(ctx, app); err != nil {
		w.stuck(n, err)
	}
	c := &http.Client{Transport: &http.Transport{DialContext: lab.Dialer(w.lab.ClientNamespace()), DisableKeepAlives: true}, Timeout: 10 * time.Second}
	resp, err := c.Get("http://" + address(n).String() + "/")
	if err != nil {
		w.stuck(n, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || !strings.Contains(string(b), "hotspare") {
		w.stuck(n, fmt.Errorf("the page says %q: %v", b, err))
	}
}

// gone removes an application and waits until its node is free and off.
func (w *world) gone(app string, n lab.NodeSpec) {
	w.t.Helper()
	w.hotspare("delete", "application", app)
	ctx, cancel := context.WithTimeout(w.t.Context(), patience)
	defer cancel()
	if _, err := w.site.Until(ctx, n.Name+" idle", func(s api.Snapshot) bool {
		for _, x := range s.Nodes {
			if x.Name == n.Name {
				return x.Status.Phase == "idle"
			}
		}
		return false
	}); err != nil {
		w.stuck(n, err)
	}
}

// console is what a machine has shown.
func (w *world) console(n lab.NodeSpec) string {
	b, err := os.ReadFile(w.lab.SerialLog(n.Name))
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// power switches a machine past its BMC, as a person at its button does.
func (w *world) power(n lab.NodeSpec, on bool) {
	w.t.Helper()
	do := w.lab.PowerOff
	if on {
		do = w.lab.PowerOn
	}
	if err := do(w.t.Context(), n.Name); err != nil {
		w.t.Fatal(err)
	}
}

// shows waits until a machine's console shows a text so many times.
func (w *world) shows(n lab.NodeSpec, text string, times int) {
	w.t.Helper()
	deadline := time.Now().Add(patience)
	for strings.Count(w.console(n), text) < times {
		if time.Now().After(deadline) {
			w.stuck(n, fmt.Errorf("the console never showed %q %d times", text, times))
		}
		time.Sleep(200 * time.Millisecond) // the console is a file; nothing announces its growth
	}
}

// stuck ends the test with what the appliance and the machine say.
func (w *world) stuck(n lab.NodeSpec, err error) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	trace, _ := w.site.Hotspare(ctx, "explain", "boot", n.MAC)
	screen := w.console(n)
	w.t.Fatalf("%v\n%s\nconsole:\n%s", err, trace, screen[max(0, len(screen)-4000):])
}
