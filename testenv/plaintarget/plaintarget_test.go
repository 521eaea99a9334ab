package plaintarget_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"hotspare/storage/cow"
	"hotspare/testenv/plaintarget"
)

// The test binary is also the target: with this variable set it serves as the
// setting in it says until it is told to stop, or killed.
const serveVariable = "HOTSPARE_PLAINTARGET"

func TestMain(m *testing.M) {
	text := os.Getenv(serveVariable)
	if text == "" {
		goleak.VerifyTestMain(m)
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
	defer stop()
	if err := serve(ctx, text); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func serve(ctx context.Context, text string) error {
	var s setting
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		return err
	}
	o := s.Options
	o.Out = os.Stdout
	var err error
	if o.Chap, err = plaintarget.ParseCredentials(s.Chap); err != nil {
		return err
	}
	if o.Mutual, err = plaintarget.ParseCredentials(s.Mutual); err != nil {
		return err
	}
	return plaintarget.Run(ctx, o)
}

// setting is a target's options as its process gets them.
type setting struct {
	plaintarget.Options
	Chap, Mutual string
}

// target is a target in a process of its own.
type target struct {
	t       *testing.T
	set     setting
	cmd     *exec.Cmd
	portals []string
	volumes map[string]plaintarget.Volume // as it printed them
}

// start runs a target with a volume of 256 MiB and a read-only one of 64 MiB.
func start(t *testing.T, chap string) *target {
	t.Helper()
	return startAs(t, setting{Chap: chap, Options: plaintarget.Options{
		Volumes: map[string]int64{"disk": 256 << 20, "other": 64 << 20}, ReadOnly: []string{"other"}}})
}

// startAs runs a target with the setting, on a free port and in a directory of
// the test if the setting names none.
func startAs(t *testing.T, s setting) *target {
	t.Helper()
	if s.Dir == "" {
		s.Dir = t.TempDir()
	}
	if s.Listen == "" {
		s.Listen = "127.0.0.1:0"
	}
	g := &target{t: t, set: s}
	t.Cleanup(g.kill)
	g.run()
	return g
}

// run starts the process; again after kill or stop, on the same ports.
func (g *target) run() {
	g.t.Helper()
	text, err := json.Marshal(g.set)
	if err != nil {
		g.t.Fatal(err)
	}
	g.cmd = exec.Command(os.Args[0])
	g.cmd.Env = append(os.Environ(), serveVariable+"="+string(text))
	g.cmd.Stderr = os.Stderr
	g.cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	out, err := g.cmd.StdoutPipe()
	if err != nil {
		g.t.Fatal(err)
	}
	if err := g.cmd.Start(); err != nil {
		g.t.Fatal(err)
	}
	g.volumes = map[string]plaintarget.Volume{}
	sc := bufio.NewScanner(out)
	for sc.Scan() {
		if sc.Text() == "ready" {
			g.set.Listen = g.portals[0]
			g.set.Portals = g.portals[1:]
			return
		}
		var v plaintarget.Volume
		if err := json.Unmarshal(sc.Bytes(), &v); err != nil {
			g.t.Fatalf("%s: %v", sc.Text(), err)
		}
		g.volumes[v.Name] = v
		if g.portals = v.Portals; len(g.portals) == 0 {
			g.portals = []string{v.Portal}
		}
	}
	g.t.Fatal("the target ended before it was ready")
}

func (g *target) kill() {
	if g.cmd != nil {
		g.cmd.Process.Kill()
		g.cmd.Wait()
	}
}

// stop ends the target as an operator does.
func (g *target) stop() {
	g.t.Helper()
	if err := g.cmd.Process.Signal(unix.SIGTERM); err != nil {
		g.t.Fatal(err)
	}
	if err := g.cmd.Wait(); err != nil {
		g.t.Fatalf("a target that is told to stop: %v", err)
	}
}

func (g *target) url(volume string) string { return g.urlAt(g.portals[0], volume) }

func (g *target) urlAt(portal, volume string) string {
	user := ""
	if g.set.Chap != "" {
		user = strings.Replace(g.set.Chap, ":", "%", 1) + "@"
	}
	return fmt.Sprintf("iscsi://%s%s/iqn.2026-11.io.hotspare:%s/0", user, portal, volume)
}

// client runs a real client and gives its output.
func client(t *testing.T, name string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	if errors.Is(err, exec.ErrNotFound) {
		t.Fatalf("%s is missing: apt-get install libiscsi-bin qemu-utils qemu-block-extra", name)
	}
	return out.String(), err
}

func must(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := client(t, name, args...)
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return out
}

func TestLibiscsiTools(t *testing.T) {
	g := start(t, "")
	if out := must(t, "iscsi-ls", "-s", "iscsi://"+g.portals[0]+"/"); strings.Count(out, "Target:") != 2 || !strings.Contains(out, "DIRECT_ACCESS (Size:255M)") {
		t.Errorf("iscsi-ls:\n%s", out)
	}
	if out := must(t, "iscsi-inq", g.url("disk")); !strings.Contains(out, "Vendor:HOTSPARE") {
		t.Errorf("iscsi-inq:\n%s", out)
	}
	for page, want := range map[string]string{"0": "BLOCK_LIMITS", "128": "Unit Serial Number", "131": "NAA", "176": "maximum compare and write length:128", "178": "lbpu:1"} {
		if out := must(t, "iscsi-inq", "-e", "1", "-c", page, g.url("disk")); !strings.Contains(out, want) {
			t.Errorf("page %s lacks %q:\n%s", page, want, out)
		}
	}
	if out := must(t, "iscsi-readcapacity16", g.url("disk")); !strings.Contains(out, "Total size:268435456") || !strings.Contains(out, "LBPME:1 LBPRZ:1") {
		t.Errorf("iscsi-readcapacity16:\n%s", out)
	}
}

func TestQEMUReadsWhatItWrote(t *testing.T) {
	g := start(t, "somebody:secret-of-12-and-more")
	dir := t.TempDir()
	src, back := filepath.Join(dir, "src"), filepath.Join(dir, "back")
	f, err := os.Create(src)
	if err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 1<<20)
	for i := range 64 {
		if i%3 == 0 {
			continue // holes
		}
		for j := range p {
			p[j] = byte(i*7 + j*j>>3)
		}
		if _, err := f.WriteAt(p, int64(i)<<20); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(f.Truncate(256<<20), f.Close()); err != nil {
		t.Fatal(err)
	}
	must(t, "qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", src, g.url("disk"))
	must(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", src, g.url("disk"))
	must(t, "qemu-img", "convert", "-f", "raw", "-O", "raw", g.url("disk"), back)
	must(t, "qemu-img", "compare", src, back)
	out := must(t, "qemu-io", "-f", "raw", "-c", "write -P 0x5a 100k 3333k", "-c", "write -z 1M 64k", "-c", "discard 2M 128k", "-c", "flush",
		"-c", "read -P 0x5a 100k 924k", "-c", "read -P 0 1M 64k", "-c", "read -P 0 2M 128k", "-c", "aio_write -P 0x11 200M 1M", "-c", "aio_write -P 0x22 201M 1M", "-c", "aio_flush",
		"-c", "read -P 0x11 200M 1M", "-c", "read -P 0x22 201M 1M", g.url("disk"))
	if strings.Contains(out, "failed") {
		t.Errorf("qemu-io:\n%s", out)
	}
	if out, err := client(t, "qemu-io", "-f", "raw", "-c", "write 0 4k", g.url("other")); err == nil && !strings.Contains(out, "rror") && !strings.Contains(out, "read-only") {
		t.Errorf("a read-only volume takes a write:\n%s", out)
	}
}

func TestWrongSecretIsRefused(t *testing.T) {
	g := start(t, "somebody:secret-of-12-and-more")
	g.set.Chap = "somebody:secret-of-somebody-else"
	if out, err := client(t, "iscsi-inq", g.url("disk")); err == nil {
		t.Errorf("a wrong secret is let in:\n%s", out)
	}
	g.set.Chap = ""
	if out, err := client(t, "iscsi-inq", g.url("disk")); err == nil {
		t.Errorf("nobody is let in:\n%s", out)
	}
}

// TestKillLosesNothingAcknowledged kills the target with SIGKILL in the middle
// of writes, again and again, and reads back every pattern whose write returned.
func TestKillLosesNothingAcknowledged(t *testing.T) { // S14
	g := start(t, "")
	acked := map[int]byte{} // MiB of the volume to its pattern
	wrote := regexp.MustCompile(`wrote 1048576/1048576 bytes at offset (\d+)`)
	for round := range 6 {
		var script bytes.Buffer
		order := map[int]byte{}
		for k := range 40 {
			mib := (round*31 + k*7) % 256
			order[mib] = byte(1 + (round*41+k)%255)
			fmt.Fprintf(&script, "write -P %d %dM 1M\n", order[mib], mib)
		}
		cmd := exec.Command("qemu-io", "-f", "raw", g.url("disk"))
		cmd.Stdin = &script
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		// What may have been overwritten by a write whose answer we never saw.
		maybe := maps.Clone(order)
		n, sc := 0, bufio.NewScanner(out)
		for sc.Scan() {
			m := wrote.FindStringSubmatch(sc.Text())
			if m == nil {
				continue
			}
			var off int
			fmt.Sscan(m[1], &off)
			acked[off>>20] = order[off>>20]
			delete(maybe, off>>20)
			if n++; n == 10+3*round {
				g.kill()
				break
			}
		}
		cmd.Process.Kill()
		io.Copy(io.Discard, out)
		cmd.Wait()
		if n < 10 {
			t.Fatalf("round %d: only %d writes", round, n)
		}
		g.run()
		var args []string
		for _, mib := range slices.Sorted(maps.Keys(acked)) {
			if _, doubt := maybe[mib]; !doubt {
				args = append(args, "-c", fmt.Sprintf("read -P %d %dM 1M", acked[mib], mib))
			}
		}
		res := must(t, "qemu-io", append(append([]string{"-f", "raw"}, args...), g.url("disk"))...)
		if strings.Contains(res, "verification failed") || strings.Count(res, "read 1048576/1048576") != len(args)/2 {
			t.Fatalf("round %d: an acknowledged write is missing:\n%s", round, res)
		}
		for mib := range maybe {
			delete(acked, mib)
		}
	}
	g.kill()
	s, err := cow.Open(context.Background(), g.set.Dir, cow.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if r, err := s.Check(context.Background()); err != nil || !r.OK() {
		t.Fatalf("check: %+v, %v", r, err)
	}
}
