package server

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"hotspare"
	"hotspare/haengine/agentlink"
)

// admit finds out who a peer is: by its certificate, or by a token.
func (s *Server) admit(ctx context.Context, conn *tls.Conn) (*session, error) {
	e, err := agentlink.Read(conn, agentlink.MaxJoinFrame)
	if err != nil {
		return nil, s.refuseBroken(conn, err)
	}
	if e.Kind != agentlink.KindHello {
		return nil, s.refuse(conn, hotspare.CodeJoinRefused, "the first frame must be a hello", false, nil)
	}
	hello, err := agentlink.Decode[agentlink.Hello](e)
	if err != nil {
		return nil, s.refuse(conn, hotspare.CodeJoinRefused, "the hello is malformed", false, err)
	}
	if chains := conn.ConnectionState().VerifiedChains; len(chains) > 0 {
		return s.resume(conn, hello)
	}
	return s.join(ctx, conn, hello)
}

// resume admits a peer whose certificate TLS has verified.
func (s *Server) resume(conn *tls.Conn, hello agentlink.Hello) (*session, error) {
	id, err := agentlink.IdentityOf(conn.ConnectionState().VerifiedChains[0][0])
	if err != nil {
		return nil, s.refuse(conn, hotspare.CodeJoinRefused, "the certificate is not a node's", false, err)
	}
	if id.Node != hello.Node || id.BootID != hello.BootID {
		return nil, s.refuse(conn, hotspare.CodeJoinRefused, "the certificate is of another node or boot than the hello", false,
			fmt.Errorf("certificate %s, hello %s boot %s", id.URI(), hello.Node, hello.BootID))
	}
	if err := writeFrame(conn, agentlink.KindWelcome, agentlink.Welcome{ServerTime: time.Now()}); err != nil {
		return nil, err
	}
	return s.newSession(conn, id, 0, true), nil
}

// join redeems a token.
func (s *Server) join(ctx context.Context, conn *tls.Conn, hello agentlink.Hello) (*session, error) {
	e, err := agentlink.Read(conn, agentlink.MaxJoinFrame)
	if err != nil {
		return nil, s.refuseBroken(conn, err)
	}
	if e.Kind == agentlink.KindAnnounce && s.opt.Announced != nil {
		return nil, s.announced(ctx, conn, hello, e)
	}
	if e.Kind != agentlink.KindJoin {
		return nil, s.refuse(conn, hotspare.CodeJoinRefused, "a peer without a certificate can only join", false,
			fmt.Errorf("got %q", e.Kind))
	}
	j, err := agentlink.Decode[agentlink.Join](e)
	if err != nil {
		return nil, s.refuse(conn, hotspare.CodeJoinRefused, "the join is malformed", false, err)
	}
	j.Facts = j.Facts.Bounded()
	token, err := hex.DecodeString(j.Token)
	if err != nil || len(token) != 32 {
		return nil, s.refuse(conn, hotspare.CodeJoinRefused, "the join carries no token of 256 bits", false, nil)
	}
	csr, err := parseCSR(j.CSR)
	if err != nil {
		return nil, s.refuse(conn, hotspare.CodeJoinRefused, "the certificate request is not usable", false, err)
	}
	if hello.BootID == "" || hello.BootID != j.Facts.BootID {
		return nil, s.refuse(conn, hotspare.CodeJoinRefused, "hello and facts name different boots", false, nil)
	}
	attempt := joinAttempt{token: sha256.Sum256(token), key: keyHash(csr), bootID: hello.BootID}
	identity, err := s.redeem(ctx, conn, hello, attempt, j.Facts)
	if err != nil {
		return nil, err
	}
	id := agentlink.Identity{Node: identity.Node, BootID: hello.BootID}
	now := time.Now()
	der, notAfter, err := s.opt.CA.sign(j.CSR, id, now, s.opt.CertLifetime)
	if err != nil {
		return nil, s.refuse(conn, hotspare.CodeInternal, "the appliance could not sign the certificate", true, err)
	}
	s.keepFacts(id, j.Facts)
	joined := agentlink.Joined{Node: id.Node, Certificate: der, NotAfter: notAfter, ServerTime: now, Epoch: identity.Epoch}
	if err := writeFrame(conn, agentlink.KindJoined, joined); err != nil {
		return nil, err
	}
	return s.newSession(conn, id, identity.Epoch, false), nil
}

