package initiator

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"hotspare"
	"hotspare/storage/iscsi"
)

// model is a correct target behind an exchanger. spoil may change each of its
// answers before it is sent; n counts them from 0.
type model struct {
	t       *testing.T
	user    string
	secret  hotspare.Secret
	prove   hotspare.Secret // for mutual CHAP
	answers iscsi.Pairs     // of the operational stage, with questions of its own
	hasty   bool            // leaves the stage without waiting for ours
	spoil   func(n int, r *iscsi.LoginResponse, h *iscsi.Header, text *iscsi.Pairs)

	n         int
	challenge iscsi.Challenge
	requests  []iscsi.LoginRequest
	texts     []iscsi.Pairs
}

func (m *model) exchange(_ context.Context, p *iscsi.PDU) (*iscsi.PDU, error) {
	q := iscsi.ParseLoginRequest(&p.Header)
	text, err := iscsi.ParseText(p.Data)
	if err != nil {
		m.t.Fatalf("request %d: %v", m.n, err)
	}
	m.requests, m.texts = append(m.requests, q), append(m.texts, text)
	r := iscsi.LoginResponse{Transit: q.Transit, Current: q.Current, Next: q.Next, ISID: q.ISID, StatSN: 100 + uint32(m.n)}
	var out iscsi.Pairs
	switch {
	case q.Current == iscsi.StageOperational:
		out = m.answers
		m.answers = nil
		if r.Transit = out == nil || m.hasty; r.Transit {
			r.TSIH = 77
		}
	default:
		r.Status = m.security(text, &out)
	}
	h := r.Header()
	if m.spoil != nil {
		m.spoil(m.n, &r, &h, &out)
		if op := h.Opcode(); op == iscsi.OpLoginResponse {
			h = r.Header()
		}
	}
	m.n++
	return &iscsi.PDU{Header: h, Data: out.Encode()}, nil
}

func (m *model) security(text iscsi.Pairs, out *iscsi.Pairs) iscsi.LoginStatus {
	if a, ok := text.Get("AuthMethod"); ok {
		out.Add("TargetPortalGroupTag", "3")
		out.Add("AuthMethod", a)
		return iscsi.LoginSuccess
	}
	if _, ok := text.Get("CHAP_A"); ok {
		m.challenge, _ = iscsi.NewChallenge()
		out.Add("CHAP_A", "5")
		m.challenge.Add(out)
		return iscsi.LoginSuccess
	}
	response, ok := text.Get("CHAP_R")
	if !ok {
		return iscsi.LoginSuccess
	}
	if name, _ := text.Get("CHAP_N"); name != m.user || !m.challenge.Verify(m.secret, response) {
		return iscsi.LoginAuthFailure
	}
	if theirs, err := iscsi.ParseChallenge(text); err == nil {
		if err := theirs.Answer(out, "appliance", m.prove, nil, hotspare.Secret{}); err != nil {
			m.t.Fatal(err)
		}
	}
	return iscsi.LoginSuccess
}

var (
	nodeSecret   = hotspare.NewSecret("secret of the node")
	targetSecret = hotspare.NewSecret("secret of the target")
)

func someTarget() Target {
	return Target{
		Portal: netip.MustParseAddrPort("10.77.0.1:3260"), IQN: "iqn.2026-11.io.hotspare:x:y",
		InitiatorName: "iqn.2026-11.io.hotspare:node", User: "node", Secret: nodeSecret,
	}.withDefaults()
}

func someModel(t *testing.T) *model {
	return &model{t: t, user: "node", secret: nodeSecret, prove: targetSecret, answers: iscsi.Pairs{
		{Key: "HeaderDigest", Value: "None"}, {Key: "DataDigest", Value: "None"},
		{Key: "MaxRecvDataSegmentLength", Value: "65536"}, {Key: "InitialR2T", Value: "No"},
		{Key: "ImmediateData", Value: "Yes"}, {Key: "MaxBurstLength", Value: "262144"},
		{Key: "FirstBurstLength", Value: "65536"}, {Key: "MaxOutstandingR2T", Value: "1"},
		{Key: "ErrorRecoveryLevel", Value: "0"}, {Key: "IFMarker", Value: "Yes"}, {Key: "X-com.example.k", Value: "1"},
	}}
}

