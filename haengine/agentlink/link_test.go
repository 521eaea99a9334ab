package agentlink_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"hotspare"
	"hotspare/haengine"
	"hotspare/haengine/agentlink"
	"hotspare/haengine/agentlink/client"
	"hotspare/haengine/agentlink/server"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = 20 * time.Second

func sha(b []byte) [32]byte { return sha256.Sum256(b) }

// world is the appliance's side of a test.
type world struct {
	t   *testing.T
	dir string
	ca  *server.CA

	mu       sync.Mutex
	tokens   map[[32]byte]bool // true: spent
	redeemed int
	reuses   []server.Reuse
	joins    []server.Session
	gone     []string
	reports  []agentlink.Report
	samples  []agentlink.Sample
	beats    []agentlink.Heartbeat
	over     map[string]uint64 // what heartbeats are answered with
	events   chan struct{}

	srv  *server.Server
	stop func()
	addr string
}

func newWorld(t *testing.T, change func(*server.Options)) *world {
	w := &world{t: t, dir: t.TempDir(), tokens: map[[32]byte]bool{}, events: make(chan struct{}, 1024)}
	w.serve("127.0.0.1:0", change)
	t.Cleanup(func() { w.stop() })
	return w
}

// serve starts the server, on the CA that is in the world's directory.
func (w *world) serve(addr string, change func(*server.Options)) {
	w.t.Helper()
	ca, err := server.EnsureCA(w.dir)
	if err != nil {
		w.t.Fatal(err)
	}
	w.ca = ca
	opt := server.Options{Addr: addr, CA: ca, Tokens: w, Handler: w, JoinTimeout: 3 * time.Second, ReconnectGrace: 5 * time.Second,
		Reused: func(_ context.Context, r server.Reuse) { w.note(func() { w.reuses = append(w.reuses, r) }) }}
	if change != nil {
		change(&opt)
	}
	for range 100 { // the old listener's port may need a moment
		if w.srv, err = server.New(opt); err == nil {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	if err != nil {
		w.t.Fatal(err)
	}
	w.addr = w.srv.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.srv.Serve(ctx) }()
	w.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Errorf("serve: %v", err)
		}
	})
}

func (w *world) note(do func()) {
	w.mu.Lock()
	do()
	w.mu.Unlock()
	select {
	case w.events <- struct{}{}:
	default:
	}
}

func (w *world) Redeem(_ context.Context, hash [32]byte, _ agentlink.Facts) (server.Identity, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.redeemed++
	spent, known := w.tokens[hash]
	switch {
	case !known:
		return server.Identity{}, &hotspare.Error{Code: hotspare.CodeJoinRefused, What: "the token is not known"}
	case spent:
		return server.Identity{}, &hotspare.Error{Code: hotspare.CodeTokenReused, What: "the token was used before"}
	}
	w.tokens[hash] = true
	return server.Identity{Node: "n1", Epoch: 7}, nil
}

func (w *world) Joined(_ context.Context, s server.Session) {
	w.note(func() { w.joins = append(w.joins, s) })
}

func (w *world) Heartbeat(_ context.Context, _ server.Session, h agentlink.Heartbeat) agentlink.HeartbeatAck {
	w.note(func() { w.beats = append(w.beats, h) })
	return agentlink.HeartbeatAck{Granted: h.App == "orders", Lease: haengine.Duration(15 * time.Second), Epoch: 7, Over: w.over}
}

func (w *world) Report(_ context.Context, _ server.Session, r agentlink.Report) {
	w.note(func() { w.reports = append(w.reports, r) })
}

func (w *world) Sample(_ context.Context, _ server.Session, m agentlink.Sample) {
	w.note(func() { w.samples = append(w.samples, m) })
}

func (w *world) Gone(_ context.Context, _ server.Session, why string) {
	w.note(func() { w.gone = append(w.gone, why) })
}

