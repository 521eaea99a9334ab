// Command writer keeps two disks busy and remembers what was acknowledged: each
// of its goroutines writes numbered records around a ring in a file of its own,
// with O_DIRECT, and asks for each to be durable. Over HTTP it tells how far it
// is (/), and reads everything back from the disks (/check).
package main

import (
	"encoding/binary"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"
)

const (
	block = 4096
	ring  = 256
)

type writer struct {
	f     *os.File
	acked atomic.Uint64
	worst atomic.Int64 // nanoseconds
	err   atomic.Pointer[error]
}

// buffer gives memory that O_DIRECT takes.
func buffer() []byte {
	b := make([]byte, 2*block)
	skip := int(-uintptr(unsafe.Pointer(&b[0])) & (block - 1))
	return b[skip : skip+block]
}

// fill makes the record of a number: every 8 bytes say it.
func fill(b []byte, seq uint64) {
	for i := 0; i < block; i += 8 {
		binary.LittleEndian.PutUint64(b[i:], seq)
	}
}

func (w *writer) run() {
	b := buffer()
	for seq := uint64(1); ; seq++ {
		fill(b, seq)
		start := time.Now()
		_, err := w.f.WriteAt(b, int64(seq%ring)*block)
		if err == nil {
			err = w.f.Sync()
		}
		if err != nil {
			w.err.Store(&err)
			return
		}
		w.acked.Store(seq)
		w.worst.Store(max(w.worst.Load(), int64(time.Since(start))))
	}
}

// check reads the ring: what was acknowledged before stands there, or what was
// written over it since.
func (w *writer) check() error {
	acked := w.acked.Load()
	b := buffer()
	for at := uint64(0); at < ring; at++ {
		want := acked - (acked-at)%ring // the newest acknowledged one of this place
		if acked < at || want == 0 {
			continue
		}
		if _, err := w.f.ReadAt(b, int64(at)*block); err != nil {
			return err
		}
		got := binary.LittleEndian.Uint64(b)
		for i := 0; i < block; i += 8 {
			if binary.LittleEndian.Uint64(b[i:]) != got {
				return fmt.Errorf("%s: record %d is torn", w.f.Name(), got)
			}
		}
		if got < want || got%ring != at {
			return fmt.Errorf("%s: place %d holds record %d, and %d was acknowledged", w.f.Name(), at, got, want)
		}
	}
	return nil
}

func run() error {
	var all []*writer
	for _, dir := range os.Args[2:] {
		for i := range 2 {
			f, err := os.OpenFile(filepath.Join(dir, fmt.Sprintf("ring-%d", i)), os.O_RDWR|os.O_CREATE|syscall.O_DIRECT, 0o600)
			if err != nil {
				return err
			}
			if err := f.Truncate(ring * block); err != nil {
				return err
			}
			all = append(all, &writer{f: f})
		}
	}
	for _, w := range all {
		go w.run()
	}
	http.HandleFunc("/", func(out http.ResponseWriter, _ *http.Request) {
		var total uint64
		var worst int64
		for _, w := range all {
			if err := w.err.Load(); err != nil {
				http.Error(out, (*err).Error(), http.StatusInternalServerError)
				return
			}
			total += w.acked.Load()
			worst = max(worst, w.worst.Load())
		}
		fmt.Fprintf(out, "%d %d\n", total, time.Duration(worst).Milliseconds())
	})
	http.HandleFunc("/check", func(out http.ResponseWriter, _ *http.Request) {
		for _, w := range all {
			if err := w.check(); err != nil {
				http.Error(out, err.Error(), http.StatusInternalServerError)
				return
			}
		}
		fmt.Fprintln(out, "whole")
	})
	return http.ListenAndServe(os.Args[1], nil)
}

func main() {
	if len(os.Args) < 3 {
		fmt.Fprintln(os.Stderr, "usage: writer ADDRESS FOLDER...")
		os.Exit(2)
	}
	fmt.Fprintln(os.Stderr, "writer:", run())
	os.Exit(1)
}