// TestLoginStory is one log-in with CHAP from the first request to the last.
func TestLoginStory(t *testing.T) {
	m, target := someModel(t), someTarget()
	n, err := logIn(context.Background(), m, &target)
	if err != nil {
		t.Fatal(err)
	}
	var story []string
	for i, q := range m.requests {
		line := "stage " + string('0'+byte(q.Current))
		if q.Transit {
			line += " to " + string('0'+byte(q.Next))
		}
		for _, p := range m.texts[i] {
			line += " " + p.Key
		}
		story = append(story, line)
		if q.TSIH != 0 || q.ISID != target.isid() || q.ISID[0] != 0x80 {
			t.Errorf("request %d: TSIH %d, ISID %x", i, q.TSIH, q.ISID)
		}
		if i > 0 && q.ExpStatSN != 100+uint32(i) {
			t.Errorf("request %d acknowledges %d", i, q.ExpStatSN)
		}
	}
	want := []string{
		"stage 0 InitiatorName TargetName SessionType AuthMethod",
		"stage 0 CHAP_A",
		"stage 0 to 1 CHAP_N CHAP_R",
		"stage 1 to 3 HeaderDigest DataDigest MaxRecvDataSegmentLength InitialR2T ImmediateData MaxBurstLength" +
			" FirstBurstLength MaxOutstandingR2T MaxConnections ErrorRecoveryLevel DefaultTime2Wait" +
			" DefaultTime2Retain DataPDUInOrder DataSequenceInOrder",
		"stage 1 to 3 IFMarker X-com.example.k",
	}
	if strings.Join(story, "\n") != strings.Join(want, "\n") {
		t.Fatalf("got\n%s\nwant\n%s", strings.Join(story, "\n"), strings.Join(want, "\n"))
	}
	if n.maxXmit != 65536 || n.maxRecv != 262144 || n.maxBurst != 262144 || n.firstBurst != 65536 || n.initialR2T || !n.immediateData || n.portalGroup != 3 || n.expStatSN != 105 {
		t.Fatalf("negotiated %+v", n)
	}
}

// TestMutualCHAP: a target that cannot prove itself is refused, whatever it
// does instead.
func TestMutualCHAP(t *testing.T) {
	for _, c := range []struct {
		name    string
		prepare func(*Target, *model)
		ok      bool
	}{
		{"proves itself", func(*Target, *model) {}, true},
		{"another secret", func(_ *Target, m *model) { m.prove = hotspare.NewSecret("another secret") }, false},
		{"another name", func(x *Target, _ *model) { x.TargetUser = "somebody" }, false},
		{"says nothing", func(_ *Target, m *model) {
			m.spoil = func(n int, _ *iscsi.LoginResponse, _ *iscsi.Header, text *iscsi.Pairs) {
				if n == 2 {
					*text = nil
				}
			}
		}, false},
		{"wants no authentication", func(_ *Target, m *model) {
			m.spoil = func(n int, _ *iscsi.LoginResponse, _ *iscsi.Header, text *iscsi.Pairs) {
				if n == 0 {
					*text = iscsi.Pairs{{Key: "AuthMethod", Value: "None"}}
				}
			}
		}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			m, target := someModel(t), someTarget()
			target.TargetSecret = targetSecret
			c.prepare(&target, m)
			_, err := logIn(context.Background(), m, &target)
			if c.ok != (err == nil) || !c.ok && !errors.Is(err, errTarget) {
				t.Fatalf("got %v", err)
			}
			if !c.ok && (!isRefusal(err) || hotspare.CodeOf(loginError(&target, err)) != hotspare.CodeLoginRefused) {
				t.Fatalf("not told as a refusal: %v", loginError(&target, err))
			}
		})
	}
}

