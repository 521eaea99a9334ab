package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestTargetContract runs the command as people and benchmarks do: all its
// flags, the lines that it prints, a client at both portals, the control socket.
func TestTargetContract(t *testing.T) {
	dir := t.TempDir()
	chap := filepath.Join(dir, "chap")
	if err := os.WriteFile(chap, []byte("node:secret-of-the-node\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	sock := filepath.Join(dir, "sock")
	ctx, stop := context.WithCancel(t.Context())
	r, w := io.Pipe()
	cmd := command()
	cmd.SetOut(w)
	cmd.SetArgs([]string{"target", "--dir", filepath.Join(dir, "store"), "--listen", "127.0.0.1:0", "--portal", "127.0.0.1:0",
		"--volume", "a=64M", "--volume", "b=1048576", "--readonly", "b", "--chap", "@" + chap, "--mutual", "appliance:secret-of-the-target", "--sock", sock, "--shm"})
	ended := make(chan error, 1)
	go func() {
		err := cmd.ExecuteContext(ctx)
		w.CloseWithError(errors.New("the command ended"))
		ended <- err
	}()
	defer func() {
		stop()
		if err := <-ended; err != nil {
			t.Errorf("stopped: %v", err)
		}
	}()
	var portals []string
	var said strings.Builder
	lines := bufio.NewScanner(r)
	for _, want := range []string{"a", "b", ""} {
		if !lines.Scan() {
			t.Fatal(lines.Err())
		}
		said.WriteString(lines.Text())
		if want == "" {
			if lines.Text() != "ready" {
				t.Fatalf("%q", lines.Text())
			}
			break
		}
		var v struct {
			Name, Portal, IQN string
			Portals           []string
			LUN               *int
		}
		if err := json.Unmarshal(lines.Bytes(), &v); err != nil {
			t.Fatal(err)
		}
		if v.Name != want || v.IQN != "iqn.2026-11.io.hotspare:"+want || v.LUN == nil || *v.LUN != 0 || len(v.Portals) != 2 || v.Portal != v.Portals[0] {
			t.Errorf("%s", lines.Text())
		}
		portals = v.Portals
	}
	for _, p := range portals {
		url := "iscsi://node%secret-of-the-node@" + p + "/iqn.2026-11.io.hotspare:a/0?target_user=appliance&target_password=secret-of-the-target"
		if out, err := exec.CommandContext(t.Context(), "iscsi-inq", url).CombinedOutput(); err != nil || !strings.Contains(string(out), "Vendor:HOTSPARE") {
			t.Errorf("at %s: %v\n%s", p, err, out)
		}
	}
	c, err := net.Dial("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write([]byte("snapshot a s\nclone s c\nstats a\nresize c 128M\nrevoke a 2\ndelete s\nhelp\n")); err != nil {
		t.Fatal(err)
	}
	answers := bufio.NewScanner(c)
	for range 7 {
		var a struct{ OK bool }
		if !answers.Scan() {
			t.Fatal(answers.Err())
		}
		if err := json.Unmarshal(answers.Bytes(), &a); err != nil || !a.OK {
			t.Errorf("%s: %v", answers.Text(), err)
		}
		said.WriteString(answers.Text())
	}
	if strings.Contains(said.String(), "secret-of") {
		t.Errorf("a secret is printed: %s", said.String())
	}
	if _, err := os.Stat(filepath.Join(dir, "store")); !os.IsNotExist(err) {
		t.Errorf("--shm uses the directory: %v", err)
	}
}

func TestTargetUsage(t *testing.T) {
	for _, args := range [][]string{
		{"--volume", "a"},
		{"--volume", "=1G"},
		{"--volume", "a=lots"},
		{"--volume", "a=1G", "--volume", "a=2G"},
		{"--frobnicate"},
		{"a=1G"},
	} {
		cmd := command()
		cmd.SetOut(io.Discard)
		cmd.SetArgs(append([]string{"target", "--dir", t.TempDir()}, args...))
		var usage *usageError
		if err := cmd.ExecuteContext(t.Context()); !errors.As(err, &usage) {
			t.Errorf("%v: %v", args, err)
		}
	}
}
