package main_test

import (
	"bytes"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"hotspare"
	"hotspare/boot/standby"
	"hotspare/haengine/agentlink"
)

// machine is a QEMU node.
type machine struct {
	cmd     *exec.Cmd
	console *consoleLog
	start   time.Time
	done    chan struct{}
}

// consoleLog keeps what a machine says and wakes those who wait for words.
type consoleLog struct {
	mu   sync.Mutex
	text bytes.Buffer
	more chan struct{}
	echo io.Writer
}

func (c *consoleLog) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.text.Write(b)
	_, _ = c.echo.Write(b)
	select {
	case c.more <- struct{}{}:
	default:
	}
	return len(b), nil
}

func (c *consoleLog) count(words string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return strings.Count(c.text.String(), words)
}

// cpu is x86-64-v2. With "max", QEMU 7.2 offers five-level paging, with which
// copy_from_kernel_nofault fails in Debian's 6.1.192 and every path in /proc
// reads "xxxx"; and it is slower.
const cpu = "qemu64,+ssse3,+sse4.1,+sse4.2,+popcnt,+rdrand,+fsgsbase"

// bootNode starts a machine with the kernel and the initramfs of our own.
func bootNode(t *testing.T, kernel, initrd string, more ...string) *machine {
	t.Helper()
	m := &machine{console: &consoleLog{more: make(chan struct{}, 1), echo: os.Stderr}, start: time.Now(), done: make(chan struct{})}
	m.cmd = exec.Command("qemu-system-x86_64", append([]string{"-accel", "tcg,thread=multi,tb-size=128", "-machine", "pc,graphics=off", "-cpu", cpu,
		"-m", "512", "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-uuid", nodeUUID, "-serial", "stdio",
		"-kernel", kernel, "-initrd", initrd, "-append", "console=ttyS0 panic=-1 quiet BOOTIF=01-" + strings.ReplaceAll(nodeMAC, ":", "-"),
		"-netdev", "tap,id=n,ifname=" + tapName + ",script=no,downscript=no", "-device", "virtio-net-pci,netdev=n,romfile=,mac=" + nodeMAC,
		"-device", "virtio-rng-pci"}, more...)...)
	m.cmd.Stdout, m.cmd.Stderr = m.console, m.console
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := m.cmd.Start(); err != nil {
		t.Fatal(&hotspare.Error{Code: hotspare.CodeMissingTool, What: "QEMU does not start", Fix: "apt-get install qemu-system-x86", Err: err})
	}
	go func() { defer close(m.done); _ = m.cmd.Wait() }()
	t.Cleanup(func() { _ = m.cmd.Process.Kill(); <-m.done })
	return m
}

// await waits until the console has said words n times.
func (m *machine) await(t *testing.T, limit time.Duration, n int, words string) {
	t.Helper()
	deadline := time.After(limit)
	for m.console.count(words) < n {
		select {
		case <-m.console.more:
		case <-m.done:
			if m.console.count(words) >= n {
				return
			}
			t.Fatalf("the machine ended before it said %q", words)
		case <-deadline:
			t.Fatalf("the machine did not say %q within %s", words, limit)
		}
	}
}

func (m *machine) awaitEnd(t *testing.T, limit time.Duration) {
	t.Helper()
	select {
	case <-m.done:
	case <-time.After(limit):
		t.Fatalf("the machine runs still, %s later", limit)
	}
}

// environment is a kernel and the initramfs of the agent for it.
type environment struct {
	kernel, archive, version string
}

// buildEnvironment builds the agent and its initramfs.
func buildEnvironment(t *testing.T) environment {
	t.Helper()
	vmlinuz, modules, version := debianKernel(t, "cloud-amd64")
	agent := filepath.Join(t.TempDir(), "hotspare-agent")
	buildStatic(t, agent, ".")
	result, err := standby.Build(t.Context(), standby.Request{Agent: agent, KernelVersion: version, ModulesDir: modules, Set: standby.Lab, Arch: "amd64"}, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("initramfs: %d bytes, %d unpacked, %d modules", result.Size, result.Unpacked, result.ModuleCount)
	return environment{kernel: vmlinuz, archive: result.Path, version: version}
}

// buildStatic builds a Go program as the agent is built.
func buildStatic(t *testing.T, out, pkg string) {
	t.Helper()
	build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", out, pkg)
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	if text, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", pkg, err, text)
	}
}

// joinArchive is what is made for one boot. fill names its token; 0 is none.
func joinArchive(t *testing.T, ca []byte, mode agentlink.BootMode, fill byte) []byte {
	t.Helper()
	c := agentlink.BootConfig{Node: "n1", Appliance: netip.AddrPortFrom(hostAddr.Addr(), agentlink.Port), CA: string(ca), Mode: mode}
	if fill != 0 {
		c.Token = hotspare.NewSecret(strings.Repeat(fmt.Sprintf("%02x", fill), 32))
	}
	if mode == agentlink.ModeStart {
		c.Epoch = 7
	}
	config, err := agentlink.EncodeBootConfig(c)
	if err != nil {
		t.Fatal(err)
	}
	return standby.JoinArchive(map[string][]byte{agentlink.BootConfigPath: config})
}

// initrd writes the archive with that of one boot behind it.
func (e environment) initrd(t *testing.T, join []byte) string {
	t.Helper()
	big, err := os.ReadFile(e.archive)
	if err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(t.TempDir(), "initrd")
	if err := os.WriteFile(out, append(big, join...), 0o600); err != nil {
		t.Fatal(err)
	}
	return out
}
