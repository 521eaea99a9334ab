package lab

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"hotspare"
)

// kvmDeadline is how long a kernel may take from power on to its end under KVM.
// It takes about a second; a machine that hangs takes for ever.
const kvmDeadline = 10 * time.Second

// ProbeKVM boots a real kernel under KVM and waits until it has come as far as
// looking for its root, which it does not have. /dev/kvm may exist, open, and
// still hang every guest that enters long mode (nested virtualisation that is
// half there), so nothing less is proof. kernel is any Linux kernel.
func ProbeKVM(ctx context.Context, qemu, kernel string) error {
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("open /dev/kvm: %w", err)
	}
	f.Close()
	return bootUnderKVM(ctx, qemu, kernel)
}

func bootUnderKVM(ctx context.Context, qemu, kernel string) error {
	asked := ctx
	ctx, cancel := context.WithTimeout(ctx, kvmDeadline)
	defer cancel()
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, qemu, "-accel", "kvm", "-cpu", "host", "-machine", "pc,graphics=off", "-m", "256",
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio",
		"-kernel", kernel, "-append", "console=ttyS0 panic=-1 root=none")
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	err := cmd.Run()
	if strings.Contains(out.String(), "Kernel panic - not syncing: VFS") {
		return nil
	}
	if errors.Is(asked.Err(), context.Canceled) {
		return asked.Err()
	}
	if ctx.Err() != nil {
		return &hotspare.Error{
			Code: hotspare.CodeKVMHangs, What: "/dev/kvm exists but hangs guests", Where: kernel,
			Why: fmt.Sprintf("a kernel did not boot within %s", kvmDeadline), Fix: "nothing: the lab emulates the processors (slower); nested virtualisation of this host needs mending to use KVM",
		}
	}
	return fmt.Errorf("boot a kernel under KVM: %w: %s", err, lastLine(out.String()))
}

func lastLine(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return lines[len(lines)-1]
}

// chooseAccel decides between tcg and kvm; the answer of the probe is kept
// beside the lab for as long as the host, its QEMU and the kernel are the same.
func chooseAccel(ctx context.Context, opts Options) (string, error) {
	if opts.Accel == "tcg" {
		return "tcg", nil
	}
	if opts.Kernel == "" && opts.Accel == "auto" {
		return "tcg", nil
	}
	if _, err := os.Stat("/dev/kvm"); err != nil && opts.Accel == "auto" {
		return "tcg", nil
	}
	usable, why := cachedProbe(ctx, opts)
	switch {
	case usable:
		return "kvm", nil
	case ctx.Err() != nil:
		return "", ctx.Err()
	case opts.Accel == "kvm":
		return "", why
	}
	opts.Log.Warn("the lab emulates its processors", "why", why)
	return "tcg", nil
}

// probeRecord is the kept answer.
type probeRecord struct {
	Version int    `json:"version"` // 1
	Key     string `json:"key"`
	Usable  bool   `json:"usable"`
	Why     string `json:"why,omitempty"`
}

func cachedProbe(ctx context.Context, opts Options) (bool, error) {
	file := filepath.Join(filepath.Dir(opts.Dir), "kvm.json")
	key := probeKey(opts)
	var rec probeRecord
	if b, err := os.ReadFile(file); err == nil && json.Unmarshal(b, &rec) == nil && rec.Version == 1 && rec.Key == key {
		if rec.Usable {
			return true, nil
		}
		return false, fmt.Errorf("%s", rec.Why)
	}
	err := ProbeKVM(ctx, opts.QEMU, opts.Kernel)
	if ctx.Err() != nil {
		return false, ctx.Err()
	}
	rec = probeRecord{Version: 1, Key: key, Usable: err == nil}
	if err != nil {
		rec.Why = err.Error()
	}
	if b, jerr := json.MarshalIndent(rec, "", "  "); jerr == nil {
		os.WriteFile(file, append(b, '\n'), 0o644) //nolint:errcheck // only a cache
	}
	return err == nil, err
}

func probeKey(opts Options) string {
	h := sha256.New()
	for _, f := range []string{"/proc/sys/kernel/random/boot_id", "/proc/version"} {
		b, _ := os.ReadFile(f) // an empty part makes another key, no more
		h.Write(b)
	}
	for _, f := range []string{opts.Kernel, "/usr/bin/" + filepath.Base(opts.QEMU)} {
		if fi, err := os.Stat(f); err == nil {
			fmt.Fprintf(h, "%s %d %d\n", f, fi.Size(), fi.ModTime().UnixNano())
		}
	}
	return hex.EncodeToString(h.Sum(nil))[:32]
}

// Requirements checks what a lab needs of the host, and names all that is
// missing with the package that brings it.
func Requirements(opts Options) error {
	opts = opts.withDefaults()
	if os.Geteuid() != 0 {
		return &hotspare.Error{
			Code: hotspare.CodeNotRoot, What: "the lab makes network namespaces and needs root", Why: fmt.Sprintf("the user id is %d", os.Geteuid()),
			Fix: "run it with sudo",
		}
	}
	var missing, packages []string
	for tool, pkg := range map[string]string{opts.QEMU: "qemu-system-x86", "ip": "iproute2"} {
		if _, err := lookPath(tool); err != nil {
			missing, packages = append(missing, tool), append(packages, pkg)
		}
	}
	if _, err := os.Stat(opts.ROM); err != nil {
		missing, packages = append(missing, opts.ROM), append(packages, "ipxe-qemu")
	}
	for _, n := range opts.Nodes {
		h := hardwareOf(n, "tcg")
		if _, err := lookPath(h.qemu); h.qemu != "" && err != nil {
			missing, packages = append(missing, h.qemu), append(packages, h.pkg)
		} else if _, err := os.Stat(h.code); h.code != "" && err != nil {
			missing, packages = append(missing, h.code), append(packages, h.pkg)
		}
	}
	if len(missing) > 0 {
		return &hotspare.Error{
			Code: hotspare.CodeMissingTool, What: "programs that the lab needs are missing", Where: strings.Join(missing, ", "),
			Fix: "apt-get install " + strings.Join(packages, " "),
		}
	}
	tun, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err != nil {
		return &hotspare.Error{
			Code: hotspare.CodeNoTun, What: "/dev/net/tun cannot be opened", Err: err,
			Why: "every node of the lab has a tap interface", Fix: "modprobe tun; in a container, give it /dev/net/tun and CAP_NET_ADMIN",
		}
	}
	return tun.Close()
}
