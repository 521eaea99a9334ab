package pid1

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// ModulesList is the file of the initramfs that names the modules, one path a
// line, in order of dependency.
const ModulesList = "/hotspare/modules.load"

// LoadModules loads the modules of a list. A module that is there already, or
// whose device is not, is no failure. Others are collected: a node may well do
// without the module that fails.
func LoadModules(list string) (loaded int, failures []error) {
	f, err := os.Open(list)
	if err != nil {
		return 0, []error{err}
	}
	defer f.Close()
	paths, err := parseModules(f)
	if err != nil {
		return 0, []error{err}
	}
	for _, path := range paths {
		err := loadModule(path)
		switch {
		case err == nil:
			loaded++
		case errors.Is(err, unix.EEXIST), errors.Is(err, unix.ENODEV):
		default:
			failures = append(failures, fmt.Errorf("module %s: %w", path, err))
		}
	}
	return loaded, failures
}

func parseModules(r io.Reader) ([]string, error) {
	var paths []string
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		if !strings.HasPrefix(line, "/") {
			line = "/" + line
		}
		paths = append(paths, line)
	}
	return paths, lines.Err()
}

func loadModule(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.FinitModule(int(f.Fd()), "", 0)
}