// TestStatuses: what the target says in a status decides how it goes on.
func TestStatuses(t *testing.T) {
	for _, c := range []struct {
		status iscsi.LoginStatus
		final  bool
		code   hotspare.Code
		words  string
	}{
		{iscsi.LoginAuthFailure, true, hotspare.CodeLoginRefused, "authentication failure (status 0x0201)"},
		{iscsi.LoginForbidden, true, hotspare.CodeLoginRefused, "authorization failure (status 0x0202)"},
		{iscsi.LoginNotFound, true, hotspare.CodeLoginRefused, "not found (status 0x0203)"},
		{iscsi.LoginTargetRemoved, true, hotspare.CodeLoginRefused, "0x0204"},
		{iscsi.LoginTooManyConnections, false, hotspare.CodeNoSession, "0x0206"},
		{iscsi.LoginTargetError, false, hotspare.CodeNoSession, "0x0300"},
		{iscsi.LoginUnavailable, false, hotspare.CodeNoSession, "service unavailable"},
		{0x0101, true, hotspare.CodeLoginRefused, `moved to "10.9.9.9:3260,1"`},
	} {
		m, target := someModel(t), someTarget()
		m.spoil = func(_ int, r *iscsi.LoginResponse, _ *iscsi.Header, text *iscsi.Pairs) {
			*r = iscsi.LoginResponse{Status: c.status}
			*text = nil
			if c.status>>8 == 1 {
				*text = iscsi.Pairs{{Key: "TargetAddress", Value: "10.9.9.9:3260,1"}}
			}
		}
		_, err := logIn(context.Background(), m, &target)
		told := loginError(&target, err)
		if isRefusal(err) != c.final || hotspare.CodeOf(told) != c.code || !strings.Contains(told.Error(), c.words) {
			t.Errorf("%#04x: %v", uint16(c.status), told)
		}
		if strings.Contains(told.Error(), nodeSecret.Reveal()) {
			t.Errorf("%#04x: the error shows the secret", uint16(c.status))
		}
	}
}

// TestHostileTarget: answers that break the protocol end the log-in.
func TestHostileTarget(t *testing.T) {
	type spoil = func(n int, r *iscsi.LoginResponse, h *iscsi.Header, text *iscsi.Pairs)
	at := func(when int, f func(r *iscsi.LoginResponse, text *iscsi.Pairs)) spoil {
		return func(n int, r *iscsi.LoginResponse, _ *iscsi.Header, text *iscsi.Pairs) {
			if n == when {
				f(r, text)
			}
		}
	}
	set := func(key, value string) spoil {
		return at(3, func(_ *iscsi.LoginResponse, text *iscsi.Pairs) {
			for i := range *text {
				if (*text)[i].Key == key {
					(*text)[i].Value = value
					return
				}
			}
			text.Add(key, value)
		})
	}
	for name, s := range map[string]spoil{
		"another opcode": func(_ int, _ *iscsi.LoginResponse, h *iscsi.Header, _ *iscsi.Pairs) {
			h.SetOpcode(iscsi.OpNopIn, false)
		},
		"another version": at(0, func(r *iscsi.LoginResponse, _ *iscsi.Pairs) { r.VersionActive = 1 }),
		"another stage":   at(1, func(r *iscsi.LoginResponse, _ *iscsi.Pairs) { r.Current = iscsi.StageOperational }),
		"skips CHAP":      at(0, func(r *iscsi.LoginResponse, _ *iscsi.Pairs) { r.Transit, r.Next = true, iscsi.StageOperational }),
		"skips a stage":   at(2, func(r *iscsi.LoginResponse, _ *iscsi.Pairs) { r.Next = iscsi.StageFullFeature }),
		"StatSN jumps":    at(2, func(r *iscsi.LoginResponse, _ *iscsi.Pairs) { r.StatSN += 7 }),
		"no handle":       at(3, func(r *iscsi.LoginResponse, _ *iscsi.Pairs) { r.TSIH = 0 }),
		"never agrees":    func(_ int, r *iscsi.LoginResponse, _ *iscsi.Header, _ *iscsi.Pairs) { r.Transit = false },
		"endless text": func(_ int, r *iscsi.LoginResponse, _ *iscsi.Header, _ *iscsi.Pairs) {
			r.Transit, r.Continue = false, true
		},
		"another CHAP":     at(1, func(_ *iscsi.LoginResponse, text *iscsi.Pairs) { (*text)[0].Value = "7" }),
		"no challenge":     at(1, func(_ *iscsi.LoginResponse, text *iscsi.Pairs) { *text = (*text)[:1] }),
		"digest unasked":   set("HeaderDigest", "CRC32C"),
		"digest unknown":   set("DataDigest", "CRC64"),
		"burst raised":     set("MaxBurstLength", "16777215"),
		"burst negative":   set("FirstBurstLength", "-1"),
		"segment tiny":     set("MaxRecvDataSegmentLength", "1"),
		"two R2Ts":         set("MaxOutstandingR2T", "8"),
		"recovery level 2": set("ErrorRecoveryLevel", "2"),
		"out of order":     set("DataPDUInOrder", "No"),
		"negotiates twice": func(n int, r *iscsi.LoginResponse, _ *iscsi.Header, text *iscsi.Pairs) {
			if n == 3 {
				r.Transit = false
			} else if n == 4 {
				text.Add("ImmediateData", "Yes")
			}
		},
		"neither yes": set("InitialR2T", "Maybe"),
	} {
		t.Run(name, func(t *testing.T) {
			m, target := someModel(t), someTarget()
			m.spoil, m.hasty = s, true
			_, err := logIn(context.Background(), m, &target)
			if err == nil {
				t.Fatal("the log-in succeeded")
			}
			if !errors.Is(err, errProtocol) && !errors.Is(err, errTarget) {
				t.Fatalf("got %v", err)
			}
		})
	}
}

