package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

const (
	// chunk is what one write or read of the load moves.
	chunk = 64 << 10
	// ahead is how many chunks may be done that nobody was told of.
	ahead = 64
)

// load is `write DEVICE SEED CHUNKS WHILE` or `verify DEVICE SEED CHUNKS DONE`.
// Both go past the page cache. write fills the first CHUNKS chunks of the device,
// each time with other data, until the file WHILE is gone. It flushes after every
// eighth chunk and prints how many it has done: these must be there whatever
// happens then. verify takes that number and looks.
func load(args []string) error {
	if len(args) != 5 {
		return errors.New("usage: guest write DEVICE SEED CHUNKS WHILE, guest verify DEVICE SEED CHUNKS DONE")
	}
	seed, err := strconv.ParseUint(args[2], 10, 64)
	if err != nil {
		return err
	}
	chunks, err := strconv.Atoi(args[3])
	if err != nil {
		return err
	}
	f, err := os.OpenFile(args[1], os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if args[0] == "write" {
		return write(f, seed, chunks, args[4])
	}
	done, err := strconv.Atoi(args[4])
	if err != nil {
		return err
	}
	return verify(f, seed, chunks, done)
}

func write(f *os.File, seed uint64, chunks int, while string) error {
	p, err := aligned()
	if err != nil {
		return err
	}
	for n := 0; ; {
		for range 8 {
			fill(p, seed, n)
			if _, err := f.WriteAt(p, int64(n%chunks)*chunk); err != nil {
				return fmt.Errorf("write chunk %d: %w", n, err)
			}
			n++
		}
		if err := unix.Fdatasync(int(f.Fd())); err != nil {
			return fmt.Errorf("flush after chunk %d: %w", n, err)
		}
		fmt.Println("flushed", n)
		if _, err := os.Stat(while); err != nil {
			return nil
		}
	}
}

// verify looks for the last thing that was written to each place. The load may
// have come further than it could say before it was cut off: in the places of the
// next chunks either may be, but nothing else.
func verify(f *os.File, seed uint64, chunks, done int) error {
	p, err := aligned()
	if err != nil {
		return err
	}
	want := make([]byte, chunk)
	for n := max(0, done-chunks); n < done; n++ {
		if _, err := f.ReadAt(p, int64(n%chunks)*chunk); err != nil {
			return fmt.Errorf("read chunk %d: %w", n, err)
		}
		fill(want, seed, n)
		if string(p) == string(want) {
			continue
		}
		if fill(want, seed, n+chunks); n+chunks < done+ahead && mixed(p, want, seed, n) {
			continue
		}
		return fmt.Errorf("chunk %d of %d differs", n, done)
	}
	fmt.Println("verified", min(chunks, done))
	return nil
}

// mixed says whether every block of p is of chunk n or of the one after it in
// the same place.
func mixed(p, newer []byte, seed uint64, n int) bool {
	older := make([]byte, chunk)
	fill(older, seed, n)
	const block = 512
	for i := 0; i < chunk; i += block {
		if b := string(p[i : i+block]); b != string(older[i:i+block]) && b != string(newer[i:i+block]) {
			return false
		}
	}
	return true
}

// fill makes the contents of the n-th chunk.
func fill(p []byte, seed uint64, n int) {
	r := rand.NewPCG(seed, uint64(n))
	for i := 0; i < len(p); i += 8 {
		binary.LittleEndian.PutUint64(p[i:], r.Uint64())
	}
}

// aligned gives a buffer as direct I/O wants it: whole pages.
func aligned() ([]byte, error) {
	return unix.Mmap(-1, 0, chunk, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
}
