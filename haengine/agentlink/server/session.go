package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"hotspare/haengine"
	"hotspare/haengine/agentlink"
)

const writeTimeout = 5 * time.Second

// session is one authenticated connection.
type session struct {
	info Session
	id   agentlink.Identity
	conn *tls.Conn
	out  chan []byte   // frames to write
	done chan struct{} // closed when the session has ended
}

// handle runs one connection from the handshake to its end.
func (s *Server) handle(ctx context.Context, raw net.Conn, proven func()) {
	defer proven()
	defer raw.Close()
	stop := context.AfterFunc(ctx, func() { _ = raw.SetDeadline(time.Unix(1, 0)) })
	defer stop()

	log := s.log.With("remote", raw.RemoteAddr())
	_ = raw.SetDeadline(time.Now().Add(s.opt.JoinTimeout))
	conn := tls.Server(raw, s.tls)
	if err := conn.HandshakeContext(ctx); err != nil {
		log.Info("handshake failed", "err", err)
		return
	}
	sess, err := s.admit(ctx, conn)
	if errors.Is(err, errAnnounced) {
		log.Debug("node without a token", "err", err)
		return
	}
	if err != nil {
		log.Warn("node refused", "err", err)
		return
	}
	proven()
	_ = raw.SetDeadline(time.Time{})
	if ctx.Err() != nil {
		return
	}
	log = log.With("node", sess.info.Node, "boot", sess.info.BootID, "session", sess.info.ID)
	log.Info("node linked", "resumed", sess.info.Resumed)
	s.enter(sess)
	s.opt.Handler.Joined(ctx, sess.info)

	writerDone := make(chan struct{})
	go func() {
		defer close(writerDone)
		sess.write()
	}()
	err = s.read(ctx, sess)
	close(sess.done)
	_ = raw.Close()
	<-writerDone
	why := reason(ctx, err)
	if s.leave(sess) {
		log.Info("node gone", "why", why)
		s.opt.Handler.Gone(context.WithoutCancel(ctx), sess.info, why)
	}
}

func reason(ctx context.Context, err error) string {
	var timeout net.Error
	switch {
	case ctx.Err() != nil:
		return "the appliance closed the link"
	case errors.Is(err, io.EOF):
		return "the node closed the link"
	case errors.As(err, &timeout) && timeout.Timeout():
		return "no frame from the node within the idle time"
	default:
		return err.Error()
	}
}

// enter makes a session the one of its boot; an older one is cut.
func (s *Server) enter(sess *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if old := s.sessions[sess.id]; old != nil {
		_ = old.conn.NetConn().Close()
	}
	s.sessions[sess.id] = sess
	close(s.arrivals)
	s.arrivals = make(chan struct{})
}

// leave says whether sess was still the one of its boot.
func (s *Server) leave(sess *session) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sessions[sess.id] != sess {
		return false
	}
	delete(s.sessions, sess.id)
	return true
}

// send queues a frame. It fails when the session is over or its peer does not
// read.
func (sess *session) send(frame []byte) error {
	select {
	case <-sess.done:
		return errSessionOver
	default:
	}
	select {
	case sess.out <- frame:
		return nil
	case <-sess.done:
		return errSessionOver
	default:
		_ = sess.conn.NetConn().Close()
		return errSlowPeer
	}
}

var (
	errSessionOver = errors.New("agentlink: the session is over")
	errSlowPeer    = errors.New("agentlink: the node does not read its link")
)

func (sess *session) write() {
	for {
		select {
		case frame := <-sess.out:
			_ = sess.conn.SetWriteDeadline(time.Now().Add(writeTimeout))
			if _, err := sess.conn.Write(frame); err != nil {
				_ = sess.conn.NetConn().Close() // the reader notices
				return
			}
		case <-sess.done:
			return
		}
	}
}

// read handles a session's frames until its end.
func (s *Server) read(ctx context.Context, sess *session) error {
	var reports uint64 // highest report handled on this connection
	for {
		_ = sess.conn.SetReadDeadline(time.Now().Add(s.opt.IdleTimeout))
		if ctx.Err() != nil {
			return ctx.Err()
		}
		e, err := agentlink.Read(sess.conn, agentlink.MaxFrame)
		if err != nil {
			return err
		}
		if err := s.dispatch(ctx, sess, e, &reports); err != nil {
			return err
		}
	}
}

func (s *Server) dispatch(ctx context.Context, sess *session, e agentlink.Envelope, reports *uint64) error {
	switch e.Kind {
	case agentlink.KindHeartbeat:
		h, err := agentlink.Decode[agentlink.Heartbeat](e)
		if err != nil {
			return err
		}
		ack := s.opt.Handler.Heartbeat(ctx, sess.info, h)
		ack.Seq, ack.Reports = h.Seq, *reports
		return sess.reply(agentlink.KindHeartbeatAck, ack)
	case agentlink.KindReport:
		r, err := agentlink.Decode[agentlink.Report](e)
		if err != nil {
			return err
		}
		s.opt.Handler.Report(ctx, sess.info, r)
		*reports = max(*reports, r.Seq)
	case agentlink.KindSample:
		m, err := agentlink.Decode[agentlink.Sample](e)
		if err != nil {
			return err
		}
		s.opt.Handler.Sample(ctx, sess.info, m)
	case agentlink.KindResult:
		r, err := agentlink.Decode[agentlink.Result](e)
		if err != nil {
			return err
		}
		s.settle(sess.id, r)
	case agentlink.KindProgress:
		p, err := agentlink.Decode[agentlink.Progress](e)
		if err != nil {
			return err
		}
		s.opt.Progress(ctx, sess.info, p)
	case agentlink.KindRenew:
		return s.renew(sess, e)
	default:
		return fmt.Errorf("%w: unexpected %q", agentlink.ErrFrameBody, e.Kind)
	}
	return nil
}

func (sess *session) reply(kind agentlink.Kind, body any) error {
	frame, err := agentlink.Encode(kind, body)
	if err != nil {
		return err
	}
	return sess.send(frame)
}

// renew signs a new certificate for the identity of the session, whatever the
// request says.
func (s *Server) renew(sess *session, e agentlink.Envelope) error {
	r, err := agentlink.Decode[agentlink.Renew](e)
	if err != nil {
		return err
	}
	now := time.Now()
	der, notAfter, err := s.opt.CA.sign(r.CSR, sess.id, now, s.opt.CertLifetime)
	if err != nil {
		return err
	}
	return sess.reply(agentlink.KindRenewed, agentlink.Renewed{Certificate: der, Life: haengine.Duration(notAfter.Sub(now))})
}
