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

// chunk is what one write or read of the load moves.
const chunk = 64 << 10

// load is `write DEVICE SEED CHUNKS` or `verify DEVICE SEED CHUNKS`. It goes past
// the page cache. write flushes after every eighth chunk and prints how far it
// is; what it has printed must be there whatever happens then.
func load(args []string) error {
	if len(args) != 4 {
		return errors.New("usage: guest write|verify DEVICE SEED CHUNKS")
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
	if args[0] == "verify" {
		return verify(f, seed, chunks)
	}
	return write(f, seed, chunks)
}

func write(f *os.File, seed uint64, chunks int) error {
	p, err := aligned()
	if err != nil {
		return err
	}
	for i := range chunks {
		fill(p, seed, i)
		if _, err := f.WriteAt(p, int64(i)*chunk); err != nil {
			return fmt.Errorf("write chunk %d: %w", i, err)
		}
		if i%8 != 7 && i != chunks-1 {
			continue
		}
		if err := unix.Fdatasync(int(f.Fd())); err != nil {
			return fmt.Errorf("flush after chunk %d: %w", i, err)
		}
		fmt.Println("flushed", i+1)
	}
	return nil
}

func verify(f *os.File, seed uint64, chunks int) error {
	p, err := aligned()
	if err != nil {
		return err
	}
	want := make([]byte, chunk)
	for i := range chunks {
		if _, err := f.ReadAt(p, int64(i)*chunk); err != nil {
			return fmt.Errorf("read chunk %d: %w", i, err)
		}
		fill(want, seed, i)
		if string(p) != string(want) {
			return fmt.Errorf("chunk %d differs", i)
		}
	}
	fmt.Println("verified", chunks)
	return nil
}

// fill makes the contents of a chunk.
func fill(p []byte, seed uint64, i int) {
	r := rand.NewPCG(seed, uint64(i))
	for n := 0; n < len(p); n += 8 {
		binary.LittleEndian.PutUint64(p[n:], r.Uint64())
	}
}

// aligned gives a buffer as direct I/O wants it: whole pages.
func aligned() ([]byte, error) {
	return unix.Mmap(-1, 0, chunk, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
}
