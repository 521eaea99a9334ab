package images

import (
	"errors"
	"io"
)

// blockCache keeps the pieces of a disk that were read last. Looking for files
// reads the same tables over and over in small pieces, each of which would
// decompress a whole cluster of a qcow2 image.
type blockCache struct {
	src    source
	blocks map[int64][]byte
	order  []int64
}

const blockCacheSize = 512 // pieces of one grain

func newBlockCache(src source) *blockCache {
	return &blockCache{src: src, blocks: map[int64][]byte{}}
}

func (c *blockCache) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, errors.New("images: negative offset")
	}
	n := 0
	for n < len(p) {
		at := off + int64(n)
		b, err := c.block(at / grain)
		if err != nil {
			return n, err
		}
		if at%grain >= int64(len(b)) {
			return n, io.EOF
		}
		n += copy(p[n:], b[at%grain:])
	}
	return n, nil
}

func (c *blockCache) block(i int64) ([]byte, error) {
	if b, ok := c.blocks[i]; ok {
		return b, nil
	}
	off := i * grain
	if off >= c.src.Size() {
		return nil, io.EOF
	}
	b := make([]byte, min(grain, c.src.Size()-off))
	if n, err := c.src.ReadAt(b, off); n < len(b) {
		return nil, readShort(err, off+int64(n), c.src.Size())
	}
	if len(c.order) == blockCacheSize {
		delete(c.blocks, c.order[0])
		c.order = c.order[1:]
	}
	c.blocks[i], c.order = b, append(c.order, i)
	return b, nil
}
