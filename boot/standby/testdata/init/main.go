// The fixture's /init: it tells over the serial console what the kernel
// unpacked and what it could load, and turns the machine off.
package main

import (
	"bufio"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

func main() {
	defer func() {
		unix.Sync()
		unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	}()
	for _, m := range []string{"proc", "sysfs:sys", "devtmpfs:dev"} {
		kind, dir, _ := strings.Cut(m, ":")
		if dir == "" {
			dir = kind
		}
		if err := unix.Mount(kind, "/"+dir, kind, 0, ""); err != nil {
			fmt.Println("fixture: mount", kind, err)
		}
	}
	// The kernel's own messages must not fall between ours.
	os.WriteFile("/proc/sys/kernel/printk", []byte("1"), 0)
	fmt.Println("fixture: started")
	info, err := os.Stat("/hotspare/boot.json")
	if err != nil {
		fmt.Println("fixture: boot", err)
		return
	}
	b, err := os.ReadFile("/hotspare/boot.json")
	fmt.Printf("fixture: boot %s %v %s %v\n", info.Mode().Type(), info.Mode().Perm(), b, err)
	for _, file := range lines("/hotspare/modules.load") {
		load(file)
	}
	hardware()
	for _, l := range lines("/proc/modules") {
		fmt.Println("fixture: module", strings.Fields(l)[0])
	}
	nics, _ := filepath.Glob("/sys/class/net/*")
	fmt.Println("fixture: nics", nics)
	fmt.Println("fixture: done")
}

func load(file string) {
	f, err := os.Open(file)
	if err == nil {
		err = unix.FinitModule(int(f.Fd()), "", 0)
		f.Close()
	}
	switch err {
	case nil, unix.EEXIST:
	case unix.ENODEV: // crc32c_intel on a processor without it
		fmt.Println("fixture: nodev", file)
	default:
		fmt.Println("fixture: failed", file, err)
	}
}

// hardware loads what the machine's devices ask for by their modalias.
func hardware() {
	before := map[string][]string{}
	file := map[string]string{}
	for _, l := range lines("/hotspare/modules.dep") {
		name, rest, _ := strings.Cut(l, ":")
		before[name] = strings.Fields(rest)
		file[strings.ReplaceAll(strings.TrimSuffix(path.Base(name), ".ko"), "-", "_")] = name
	}
	devices, _ := filepath.Glob("/sys/bus/*/devices/*/modalias")
	for _, d := range devices {
		for _, alias := range lines(d) {
			for _, l := range lines("/hotspare/modules.alias") {
				w := strings.Fields(l)
				if ok, _ := path.Match(w[1], alias); ok {
					for _, m := range append(before[file[w[2]]], file[w[2]]) {
						load(m)
					}
					fmt.Println("fixture: hardware", w[2])
				}
			}
		}
	}
}

func lines(name string) []string {
	f, err := os.Open(name)
	if err != nil {
		return nil
	}
	defer f.Close()
	var all []string
	for s := bufio.NewScanner(f); s.Scan(); {
		all = append(all, s.Text())
	}
	return all
}