// TestCheckedTarget: claims that cannot be right never reach the network.
func TestCheckedTarget(t *testing.T) {
	for name, spoil := range map[string]func(*Target){
		"no portal":           func(x *Target) { x.Portal = netip.AddrPort{} },
		"no port":             func(x *Target) { x.Portal = netip.MustParseAddrPort("10.0.0.1:0") },
		"no name":             func(x *Target) { x.IQN = "" },
		"name with a space":   func(x *Target) { x.IQN = "iqn.2026-11.io a" },
		"name with a NUL":     func(x *Target) { x.InitiatorName = "iqn.2026-11.io\x00AuthMethod=None" },
		"long name":           func(x *Target) { x.IQN = "iqn." + strings.Repeat("a", 220) },
		"secret without user": func(x *Target) { x.User = "" },
		"mutual alone":        func(x *Target) { x.Secret, x.TargetSecret = hotspare.Secret{}, targetSecret },
		"equal secrets":       func(x *Target) { x.TargetSecret = nodeSecret },
		"user with a NUL":     func(x *Target) { x.User = "a\x00b" },
		"large unit":          func(x *Target) { x.LUN = 1 << 14 },
		"negative time":       func(x *Target) { x.IdleTime = -1 },
	} {
		x := someTarget()
		if err := x.validate(); err != nil {
			t.Fatal(err)
		}
		spoil(&x)
		if err := x.validate(); hotspare.CodeOf(err) != hotspare.CodeInvalid {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

// TestISID: constant for a grant, different for another grant or portal.
func TestISID(t *testing.T) {
	a, b, c := someTarget(), someTarget(), someTarget()
	b.InitiatorName += "2"
	c.Portal = netip.MustParseAddrPort("10.77.0.2:3260")
	if x := someTarget(); a.isid() != x.isid() || a.isid() == b.isid() || a.isid() == c.isid() {
		t.Fatalf("%x %x %x", a.isid(), b.isid(), c.isid())
	}
}

// fuzzed feeds bytes as answers.
type fuzzed struct{ rest []byte }

func (f *fuzzed) exchange(context.Context, *iscsi.PDU) (*iscsi.PDU, error) {
	p := &iscsi.PDU{}
	if len(f.rest) < len(p.Header)+1 {
		return nil, errors.New("no more answers")
	}
	n := copy(p.Header[:], f.rest)
	size := min(int(f.rest[n])*4, len(f.rest)-n-1)
	p.Data, f.rest = f.rest[n+1:n+1+size], f.rest[n+1+size:]
	return p, nil
}

// FuzzLogin: no sequence of answers panics, hangs, or leads past a mutual CHAP
// that was not proven; what is negotiated stays inside what was offered.
func FuzzLogin(f *testing.F) {
	h := iscsi.LoginResponse{Transit: true, Next: iscsi.StageOperational, TSIH: 1}.Header()
	f.Add(append(h[:], "\x05AuthMethod=None\x00\x00\x00\x00\x00"...), false)
	f.Fuzz(func(t *testing.T, b []byte, chap bool) {
		target := someTarget()
		if target.TargetSecret = targetSecret; !chap {
			target.Secret, target.TargetSecret = hotspare.Secret{}, hotspare.Secret{}
		}
		n, err := logIn(context.Background(), &fuzzed{b}, &target)
		if err != nil {
			return
		}
		if chap {
			t.Fatal("logged in to a target that proved nothing")
		}
		if n.firstBurst > n.maxBurst || n.maxBurst > offerMaxBurst || n.maxXmit < 512 || n.headerDigest {
			t.Fatalf("negotiated %+v", n)
		}
	})
}