// until waits until ok holds; ok is called with the world's lock.
func (w *world) until(what string, ok func() bool) {
	w.t.Helper()
	deadline := time.After(patience)
	for {
		w.mu.Lock()
		done := ok()
		w.mu.Unlock()
		if done {
			return
		}
		select {
		case <-w.events:
		case <-deadline:
			w.t.Fatalf("not within %s: %s", patience, what)
		}
	}
}

// node is the node's side.
type node struct {
	*client.Client
	w     *world
	start time.Time
	err   chan error
	stop  func()

	mu     sync.Mutex
	conn   net.Conn // the live one, to be cut
	dials  int
	orders []agentlink.Order
	acks   []time.Duration // when acknowledged heartbeats had been sent
	states []client.State
}

// token mints a token and gives its text.
func (w *world) token(fill byte) hotspare.Secret {
	raw := make([]byte, 32)
	for i := range raw {
		raw[i] = fill
	}
	w.mu.Lock()
	w.tokens[sha(raw)] = false
	w.mu.Unlock()
	return hotspare.NewSecret(hex.EncodeToString(raw))
}

func newNode(w *world, token hotspare.Secret, change func(*client.Options)) *node {
	w.t.Helper()
	n := &node{w: w, start: time.Now(), err: make(chan error, 1)}
	opt := client.Options{
		Addr: w.addr, CA: w.ca.PEM(), Node: "n1", Token: token, Facts: agentlink.Facts{BootID: "boot-a", MACs: []string{"52:54:00:77:00:01"}},
		Beat: func() agentlink.Heartbeat {
			return agentlink.Heartbeat{Phase: agentlink.PhaseOnline, App: "orders", Epoch: 7}
		},
		Acked: func(sent time.Duration, _ agentlink.HeartbeatAck) {
			n.mu.Lock()
			n.acks = append(n.acks, sent)
			n.mu.Unlock()
			w.note(func() {})
		},
		Order: func(_ context.Context, o agentlink.Order) agentlink.Result {
			n.mu.Lock()
			n.orders = append(n.orders, o)
			n.mu.Unlock()
			return agentlink.Result{OK: true, Why: "done " + o.ID}
		},
		State: func(s client.State) {
			n.mu.Lock()
			n.states = append(n.states, s)
			n.mu.Unlock()
			w.note(func() {})
		},
		Now: func() time.Duration { return time.Since(n.start) },
		Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
			conn, err := (&net.Dialer{}).DialContext(ctx, network, addr)
			n.mu.Lock()
			n.conn = conn
			n.dials++
			n.mu.Unlock()
			return conn, err
		},
		Every: 20 * time.Millisecond, AckTimeout: 2 * time.Second, MaxBackoff: 50 * time.Millisecond,
	}
	if change != nil {
		change(&opt)
	}
	c, err := client.New(opt)
	if err != nil {
		w.t.Fatal(err)
	}
	n.Client = c
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		n.err <- c.Run(ctx)
	}()
	n.stop = sync.OnceFunc(func() { cancel(); <-done })
	w.t.Cleanup(n.stop)
	return n
}

func (n *node) cut() {
	n.mu.Lock()
	defer n.mu.Unlock()
	_ = n.conn.Close()
}

func (n *node) count() (orders, acks int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.orders), len(n.acks)
}

