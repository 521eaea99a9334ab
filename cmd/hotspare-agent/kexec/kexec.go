package kexec

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"hotspare"
	"hotspare/haengine/agentlink"
)

// fileUnload is KEXEC_FILE_UNLOAD of linux/kexec.h: forget what was loaded.
const fileUnload = 1

const securityFS = "/sys/kernel/security"

// Ability asks the kernel whether it executes another one. It unloads what was
// loaded.
func Ability() agentlink.KexecAbility {
	if readWord("/proc/sys/kernel/kexec_load_disabled") == "1" {
		return agentlink.KexecAbility{Why: "kernel.kexec_load_disabled is set"}
	}
	if err := load(-1, -1, "", fileUnload); err != nil {
		why := "kexec_file_load fails: " + err.Error()
		if errors.Is(err, unix.ENOSYS) {
			why = "the kernel is built without CONFIG_KEXEC_FILE"
		}
		return agentlink.KexecAbility{Why: why}
	}
	if mode := lockdown(); mode != "" && mode != "none" {
		return agentlink.KexecAbility{Possible: true, SignedOnly: true, Why: "the kernel is locked down (" + mode + ")"}
	}
	return agentlink.KexecAbility{Possible: true}
}

// lockdown gives the kernel's lockdown mode: none, integrity, confidentiality; ""
// where the kernel has no such thing.
func lockdown() string {
	if err := unix.Mount("securityfs", securityFS, "securityfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err == nil {
		defer func() { _ = unix.Unmount(securityFS, 0) }() // the image's init mounts it itself
	}
	return chosen(readWord(securityFS + "/lockdown"))
}

// chosen gives the bracketed word of "none [integrity] confidentiality".
func chosen(text string) string {
	for _, word := range strings.Fields(text) {
		if strings.HasPrefix(word, "[") && strings.HasSuffix(word, "]") {
			return word[1 : len(word)-1]
		}
	}
	return ""
}

// Load gives the kernel another one, which Execute starts.
func Load(kernel, initrd *os.File, cmdline string) error {
	err := load(int(kernel.Fd()), int(initrd.Fd()), cmdline, 0)
	if err == nil {
		return nil
	}
	fix := "start the application by a cold boot"
	why := ""
	switch {
	case errors.Is(err, unix.ENOSYS):
		why = "the running kernel is built without CONFIG_KEXEC_FILE"
	case errors.Is(err, unix.EKEYREJECTED), errors.Is(err, unix.ENODATA), errors.Is(err, unix.ENOKEY), errors.Is(err, unix.EBADMSG):
		why = "the running kernel is locked down and does not accept the other one's signature"
		fix = "use a kernel that the firmware's keys trust, or " + fix
	case errors.Is(err, unix.EPERM):
		why = "kexec is locked (kernel.kexec_load_disabled, or lockdown)"
	case errors.Is(err, unix.ENOEXEC):
		why = "the file is no kernel that the running one can execute"
	}
	return &hotspare.Error{Code: hotspare.CodeKexec, What: "the running kernel does not take the other one", Why: why, Fix: fix, Err: err}
}

func load(kernel, initrd int, cmdline string, flags uintptr) error {
	text, err := unix.BytePtrFromString(cmdline)
	if err != nil {
		return err
	}
	// The length counts the zero.
	_, _, errno := unix.Syscall6(unix.SYS_KEXEC_FILE_LOAD, uintptr(kernel), uintptr(initrd), uintptr(len(cmdline)+1), uintptr(unsafe.Pointer(text)), flags, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// Execute leaves this kernel for the one that was loaded. It returns only when
// that fails.
func Execute() error {
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_KEXEC); err != nil {
		return fmt.Errorf("execute the loaded kernel: %w", err)
	}
	return errors.New("execute the loaded kernel: the call returned")
}

// Quiesce takes the virtio devices from their drivers, which resets them: on
// shutdown Linux leaves their queues live, and a network card would write what
// arrives into memory that belongs to the other kernel by then. Real cards are
// stopped by their drivers. The console stays.
func Quiesce() error { return quiesce("/sys/bus/virtio/devices") }

func quiesce(bus string) error {
	devices, err := os.ReadDir(bus)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var errs []error
	for _, d := range devices {
		driver, err := filepath.EvalSymlinks(filepath.Join(bus, d.Name(), "driver"))
		if err != nil || filepath.Base(driver) == "virtio_console" {
			continue // no driver has it
		}
		if err := os.WriteFile(filepath.Join(driver, "unbind"), []byte(d.Name()), 0); err != nil {
			errs = append(errs, fmt.Errorf("reset %s: %w", d.Name(), err))
		}
	}
	return errors.Join(errs...)
}

func readWord(path string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}
