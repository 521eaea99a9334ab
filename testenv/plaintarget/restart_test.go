package plaintarget_test

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"hotspare/testenv/plaintarget"
)

// TestRestartServesTheSame restarts a target, with the same options and with
// others: names, epochs and data stay, and what differs is granted anew.
func TestRestartServesTheSame(t *testing.T) {
	s := setting{Chap: "somebody:secret-of-12-and-more", Options: plaintarget.Options{
		Volumes: map[string]int64{"disk": 64 << 20}, Socket: filepath.Join(t.TempDir(), "sock")}}
	g := startAs(t, s)
	g.wants("write", "disk", "0x11", "0 1M")
	c := g.control()
	c.must("clone disk copy")
	c.must("resize disk 128M")
	serial := func() string {
		t.Helper()
		return must(t, "iscsi-inq", "-e", "1", "-c", "131", g.url("disk"))
	}
	naa := serial()
	g.stop()
	g.run()
	if v := g.volumes["disk"]; len(g.volumes) != 2 || v.Epoch != 1 || !v.Granted || v.Size != 128<<20 {
		t.Errorf("after a restart: %+v", g.volumes)
	}
	if now := serial(); now != naa {
		t.Errorf("the unit has another name after a restart:\n%s\n%s", naa, now)
	}
	g.wants("read", "copy", "0x11", "0 1M")
	g.kill()
	g.set.Chap = "somebody:another-secret-of-12"
	g.set.Volumes = nil // what is there is served
	g.run()
	if v := g.volumes["copy"]; len(g.volumes) != 2 || v.Epoch != 2 || !v.Granted {
		t.Errorf("with another secret: %+v", g.volumes)
	}
	g.wants("read", "copy", "0x11", "0 1M")
	g.set.Chap = s.Chap
	if out, err := client(t, "iscsi-inq", g.url("disk")); err == nil {
		t.Errorf("the old secret is let in:\n%s", out)
	}
}

// TestRunningInitiatorLosesNothing kills the target with SIGKILL under an
// initiator that runs on: libiscsi connects again by itself, and every write of
// the whole run is there, those of before a kill and those that it cut.
func TestRunningInitiatorLosesNothing(t *testing.T) { // S14
	g := start(t, "somebody:secret-of-12-and-more")
	qemu := exec.Command("qemu-io", "-f", "raw", g.url("disk"))
	in, err := qemu.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := qemu.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	qemu.Stderr = &stderr
	if err := qemu.Start(); err != nil {
		t.Fatal(err)
	}
	watchdog := time.AfterFunc(3*time.Minute, func() { qemu.Process.Kill() })
	defer watchdog.Stop()
	defer qemu.Wait()
	defer qemu.Process.Kill()
	const writes, kills = 600, 5
	fed := make(chan error, 1)
	go func() { // reads are between the writes, so that both meet a kill
		var err error
		for i := 0; i < writes && err == nil; i++ {
			_, err = fmt.Fprintf(in, "write -P %d %dk 256k\nread -P %d %dk 256k\n", pattern(i), i%500*256, pattern(i), i%500*256)
		}
		in.Close()
		fed <- err
	}()
	wrote, read := 0, 0
	for sc := bufio.NewScanner(out); sc.Scan(); {
		line := sc.Text()
		switch {
		case strings.Contains(line, "failed"), strings.Contains(line, "rror"):
			t.Fatalf("after %d writes: %s", wrote, line)
		case strings.Contains(line, "wrote 262144/262144"):
			if wrote++; wrote%(writes/(kills+1)) == 0 && wrote < writes {
				g.kill()
				g.run()
			}
		case strings.Contains(line, "read 262144/262144"):
			read++
		}
	}
	if err := <-fed; err != nil || wrote != writes || read != writes {
		t.Fatalf("%d writes and %d reads of %d, %v: %s", wrote, read, writes, err, stderr.String())
	}
	args := []string{"-f", "raw", "-r"}
	for i := writes - 500; i < writes; i++ {
		args = append(args, "-c", fmt.Sprintf("read -P %d %dk 256k", pattern(i), i%500*256))
	}
	if res := must(t, "qemu-io", append(args, g.url("disk"))...); strings.Contains(res, "failed") || strings.Count(res, "read 262144/262144") != 500 {
		t.Fatalf("a write is missing:\n%s", res)
	}
}

func pattern(i int) int { return 1 + i*7%255 }

// memory gives the directory that the target's process has files open in.
func (g *target) memory() string {
	g.t.Helper()
	fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", g.cmd.Process.Pid))
	if err != nil {
		g.t.Fatal(err)
	}
	for _, fd := range fds {
		if name, err := os.Readlink(fd); err == nil && strings.HasPrefix(name, "/dev/shm/hotspare-target-") {
			return filepath.Dir(name)
		}
	}
	g.t.Fatal("the target has nothing open in memory")
	return ""
}

// TestMemory keeps volumes in memory and leaves nothing behind, not even after a
// kill: the next run removes what the killed one left.
func TestMemory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "unused")
	g := startAs(t, setting{Options: plaintarget.Options{Dir: dir, Memory: true, Volumes: map[string]int64{"disk": 64 << 20}, Portals: []string{"127.0.0.1:0"}}})
	g.wants("write", "disk", "0x11", "0 1M")
	if out := must(t, "qemu-io", "-f", "raw", "-r", "-c", "read -P 0x11 0 1M", g.urlAt(g.portals[1], "disk")); strings.Contains(out, "failed") {
		t.Errorf("at the other portal:\n%s", out)
	}
	first := g.memory()
	g.kill()
	g.run()
	if _, err := os.Stat(first); !os.IsNotExist(err) {
		t.Errorf("%s of a killed run is left: %v", first, err)
	}
	g.wants("read", "disk", "0", "0 1M")
	second := g.memory()
	g.stop()
	if _, err := os.Stat(second); !os.IsNotExist(err) {
		t.Errorf("%s of a stopped run is left: %v", second, err)
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("the directory is used: %v", err)
	}
}
