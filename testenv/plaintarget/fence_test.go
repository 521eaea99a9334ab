package plaintarget_test

import (
	"bufio"
	"fmt"
	"io"
	"os/exec"
	"testing"
	"time"
)

// TestKillInsideARevocation kills the target at moments around a revocation,
// under a client that writes. Whatever the moment, the restarted target knows one
// of two states: the epoch was durable, and then nobody is let in until granted
// anew; or it was not, and then the revocation never was.
func TestKillInsideARevocation(t *testing.T) { // S2.2
	g := controlled(t)
	revoked, stayed := 0, 0
	const rounds = 10
	for round := range rounds {
		before := g.volumes["disk"]
		if !before.Granted {
			t.Fatalf("round %d: nobody has the volume: %+v", round, before)
		}
		writer := g.writing()
		next := before.Epoch + 1
		c := g.control()
		if round == rounds-1 { // once after the answer
			c.must(fmt.Sprintf("revoke disk %d", next))
		} else if _, err := fmt.Fprintf(c.c, "revoke disk %d\n", next); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(round) * 700 * time.Microsecond) // the moment of the kill, not a wait for anything
		g.kill()
		writer.Process.Kill()
		writer.Wait()
		g.run()
		after := g.volumes["disk"]
		_, err := client(t, "iscsi-inq", g.url("disk"))
		switch {
		case after.Epoch == next && !after.Granted:
			revoked++
			if err == nil {
				t.Fatalf("round %d: the epoch is durable, and the old log-in is admitted", round)
			}
			g.control().must(fmt.Sprintf("grant disk %d", next))
			if v := g.control().must("list").Volumes[0]; !v.Granted || v.Epoch != next {
				t.Fatalf("round %d: granted anew: %+v", round, v)
			}
			g.volumes["disk"] = g.control().must("list").Volumes[0]
		case after.Epoch == before.Epoch && after.Granted:
			stayed++
			if err != nil {
				t.Fatalf("round %d: nothing was revoked, and the log-in is refused: %v", round, err)
			}
		default:
			t.Fatalf("round %d: from %+v to %+v", round, before, after)
		}
		if out, err := client(t, "iscsi-inq", g.url("disk")); err != nil {
			t.Fatalf("round %d: the live grant is refused: %v\n%s", round, err, out)
		}
	}
	t.Logf("%d kills found the epoch durable, %d did not", revoked, stayed)
	if revoked == 0 { // the last round had its answer
		t.Fatal("an answered revocation is gone after a kill")
	}
}

// writing starts a client that writes without end, and gives it once it does.
func (g *target) writing() *exec.Cmd {
	g.t.Helper()
	w := exec.Command("qemu-io", "-f", "raw", g.url("disk"))
	in, err := w.StdinPipe()
	if err != nil {
		g.t.Fatal(err)
	}
	out, err := w.StdoutPipe()
	if err != nil {
		g.t.Fatal(err)
	}
	if err := w.Start(); err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() { w.Process.Kill() })
	go func() {
		for {
			if _, err := in.Write([]byte("write -P 7 0 1M\n")); err != nil {
				return
			}
		}
	}()
	lines := bufio.NewReader(out)
	if _, err := lines.ReadString('\n'); err != nil {
		g.t.Fatalf("the client does not write: %v", err)
	}
	go func() { _, _ = lines.WriteTo(io.Discard) }()
	return w
}
