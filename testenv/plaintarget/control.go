package plaintarget

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"hotspare"
)

// The control socket takes one command per line and answers each with one line
// of JSON: {"ok":true, …} with the command's fields, or {"ok":false,"error":{…}}
// with the card of the error. Commands on one connection run one after the
// other.

// revokeDeadline bounds the wait for the sessions that a command cuts.
const revokeDeadline = 30 * time.Second

// command is one that the control socket knows.
type command struct {
	usage string // name and arguments
	does  string
	run   func(s *server, ctx context.Context, args []string) (any, error)
}

func commands() []command {
	return []command{
		{"snapshot NAME SNAP", "keep the volume as it is now, read-only, as SNAP, and serve it", (*server).snapshot},
		{"clone NAME|SNAP NEW", "make a writable volume of what is there now, and serve it", (*server).clone},
		{"revoke NAME EPOCH", "cut every session below the epoch; nobody logs in again until grant", (*server).revoke},
		{"grant NAME EPOCH", "let initiators log in under the epoch, which is not below the durable one", (*server).grantCommand},
		{"stats NAME", "counters, latencies, sessions", (*server).stats},
		{"delete NAME", "cut the sessions and remove the volume", (*server).remove},
		{"resize NAME SIZE", "grow the volume; a size in bytes or with K, M, G, T", (*server).resize},
		{"list", "all volumes", (*server).list},
		{"help", "this", (*server).help},
	}
}

// failure is the answer to a command that failed.
type failure struct {
	OK    bool `json:"ok"`
	Error card `json:"error"`
}

type card struct {
	Code  hotspare.Code `json:"code,omitempty"`
	What  string        `json:"what"`
	Where string        `json:"where,omitempty"`
	Why   string        `json:"why,omitempty"`
	Fix   string        `json:"fix,omitempty"`
}

func cardOf(err error) card {
	if e, ok := errors.AsType[*hotspare.Error](err); ok {
		return card{e.Code, e.What, e.Where, e.Why, e.Fix}
	}
	return card{What: err.Error()}
}

// listenControl opens the socket for its owner alone. A socket that a killed
// run left is replaced; anything else in its place is not touched.
func listenControl(path string) (net.Listener, error) {
	refuse := func(code hotspare.Code, why, fix string, err error) (net.Listener, error) {
		return nil, &hotspare.Error{Code: code, What: "the control socket cannot be opened", Where: path, Why: why, Fix: fix, Err: err}
	}
	st, err := os.Lstat(path)
	switch {
	case err == nil && st.Mode()&fs.ModeSocket == 0:
		return refuse(hotspare.CodeInvalid, "a file of that name is no socket", "name another path", nil)
	case err == nil:
		c, err := net.Dial("unix", path)
		if err == nil {
			c.Close()
			return refuse(hotspare.CodePortTaken, "another process listens there", "stop it or name another path", nil)
		}
		if !errors.Is(err, unix.ECONNREFUSED) {
			return refuse(hotspare.CodeInvalid, "", "name another path", err)
		}
		if err := os.Remove(path); err != nil {
			return refuse(hotspare.CodeInvalid, "a socket that nobody listens on cannot be removed", "remove it", err)
		}
	}
	ln, err := net.Listen("unix", path)
	if err != nil {
		return refuse(hotspare.CodeInvalid, "", "name a path of at most 107 bytes in a directory that exists", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("plaintarget: control socket: %w", err), ln.Close())
	}
	return ln, nil
}

// serveControl answers commands until ctx ends.
func (s *server) serveControl(ctx context.Context, ln net.Listener) error {
	stop := context.AfterFunc(ctx, func() { ln.Close() })
	defer stop()
	var clients sync.WaitGroup
	defer clients.Wait()
	for {
		c, err := ln.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("plaintarget: control socket: %w", err)
		}
		clients.Go(func() {
			defer c.Close()
			stop := context.AfterFunc(ctx, func() { c.Close() })
			defer stop()
			s.obey(ctx, c)
		})
	}
}

// obey answers the commands of one connection.
func (s *server) obey(ctx context.Context, c net.Conn) {
	enc := json.NewEncoder(c)
	lines := bufio.NewScanner(c)
	for lines.Scan() {
		if strings.TrimSpace(lines.Text()) == "" {
			continue
		}
		if err := enc.Encode(s.do(ctx, lines.Text())); err != nil {
			return // the client has gone
		}
	}
	if errors.Is(lines.Err(), bufio.ErrTooLong) {
		//nolint:errcheck // the connection is closed next
		enc.Encode(failure{Error: cardOf(&hotspare.Error{Code: hotspare.CodeInvalid, What: "a command is too long", Fix: "send help"})})
	}
}

