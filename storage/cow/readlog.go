package cow

import (
	"encoding/binary"
	"fmt"
	"strings"
)

// logContents is what the chain of log files holds.
type logContents struct {
	records []record
	boot    string // of the last file
	lsn     uint64 // of the last record
	barrier uint64 // highest LSN that a barrier covers
	last    uint64 // number of the last file
	end     int64  // of the last record in the last file
	size    int64  // of the last file
}

// logPart is what one file of the log holds.
type logPart struct {
	boot    string
	records []record
	end     int64
	next    uint64 // number of the file in which it goes on; 0: none
}

func checkLogHead(b []byte, num uint64) (logPart, error) {
	if len(b) < logHeadSize || string(b[:8]) != logMagic {
		return logPart{}, fmt.Errorf("%w: head of %s", errCodec, logName(num))
	}
	if v := binary.LittleEndian.Uint32(b[8:]); v != logVersion {
		return logPart{}, fmt.Errorf("%w: %s has version %d", errVersion, logName(num), v)
	}
	if checksum(b[:124]) != binary.LittleEndian.Uint32(b[124:]) {
		return logPart{}, fmt.Errorf("%w: head of %s", errCodec, logName(num))
	}
	if got := binary.LittleEndian.Uint64(b[12:]); got != num {
		return logPart{}, fmt.Errorf("%w: %s says that it is number %d", errCodec, logName(num), got)
	}
	return logPart{boot: strings.TrimRight(string(b[20:56]), "\x00")}, nil
}

// parseLog reads one file of the log, whose first record follows LSN after, up to
// the first record that does not check.
func parseLog(b []byte, num, after uint64) (logPart, error) {
	p, err := checkLogHead(b, num)
	if err != nil {
		return p, err
	}
	p.end = logHeadSize
	for lsn := after + 1; p.next == 0; lsn++ {
		r, n := decodeRecord(b[p.end:])
		if n == 0 || r.lsn != lsn {
			break
		}
		p.end += int64(n)
		p.records = append(p.records, r)
		if r.kind == recNext {
			rd := &reader{b: r.body}
			p.next = rd.u64()
		}
	}
	return p, nil
}

// durableAfter gives the highest LSN that a barrier from byte off on, above lsn,
// says was durable in the log once.
func durableAfter(b []byte, off int64, lsn uint64) (durable uint64) {
	for ; off+recordHead <= int64(len(b)); off += 8 {
		if b[off+16] != recBarrier {
			continue
		}
		r, n := decodeRecord(b[off:])
		if n == 0 || r.lsn <= lsn {
			continue
		}
		rd := &reader{b: r.body}
		rd.u64()
		if d := rd.u64(); !rd.bad {
			durable = max(durable, d)
		}
	}
	return durable
}

// readLog reads the chain of files from number num on, which begins after LSN
// after. Where it ends early although a later barrier says that what is missing
// had been durable, that is corruption.
func readLog(fsys FileSystem, num, after uint64) (logContents, error) {
	c := logContents{lsn: after, barrier: after}
	for {
		b, err := readAll(fsys, logName(num))
		if err != nil {
			return c, fmt.Errorf("%w: %w", errCodec, err)
		}
		p, err := parseLog(b, num, c.lsn)
		if err != nil {
			return c, err
		}
		if len(p.records) > 0 {
			c.records = append(c.records, p.records...)
			c.lsn = p.records[len(p.records)-1].lsn
		}
		c.boot = p.boot
		c.last, c.end, c.size = num, p.end, int64(len(b))
		if p.next == num+1 {
			num++
			continue
		}
		durable := durableAfter(b, p.end, c.lsn)
		if b, err := readAll(fsys, logName(num+1)); err == nil { // the record that names it may be missing
			durable = max(durable, durableAfter(b, logHeadSize, c.lsn))
		}
		if p.next != 0 || durable > c.lsn {
			return c, fmt.Errorf("%w: %s is damaged at byte %d, which had been durable", errCodec, logName(num), p.end)
		}
		for _, r := range c.records {
			if r.kind == recBarrier {
				rd := &reader{b: r.body}
				c.barrier = max(c.barrier, rd.u64())
			}
		}
		return c, nil
	}
}
