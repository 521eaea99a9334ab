package initiator

import (
	"context"
	"errors"
	"fmt"

	"hotspare"
	"hotspare/storage/iscsi"
)

// exchanger sends one log-in request and gives the answer. The kernel is one;
// a plain TCP connection is another.
type exchanger interface {
	exchange(context.Context, *iscsi.PDU) (*iscsi.PDU, error)
}

// Bounds on what a target may make us do during log-in.
const (
	maxRounds    = 16       // exchanges in one stage
	maxLoginText = 64 << 10 // bytes of text in one answer
)

// RefusedError is the target's own refusal of a log-in.
type RefusedError struct {
	Status  iscsi.LoginStatus
	Address string // where a redirection pointed to
}

// Error gives the status in words, and its number.
func (e *RefusedError) Error() string {
	if e.Status>>8 == 1 {
		return fmt.Sprintf("the target has moved to %.60q (status %#04x), redirections are not followed", e.Address, uint16(e.Status))
	}
	return fmt.Sprintf("%s (status %#04x)", e.Status, uint16(e.Status))
}

// final says whether the answer stays the same until somebody changes the
// target: class 2 (the initiator's fault) without the codes that pass by
// themselves.
func (e *RefusedError) final() bool {
	return e.Status>>8 == 1 || e.Status>>8 == 2 && e.Status != iscsi.LoginTooManyConnections
}

// errProtocol is wrapped by every answer that breaks the standard.
var errProtocol = errors.New("log-in answer breaks the protocol")

// errTarget is wrapped when the target failed to prove itself.
var errTarget = errors.New("the target did not authenticate itself")

// login is one log-in under way.
type login struct {
	target *Target
	x      exchanger

	stage   iscsi.Stage
	statSN  uint32 // ExpStatSN to send
	started bool   // statSN is known
	tsih    uint16
	result  negotiated
}

// logIn runs the log-in phase of a new session or of one to be reinstated
// (RFC 7143, section 6.3): TSIH 0 and the session's constant ISID.
func logIn(ctx context.Context, x exchanger, t *Target) (negotiated, error) {
	l := &login{target: t, x: x, result: offer(t.Digests)}
	if err := l.security(ctx); err != nil {
		return negotiated{}, err
	}
	if err := l.operational(ctx); err != nil {
		return negotiated{}, err
	}
	if l.tsih == 0 {
		return negotiated{}, fmt.Errorf("%w: no session handle", errProtocol)
	}
	l.result.expStatSN = l.statSN
	return l.result, nil
}

// security is the first stage: names, and CHAP when there is a secret.
func (l *login) security(ctx context.Context) error {
	l.stage = iscsi.StageSecurity
	var ask iscsi.Pairs
	ask.Add("InitiatorName", l.target.InitiatorName)
	ask.Add("TargetName", l.target.IQN)
	ask.Add("SessionType", "Normal")
	if l.target.Secret.IsZero() {
		ask.Add("AuthMethod", "None")
		return l.finishStage(ctx, ask, iscsi.StageOperational, l.noAuthentication)
	}
	ask.Add("AuthMethod", "CHAP")
	answer, err := l.ask(ctx, ask, false, iscsi.StageOperational)
	if err != nil {
		return err
	}
	if m, _ := answer.Get("AuthMethod"); m != "CHAP" {
		return fmt.Errorf("%w: it answers AuthMethod=%.20q to CHAP", errTarget, m)
	}
	if err := l.portalGroup(answer); err != nil {
		return err
	}
	return l.chap(ctx)
}

// noAuthentication checks the answer to AuthMethod=None.
func (l *login) noAuthentication(answer iscsi.Pairs) (iscsi.Pairs, error) {
	if m, ok := answer.Get("AuthMethod"); ok && m != "None" {
		return nil, fmt.Errorf("%w: AuthMethod=%.20q was not offered", errProtocol, m)
	}
	return nil, l.portalGroup(answer)
}

