package iscsi

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"hotspare"
	"hotspare/storage"
)

// login is the state of one log-in (RFC 7143, 6.3 and 12).
type login struct {
	c       *conn
	asked   string // the target that was asked for
	first   bool   // no request was answered yet
	stage   Stage
	text    []byte // of requests with the continue bit
	req     LoginRequest
	export  storage.Export
	secured bool // the security stage is behind us, or was not needed

	chapOffered bool
	challenge   *Challenge
	declared    bool // our own parameters were sent
}

// refusal ends a log-in with a status.
type refusal struct {
	status LoginStatus
	err    error
}

func (r *refusal) Error() string { return r.status.String() + ": " + r.err.Error() }
func (r *refusal) Unwrap() error { return r.err }

func refuse(status LoginStatus, format string, a ...any) error {
	return &refusal{status, fmt.Errorf(format, a...)}
}

// login brings the connection to the full feature phase, or answers why not.
func (c *conn) login(ctx context.Context) (err error) {
	end, err := c.t.beginLogin(c)
	if err != nil {
		return err
	}
	l, began := &login{c: c, first: true}, time.Now()
	defer func() {
		c.eager.resting = false
		end()
		if tell := c.t.opts.Asked; tell != nil && l.asked != "" {
			tell(LoginAsked{Initiator: c.nexus.initiator, Target: l.asked, Address: c.nc.RemoteAddr().String(), Began: began}, err)
		}
	}()
	deadline := time.Now().Add(c.t.opts.LoginTimeout)
	ctx, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	if err := c.nc.SetDeadline(deadline); err != nil {
		return err
	}
	for {
		done, err := l.step(ctx)
		if r := (*refusal)(nil); errors.As(err, &r) {
			if werr := l.respond(r.status, false, l.stage, nil); werr != nil {
				return errors.Join(err, werr)
			}
			return err
		}
		if err != nil {
			return err
		}
		if done && c.discovery {
			return c.nc.SetDeadline(time.Now().Add(c.t.opts.DiscoveryTimeout))
		}
		if done {
			return c.nc.SetDeadline(time.Time{})
		}
	}
}

// step reads one request and answers it; done means full feature phase.
func (l *login) step(ctx context.Context) (done bool, err error) {
	p, err := ReadPDU(l.c.r, Digests{}, maxLoginText)
	if err != nil {
		return false, err
	}
	if p.Header.Opcode() != OpLoginRequest {
		return false, refuse(LoginInvalidRequest, "iscsi: opcode %#x during log-in", p.Header.Opcode())
	}
	req := ParseLoginRequest(&p.Header)
	if err := l.accept(req); err != nil {
		return false, err
	}
	if len(l.text)+len(p.Data) > maxLoginText {
		return false, refuse(LoginOutOfResources, "iscsi: log-in text above %d bytes", maxLoginText)
	}
	l.text = append(l.text, p.Data...)
	if req.Continue {
		return false, l.respond(LoginSuccess, false, l.stage, nil)
	}
	pairs, err := ParseText(l.text)
	l.text = nil
	if err != nil {
		return false, &refusal{LoginInitiatorError, err}
	}
	return l.answer(ctx, pairs)
}

// accept checks the header of a request against those before.
func (l *login) accept(req LoginRequest) error {
	defer func() { l.req = req }()
	if l.first {
		l.stage = req.Current
		l.c.cmdSN = req.CmdSN
		l.c.statSN = req.ExpStatSN
		l.c.cid = req.CID
		if req.VersionMin > 0 {
			return refuse(LoginUnsupportedVersion, "iscsi: version %d", req.VersionMin)
		}
		if req.TSIH != 0 {
			if l.c.t.knows(req.TSIH) {
				return refuse(LoginTooManyConnections, "iscsi: a second connection for session %d", req.TSIH)
			}
			return refuse(LoginNoSession, "iscsi: no session %d", req.TSIH)
		}
	} else if req.ISID != l.req.ISID || req.CID != l.req.CID || req.TaskTag != l.req.TaskTag {
		return refuse(LoginInitiatorError, "iscsi: ISID, CID or task tag changed during log-in")
	}
	switch {
	case req.Current != l.stage:
		return refuse(LoginInitiatorError, "iscsi: stage %d, not %d", req.Current, l.stage)
	case req.Current != StageSecurity && req.Current != StageOperational:
		return refuse(LoginInitiatorError, "iscsi: stage %d", req.Current)
	case req.Transit && (req.Continue || req.Next <= req.Current || req.Next == 2):
		return refuse(LoginInitiatorError, "iscsi: transit from stage %d to %d", req.Current, req.Next)
	}
	return nil
}

