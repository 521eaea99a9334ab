package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"hotspare"
	"hotspare/storage/iscsi/initiator"
)

// command is one order of the test.
type command struct {
	ID   string `json:"id"`
	Op   string `json:"op"`
	Name string `json:"name"` // of the session

	Portal    string `json:"portal"`
	IQN       string `json:"iqn"`
	LUN       uint64 `json:"lun"`
	Initiator string `json:"initiator"`
	User      string `json:"user"`
	Secret    string `json:"secret"`
	Digests   bool   `json:"digests"`
	// Mutual CHAP.
	TargetUser   string `json:"tuser"`
	TargetSecret string `json:"tsecret"`

	Seed   uint64 `json:"seed"`
	First  int64  `json:"first"` // block
	Blocks int64  `json:"blocks"`
}

// blockSize is the size of one write.
const blockSize = 64 << 10

type sessionState struct {
	session *initiator.Session
	held    *os.File
}

// lazyInitiator is opened at the first log-in.
type lazyInitiator struct{ *initiator.Initiator }

// obey answers one command; a write answers when it is done, in the background.
func (g *guest) obey(c command) {
	start := time.Now()
	answer := func(values map[string]string, err error) {
		l := line{Answer: c.ID, Name: c.Name, Values: values, Millis: time.Since(start).Milliseconds()}
		if err != nil {
			l.Error, l.Code = err.Error(), string(hotspare.CodeOf(err))
		}
		g.say(l)
	}
	if c.Op == "login" {
		answer(g.login(c))
		return
	}
	s := g.sessions[c.Name]
	if s == nil {
		answer(nil, fmt.Errorf("no session %q", c.Name))
		return
	}
	switch c.Op {
	case "write":
		go func() { answer(nil, g.write(s.session.Device(), c)) }()
	case "verify":
		answer(nil, verify(s.session.Device(), c))
	case "hold":
		var err error
		s.held, err = os.OpenFile(s.session.Device(), os.O_RDONLY|unix.O_EXCL, 0)
		answer(nil, err)
	case "release":
		answer(nil, s.held.Close())
	case "logout":
		answer(logout(s))
	case "close":
		err := s.session.Close()
		answer(left(s), err)
	case "state":
		st := s.session.Status()
		answer(map[string]string{"state": st.State.String(), "why": st.Why}, nil)
	default:
		answer(nil, fmt.Errorf("no command %q", c.Op))
	}
}

func (g *guest) login(c command) (map[string]string, error) {
	if g.initiator.Initiator == nil {
		i, err := initiator.New(initiator.Options{
			RefusedRetry: time.Second,
			Log:          slog.New(slog.NewTextHandler(os.Stdout, &slog.HandlerOptions{Level: slog.LevelDebug})),
		})
		if err != nil {
			return nil, err
		}
		g.initiator.Initiator = i
	}
	portal, err := netip.ParseAddrPort(c.Portal)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	s, err := g.initiator.Login(ctx, initiator.Target{
		Portal: portal, IQN: c.IQN, LUN: c.LUN, InitiatorName: c.Initiator,
		User: c.User, Secret: hotspare.NewSecret(c.Secret), Digests: c.Digests,
		TargetUser: c.TargetUser, TargetSecret: hotspare.NewSecret(c.TargetSecret),
	})
	if err != nil {
		return nil, err
	}
	g.sessions[c.Name] = &sessionState{session: s}
	go func() {
		for e := range s.Events() {
			g.say(line{Event: e.Kind.String(), Name: c.Name, Values: map[string]string{"why": e.Why}})
		}
	}()
	size, _ := os.ReadFile("/sys/class/block/" + filepath.Base(s.Device()) + "/size")
	return map[string]string{
		"device": s.Device(), "wwid": s.WWID(), "sectors": string(bytes.TrimSpace(size)),
		"digests":  attributes("connection", "header_digest"),
		"recovery": attributes("session", "recovery_tmo"),
		"password": attributes("session", "password"),
	}, nil
}

// attributes shows an attribute of every connection or session of the kernel.
func attributes(class, name string) string {
	found, _ := filepath.Glob("/sys/class/iscsi_" + class + "/*/" + name)
	var out []string
	for _, f := range found {
		b, _ := os.ReadFile(f)
		out = append(out, string(bytes.TrimSpace(b)))
	}
	return strings.Join(out, " ")
}

// logout ends the session in order.
func logout(s *sessionState) (map[string]string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := s.session.Logout(ctx); err != nil {
		return nil, err
	}
	return left(s), nil
}

// left shows what is left of an ended session's device, and of all sessions.
func left(s *sessionState) map[string]string {
	_, err := os.Stat(s.session.Device())
	sessions, _ := filepath.Glob("/sys/class/iscsi_session/*")
	return map[string]string{"gone": strconv.FormatBool(os.IsNotExist(err)), "sessions": strconv.Itoa(len(sessions))}
}

// aligned gives a buffer that O_DIRECT accepts.
func aligned() []byte {
	b := make([]byte, blockSize+4096)
	return b[4096-int(uintptr(unsafe.Pointer(&b[0])))&4095:][:blockSize]
}

// fill writes the pattern of one block: seed and block number in every 16 bytes.
func fill(b []byte, seed uint64, block int64) {
	for i := 0; i < len(b); i += 16 {
		binary.LittleEndian.PutUint64(b[i:], seed+uint64(i))
		binary.LittleEndian.PutUint64(b[i+8:], uint64(block))
	}
}

// write writes blocks past the page cache, then flushes. It tells when a quarter
// is done.
func (g *guest) write(device string, c command) error {
	f, err := os.OpenFile(device, os.O_WRONLY|unix.O_DIRECT, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	b := aligned()
	for n := c.First; n < c.First+c.Blocks; n++ {
		fill(b, c.Seed, n)
		if _, err := f.WriteAt(b, n*blockSize); err != nil {
			return fmt.Errorf("block %d: %w", n, err)
		}
		if n == c.First+c.Blocks/4 {
			g.say(line{Event: "quarter", Name: c.Name})
		}
	}
	return f.Sync()
}

func verify(device string, c command) error {
	f, err := os.OpenFile(device, os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	got, want := aligned(), make([]byte, blockSize)
	for n := c.First; n < c.First+c.Blocks; n++ {
		fill(want, c.Seed, n)
		if _, err := f.ReadAt(got, n*blockSize); err != nil {
			return fmt.Errorf("block %d: %w", n, err)
		}
		if !bytes.Equal(got, want) {
			return fmt.Errorf("block %d differs", n)
		}
	}
	return nil
}