func TestNodeJoinsBeatsAndLeaves(t *testing.T) {
	w := newWorld(t, nil)
	n := newNode(w, w.token(1), nil)
	w.until("five acknowledged heartbeats", func() bool { _, acks := n.count(); return acks >= 5 })
	n.mu.Lock()
	for i, sent := range n.acks[1:] {
		if sent < n.acks[i] || sent > time.Since(n.start) {
			t.Errorf("acknowledged heartbeat %d was sent at %s, after %s", i+1, sent, n.acks[i])
		}
	}
	n.mu.Unlock()
	sessions := w.srv.Sessions()
	if len(sessions) != 1 || sessions[0].Node != "n1" || sessions[0].BootID != "boot-a" || sessions[0].Epoch != 7 || sessions[0].Resumed ||
		len(sessions[0].Facts.MACs) != 1 {
		t.Errorf("sessions %+v", sessions)
	}
	n.Sample(agentlink.Sample{App: "orders", Monitor: "sql", OK: true})
	n.Report(agentlink.Report{App: "orders", Epoch: 7, Resource: "database", State: agentlink.ResourceFailed, Conclusive: true})
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := n.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	w.until("the sample and the report", func() bool { return len(w.samples) == 1 && len(w.reports) == 1 && w.reports[0].Conclusive })
	n.stop()
	w.until("the node's end", func() bool { return len(w.gone) == 1 })
	if len(w.srv.Sessions()) != 0 {
		t.Error("a session is left")
	}
}

// SAFETY, threats: a peer that is not the pinned appliance gets no token.
func TestNodeRefusesAnotherAppliance(t *testing.T) {
	w, other := newWorld(t, nil), newWorld(t, nil)
	token := w.token(1)
	n := newNode(w, token, func(o *client.Options) { o.Addr = other.addr })
	w.until("a refusal", func() bool {
		n.mu.Lock()
		defer n.mu.Unlock()
		return len(n.states) > 1
	})
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.states[0].Up || !strings.Contains(n.states[0].Why, "unknown authority") {
		t.Errorf("state %+v", n.states[0])
	}
	other.mu.Lock()
	defer other.mu.Unlock()
	if other.redeemed != 0 || len(other.joins) != 0 {
		t.Error("the other appliance saw a token")
	}
}

// SAFETY L1: a second claim of a token is refused and told.
func TestTokenIsGoodForOneNode(t *testing.T) {
	w := newWorld(t, nil)
	token := w.token(1)
	newNode(w, token, nil)
	w.until("the join", func() bool { return len(w.joins) == 1 })
	thief := newNode(w, token, func(o *client.Options) { o.Facts.BootID = "boot-thief" })
	select {
	case err := <-thief.err:
		if hotspare.CodeOf(err) != hotspare.CodeTokenReused {
			t.Errorf("the thief got %v", err)
		}
		thief.err <- nil
	case <-time.After(patience):
		t.Fatal("the thief was not refused")
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.reuses) != 1 || w.reuses[0].Facts.BootID != "boot-thief" || len(w.joins) != 1 {
		t.Errorf("reuses %+v, joins %d", w.reuses, len(w.joins))
	}
}

func TestUnknownTokenIsRefusedForGood(t *testing.T) {
	w := newWorld(t, nil)
	n := newNode(w, hotspare.NewSecret(strings.Repeat("cd", 32)), nil)
	select {
	case err := <-n.err:
		if hotspare.CodeOf(err) != hotspare.CodeJoinRefused {
			t.Errorf("got %v", err)
		}
	case <-time.After(patience):
		t.Fatal("the node was not refused")
	}
}

// peer is a peer that speaks the protocol by hand.
type peer struct {
	*tls.Conn
	t *testing.T
}

