package plaintarget_test

import (
	"bufio"
	"encoding/json"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"hotspare"
	"hotspare/testenv/plaintarget"
)

// answer has the fields of all answers of the control socket.
type answer struct {
	OK bool
	plaintarget.Volume
	Below, Writes  uint64
	Sessions       json.RawMessage
	Drained        int64
	Allocated      int64
	BytesWritten   uint64 `json:"bytes_written"`
	TookMicros     int64  `json:"took_us"`
	Volumes        []plaintarget.Volume
	Commands       []struct{ Usage, Does string }
	Rates, Latency map[string]any
	Error          struct {
		Code                  hotspare.Code
		What, Where, Why, Fix string
	}
}

// control is one connection to the control socket.
type control struct {
	t     *testing.T
	c     net.Conn
	lines *bufio.Scanner
}

func (g *target) control() *control {
	g.t.Helper()
	c, err := net.Dial("unix", g.set.Socket)
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() { c.Close() })
	return &control{g.t, c, bufio.NewScanner(c)}
}

// ask sends a line and reads the answer.
func (c *control) ask(line string) answer {
	c.t.Helper()
	if _, err := c.c.Write([]byte(line + "\n")); err != nil {
		c.t.Fatal(err)
	}
	if !c.lines.Scan() {
		c.t.Fatalf("%s: no answer: %v", line, c.lines.Err())
	}
	var a answer
	if err := json.Unmarshal(c.lines.Bytes(), &a); err != nil {
		c.t.Fatalf("%s: %s: %v", line, c.lines.Text(), err)
	}
	return a
}

// must asks for what has to work.
func (c *control) must(line string) answer {
	c.t.Helper()
	a := c.ask(line)
	if !a.OK {
		c.t.Fatalf("%s: %+v", line, a.Error)
	}
	return a
}

func controlled(t *testing.T) *target {
	t.Helper()
	return startAs(t, setting{Options: plaintarget.Options{
		Volumes: map[string]int64{"disk": 64 << 20}, Socket: filepath.Join(t.TempDir(), "sock")}})
}

// pattern writes or reads one pattern at a place of a volume.
func (g *target) pattern(verb, volume, pattern, where string) (string, error) {
	g.t.Helper()
	args := []string{"-f", "raw"}
	if verb == "read" {
		args = append(args, "-r")
	}
	out, err := client(g.t, "qemu-io", append(args, "-c", verb+" -P "+pattern+" "+where, "-c", "flush", g.url(volume))...)
	if err == nil && (strings.Contains(out, "failed") || strings.Contains(out, "rror")) {
		err = os.ErrInvalid
	}
	return out, err
}

func (g *target) wants(verb, volume, pattern, where string) {
	g.t.Helper()
	if out, err := g.pattern(verb, volume, pattern, where); err != nil {
		g.t.Fatalf("%s %s %s: %v\n%s", verb, volume, where, err, out)
	}
}

// TestControlStory snapshots, clones, grows and deletes what an initiator writes.
func TestControlStory(t *testing.T) {
	g := controlled(t)
	c := g.control()
	g.wants("write", "disk", "0x11", "0 8M")
	if s := c.must("snapshot disk monday"); s.IQN != "iqn.2026-11.io.hotspare:monday" || !s.ReadOnly || !s.Granted || s.Size != 64<<20 {
		t.Errorf("snapshot: %+v", s)
	}
	g.wants("write", "disk", "0x22", "4M 4M")
	g.wants("read", "monday", "0x11", "0 8M")
	if out, err := g.pattern("write", "monday", "0x33", "0 4k"); err == nil {
		t.Errorf("a snapshot takes a write:\n%s", out)
	}
	c.must("clone monday rehearsal")
	c.must("clone disk now")
	g.wants("write", "rehearsal", "0x33", "0 1M")
	g.wants("read", "rehearsal", "0x11", "1M 7M")
	g.wants("read", "now", "0x22", "4M 4M")
	g.wants("read", "monday", "0x11", "0 8M")
	if r := c.must("resize rehearsal 96M"); r.Size != 96<<20 {
		t.Errorf("resize: %+v", r)
	}
	g.wants("write", "rehearsal", "0x44", "95M 1M")
	s := c.must("stats disk")
	if s.Writes == 0 || s.BytesWritten != 12<<20 || s.Allocated != 8<<20 || s.Latency["write"] == nil || s.Rates["seconds"] == 0.0 {
		t.Errorf("stats: %+v", s)
	}
	c.must("delete monday")
	if out, err := g.pattern("read", "monday", "0x11", "0 4k"); err == nil {
		t.Errorf("a deleted volume is served:\n%s", out)
	}
	g.wants("read", "rehearsal", "0x11", "1M 7M")
	var names []string
	for _, v := range c.must("list").Volumes {
		names = append(names, v.Name)
	}
	if got := strings.Join(names, " "); got != "disk now rehearsal" {
		t.Errorf("list: %s", got)
	}
	if h := c.must("help"); len(h.Commands) < 8 {
		t.Errorf("help: %+v", h)
	}
}