// chap answers the target's challenge and, with a target secret, poses one
// (RFC 7143, section 12.1.3).
func (l *login) chap(ctx context.Context) error {
	ask := iscsi.Pairs{{Key: "CHAP_A", Value: iscsi.CHAPAlgorithmMD5}}
	answer, err := l.ask(ctx, ask, false, iscsi.StageOperational)
	if err != nil {
		return err
	}
	if a, _ := answer.Get("CHAP_A"); a != iscsi.CHAPAlgorithmMD5 {
		return fmt.Errorf("%w: CHAP_A=%.20q was not offered", errProtocol, a)
	}
	theirs, err := iscsi.ParseChallenge(answer)
	if err != nil {
		return fmt.Errorf("%w: %w", errProtocol, err)
	}
	var ours *iscsi.Challenge
	if !l.target.TargetSecret.IsZero() {
		c, err := iscsi.NewChallenge()
		if err != nil {
			return err
		}
		ours = &c
	}
	ask = nil
	if err := theirs.Answer(&ask, l.target.User, l.target.Secret, ours, l.target.TargetSecret); err != nil {
		return fmt.Errorf("%w: %w", errTarget, err)
	}
	if ours == nil {
		return l.finishStage(ctx, ask, iscsi.StageOperational, nil)
	}
	ours.Add(&ask)
	proven := false
	err = l.finishStage(ctx, ask, iscsi.StageOperational, func(answer iscsi.Pairs) (iscsi.Pairs, error) {
		if len(answer) > 0 && !proven {
			proven = l.proof(ours, answer)
		}
		return nil, nil
	})
	if err == nil && !proven {
		return errTarget
	}
	return err
}

// proof says whether the target's answer proves that it knows its secret.
func (l *login) proof(ours *iscsi.Challenge, answer iscsi.Pairs) bool {
	name, _ := answer.Get("CHAP_N")
	response, _ := answer.Get("CHAP_R")
	if l.target.TargetUser != "" && name != l.target.TargetUser {
		return false
	}
	return ours.Verify(l.target.TargetSecret, response)
}

// operational is the second stage: the parameters.
func (l *login) operational(ctx context.Context) error {
	l.stage = iscsi.StageOperational
	return l.finishStage(ctx, l.result.offers(), iscsi.StageFullFeature, func(answer iscsi.Pairs) (iscsi.Pairs, error) {
		if err := l.portalGroup(answer); err != nil {
			return nil, err
		}
		return l.result.take(answer)
	})
}

// portalGroup notes TargetPortalGroupTag, which comes with the first answer
// that names the target.
func (l *login) portalGroup(answer iscsi.Pairs) error {
	v, ok := answer.Get("TargetPortalGroupTag")
	if !ok {
		return nil
	}
	n, err := iscsi.ParseNumber(v)
	if err != nil || n > 65535 {
		return fmt.Errorf("%w: TargetPortalGroupTag=%.20q", errProtocol, v)
	}
	l.result.portalGroup = int(n)
	return nil
}

// finishStage sends ask with the wish to go on to next, and repeats with what
// take wants to add until the target agrees.
func (l *login) finishStage(ctx context.Context, ask iscsi.Pairs, next iscsi.Stage, take func(iscsi.Pairs) (iscsi.Pairs, error)) error {
	stage := l.stage
	for range maxRounds {
		answer, err := l.ask(ctx, ask, true, next)
		if err != nil {
			return err
		}
		ask = nil
		if take != nil {
			if ask, err = take(answer); err != nil {
				return err
			}
		}
		if l.stage != stage {
			return nil // what it asked in the same breath keeps its default
		}
	}
	return fmt.Errorf("%w: no end after %d exchanges", errProtocol, maxRounds)
}

// ask sends text and gives the whole text of the answer, which may come in
// several PDUs. When the target agrees to transit, l.stage changes.
func (l *login) ask(ctx context.Context, text iscsi.Pairs, transit bool, next iscsi.Stage) (iscsi.Pairs, error) {
	data := text.Encode()
	var got []byte
	for range maxRounds {
		r, answer, err := l.send(ctx, data, transit, next)
		if err != nil {
			return nil, err
		}
		got = append(got, answer...)
		if len(got) > maxLoginText {
			return nil, fmt.Errorf("%w: more than %d bytes of text", errProtocol, maxLoginText)
		}
		if r.Continue {
			data, transit = nil, false
			continue
		}
		pairs, err := iscsi.ParseText(got)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", errProtocol, err)
		}
		if r.Transit {
			l.stage, l.tsih = next, r.TSIH
		}
		return pairs, nil
	}
	return nil, fmt.Errorf("%w: no end of the text after %d PDUs", errProtocol, maxRounds)
}

