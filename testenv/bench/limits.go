package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// loopback gives what TCP over the loopback carries, in MB/s.
func loopback(ctx context.Context, o options) (float64, error) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	port := strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
	l.Close()
	server := exec.CommandContext(ctx, "iperf3", "-s", "-1", "-B", "127.0.0.1", "-p", port)
	server.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := server.Start(); err != nil {
		return 0, fmt.Errorf("iperf3: %w (Debian package iperf3)", err)
	}
	defer server.Wait()
	defer server.Process.Kill()
	seconds := strconv.Itoa(max(1, int(o.slice.Seconds())))
	var r struct {
		End struct {
			Received struct {
				Bits float64 `json:"bits_per_second"`
			} `json:"sum_received"`
		} `json:"end"`
		Error string `json:"error"`
	}
	for range 50 { // it does not say when it listens
		out, cerr := exec.CommandContext(ctx, "iperf3", "-c", "127.0.0.1", "-p", port, "-J", "-t", seconds).Output()
		if err = errors.Join(cerr, json.Unmarshal(out, &r)); err == nil && r.End.Received.Bits > 0 {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	if err != nil || r.End.Received.Bits == 0 {
		return 0, errors.Join(errors.New("iperf3 measured nothing: "+r.Error), err)
	}
	if o.verbose {
		fmt.Printf("%-9s loopback TCP %10.0f MB/s\n", "iperf3", r.End.Received.Bits/8e6)
	}
	return r.End.Received.Bits / 8e6, nil
}

// fdatasyncRate gives how many 4 KiB blocks of a plain file fio overwrites a
// second with an fdatasync after each, jobs of them at once.
func fdatasyncRate(ctx context.Context, o options, jobs int) (float64, error) {
	file := filepath.Join(o.work, "fio")
	defer os.Remove(file)
	args := []string{"--name=x", "--filename=" + file, fmt.Sprintf("--size=%d", o.span), "--bs=4k", "--rw=randwrite", "--ioengine=psync",
		fmt.Sprintf("--numjobs=%d", jobs), "--thread", "--fdatasync=1", "--overwrite=1", "--time_based", fmt.Sprintf("--runtime=%dms", o.slice.Milliseconds()),
		"--group_reporting", "--output-format=json", "--randrepeat=0"}
	out, err := exec.CommandContext(ctx, "fio", args...).Output()
	var r struct {
		Jobs []struct {
			Write struct {
				IOPS float64 `json:"iops"`
			} `json:"write"`
		} `json:"jobs"`
	}
	if err := errors.Join(err, json.Unmarshal(out, &r)); err != nil {
		return 0, fmt.Errorf("fio: %w (Debian package fio)", err)
	}
	if len(r.Jobs) == 0 {
		return 0, errors.New("fio reports no job")
	}
	return r.Jobs[0].Write.IOPS, nil
}
