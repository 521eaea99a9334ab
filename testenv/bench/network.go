package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"
)

const insideVariable = "BENCH_NETWORK"

// ownNetwork runs this program again in a network namespace of its own: its
// loopback has a congestion control without pacing, whatever the host was set
// to, and nobody else's traffic. It says whether we are inside;
// outside it gives the exit code once the run has ended.
func ownNetwork() (inside bool, code int) {
	if os.Getenv(insideVariable) != "" {
		out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput()
		if err != nil {
			fmt.Fprintf(os.Stderr, "bench: the loopback does not come up: %v %s\n", err, out)
			return false, 1
		}
		const control = "/proc/sys/net/ipv4/tcp_congestion_control"
		err = os.WriteFile(control, []byte("cubic"), 0o644)
		if err != nil { // a namespace may have it only if the host allows it to everybody
			err = os.WriteFile(control, []byte("reno"), 0o644)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "bench: the host's congestion control stays:", err)
		}
		return true, 0
	}
	runtime.LockOSThread()      // Pdeathsig is about the thread
	signal.Ignore(os.Interrupt) // the run inside gets it too, and cleans up
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), insideVariable+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGTERM}
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		return false, max(1, exit.ExitCode())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench: no network namespace:", err, "(fix: run as root)")
		return false, 1
	}
	return false, 0
}