// answer does what the text of a whole request asks.
func (l *login) answer(ctx context.Context, pairs Pairs) (done bool, err error) {
	var reply Pairs
	if l.first {
		if err := l.identify(pairs); err != nil {
			return false, err
		}
		if !l.c.discovery {
			reply.Add("TargetPortalGroupTag", portalGroup)
		}
	}
	transit := l.req.Transit
	if l.stage == StageSecurity {
		ready, err := l.security(pairs, &reply)
		if err != nil {
			return false, err
		}
		transit = transit && ready
		l.secured = ready
	} else if err := l.operational(pairs, &reply); err != nil {
		return false, err
	}
	l.first = false
	if !transit {
		return false, l.respond(LoginSuccess, false, l.stage, reply)
	}
	next := l.req.Next
	if next == StageOperational {
		err := l.respond(LoginSuccess, true, next, reply)
		l.stage = next
		return false, err
	}
	if err := l.open(ctx); err != nil {
		return false, err
	}
	return true, l.respond(LoginSuccess, true, next, reply)
}

// identify takes the keys that the first request must have.
func (l *login) identify(pairs Pairs) error {
	name, ok := pairs.Get("InitiatorName")
	if !ok || name == "" || len(name) > 223 {
		return refuse(LoginMissingParameter, "iscsi: no InitiatorName")
	}
	l.c.nexus.initiator, l.c.nexus.isid = name, l.req.ISID
	switch kind, _ := pairs.Get("SessionType"); kind {
	case "Discovery":
		// Only names are to be had here, and only those of the initiator's own
		// grants.
		l.c.discovery, l.secured = true, true
		return nil
	case "", "Normal":
	default:
		return refuse(LoginSessionType, "iscsi: session type %.40q", kind)
	}
	target, ok := pairs.Get("TargetName")
	if !ok {
		return refuse(LoginMissingParameter, "iscsi: no TargetName")
	}
	l.asked = target
	export, err := l.c.t.opts.Directory.Find(name, target)
	if err != nil {
		return &refusal{LoginNotFound, err}
	}
	l.export, l.c.nexus.target = export, target
	l.secured = export.User == ""
	if l.stage == StageOperational && !l.secured {
		return l.unauthenticated("it skipped the security stage")
	}
	return nil
}

func (l *login) unauthenticated(why string) error {
	return &refusal{LoginAuthFailure, &hotspare.Error{Code: hotspare.CodeLoginRefused, What: "a log-in is refused",
		Where: fmt.Sprintf("initiator %.223s, target %.223s", l.c.nexus.initiator, l.c.nexus.target), Why: why,
		Fix: "log in with the user and secret of the current grant"}}
}

// security does one step of authentication; ready means that none is left.
func (l *login) security(pairs Pairs, reply *Pairs) (ready bool, err error) {
	need := !l.c.discovery && l.export.User != ""
	if methods, ok := pairs.Get("AuthMethod"); ok {
		offered := strings.Split(methods, ",")
		switch {
		case need && slices.Contains(offered, "CHAP"):
			l.chapOffered = true
			reply.Add("AuthMethod", "CHAP")
		case !need && slices.Contains(offered, "None"):
			reply.Add("AuthMethod", "None")
			return true, nil
		case need:
			return false, l.unauthenticated("it does not offer CHAP")
		default:
			reply.Add("AuthMethod", reject)
			return false, l.unauthenticated("it wants an authentication that this target does not have")
		}
		if _, more := pairs.Get("CHAP_A"); !more {
			return false, nil
		}
	}
	if !need {
		return true, nil
	}
	if l.secured {
		return true, nil
	}
	if algorithms, ok := pairs.Get("CHAP_A"); ok {
		return false, l.challengePeer(algorithms, reply)
	}
	if _, ok := pairs.Get("CHAP_R"); ok {
		return true, l.verify(pairs, reply)
	}
	if l.req.Transit {
		return false, l.unauthenticated("it did not authenticate")
	}
	return false, nil
}

