package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/pprof"
	"strings"
	"time"
)

// bootGroups are the groups of part boot, in the order they run. Figures of
// machines (from a claim to the first answer) join here.
func bootGroups() []group {
	return []group{{"tftp", tftpFigures}, {"http", httpFigures}, {"dhcp", dhcpFigures}, {"import", importFigures}, {"storm", stormFigures}, {"install", installFigures}, {"ways", waysFigures}, {"demo", demoFigures}}
}

type group struct {
	name string
	run  func(context.Context, options) ([]figure, error)
}

// bootPart measures what machines boot by beside peers, all of it or what is
// asked for.
func bootPart(ctx context.Context, o options) (err error) {
	for _, dir := range []string{o.work, o.memory} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	if o.work, err = os.MkdirTemp(o.work, "run-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(o.work)) }()
	if o.memory, err = os.MkdirTemp(o.memory, "hotspare-bench-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(o.memory)) }()
	// The peers give up root and must reach what they serve.
	if err := errors.Join(os.Chmod(o.memory, 0o755), os.Chmod(o.work, 0o755)); err != nil {
		return err
	}
	var figures []figure
	for _, g := range bootGroups() {
		if !o.only.MatchString(g.name) {
			continue
		}
		fs, gerr := g.run(ctx, o)
		figures = append(figures, fs...)
		if gerr != nil {
			err = errors.Join(err, fmt.Errorf("%s: %w", g.name, gerr))
		}
		if ctx.Err() != nil {
			break
		}
	}
	return errors.Join(err, table(os.Stdout, figures), save(o.out, figures))
}

// bootServer runs one of our servers in a process of its own, as the peers run:
// `bench serve-tftp …`. BENCH_PROFILE_TFTP=FILE and so on profile it.
func bootServer(ctx context.Context, kind string, args []string) (err error) {
	stop, err := profileTo(strings.ToUpper(kind))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stop()) }()
	switch kind {
	case "tftp":
		return serveTFTP(ctx, args)
	case "http":
		return serveHTTP(ctx, args)
	case "storm":
		return serveStorm(ctx, args)
	case "machines":
		return serveMachines(ctx, args)
	case "install":
		return serveInstall(ctx, args)
	case "asker":
		return serveAsker(ctx, args)
	}
	return fmt.Errorf("no server %q", kind)
}

// profileTo begins a CPU profile in the file that BENCH_PROFILE_KIND names, if
// any.
func profileTo(kind string) (stop func() error, err error) {
	path := os.Getenv("BENCH_PROFILE_" + kind)
	if path == "" {
		return func() error { return nil }, nil
	}
	f, err := os.Create(filepath.Clean(path))
	if err != nil {
		return nil, err
	}
	if err := pprof.StartCPUProfile(f); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return func() error {
		pprof.StopCPUProfile()
		return f.Close()
	}, nil
}

// runPeer starts a server and waits until ready says that it answers.
func runPeer(ctx context.Context, name string, cmd *exec.Cmd, ready func() error) (*peer, error) {
	p := &peer{name: name, cmd: cmd}
	if err := p.start(); err != nil {
		return nil, err
	}
	var err error
	for range 200 { // none of them says when it listens
		if err = ready(); err == nil {
			return p, nil
		}
		if ctx.Err() != nil {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	p.end()
	return nil, fmt.Errorf("%s does not answer: %w", name, err)
}

// end stops a server, whichever it is.
func (p *peer) end() {
	_ = p.cmd.Process.Signal(os.Interrupt)
	done := make(chan struct{})
	go func() {
		_ = p.cmd.Wait() // each says by its own code that it was told to end
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(5 * time.Second):
		_ = p.cmd.Process.Kill()
		<-done
	}
}

// find gives the path of a program that was unpacked for us, or else of one that
// may be in a folder for administrators. The order matters: the package atftpd
// has a program in.tftpd too, which is atftpd.
func find(program, pack string) (string, error) {
	for _, dir := range []string{"out/cache/bench-peers/usr/sbin", "/usr/sbin", "/usr/bin"} {
		path, err := filepath.Abs(filepath.Join(dir, program))
		if err != nil {
			return "", err
		}
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("%s is missing (Debian package %s; fix: make bench-packages)", program, pack)
}
