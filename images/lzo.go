package images

import "errors"

var errLZO = errors.New("LZO data is damaged")

// lzo1x unpacks LZO1X data into out and gives the bytes that it made. Format:
// Linux Documentation/staging/lzo.rst (without run lengths, which btrfs does not
// use).
func lzo1x(out, in []byte) (int, error) {
	d := lzoDecoder{in: in, out: out}
	return d.run()
}

type lzoDecoder struct {
	in, out []byte
	ip, op  int
}

func (d *lzoDecoder) byte() (int, error) {
	if d.ip >= len(d.in) {
		return 0, errLZO
	}
	d.ip++
	return int(d.in[d.ip-1]), nil
}

// length reads a length that did not fit into its instruction: zeros count 255.
func (d *lzoDecoder) length(short, bits int) (int, error) {
	if short != 0 {
		return short, nil
	}
	n := bits
	for {
		b, err := d.byte()
		if err != nil {
			return 0, err
		}
		if b != 0 {
			return n + b, nil
		}
		if n += 255; n > len(d.out) {
			return 0, errLZO
		}
	}
}

func (d *lzoDecoder) literals(n int) error {
	if n > len(d.in)-d.ip || n > len(d.out)-d.op {
		return errLZO
	}
	copy(d.out[d.op:], d.in[d.ip:d.ip+n])
	d.ip, d.op = d.ip+n, d.op+n
	return nil
}

func (d *lzoDecoder) match(distance, n int) error {
	if distance <= 0 || distance > d.op || n > len(d.out)-d.op {
		return errLZO
	}
	for range n { // may overlap itself
		d.out[d.op] = d.out[d.op-distance]
		d.op++
	}
	return nil
}

func (d *lzoDecoder) run() (int, error) {
	state := 0 // literals that the last instruction copied; 4: four or more
	first, err := d.byte()
	if err != nil {
		return 0, err
	}
	if first > 17 {
		if err := d.literals(first - 17); err != nil {
			return 0, err
		}
		state = min(first-17, 4)
	} else {
		d.ip--
	}
	for {
		t, err := d.byte()
		if err != nil {
			return 0, err
		}
		if t < 16 && state == 0 { // a run of literals
			n, err := d.length(t, 15)
			if err == nil {
				err = d.literals(n + 3)
			}
			if err != nil {
				return 0, err
			}
			state = 4
			continue
		}
		end, after, err := d.copy(t, state)
		if err != nil {
			return 0, err
		}
		if end {
			return d.op, nil
		}
		if err := d.literals(after); err != nil {
			return 0, err
		}
		state = after
	}
}

// copy does one instruction that copies from what is there. after is the number
// of literals that follow it.
func (d *lzoDecoder) copy(t, state int) (end bool, after int, err error) {
	switch {
	case t >= 64:
		h, err := d.byte()
		if err != nil {
			return false, 0, err
		}
		return false, t & 3, d.match(h<<3+(t>>2&7)+1, t>>5+1)
	case t >= 32:
		n, err := d.length(t&31, 31)
		if err != nil {
			return false, 0, err
		}
		s, err := d.word()
		if err != nil {
			return false, 0, err
		}
		return false, s & 3, d.match(s>>2+1, n+2)
	case t >= 16:
		n, err := d.length(t&7, 7)
		if err != nil {
			return false, 0, err
		}
		s, err := d.word()
		if err != nil {
			return false, 0, err
		}
		distance := (t&8)<<11 + s>>2
		if distance == 0 {
			return true, 0, nil
		}
		return false, s & 3, d.match(distance+16384, n+2)
	}
	h, err := d.byte()
	if err != nil {
		return false, 0, err
	}
	if state < 4 {
		return false, t & 3, d.match(h<<2+t>>2+1, 2)
	}
	return false, t & 3, d.match(h<<2+t>>2+2049, 3)
}

func (d *lzoDecoder) word() (int, error) {
	a, err := d.byte()
	if err != nil {
		return 0, err
	}
	b, err := d.byte()
	return a | b<<8, err
}