func (l *login) challengePeer(algorithms string, reply *Pairs) error {
	if !l.chapOffered || l.challenge != nil {
		return l.unauthenticated("CHAP out of order")
	}
	if !slices.Contains(strings.Split(algorithms, ","), CHAPAlgorithmMD5) {
		return l.unauthenticated("no common CHAP algorithm")
	}
	ch, err := NewChallenge()
	if err != nil {
		return &refusal{LoginTargetError, err}
	}
	l.challenge = &ch
	reply.Add("CHAP_A", CHAPAlgorithmMD5)
	ch.Add(reply)
	return nil
}

// verify checks the initiator's answer, and answers its own challenge if it has
// one. A challenge of ours is good for one try.
func (l *login) verify(pairs Pairs, reply *Pairs) error {
	ch := l.challenge
	if ch == nil {
		return l.unauthenticated("CHAP out of order")
	}
	user, _ := pairs.Get("CHAP_N")
	response, _ := pairs.Get("CHAP_R")
	// Both are looked at, so that the time tells nothing about the user.
	goodSecret := ch.Verify(l.export.Secret, response)
	if user != l.export.User || !goodSecret {
		return l.unauthenticated("wrong user or secret")
	}
	if _, ok := pairs.Get("CHAP_C"); ok {
		theirs, err := ParseChallenge(pairs)
		if err != nil {
			return l.unauthenticated(err.Error())
		}
		if l.export.MutualSecret.IsZero() {
			return l.unauthenticated("it asks the target to authenticate, and the grant has no secret for that")
		}
		if err := theirs.Answer(reply, l.export.MutualUser, l.export.MutualSecret, ch, l.export.Secret); err != nil {
			return l.unauthenticated(err.Error())
		}
	}
	l.challenge = nil
	return nil
}

// operational negotiates the session's parameters.
func (l *login) operational(pairs Pairs, reply *Pairs) error {
	if !l.secured {
		return l.unauthenticated("it did not authenticate")
	}
	p := &l.c.params
	for _, kv := range pairs {
		switch kv.Key {
		case "InitiatorName", "InitiatorAlias", "TargetName", "SessionType", "AuthMethod":
			continue
		}
		if kv.Value == notUnderstood || kv.Value == reject || kv.Value == "Irrelevant" {
			continue
		}
		answer, err := p.negotiate(kv.Key, kv.Value)
		if err != nil {
			return &refusal{LoginInitiatorError, err}
		}
		if answer != "" {
			reply.Add(kv.Key, answer)
		}
	}
	if !l.declared {
		l.declared = true
		reply.Add("MaxRecvDataSegmentLength", strconv.Itoa(maxRecvSegment))
	}
	p.firstBurst = min(p.firstBurst, p.maxBurst)
	return nil
}

// open makes the session.
func (l *login) open(ctx context.Context) error {
	if !l.secured {
		return l.unauthenticated("it did not authenticate")
	}
	c := l.c
	if err := c.t.register(ctx, c); err != nil {
		return &refusal{LoginOutOfResources, err}
	}
	if c.discovery {
		return nil
	}
	a, err := c.t.opts.Directory.Attach(ctx, storage.Login{
		Export: l.export, Initiator: c.nexus.initiator, Address: c.nc.RemoteAddr().String(), Cut: c.revoked,
	})
	if err != nil {
		if hotspare.CodeOf(err) == hotspare.CodeLoginRefused {
			return &refusal{LoginForbidden, err}
		}
		return &refusal{LoginUnavailable, err}
	}
	lu, err := newLU(c.t.unit(l.export), a, c)
	if err != nil {
		a.End()
		return &refusal{LoginUnavailable, err}
	}
	c.lu = lu
	return nil
}

// respond sends a log-in response. Text longer than one segment cannot occur:
// all of ours together is below 8192 bytes, the least an initiator accepts.
func (l *login) respond(status LoginStatus, transit bool, next Stage, text Pairs) error {
	c := l.c
	h := LoginResponse{
		Transit: transit, Current: l.stage, VersionMax: 0, VersionActive: 0, ISID: l.req.ISID,
		TaskTag: l.req.TaskTag, StatSN: c.statSN, ExpCmdSN: c.cmdSN, MaxCmdSN: c.cmdSN + commandWindow - 1, Status: status,
	}
	if transit {
		h.Next = next
		if next == StageFullFeature {
			h.TSIH = c.tsih
		}
	}
	if status == LoginSuccess {
		c.statSN++
	}
	p := &PDU{Header: h.Header(), Data: text.Encode()}
	if err := WritePDU(c.nc, p, Digests{}); err != nil {
		return fmt.Errorf("iscsi: log-in response: %w", err)
	}
	return nil
}
