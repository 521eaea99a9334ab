package nocloud

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"maps"
	"slices"
	"strings"
	"unicode/utf16"
)

// The disk: FAT12 in 4 MiB, clusters of 2 KiB.
const (
	diskSectors = 8192
	perCluster  = 4
	fatSectors  = 6 // 12 bits for each of the 2044 clusters
	rootEntries = 64
	rootSector  = 1 + 2*fatSectors
	dataSector  = rootSector + rootEntries*32/512
	clusterSize = perCluster * 512
	clusters    = (diskSectors - dataSector) / perCluster
)

// VFAT gives the seed as a disk with a vfat file system and the label CIDATA, to
// be attached read-only.
func (s Seed) VFAT() ([]byte, error) {
	d := make([]byte, diskSectors*512)
	le := binary.LittleEndian
	copy(d, "\xeb\x3c\x90hotspare")
	le.PutUint16(d[11:], 512)
	d[13] = perCluster
	le.PutUint16(d[14:], 1) // reserved sectors
	d[16] = 2               // tables
	le.PutUint16(d[17:], rootEntries)
	le.PutUint16(d[19:], diskSectors)
	d[21] = 0xf8
	le.PutUint16(d[22:], fatSectors)
	le.PutUint16(d[24:], 32) // geometry, which nobody looks at
	le.PutUint16(d[26:], 64)
	d[36], d[38] = 0x80, 0x29
	copy(d[43:], "CIDATA     FAT12   ")
	copy(d[510:], "\x55\xaa")

	fat := make([]byte, fatSectors*512)
	put := func(cluster int, v uint16) {
		at := cluster * 3 / 2
		old := le.Uint16(fat[at:])
		if cluster&1 == 0 {
			le.PutUint16(fat[at:], old&0xf000|v)
		} else {
			le.PutUint16(fat[at:], old&0x000f|v<<4)
		}
	}
	put(0, 0xff8)
	put(1, 0xfff)
	root := d[rootSector*512 : rootSector*512]
	label := make([]byte, 32)
	copy(label, "CIDATA     \x08")
	root = append(root, label...)
	sum := crc32.NewIEEE()
	next := 2
	for i, name := range slices.Sorted(maps.Keys(s)) {
		data := s[name]
		sum.Write([]byte(name))
		sum.Write(data)
		need := (len(data) + clusterSize - 1) / clusterSize
		if next+need > clusters+2 {
			return nil, fmt.Errorf("nocloud: the data does not fit on a disk of %d bytes", len(d))
		}
		copy(d[dataSector*512+(next-2)*clusterSize:], data)
		for c := next; c < next+need; c++ {
			v := uint16(c + 1)
			if c == next+need-1 {
				v = 0xfff
			}
			put(c, v)
		}
		first := next
		if need == 0 {
			first = 0
		}
		root = append(root, directory(name, i+1, first, len(data))...)
		next += need
	}
	le.PutUint32(d[39:], sum.Sum32()) // the volume's number
	copy(d[512:], fat)
	copy(d[512+len(fat):], fat)
	return d, nil
}

// directory gives the entries of one file: its long name in pieces of 13
// characters, the last one first, then the short one.
func directory(name string, number, cluster, size int) []byte {
	short := fmt.Appendf(nil, "%-6.6s~%d   ", strings.ToUpper(strings.ReplaceAll(name, "-", "")), number%10)
	for i := range 6 {
		if short[i] == ' ' {
			short[i] = '_'
		}
	}
	check := byte(0)
	for _, c := range short {
		check = check>>1 | check<<7
		check += c
	}
	long := utf16.Encode([]rune(name))
	pieces := (len(long) + 12) / 13
	var out []byte
	for p := pieces; p >= 1; p-- {
		e := make([]byte, 32)
		e[0], e[11], e[13] = byte(p), 0x0f, check
		if p == pieces {
			e[0] |= 0x40
		}
		for i := range 13 {
			at := 1 + i*2
			if i >= 5 {
				at = 14 + (i-5)*2
			}
			if i >= 11 {
				at = 28 + (i-11)*2
			}
			v := uint16(0xffff)
			if k := (p-1)*13 + i; k < len(long) {
				v = long[k]
			} else if k == len(long) {
				v = 0
			}
			binary.LittleEndian.PutUint16(e[at:], v)
		}
		out = append(out, e...)
	}
	e := make([]byte, 32)
	copy(e, short)
	e[11] = 0x01                                        // read-only
	binary.LittleEndian.PutUint16(e[24:], 40<<9|1<<5|1) // 2020-01-01
	binary.LittleEndian.PutUint16(e[26:], uint16(cluster))
	binary.LittleEndian.PutUint32(e[28:], uint32(size))
	return append(out, e...)
}