// do runs one command and gives its answer.
func (s *server) do(ctx context.Context, line string) any {
	args := strings.Fields(line)
	for _, c := range commands() {
		want := strings.Fields(c.usage)
		if want[0] != args[0] {
			continue
		}
		if len(args) != len(want) {
			return failure{Error: cardOf(&hotspare.Error{Code: hotspare.CodeInvalid, What: "a command has the wrong number of arguments",
				Where: fmt.Sprintf("%.80q", line), Fix: "write " + c.usage})}
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		answer, err := c.run(s, ctx, args[1:])
		if err != nil {
			return failure{Error: cardOf(err)}
		}
		return answer
	}
	return failure{Error: cardOf(&hotspare.Error{Code: hotspare.CodeInvalid, What: "no such command", Where: fmt.Sprintf("%.80q", args[0]), Fix: "send help"})}
}

// made answers snapshot, clone and grant: the volume as initiators find it.
type made struct {
	OK bool `json:"ok"`
	Volume
	Parent       string `json:"parent,omitempty"`
	Microseconds int64  `json:"took_us,omitempty"` // of the store alone
}

func (s *server) snapshot(ctx context.Context, args []string) (any, error) {
	return s.derive(ctx, args[0], args[1], s.store.Snapshot)
}

func (s *server) clone(ctx context.Context, args []string) (any, error) {
	return s.derive(ctx, args[0], args[1], s.store.Clone)
}

func (s *server) derive(ctx context.Context, from, name string, derive func(ctx context.Context, from, name string) error) (any, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	began := time.Now()
	if err := derive(ctx, from, name); err != nil {
		return nil, err
	}
	took := time.Since(began)
	if err := s.grant(ctx, name, s.exports.Epoch(name)+1); err != nil {
		return nil, err
	}
	v, err := s.describe(name)
	return made{OK: true, Volume: v, Parent: from, Microseconds: took.Microseconds()}, err
}

func (s *server) revoke(ctx context.Context, args []string) (any, error) {
	epoch, err := parseEpoch(args[1])
	if err != nil {
		return nil, err
	}
	if _, err := s.store.Stat(args[0]); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, revokeDeadline)
	defer cancel()
	began := time.Now()
	rev, err := s.exports.Revoke(ctx, args[0], epoch)
	if err != nil {
		return nil, err
	}
	_, live := s.exports.Live(args[0])
	return struct {
		OK           bool      `json:"ok"`
		Name         string    `json:"name"`
		Below        uint64    `json:"below"`
		Epoch        uint64    `json:"epoch"`
		Granted      bool      `json:"granted"`
		Sessions     int       `json:"sessions"` // that were cut
		Drained      int64     `json:"drained"`  // commands that were waited for
		At           time.Time `json:"at"`
		Microseconds int64     `json:"took_us"`
	}{true, args[0], rev.Below, rev.Epoch, live, rev.Sessions, rev.Drained, rev.At, time.Since(began).Microseconds()}, nil
}

func (s *server) grantCommand(ctx context.Context, args []string) (any, error) {
	epoch, err := parseEpoch(args[1])
	if err != nil {
		return nil, err
	}
	if err := s.grant(ctx, args[0], epoch); err != nil {
		return nil, err
	}
	v, err := s.describe(args[0])
	return made{OK: true, Volume: v}, err
}

func (s *server) remove(ctx context.Context, args []string) (any, error) {
	if _, err := s.store.Stat(args[0]); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, revokeDeadline)
	defer cancel()
	if _, err := s.exports.Revoke(ctx, args[0], s.exports.Epoch(args[0])+1); err != nil {
		return nil, err
	}
	if err := s.store.Delete(ctx, args[0]); err != nil {
		return nil, err
	}
	return struct {
		OK   bool   `json:"ok"`
		Name string `json:"name"`
	}{true, args[0]}, nil
}

func (s *server) resize(ctx context.Context, args []string) (any, error) {
	size, err := ParseSize(args[1])
	if err != nil {
		return nil, err
	}
	if err := s.store.Resize(ctx, args[0], size); err != nil {
		return nil, err
	}
	v, err := s.describe(args[0])
	return made{OK: true, Volume: v}, err
}

func (s *server) list(context.Context, []string) (any, error) {
	var all []Volume
	for _, i := range s.store.List() {
		v, err := s.describe(i.Name)
		if err != nil {
			return nil, err
		}
		all = append(all, v)
	}
	return struct {
		OK      bool     `json:"ok"`
		Volumes []Volume `json:"volumes"`
	}{true, all}, nil
}

func (s *server) help(context.Context, []string) (any, error) {
	type line struct {
		Usage string `json:"usage"`
		Does  string `json:"does"`
	}
	var all []line
	for _, c := range commands() {
		all = append(all, line{c.usage, c.does})
	}
	return struct {
		OK       bool   `json:"ok"`
		Commands []line `json:"commands"`
	}{true, all}, nil
}

func parseEpoch(s string) (uint64, error) {
	n, err := strconv.ParseUint(s, 10, 63)
	if err != nil || n == 0 {
		return 0, &hotspare.Error{Code: hotspare.CodeInvalid, What: "an epoch is not understood", Where: fmt.Sprintf("%.40q", s), Fix: "write a number from 1 on"}
	}
	return n, nil
}

// ParseSize reads a number of bytes, or one with K, M, G or T (KiB, MiB, …)
// behind it: powers of 1024.
func ParseSize(s string) (int64, error) {
	shift, digits := 0, s
	for i, unit := range []string{"K", "M", "G", "T"} {
		if d, ok := strings.CutSuffix(strings.TrimSuffix(s, "iB"), unit); ok {
			shift, digits = 10*(i+1), d
		}
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || n <= 0 || n > 1<<62>>shift {
		return 0, &hotspare.Error{Code: hotspare.CodeInvalid, What: "a size is not understood", Where: fmt.Sprintf("%.40q", s),
			Fix: "write bytes, or a number with K, M, G or T behind it, e.g. 512M"}
	}
	return n << shift, nil
}
