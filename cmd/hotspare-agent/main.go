// Command hotspare-agent is the node's part of hotspare: /init of the initramfs
// that the appliance builds around an image's kernel, and the process that goes
// on beside the image's own init. docs/agent.md tells its life.
//
// It takes no options. What it does follows from how it was started: as PID 1
// it is package pid1, under pid1.AgentArg0 the agent, under fence.GuardArg0 the
// guard.
package main

import (
	"fmt"
	"os"
	"os/signal"
	"time"

	"golang.org/x/sys/unix"

	"hotspare/cmd/hotspare-agent/fence"
	"hotspare/cmd/hotspare-agent/pid1"
)

// version is set by the linker.
var version = "dev"

func main() {
	time.Local = time.UTC // the first print of a local time would read /etc/localtime, from a volume that may be dead
	switch {
	case os.Getpid() == 1:
		runInit()
	case os.Args[0] == fence.GuardArg0:
		ignoreSignals()
		if err := fence.RunGuard(bootTime); err != nil {
			fmt.Fprintln(os.Stderr, "hotspare-guard:", err)
			os.Exit(1)
		}
	case os.Args[0] == pid1.AgentArg0:
		ignoreSignals()
		runAgent()
	case len(os.Args) == 2 && os.Args[1] == "--version":
		fmt.Println("hotspare-agent", version)
	default:
		fmt.Fprintln(os.Stderr, "hotspare-agent is /init of a hotspare initramfs and does nothing elsewhere; see docs/agent.md")
		os.Exit(2)
	}
}

// bootTime is the time since the kernel started: CLOCK_BOOTTIME.
func bootTime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic("clock_gettime: " + err.Error()) // not possible on a kernel that runs Go
	}
	return time.Duration(ts.Nano())
}

// ignoreSignals keeps the image's init from ending the agent by a signal at
// shutdown: the root's storage ends last. They are caught, and nobody reads them:
// what is ignored would be ignored by the commands that the agent starts as well.
func ignoreSignals() {
	signal.Notify(make(chan os.Signal, 1), unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGQUIT, unix.SIGPIPE)
}

func runInit() {
	if err := pid1.Mount(); err != nil {
		fmt.Println("hotspare: cannot start:", err)
		time.Sleep(time.Minute)
		_ = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	}
	out := newConsole()
	out.mark("init")
	pid1.Run(out.say, bootTime())
}
