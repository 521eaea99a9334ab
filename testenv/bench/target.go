package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// pattern is a row of the report that both targets run.
type pattern struct {
	name  string
	work  work
	unit  string // "IOPS" or "MB/s"
	goal  float64
	cpu   float64 // goal for the CPU time of one operation in microseconds; 0: not reported
	limit string  // "tcp": beside iperf3 too
	cold  bool
}

func memoryFigures(ctx context.Context, o options) ([]figure, error) {
	w := func(write bool, size, depth int, random bool) work {
		return work{write: write, size: size, depth: depth, random: random, span: o.span, time: o.slice}
	}
	return compare(ctx, o, o.memory, []pattern{
		{name: "memory: 4k random read QD32", work: w(false, 4096, 32, true), unit: "IOPS", goal: 3.5, cpu: 10},
		{name: "memory: 4k random write QD32", work: w(true, 4096, 32, true), unit: "IOPS", goal: 2.4, cpu: 15},
		{name: "memory: 256k sequential read QD8", work: w(false, 256<<10, o.depth, false), unit: "MB/s", goal: 1.25, limit: "tcp"},
		{name: "memory: 256k sequential write QD8", work: w(true, 256<<10, o.depth, false), unit: "MB/s", goal: 4},
		{name: "memory: 4k random read QD1", work: w(false, 4096, 1, true), unit: "IOPS", goal: 2},
		{name: "memory: 4k random write QD1", work: w(true, 4096, 1, true), unit: "IOPS", goal: 1.2},
	})
}

// fileFigures are the runs on a real file. The flushed writes are set against
// fio too: it does the same to a plain file.
func fileFigures(ctx context.Context, o options) ([]figure, error) {
	cold := work{size: 4096, depth: 32, random: true, span: o.span, time: o.slice}
	seq := work{size: 256 << 10, depth: 8, span: o.span, ops: int(o.span / (256 << 10))}
	flushed := work{write: true, size: 4096, depth: 32, random: true, flush: true, span: o.span, time: o.slice}
	fs, err := compare(ctx, o, o.work, []pattern{
		{name: "file, cold: 4k random read QD32", work: cold, unit: "IOPS", goal: 1.5, cold: true},
		{name: "file, cold: 256k sequential read QD8", work: seq, unit: "MB/s", goal: 1.2, cold: true},
		{name: "file: 4k random overwrite and flush QD32", work: flushed, unit: "IOPS", goal: 1, cold: true}, // as fio begins
	})
	if err != nil {
		return fs, err
	}
	more, err := flushFigures(ctx, o, flushed)
	return append(fs, more...), err
}

// both runs the two peers over volumes of their own in dir, written once from
// end to end, and gives one session to each.
func both(ctx context.Context, o options, dir string, use func(ps []*peer, ss []*session) error) (err error) {
	var ps []*peer
	var ss []*session
	defer func() {
		for _, s := range ss {
			err = errors.Join(err, s.logout())
		}
		for _, p := range ps {
			err = errors.Join(err, p.stop(), os.RemoveAll(p.dir))
		}
	}()
	a, err := startOurs(ctx, []string{o.lab}, filepath.Join(dir, "ours"), o.span)
	if err != nil {
		return err
	}
	ps = append(ps, a)
	b, err := startTGT(ctx, filepath.Join(dir, "tgt"), o.span)
	if err != nil {
		return err
	}
	ps = append(ps, b)
	fill := work{write: true, size: 256 << 10, depth: 8, span: o.span, ops: int(o.span / (256 << 10))}
	for i, p := range ps {
		s, err := dial(p.place, uint16(i))
		if err != nil {
			return err
		}
		ss = append(ss, s)
		if err := s.quiet(); err != nil {
			return err
		}
		if _, err := run(s, fill, 1); err != nil {
			return fmt.Errorf("%s: filling the volume: %w", p.name, err)
		}
		if err := p.chill(); err != nil { // nothing that waits for the disk is left behind
			return err
		}
	}
	return use(ps, ss)
}

// compare runs the patterns on both, turn by turn.
func compare(ctx context.Context, o options, dir string, patterns []pattern) ([]figure, error) {
	var figures []figure
	err := both(ctx, o, dir, func(ps []*peer, ss []*session) error {
		for _, pt := range patterns {
			if !o.pattern.MatchString(pt.name) {
				continue
			}
			main := &series{name: pt.name, unit: pt.unit, peer: theirs, goal: pt.goal, better: "higher"}
			cpu := &series{name: pt.name + ", CPU of the target", unit: "us/op", goal: pt.cpu, better: "lower"}
			tcp := &series{name: pt.name + " beside TCP", unit: pt.unit, peer: "iperf3", goal: 0.8, better: "higher"}
			for round := range o.rounds {
				for i, p := range ps {
					if ctx.Err() != nil {
						return ctx.Err()
					}
					out, used, err := measure(p, ss[i], pt, uint64(round))
					if err != nil {
						return fmt.Errorf("%s: %s: %w", p.name, pt.name, err)
					}
					v := out.perSecond()
					if pt.unit == "MB/s" {
						v = out.megabytes(pt.work)
					}
					perOp := used.Seconds() * 1e6 / float64(out.ops)
					if o.verbose {
						fmt.Printf("%-9s %-45s %10.0f %s, %6.1f us of CPU each, median %v\n", p.name, pt.name, v, pt.unit, perOp, out.median)
					}
					if i == 0 {
						main.own, cpu.own, tcp.own = append(main.own, v), append(cpu.own, perOp), append(tcp.own, v)
					} else {
						main.other, cpu.other = append(main.other, v), append(cpu.other, perOp)
					}
				}
				if pt.limit == "tcp" {
					v, err := loopback(ctx, o)
					if err != nil {
						return err
					}
					tcp.other = append(tcp.other, v)
				}
			}
			figures = append(figures, main.figure())
			if pt.cpu > 0 {
				f := cpu.figure()
				f.PeerValue, f.Ratio = median(cpu.other), 0 // the goal is absolute
				figures = append(figures, f)
			}
			if pt.limit == "tcp" {
				figures = append(figures, tcp.figure())
			}
		}
		return nil
	})
	return figures, err
}

