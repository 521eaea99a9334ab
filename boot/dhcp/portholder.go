package dhcp

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// PortHolder names the processes that hold a UDP or TCP port ("udp", "tcp") in
// this network namespace: "dnsmasq (pid 812)", several separated by commas. ""
// means that nobody does, or that the holder runs in another namespace of
// processes. It reads /proc/net and /proc/PID/fd; without root it sees its own
// user's processes only.
func PortHolder(network string, port uint16) (string, error) {
	inodes := map[string]bool{}
	for _, table := range []string{network, network + "6"} {
		f, err := os.Open("/proc/thread-self/net/" + table)
		if errors.Is(err, os.ErrNotExist) {
			continue // no IPv6
		}
		if err != nil {
			return "", fmt.Errorf("find who holds %s port %d: %w", network, port, err)
		}
		err = portInodes(f, port, network == "tcp", inodes)
		f.Close()
		if err != nil {
			return "", fmt.Errorf("find who holds %s port %d: %w", network, port, err)
		}
	}
	if len(inodes) == 0 {
		return "", nil
	}
	var out []string
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return "", fmt.Errorf("list processes: %w", err)
	}
	for _, dir := range dirs {
		if holds(dir, inodes) {
			name, _ := os.ReadFile(dir + "/comm")
			out = append(out, fmt.Sprintf("%s (pid %s)", printable([]byte(strings.TrimSpace(string(name)))), filepath.Base(dir)))
		}
	}
	slices.Sort(out)
	return strings.Join(out, ", "), nil
}

// portInodes reads a table of /proc/net and adds the sockets bound to port; of
// TCP only those that listen.
func portInodes(r io.Reader, port uint16, listening bool, inodes map[string]bool) error {
	sc := bufio.NewScanner(r)
	for sc.Scan() {
		f := strings.Fields(sc.Text())
		if len(f) < 10 {
			continue
		}
		_, hexPort, ok := strings.Cut(f[1], ":")
		n, err := strconv.ParseUint(hexPort, 16, 16)
		if !ok || err != nil || uint16(n) != port || listening && f[3] != "0A" {
			continue
		}
		if f[9] != "0" {
			inodes[f[9]] = true
		}
	}
	return sc.Err()
}

func holds(dir string, inodes map[string]bool) bool {
	fds, err := os.ReadDir(dir + "/fd")
	if err != nil {
		return false // it ended, or is not ours to see
	}
	for _, fd := range fds {
		to, err := os.Readlink(dir + "/fd/" + fd.Name())
		if err != nil {
			continue
		}
		inode, ok := strings.CutPrefix(to, "socket:[")
		if ok && inodes[strings.TrimSuffix(inode, "]")] {
			return true
		}
	}
	return false
}