func dialPeer(w *world, cert *tls.Certificate) *peer {
	w.t.Helper()
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(w.ca.PEM())
	cfg := &tls.Config{RootCAs: roots, ServerName: agentlink.ServerName, MinVersion: tls.VersionTLS13}
	if cert != nil {
		cfg.Certificates = []tls.Certificate{*cert}
	}
	conn, err := tls.Dial("tcp", w.addr, cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	_ = conn.SetDeadline(time.Now().Add(patience))
	w.t.Cleanup(func() { _ = conn.Close() })
	return &peer{Conn: conn, t: w.t}
}

func (p *peer) say(kind agentlink.Kind, body any) {
	p.t.Helper()
	frame, err := agentlink.Encode(kind, body)
	if err != nil {
		p.t.Fatal(err)
	}
	if _, err := p.Write(frame); err != nil {
		p.t.Fatal(err)
	}
}

// refusal reads the answer, which must be a refusal.
func (p *peer) refusal() agentlink.Refused {
	p.t.Helper()
	e, err := agentlink.Read(p, agentlink.MaxFrame)
	if err != nil {
		p.t.Fatal(err)
	}
	if e.Kind != agentlink.KindRefused {
		p.t.Fatalf("got %q, want a refusal", e.Kind)
	}
	r, err := agentlink.Decode[agentlink.Refused](e)
	if err != nil {
		p.t.Fatal(err)
	}
	return r
}

func newKey(t *testing.T) (*ecdsa.PrivateKey, []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	return key, csr
}

// join joins by hand and gives the node's certificate.
func joinByHand(w *world, token hotspare.Secret, key *ecdsa.PrivateKey, csr []byte) (tls.Certificate, *peer) {
	w.t.Helper()
	p := dialPeer(w, nil)
	p.say(agentlink.KindHello, agentlink.Hello{Node: "n1", BootID: "boot-a"})
	p.say(agentlink.KindJoin, agentlink.Join{Token: token.Reveal(), Facts: agentlink.Facts{BootID: "boot-a"}, CSR: csr})
	e, err := agentlink.Read(p, agentlink.MaxFrame)
	if err != nil {
		w.t.Fatal(err)
	}
	j, err := agentlink.Decode[agentlink.Joined](e)
	if err != nil || e.Kind != agentlink.KindJoined {
		w.t.Fatalf("got %s %s, %v", e.Kind, e.Body, err)
	}
	return tls.Certificate{Certificate: [][]byte{j.Certificate}, PrivateKey: key}, p
}

// A join whose answer got lost is repeated by the same node without alarm.
func TestLostAnswerToAJoinIsNoReuse(t *testing.T) {
	w := newWorld(t, nil)
	token := w.token(1)
	key, csr := newKey(t)
	_, first := joinByHand(w, token, key, csr)
	_ = first.Close()
	_, again := joinByHand(w, token, key, csr)
	_ = again.Close()
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.reuses) != 0 || w.redeemed != 1 {
		t.Errorf("%d reuses told, %d redemptions", len(w.reuses), w.redeemed)
	}
}

