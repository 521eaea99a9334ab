package diskimage

import "context"

// writeRaw writes every block that is not zero at its place; the rest are holes.
func writeRaw(ctx context.Context, c *copier) error {
	var written int64
	err := c.each(ctx, blockSize, func(off int64, p []byte) error {
		for len(p) > 0 {
			n := runOf(p)
			if !isZero(p[:min(len(p), blockSize)]) {
				if _, err := c.f.WriteAt(p[:n], off); err != nil {
					return err
				}
				written += int64(n)
			}
			p, off = p[n:], off+int64(n)
		}
		return c.room(written)
	})
	if err != nil {
		return err
	}
	return c.f.Truncate(c.src.Size())
}

// runOf gives the length of the leading blocks of p that are all zero or all
// not.
func runOf(p []byte) int {
	zero := isZero(p[:min(len(p), blockSize)])
	n := min(len(p), blockSize)
	for n < len(p) {
		m := min(len(p), n+blockSize)
		if isZero(p[n:m]) != zero {
			break
		}
		n = m
	}
	return n
}