// TestRevokeHoldsUntilGranted cuts a writer, and holds the volume against it
// across a restart too.
func TestRevokeHoldsUntilGranted(t *testing.T) { // S2
	g := controlled(t)
	c := g.control()
	writer := exec.Command("qemu-io", "-f", "raw", g.url("disk"))
	in, err := writer.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := writer.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := writer.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { writer.Process.Kill(); writer.Wait() }()
	in.Write([]byte("write -P 7 0 1M\n"))
	for sc := bufio.NewScanner(out); sc.Scan(); {
		if strings.Contains(sc.Text(), "wrote") {
			break
		}
	}
	if r := c.must("revoke disk 1"); r.Epoch != 1 || !r.Granted || string(r.Sessions) != "0" {
		t.Errorf("nothing is below the first epoch: %+v", r)
	}
	if r := c.must("revoke disk 5"); r.Epoch != 5 || r.Granted || string(r.Sessions) != "1" {
		t.Errorf("revoke: %+v", r)
	}
	refused := func(when string) {
		t.Helper()
		if out, err := client(t, "iscsi-inq", g.url("disk")); err == nil {
			t.Errorf("%s a revoked volume lets somebody in:\n%s", when, out)
		}
	}
	refused("at once")
	g.kill()
	g.run()
	refused("after a restart")
	if v := g.volumes["disk"]; v.Granted || v.Epoch != 5 {
		t.Errorf("after a restart: %+v", v)
	}
	c = g.control()
	if a := c.ask("grant disk 4"); a.OK || a.Error.Code != hotspare.CodeStaleEpoch {
		t.Errorf("a grant below the epoch: %+v", a)
	}
	c.must("grant disk 5")
	g.wants("read", "disk", "7", "0 1M")
}

func TestControlRefusesWithCards(t *testing.T) {
	g := controlled(t)
	c := g.control()
	for line, want := range map[string]hotspare.Code{
		"frobnicate disk":          hotspare.CodeInvalid,
		"snapshot disk":            hotspare.CodeInvalid,
		"snapshot disk a b":        hotspare.CodeInvalid,
		"snapshot disk disk":       hotspare.CodeConflict,
		"snapshot nothing a":       hotspare.CodeNotFound,
		"clone disk a/b":           hotspare.CodeInvalid,
		"clone disk .a":            hotspare.CodeInvalid,
		"revoke disk 0":            hotspare.CodeInvalid,
		"revoke disk -1":           hotspare.CodeInvalid,
		"revoke nothing 2":         hotspare.CodeNotFound,
		"stats nothing":            hotspare.CodeNotFound,
		"delete nothing":           hotspare.CodeNotFound,
		"resize disk 1M":           hotspare.CodeInvalid,
		"resize disk lots":         hotspare.CodeInvalid,
		strings.Repeat("x", 5<<10): hotspare.CodeInvalid,
	} {
		a := c.ask(line)
		if a.OK || a.Error.Code != want || a.Error.What == "" || a.Error.Fix == "" && want == hotspare.CodeInvalid && !strings.HasPrefix(line, "resize disk 1M") {
			t.Errorf("%.30s: %+v, want %s", line, a.Error, want)
		}
	}
	if len(c.must("list").Volumes) != 1 {
		t.Error("a refused command left something")
	}
	c.c.Write([]byte(strings.Repeat("y", 1<<20)))
	if g.control().must("list").Volumes == nil {
		t.Error("the socket is dead after a line without an end")
	}
}

func TestControlSocketTakesItsPlace(t *testing.T) {
	g := controlled(t)
	if st, err := os.Stat(g.set.Socket); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("socket: %v, %v", st.Mode(), err)
	}
	g.kill() // leaves the socket behind
	g.run()
	g.control().must("list")
	other := plaintarget.Options{Dir: t.TempDir(), Listen: "127.0.0.1:0", Volumes: map[string]int64{"a": 1 << 20}, Socket: g.set.Socket}
	if err := plaintarget.Run(t.Context(), other); hotspare.CodeOf(err) != hotspare.CodePortTaken {
		t.Errorf("a socket in use: %v", err)
	}
	g.control().must("list")
	file := filepath.Join(t.TempDir(), "precious")
	if err := os.WriteFile(file, []byte("data"), 0o600); err != nil {
		t.Fatal(err)
	}
	other.Socket = file
	if err := plaintarget.Run(t.Context(), other); hotspare.CodeOf(err) != hotspare.CodeInvalid {
		t.Errorf("a file in the socket's place: %v", err)
	}
	if b, err := os.ReadFile(file); err != nil || string(b) != "data" {
		t.Errorf("the file: %q, %v", b, err)
	}
	g.stop()
	if _, err := os.Stat(g.set.Socket); !os.IsNotExist(err) {
		t.Errorf("a stopped target leaves its socket: %v", err)
	}
}