// SAFETY, threats (CVE-2024-6107): without a certificate a peer can only join.
func TestPeersThatHaveNotJoinedCanDoNothing(t *testing.T) {
	w := newWorld(t, nil)
	token := w.token(1)
	_, csr := newKey(t)
	hello := agentlink.Hello{Node: "n1", BootID: "boot-a"}
	for _, c := range []struct {
		name  string
		speak func(p *peer)
	}{
		{"a heartbeat without a hello", func(p *peer) { p.say(agentlink.KindHeartbeat, agentlink.Heartbeat{App: "orders"}) }},
		{"a heartbeat instead of a join", func(p *peer) {
			p.say(agentlink.KindHello, hello)
			p.say(agentlink.KindHeartbeat, agentlink.Heartbeat{App: "orders"})
		}},
		{"a renewal instead of a join", func(p *peer) {
			p.say(agentlink.KindHello, hello)
			p.say(agentlink.KindRenew, agentlink.Renew{CSR: csr})
		}},
		{"a token that is too short", func(p *peer) {
			p.say(agentlink.KindHello, hello)
			p.say(agentlink.KindJoin, agentlink.Join{Token: "abcd", Facts: agentlink.Facts{BootID: "boot-a"}, CSR: csr})
		}},
		{"a broken certificate request", func(p *peer) {
			p.say(agentlink.KindHello, hello)
			p.say(agentlink.KindJoin, agentlink.Join{Token: token.Reveal(), Facts: agentlink.Facts{BootID: "boot-a"}, CSR: csr[:40]})
		}},
		{"facts of another boot", func(p *peer) {
			p.say(agentlink.KindHello, hello)
			p.say(agentlink.KindJoin, agentlink.Join{Token: token.Reveal(), Facts: agentlink.Facts{BootID: "boot-b"}, CSR: csr})
		}},
		{"a frame above the limit of a join", func(p *peer) {
			// The length alone: it must not be waited for.
			if _, err := p.Write(binary.BigEndian.AppendUint32(nil, agentlink.MaxJoinFrame+1)); err != nil {
				p.t.Fatal(err)
			}
		}},
		{"another version", func(p *peer) {
			if _, err := p.Write(rawFrame(`{"v":9,"kind":"hello","body":{}}`)); err != nil {
				p.t.Fatal(err)
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := dialPeer(w, nil)
			p.t = t
			c.speak(p)
			if r := p.refusal(); r.Code != hotspare.CodeJoinRefused || r.Retry {
				t.Errorf("refused with %+v", r)
			}
		})
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.redeemed != 0 || len(w.joins) != 0 || len(w.beats) != 0 {
		t.Errorf("something got through: %d redemptions, %d joins, %d heartbeats", w.redeemed, len(w.joins), len(w.beats))
	}
}

func TestSilentPeersAreClosed(t *testing.T) {
	w := newWorld(t, func(o *server.Options) { o.JoinTimeout = 300 * time.Millisecond; o.MaxPending = 2 })
	var conns []net.Conn
	for range 4 {
		conn, err := net.Dial("tcp", w.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conns = append(conns, conn)
	}
	for i, conn := range conns {
		_ = conn.SetReadDeadline(time.Now().Add(patience))
		if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("peer %d is not closed: %v", i, err)
		}
	}
	newNode(w, w.token(1), nil) // and an honest node gets in
	w.until("the join", func() bool { return len(w.joins) == 1 })
}

// A certificate is good for its node and its boot alone, and not for ever.
func TestCertificatesAreBound(t *testing.T) {
	w := newWorld(t, func(o *server.Options) { o.CertLifetime = 5 * time.Second })
	key, csr := newKey(t)
	cert, first := joinByHand(w, w.token(1), key, csr)
	_ = first.Close()
	leaf, err := x509.ParseCertificate(cert.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	if id, err := agentlink.IdentityOf(leaf); err != nil || id.Node != "n1" || id.BootID != "boot-a" {
		t.Errorf("identity %+v, %v", id, err)
	}
	for _, hello := range []agentlink.Hello{{Node: "n2", BootID: "boot-a"}, {Node: "n1", BootID: "boot-b"}} {
		p := dialPeer(w, &cert)
		p.say(agentlink.KindHello, hello)
		if r := p.refusal(); r.Code != hotspare.CodeJoinRefused {
			t.Errorf("hello of %+v: %+v", hello, r)
		}
	}
	good := dialPeer(w, &cert)
	good.say(agentlink.KindHello, agentlink.Hello{Node: "n1", BootID: "boot-a"})
	if e, err := agentlink.Read(good, agentlink.MaxFrame); err != nil || e.Kind != agentlink.KindWelcome {
		t.Errorf("got %v, %v", e.Kind, err)
	}
	time.Sleep(time.Until(leaf.NotAfter) + 50*time.Millisecond)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(w.ca.PEM())
	late, err := tls.Dial("tcp", w.addr, &tls.Config{RootCAs: roots, ServerName: agentlink.ServerName, Certificates: []tls.Certificate{cert}})
	if err == nil { // TLS 1.3: the client learns of the refusal at its first read
		_ = late.SetDeadline(time.Now().Add(patience))
		_, err = late.Read(make([]byte, 1))
		_ = late.Close()
	}
	if err == nil || !strings.Contains(err.Error(), "expired") {
		t.Errorf("an expired certificate: %v", err)
	}
}

// The appliance's certificate is good from the CA's first moment on, which is
// what a node with a dead battery takes for the present; and the node is told
// the time.
func TestNodeWithADeadClockJoins(t *testing.T) {
	w := newWorld(t, nil)
	block, _ := pem.Decode(w.ca.PEM())
	ca, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca)
	conn, err := tls.Dial("tcp", w.addr, &tls.Config{RootCAs: roots, ServerName: agentlink.ServerName, Time: func() time.Time { return ca.NotBefore }})
	if err != nil {
		t.Fatalf("at the CA's first moment: %v", err)
	}
	_ = conn.Close()
	n := newNode(w, w.token(1), nil)
	w.until("an acknowledged heartbeat", func() bool { _, acks := n.count(); return acks > 0 })
	n.mu.Lock()
	defer n.mu.Unlock()
	if off := time.Since(n.states[0].ServerTime); off < 0 || off > patience {
		t.Errorf("the appliance's clock came as %s", n.states[0].ServerTime)
	}
}

func TestForeignCertificateIsRefused(t *testing.T) {
	w, other := newWorld(t, nil), newWorld(t, nil)
	key, csr := newKey(t)
	cert, first := joinByHand(other, other.token(1), key, csr)
	_ = first.Close()
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(w.ca.PEM())
	conn, err := tls.Dial("tcp", w.addr, &tls.Config{RootCAs: roots, ServerName: agentlink.ServerName, GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		return &cert, nil // also when the server did not ask for its issuer
	}})
	if err == nil {
		_ = conn.SetDeadline(time.Now().Add(patience))
		_, err = conn.Read(make([]byte, 1))
		_ = conn.Close()
	}
	if err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("a foreign certificate: %v", err)
	}
}

