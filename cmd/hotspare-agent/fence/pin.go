package fence

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Pin keeps the process in memory: its executable is locked as a whole, all
// other memory as it is used, now and later; and the kernel's out-of-memory
// killer passes it over. It must run before the volume is mounted.
func Pin() error {
	errs := []error{lockMemory()}
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte("-1000"), 0); err != nil {
		errs = append(errs, fmt.Errorf("oom score: %w", err))
	}
	return errors.Join(errs...)
}

func lockMemory() error {
	if err := unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | unix.MCL_ONFAULT); err != nil {
		return fmt.Errorf("lock memory: %w", err)
	}
	return lockExecutable()
}

// lockExecutable locks every mapping of the executable. With MCL_ONFAULT alone,
// a page of code that was never run would be read in when it is first needed.
func lockExecutable() error {
	f, err := os.Open("/proc/self/maps")
	if err != nil {
		return err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		from, to, ok := fileMapping(lines.Text())
		if !ok {
			continue
		}
		if _, _, errno := unix.Syscall(unix.SYS_MLOCK, from, to-from, 0); errno != 0 {
			return fmt.Errorf("lock the executable: %w", errno)
		}
	}
	return lines.Err()
}

// fileMapping reads a line of /proc/self/maps and says whether it maps a file.
func fileMapping(line string) (from, to uintptr, ok bool) {
	fields := strings.Fields(line)
	if len(fields) < 6 || !strings.HasPrefix(fields[5], "/") {
		return 0, 0, false
	}
	if _, err := fmt.Sscanf(fields[0], "%x-%x", &from, &to); err != nil || to <= from {
		return 0, 0, false
	}
	return from, to, true
}