// measure runs a pattern once and gives the target's CPU time too.
func measure(p *peer, s *session, pt pattern, seed uint64) (outcome, time.Duration, error) {
	if pt.cold {
		if err := p.chill(); err != nil {
			return outcome{}, 0, err
		}
	}
	before, err := p.cpu()
	if err != nil {
		return outcome{}, 0, err
	}
	out, err := run(s, pt.work, seed)
	if err != nil {
		return out, 0, err
	}
	after, err := p.cpu()
	return out, after - before, err
}

// flushFigures sets flushed writes against what fio reaches with fdatasync on
// the same file system, with as many at once.
func flushFigures(ctx context.Context, o options, w work) ([]figure, error) {
	over := &series{name: "file: 4k overwrite and flush QD32 beside fio", unit: "IOPS", peer: "fio fdatasync", goal: 0.6, better: "higher"}
	first := &series{name: "file: 4k first write and flush QD32 beside fio", unit: "IOPS", peer: "fio fdatasync", goal: 0.3, better: "higher"}
	for round := range o.rounds {
		limit, err := fdatasyncRate(ctx, o, w.depth)
		if err != nil {
			return nil, err
		}
		dir := filepath.Join(o.work, "flush")
		p, err := startOurs(ctx, []string{o.lab}, dir, o.span)
		if err != nil {
			return nil, err
		}
		s, err := dial(p.place, 1)
		if err != nil {
			return nil, errors.Join(err, p.stop())
		}
		rates, err := func() (rates [2]float64, err error) {
			if err := s.quiet(); err != nil {
				return rates, err
			}
			// Into holes: the volume is new.
			out, err := run(s, w, uint64(round))
			if err != nil {
				return rates, err
			}
			rates[0] = out.perSecond()
			fill := work{write: true, size: 256 << 10, depth: 8, span: w.span, ops: int(w.span / (256 << 10))}
			if _, err = run(s, fill, 1); err != nil {
				return rates, err
			}
			if err := p.chill(); err != nil { // to the disk with it; what is overwritten need not be cached
				return rates, err
			}
			out, err = run(s, w, uint64(round))
			rates[1] = out.perSecond()
			return rates, err
		}()
		if err := errors.Join(err, s.logout(), p.stop(), os.RemoveAll(dir)); err != nil {
			return nil, err
		}
		first.own, first.other = append(first.own, rates[0]), append(first.other, limit)
		over.own, over.other = append(over.own, rates[1]), append(over.other, limit)
		if o.verbose {
			fmt.Printf("fio %.0f, first write %.0f, overwrite %.0f\n", limit, rates[0], rates[1])
		}
	}
	return []figure{over.figure(), first.figure()}, nil
}

// loginFigures counts whole log-ins: connect, CHAP, parameters, log-out.
func loginFigures(ctx context.Context, o options) ([]figure, error) {
	o.span = 64 << 20
	one := &series{name: "log-ins per second, one after the other", unit: "1/s", peer: theirs, goal: 1.5, better: "higher"}
	four := &series{name: "log-ins per second, four at once", unit: "1/s", peer: theirs, goal: 1.5, better: "higher"}
	err := both(ctx, o, o.memory, func(ps []*peer, _ []*session) error {
		for _, sr := range []struct {
			*series
			n int
		}{{one, 1}, {four, 4}} {
			for range o.rounds {
				for i, p := range ps {
					v, err := loginRate(p, sr.n, o.slice)
					if err != nil {
						return fmt.Errorf("%s: %w", p.name, err)
					}
					if o.verbose {
						fmt.Printf("%-9s log-ins, %d at once %10.0f 1/s\n", p.name, sr.n, v)
					}
					if i == 0 {
						sr.own = append(sr.own, v)
					} else {
						sr.other = append(sr.other, v)
					}
				}
			}
		}
		return nil
	})
	return []figure{one.figure(), four.figure()}, err
}

// loginRate logs in and out with n sessions at once.
func loginRate(p *peer, n int, during time.Duration) (float64, error) {
	var wg sync.WaitGroup
	counts, errs := make([]int, n), make([]error, n)
	start := time.Now()
	for i := range n {
		wg.Go(func() {
			for time.Since(start) < during && errs[i] == nil {
				s, err := dial(p.place, uint16(100+i))
				if err == nil {
					err = s.logout()
				}
				errs[i] = err
				counts[i]++
			}
		})
	}
	wg.Wait()
	took := time.Since(start)
	sum := 0
	for _, c := range counts {
		sum += c
	}
	return float64(sum) / took.Seconds(), errors.Join(errs...)
}