// The certificate is renewed over the link, so that a node that lives longer
// than its first one comes back after a cut.
func TestCertificateIsRenewed(t *testing.T) {
	w := newWorld(t, func(o *server.Options) { o.CertLifetime = 5 * time.Second })
	n := newNode(w, w.token(1), nil)
	w.until("the join", func() bool { return len(w.joins) == 1 })
	time.Sleep(6 * time.Second) // the first certificate is over
	n.cut()
	w.until("the return", func() bool { return len(w.joins) == 2 && w.joins[1].Resumed })
}

// The appliance restarts: nodes come back with their certificates, without
// tokens, and what was not acknowledged is said again.
func TestNodeComesBackToARestartedAppliance(t *testing.T) {
	w := newWorld(t, nil)
	n := newNode(w, w.token(1), nil)
	w.until("the join", func() bool { return len(w.joins) == 1 })
	w.stop()
	n.Report(agentlink.Report{App: "orders", Resource: "database", State: agentlink.ResourceFailed, Why: "while away", Conclusive: true})
	w.serve(w.addr, nil)
	w.until("the return and the report", func() bool {
		return len(w.joins) == 2 && w.joins[1].Resumed && len(w.reports) > 0 && w.reports[0].Why == "while away"
	})
	if w.redeemed != 1 {
		t.Errorf("%d redemptions", w.redeemed)
	}
}