// send is one exchange, with all checks of the answer's header.
func (l *login) send(ctx context.Context, data []byte, transit bool, next iscsi.Stage) (iscsi.LoginResponse, []byte, error) {
	if len(data) > 8192 {
		return iscsi.LoginResponse{}, nil, fmt.Errorf("log-in text of %d bytes, at most 8192", len(data))
	}
	q := iscsi.LoginRequest{
		Transit: transit, Current: l.stage,
		ISID: l.target.isid(), CmdSN: firstCmdSN, ExpStatSN: l.statSN,
	}
	if transit {
		q.Next = next
	}
	answer, err := l.x.exchange(ctx, &iscsi.PDU{Header: q.Header(), Data: data})
	if err != nil {
		return iscsi.LoginResponse{}, nil, err
	}
	r := iscsi.ParseLoginResponse(&answer.Header)
	if err := l.check(&answer.Header, q, r); err != nil {
		return r, nil, err
	}
	if r.Status != iscsi.LoginSuccess {
		return r, nil, l.refused(r, answer.Data)
	}
	l.statSN, l.started = r.StatSN+1, true
	return r, answer.Data, nil
}

// check holds the answer's header to RFC 7143, section 11.13.
func (l *login) check(h *iscsi.Header, q iscsi.LoginRequest, r iscsi.LoginResponse) error {
	switch {
	case h.Opcode() != iscsi.OpLoginResponse:
		return fmt.Errorf("%w: opcode %#02x", errProtocol, byte(h.Opcode()))
	case r.Status != iscsi.LoginSuccess:
		return nil // the other fields mean nothing
	case r.VersionActive != 0:
		return fmt.Errorf("%w: version %d", errProtocol, r.VersionActive)
	case r.Current != q.Current:
		return fmt.Errorf("%w: stage %d instead of %d", errProtocol, r.Current, q.Current)
	case r.Transit && (!q.Transit || r.Next != q.Next || r.Continue):
		return fmt.Errorf("%w: it goes on to stage %d by itself", errProtocol, r.Next)
	case l.started && r.StatSN != l.statSN:
		return fmt.Errorf("%w: StatSN %d instead of %d", errProtocol, r.StatSN, l.statSN)
	}
	return nil
}

// refused gives the error of a status other than success.
func (l *login) refused(r iscsi.LoginResponse, data []byte) error {
	e := &RefusedError{Status: r.Status}
	if pairs, err := iscsi.ParseText(data); err == nil {
		e.Address, _ = pairs.Get("TargetAddress")
	}
	return e
}

// loginError dresses err for an operator.
func loginError(t *Target, err error) error {
	where := fmt.Sprintf("%s at %s as %s", t.IQN, t.Portal, t.InitiatorName)
	var refused *RefusedError
	switch {
	case errors.As(err, &refused) && refused.final():
		return &hotspare.Error{
			Code: hotspare.CodeLoginRefused, What: "the target refused the log-in", Where: where,
			Fix: "grant the volume to this node again: a grant of an older epoch, or a revoked one, is never admitted",
			Err: err,
		}
	case errors.Is(err, errTarget):
		return &hotspare.Error{
			Code: hotspare.CodeLoginRefused, What: "the target was refused", Where: where,
			Why: "it did not prove that it knows the secret",
			Fix: "check what answers on that address, and the target's secret", Err: err,
		}
	}
	return &hotspare.Error{
		Code: hotspare.CodeNoSession, What: "the log-in did not succeed", Where: where,
		Fix: "check that the appliance runs and that its port 3260 can be reached from the node", Err: err,
	}
}

// isRefusal says whether trying again soon makes no sense.
func isRefusal(err error) bool {
	var r *RefusedError
	return errors.As(err, &r) && r.final() || errors.Is(err, errTarget)
}
