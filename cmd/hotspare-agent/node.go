package main

import (
	"os"
	"strconv"
	"strings"

	"hotspare/haengine/agentlink"
)

func readMetrics() agentlink.Metrics {
	m := agentlink.Metrics{
		UptimeMillis:    bootTime().Milliseconds(),
		MemAvailableMiB: meminfo("MemAvailable") / 1024,
	}
	if fields := strings.Fields(readWord("/proc/loadavg")); len(fields) > 0 {
		m.Load1, _ = strconv.ParseFloat(fields[0], 64)
	}
	if fields := strings.Fields(readWord("/proc/self/statm")); len(fields) > 1 {
		pages, _ := strconv.Atoi(fields[1])
		m.AgentRSSKiB = pages * os.Getpagesize() / 1024
	}
	return m
}

// readWord gives a small file's text, or "".
func readWord(path string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}

// meminfo gives a line of /proc/meminfo in KiB.
func meminfo(name string) int {
	for line := range strings.Lines(readWord("/proc/meminfo")) {
		if rest, ok := strings.CutPrefix(line, name+":"); ok {
			kib, _ := strconv.Atoi(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")))
			return kib
		}
	}
	return 0
}
