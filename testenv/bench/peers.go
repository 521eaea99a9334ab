package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"hotspare"
)

const (
	benchUser   = "bench"
	benchSecret = "not-a-real-secret"
	ours        = "hotspare"
	theirs      = "tgt"
)

// peer is a running target with one volume.
type peer struct {
	name  string
	cmd   *exec.Cmd
	place place
	dir   string // where it keeps the volume
}

// startOurs runs `hotspare-lab target` with one volume in dir.
func startOurs(ctx context.Context, program []string, dir string, size int64) (*peer, error) {
	args := append(program[1:], "target", "--dir", dir, "--listen", "127.0.0.1:0", "--volume", fmt.Sprintf("bench=%d", size), "--chap", benchUser+":"+benchSecret)
	p := &peer{name: ours, cmd: exec.CommandContext(ctx, program[0], args...), dir: dir}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := p.start(); err != nil {
		return nil, err
	}
	sc := bufio.NewScanner(out)
	for sc.Scan() && sc.Text() != "ready" {
		var l struct {
			Portal, IQN string
			LUN         int
		}
		if err := json.Unmarshal(sc.Bytes(), &l); err != nil {
			return nil, errors.Join(fmt.Errorf("hotspare-lab target says %q: %w", sc.Text(), err), p.stop())
		}
		p.place = place{portal: l.Portal, iqn: l.IQN, lun: l.LUN, user: benchUser, secret: hotspare.NewSecret(benchSecret)}
	}
	if p.place.iqn == "" {
		return nil, errors.Join(errors.New("hotspare-lab target did not get ready"), p.stop())
	}
	return p, nil
}

// startTGT runs Debian's tgtd with its defaults, CHAP, and a backing file in
// dir.
func startTGT(ctx context.Context, dir string, size int64) (*peer, error) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	port := l.Addr().(*net.TCPAddr).Port
	l.Close()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	disk := filepath.Join(dir, "disk")
	f, err := os.OpenFile(disk, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
		return nil, err
	}
	control := strconv.Itoa(port & 0x7fff)
	portal := fmt.Sprintf("127.0.0.1:%d", port)
	iqn := "iqn.2026-11.io.hotspare.bench:tgt"
	p := &peer{name: theirs, cmd: exec.CommandContext(ctx, "tgtd", "-f", "-C", control, "--iscsi", "portal="+portal), dir: dir,
		place: place{portal: portal, iqn: iqn, lun: 1, user: benchUser, secret: hotspare.NewSecret(benchSecret)}}
	if err := p.start(); err != nil {
		return nil, err
	}
	admin := func(args ...string) error {
		out, err := exec.CommandContext(ctx, "tgtadm", append([]string{"-C", control, "--lld", "iscsi"}, args...)...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("tgtadm %s: %w\n%s", strings.Join(args, " "), err, out)
		}
		return nil
	}
	for i := 0; ; i++ { // tgtd tells nobody when its control socket is there
		if err = admin("--op", "show", "--mode", "sys"); err == nil || i == 100 {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	for _, args := range [][]string{
		{"--op", "show", "--mode", "sys"},
		{"--op", "new", "--mode", "target", "--tid", "1", "-T", iqn},
		{"--op", "new", "--mode", "logicalunit", "--tid", "1", "--lun", "1", "-b", disk},
		{"--op", "new", "--mode", "account", "--user", benchUser, "--password", benchSecret},
		{"--op", "bind", "--mode", "account", "--tid", "1", "--user", benchUser},
		{"--op", "bind", "--mode", "target", "--tid", "1", "-I", "ALL"},
	} {
		if err := admin(args...); err != nil {
			return nil, errors.Join(err, p.stop())
		}
	}
	return p, nil
}

func (p *peer) start() error {
	if p.name == ours { // tgtd talks all the time
		p.cmd.Stderr = os.Stderr
	}
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		return fmt.Errorf("%s: %w", p.name, err)
	}
	return nil
}

// stop ends the process: tgtd with SIGKILL, as it has no other way while a
// target is there.
func (p *peer) stop() error {
	if p.name == theirs {
		err := p.cmd.Process.Kill()
		_ = p.cmd.Wait() // "signal: killed"
		return err
	}
	if err := errors.Join(p.cmd.Process.Signal(syscall.SIGTERM), p.cmd.Wait()); err != nil {
		return fmt.Errorf("%s: %w", p.name, err)
	}
	return nil
}

// cpu gives the processor time that the process has used, of all its threads.
func (p *peer) cpu() (time.Duration, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	user, err1 := strconv.ParseInt(f[11], 10, 64)
	system, err2 := strconv.ParseInt(f[12], 10, 64)
	return time.Duration(user+system) * 10 * time.Millisecond, errors.Join(err1, err2) // USER_HZ is 100
}

// chill empties the page cache of all that the peer keeps.
func (p *peer) chill() error {
	return filepath.WalkDir(p.dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		return errors.Join(unix.Fdatasync(int(f.Fd())), unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED))
	})
}
