package diskimage

import (
	"context"
	"encoding/binary"
	"fmt"

	"hotspare"
)

// The file's layout: the header in cluster 0; the L1 table; data clusters in the
// order of the disk, each L2 table right after the last cluster that it maps;
// the refcount blocks; the refcount table. All of it is used once, so every
// refcount is 1 and every entry says so (OFLAG_COPIED), and the file has no gap.
// The header is written last.
const (
	clusterBits   = 16
	cluster       = 1 << clusterBits
	l2Entries     = cluster / 8
	l2Covers      = int64(l2Entries) * cluster // bytes of the disk that one L2 table maps
	refcountOrder = 4                          // 16 bits
	blockCovers   = cluster / 2                // clusters of the file that one refcount block counts
	oflagCopied   = uint64(1) << 63
	headerLength  = 104
	maxL1         = 32 << 20 // bytes; QEMU opens no larger table
)

// qcow2 writes one file.
type qcow2 struct {
	c    *copier
	next int64    // the first cluster of the file that is not used
	l1   []uint64 // offsets of the L2 tables
	l2   []uint64 // the table that is filled now
	at   int64    // its index in l1, -1 for none
}

func writeQCOW2(ctx context.Context, c *copier) error {
	size := c.src.Size()
	tables := (size + l2Covers - 1) / l2Covers
	if tables*8 > maxL1 {
		return &hotspare.Error{Code: hotspare.CodeInvalid, What: "the volume is too large for qcow2", Where: c.f.path, Why: fmt.Sprintf("%d bytes; QEMU reads up to 2 PiB at this cluster size", size), Fix: "export it as raw"}
	}
	w := &qcow2{c: c, l1: make([]uint64, tables), at: -1}
	w.next = 1 + clustersFor(tables*8)
	err := c.each(ctx, cluster, func(off int64, p []byte) error {
		for len(p) > 0 {
			n := min(len(p), cluster)
			if !isZero(p[:n]) {
				if err := w.data(off, p[:n]); err != nil {
					return err
				}
			}
			p, off = p[n:], off+int64(n)
		}
		return c.room(w.next * cluster)
	})
	if err != nil {
		return err
	}
	if err := w.endTable(); err != nil {
		return err
	}
	return w.finish(size)
}

// data appends one cluster of the disk and maps it.
func (w *qcow2) data(off int64, p []byte) error {
	if i := off / l2Covers; i != w.at {
		if err := w.endTable(); err != nil {
			return err
		}
		w.at, w.l2 = i, make([]uint64, l2Entries)
	}
	place := w.next * cluster
	w.next++
	if len(p) < cluster { // the end of the disk: the file's clusters are whole
		p = append(append(make([]byte, 0, cluster), p...), zeros[:cluster-len(p)]...)
	}
	if _, err := w.c.f.WriteAt(p, place); err != nil {
		return err
	}
	w.l2[off%l2Covers/cluster] = uint64(place) | oflagCopied
	return nil
}

// endTable appends the L2 table that was filled.
func (w *qcow2) endTable() error {
	if w.at < 0 {
		return nil
	}
	place := w.next * cluster
	w.next++
	w.l1[w.at] = uint64(place) | oflagCopied
	w.at = -1
	return w.table(w.l2, place)
}

// table writes big-endian words at place, up to the end of the cluster.
func (w *qcow2) table(words []uint64, place int64) error {
	b := make([]byte, clustersFor(int64(len(words))*8)*cluster)
	for i, v := range words {
		binary.BigEndian.PutUint64(b[i*8:], v)
	}
	_, err := w.c.f.WriteAt(b, place)
	return err
}

// finish writes refcounts, the L1 table and the header.
func (w *qcow2) finish(size int64) error {
	blocks, tables := refcounts(w.next)
	place := w.next
	table := make([]uint64, blocks)
	total := w.next + blocks + tables
	one := make([]byte, cluster)
	for i := range blocks {
		table[i] = uint64(place+i) * cluster
		clear(one)
		for k := range min(blockCovers, total-i*blockCovers) {
			binary.BigEndian.PutUint16(one[k*2:], 1)
		}
		if _, err := w.c.f.WriteAt(one, (place+i)*cluster); err != nil {
			return err
		}
	}
	tableAt := (place + blocks) * cluster
	if err := w.table(table, tableAt); err != nil {
		return err
	}
	if err := w.table(w.l1, cluster); err != nil {
		return err
	}
	h := make([]byte, cluster) // the rest of the cluster is zero: no header extensions
	be := binary.BigEndian
	be.PutUint32(h[0:], 0x514649fb) // "QFI\xfb"
	be.PutUint32(h[4:], 3)
	be.PutUint32(h[20:], clusterBits)
	be.PutUint64(h[24:], uint64(size))
	be.PutUint32(h[36:], uint32(len(w.l1)))
	be.PutUint64(h[40:], cluster)
	be.PutUint64(h[48:], uint64(tableAt))
	be.PutUint32(h[56:], uint32(tables))
	be.PutUint32(h[96:], refcountOrder)
	be.PutUint32(h[100:], headerLength)
	_, err := w.c.f.WriteAt(h, 0)
	return err
}

// refcounts gives how many clusters of refcount blocks and of refcount table
// count used clusters and themselves.
func refcounts(used int64) (blocks, tables int64) {
	for {
		total := used + blocks + tables
		b := (total + blockCovers - 1) / blockCovers
		t := clustersFor(b * 8)
		if b == blocks && t == tables {
			return blocks, tables
		}
		blocks, tables = b, t
	}
}

func clustersFor(bytes int64) int64 { return (bytes + cluster - 1) / cluster }