func TestOrdersAreAnsweredOnce(t *testing.T) {
	w := newWorld(t, nil)
	release := make(chan struct{})
	var n *node
	n = newNode(w, w.token(1), func(o *client.Options) {
		o.Order = func(_ context.Context, o agentlink.Order) agentlink.Result {
			n.mu.Lock()
			n.orders = append(n.orders, o)
			n.mu.Unlock()
			w.note(func() {})
			if o.ID == "slow" {
				<-release
			}
			return agentlink.Result{OK: true, Why: "done " + o.ID}
		}
	})
	w.until("the join", func() bool { return len(w.joins) == 1 })
	send := func(id string) (agentlink.Result, error) {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		return w.srv.Send(ctx, "n1", "boot-a", agentlink.Order{ID: id, App: "orders", Epoch: 7, Release: &agentlink.Release{}})
	}
	if r, err := send("quick"); err != nil || r.Why != "done quick" {
		t.Fatalf("%+v, %v", r, err)
	}
	if r, err := send("quick"); err != nil || r.Why != "done quick" {
		t.Errorf("the same order again: %+v, %v", r, err)
	}

	// The link breaks while an order is carried out: its result comes over
	// the next one.
	done := make(chan error, 1)
	go func() {
		r, err := send("slow")
		if err == nil && r.Why != "done slow" {
			err = errors.New("wrong result: " + r.Why)
		}
		done <- err
	}()
	w.until("the order", func() bool { orders, _ := n.count(); return orders == 2 })
	n.cut()
	w.until("the return", func() bool { return len(w.joins) == 2 })
	close(release)
	if err := <-done; err != nil {
		t.Error(err)
	}
	if orders, _ := n.count(); orders != 2 {
		t.Errorf("%d orders were carried out, want 2", orders)
	}

	stale := agentlink.Order{ID: "stale", App: "orders", Epoch: 6, Release: &agentlink.Release{}}
	if r, err := w.srv.Send(t.Context(), "n1", "boot-a", stale); err != nil || r.OK || r.Code != hotspare.CodeStaleEpoch {
		t.Errorf("a stale order: %+v, %v", r, err)
	}
	if _, err := w.srv.Send(t.Context(), "n1", "boot-a", agentlink.Order{ID: "x", BootID: "boot-b", App: "orders", Epoch: 7, Release: &agentlink.Release{}}); err == nil {
		t.Error("an order for another boot was sent")
	}
}

func TestSendToNobodyFails(t *testing.T) {
	w := newWorld(t, func(o *server.Options) { o.ReconnectGrace = 50 * time.Millisecond })
	_, err := w.srv.Send(t.Context(), "n1", "boot-a", agentlink.Order{ID: "1", Power: &agentlink.Power{Action: agentlink.PowerOff}})
	if hotspare.CodeOf(err) != hotspare.CodeUnavailable {
		t.Errorf("got %v", err)
	}
}

// A node that stops talking is gone after the idle time; a link that is
// replaced by a newer one of the same boot is not.
func TestGoneMeansGone(t *testing.T) {
	w := newWorld(t, func(o *server.Options) { o.IdleTimeout = 200 * time.Millisecond })
	key, csr := newKey(t)
	cert, silent := joinByHand(w, w.token(1), key, csr)
	w.until("the end of the silent node", func() bool { return len(w.gone) == 1 })
	_ = silent.Close()

	again := func() *peer {
		p := dialPeer(w, &cert)
		p.say(agentlink.KindHello, agentlink.Hello{Node: "n1", BootID: "boot-a"})
		if e, err := agentlink.Read(p, agentlink.MaxFrame); err != nil || e.Kind != agentlink.KindWelcome {
			t.Fatalf("%v, %v", e.Kind, err)
		}
		return p
	}
	old := again()
	w.until("the return", func() bool { return len(w.joins) == 2 })
	again()
	if _, err := agentlink.Read(old, agentlink.MaxFrame); err == nil {
		t.Error("the old link is not closed")
	}
	w.until("the end of the newer link", func() bool { return len(w.gone) == 2 })
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.joins) != 3 {
		t.Errorf("%d joins, want 3", len(w.joins))
	}
}

func TestCAIsKeptAndNeverReplaced(t *testing.T) {
	dir := t.TempDir()
	first, err := server.EnsureCA(dir)
	if err != nil {
		t.Fatal(err)
	}
	second, err := server.EnsureCA(dir)
	if err != nil || first.Fingerprint() != second.Fingerprint() {
		t.Errorf("the CA changed: %v", err)
	}
	st, err := os.Stat(filepath.Join(dir, "agent-ca.key"))
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("the key's mode is %v, %v", st.Mode(), err)
	}
	other, err := server.EnsureCA(t.TempDir())
	if err != nil || other.Fingerprint() == first.Fingerprint() {
		t.Errorf("two installations share a CA: %v", err)
	}
	if err := os.Remove(filepath.Join(dir, "agent-ca.key")); err != nil {
		t.Fatal(err)
	}
	if _, err := server.EnsureCA(dir); err == nil {
		t.Error("a certificate without its key was replaced by a new CA")
	}
}