// redeem spends the token, unless it was spent by the very same attempt, whose
// answer then got lost: same token, same key, same boot. Only the holder of
// that key can use the certificate, so answering again gives nothing away.
func (s *Server) redeem(ctx context.Context, conn *tls.Conn, hello agentlink.Hello, a joinAttempt, facts agentlink.Facts) (Identity, error) {
	s.mu.Lock()
	identity, again := s.joins.recall(a)
	s.mu.Unlock()
	if again {
		return identity, nil
	}
	identity, err := s.opt.Tokens.Redeem(ctx, a.token, facts)
	if err != nil {
		code, why := hotspare.CodeOf(err), "the token is not accepted"
		var public *hotspare.Error
		if errors.As(err, &public) && public.What != "" {
			why = public.What
		}
		switch code {
		case hotspare.CodeTokenReused:
			s.opt.Reused(ctx, Reuse{TokenHash: a.token, Claimed: hello.Node, Facts: facts, Remote: conn.RemoteAddr().String()})
		case hotspare.CodeJoinRefused:
		default:
			// A fault of the appliance's is no verdict about the token.
			return Identity{}, s.refuse(conn, hotspare.CodeUnavailable, "the appliance cannot check the token now", true, err)
		}
		return Identity{}, s.refuse(conn, code, why, false, err)
	}
	if identity.Node == "" {
		return Identity{}, s.refuse(conn, hotspare.CodeInternal, "the token belongs to no node", false, nil)
	}
	s.mu.Lock()
	s.joins.remember(a, identity)
	s.mu.Unlock()
	return identity, nil
}

// keepFacts remembers the facts of a node's last boot that joined.
func (s *Server) keepFacts(id agentlink.Identity, facts agentlink.Facts) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for other := range s.facts {
		if other.Node == id.Node {
			delete(s.facts, other)
		}
	}
	s.facts[id] = facts
}

func (s *Server) newSession(conn *tls.Conn, id agentlink.Identity, epoch uint64, resumed bool) *session {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.nextID++
	return &session{
		id: id, conn: conn,
		info: Session{
			ID: s.nextID, Node: id.Node, BootID: id.BootID, Remote: conn.RemoteAddr().String(),
			Since: time.Now(), Resumed: resumed, Epoch: epoch, Facts: s.facts[id],
		},
		out:  make(chan []byte, 64),
		done: make(chan struct{}),
	}
}

// refuse tells the peer and gives the error for the log.
func (s *Server) refuse(conn *tls.Conn, code hotspare.Code, why string, retry bool, cause error) error {
	_ = writeFrame(conn, agentlink.KindRefused, agentlink.Refused{Code: code, Why: why, Retry: retry})
	_ = conn.CloseWrite()
	return &hotspare.Error{Code: code, What: why, Where: conn.RemoteAddr().String(), Err: cause}
}

func (s *Server) refuseBroken(conn *tls.Conn, err error) error {
	switch {
	case errors.Is(err, agentlink.ErrFrameVersion):
		return s.refuse(conn, hotspare.CodeJoinRefused, fmt.Sprintf("the appliance speaks version %d of the agent protocol", agentlink.Version), false, err)
	case errors.Is(err, agentlink.ErrFrameSize), errors.Is(err, agentlink.ErrFrameBody):
		return s.refuse(conn, hotspare.CodeJoinRefused, "the frame is malformed", false, err)
	default:
		return err
	}
}

func writeFrame(conn *tls.Conn, kind agentlink.Kind, body any) error {
	frame, err := agentlink.Encode(kind, body)
	if err != nil {
		return err
	}
	_, err = conn.Write(frame)
	return err
}

// joinAttempt is what makes two joins the same one.
type joinAttempt struct {
	token  [32]byte
	key    [32]byte
	bootID string
}

// joinMemory remembers the last joins, so that one whose answer got lost can
// be repeated.
type joinMemory struct {
	order    []joinAttempt
	identity map[joinAttempt]Identity
}

const joinMemorySize = 1024

func (m *joinMemory) recall(a joinAttempt) (Identity, bool) {
	id, ok := m.identity[a]
	return id, ok
}

func (m *joinMemory) remember(a joinAttempt, id Identity) {
	if m.identity == nil {
		m.identity = map[joinAttempt]Identity{}
	}
	if len(m.order) >= joinMemorySize {
		delete(m.identity, m.order[0])
		m.order = m.order[1:]
	}
	m.order = append(m.order, a)
	m.identity[a] = id
}
