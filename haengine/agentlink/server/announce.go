package server

import (
	"context"
	"crypto/tls"
	"errors"
	"net/netip"
	"time"

	"hotspare"
	"hotspare/haengine"
	"hotspare/haengine/agentlink"
)

// Announcement is what a node says of itself that nobody has approved. None of
// it is proven.
type Announcement struct {
	Claimed string // the node's name as its boot.json says
	Facts   agentlink.Facts
	Remote  string // address and port
}

// errAnnounced ends the connection of a node that has announced itself: it has
// proven nothing, so it gets no session.
var errAnnounced = errors.New("agentlink: the node announced itself and has no token")

// maxHeard bounds the addresses that are remembered for their pause.
const maxHeard = 4096

// againDefault is when a node announces again, where nobody says otherwise.
const againDefault = 30 * time.Second

// announced hands the claims of a node without a token over and answers.
func (s *Server) announced(ctx context.Context, conn *tls.Conn, hello agentlink.Hello, e agentlink.Envelope) error {
	a, err := agentlink.Decode[agentlink.Announce](e)
	if err != nil {
		return s.refuse(conn, hotspare.CodeJoinRefused, "the announcement is malformed", false, err)
	}
	remote, err := netip.ParseAddrPort(conn.RemoteAddr().String())
	if err != nil {
		return err
	}
	if !s.hear(remote.Addr().Unmap(), time.Now()) {
		return s.refuse(conn, hotspare.CodeUnavailable, "this address announces itself too often", true, nil)
	}
	noted := s.opt.Announced(ctx, Announcement{
		Claimed: agentlink.Facts{Serial: hello.Node}.Bounded().Serial, Facts: a.Facts.Bounded(), Remote: remote.String(),
	})
	if noted.Again <= 0 {
		noted.Again = haengine.Duration(againDefault)
	}
	if err := writeFrame(conn, agentlink.KindNoted, noted); err != nil {
		return err
	}
	_ = conn.CloseWrite()
	return errAnnounced
}

// hear says whether an address may announce a node now.
func (s *Server) hear(from netip.Addr, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now.Sub(s.heard[from]) < s.opt.AnnouncePause {
		return false
	}
	if len(s.heard) >= maxHeard {
		for other, at := range s.heard {
			if now.Sub(at) >= s.opt.AnnouncePause {
				delete(s.heard, other)
			}
		}
		if len(s.heard) >= maxHeard {
			return false // more addresses within the pause than a site has
		}
	}
	s.heard[from] = now
	return true
}
