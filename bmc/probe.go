package bmc

import (
	"context"
	"errors"
	"fmt"
	"time"

	"hotspare"
)

// Stage is one step of a Probe, in the order in which they are taken.
type Stage string

// The stages.
const (
	StageAddress        Stage = "address"        // the name or address resolves
	StagePort           Stage = "port"           // something there speaks the protocol
	StageAuthentication Stage = "authentication" // user and password are accepted
	StagePrivilege      Stage = "privilege"      // the user may control power
	StagePower          Stage = "power"          // the power state reads as on or off
	StageBoot           Stage = "boot"           // a network boot can be asked for
	StageIdentity       Stage = "identity"       // the BMC belongs to the node
)

// Access is what Probe needs to get to a BMC; package wire implements it.
type Access interface {
	// Resolve gives the numeric address that will be used.
	Resolve(ctx context.Context) (string, error)
	// Reach asks, without credentials, for any answer of the protocol.
	Reach(ctx context.Context) (detail string, err error)
	// Open authenticates and gives a driver, which the caller closes.
	Open(ctx context.Context) (Driver, error)
}

// ProbeOptions say how far a Probe goes.
type ProbeOptions struct {
	// ExpectUUID is the node's UUID; without it the identity is only printed.
	ExpectUUID string
	// TestBoot asks the BMC for a network boot, which changes what the machine
	// does at its next start, and reads back whether it keeps that. A machine that
	// boots from the network at every start is left so. Without TestBoot the order
	// is only read, and the stage is skipped where that fails.
	TestBoot bool
	// StageTimeout bounds one stage. Default 15 s.
	StageTimeout time.Duration
}

// StageResult is the outcome of one stage. Code, Why and Fix are set when it
// failed, Skipped when it was not tried.
type StageResult struct {
	Stage   Stage         `json:"stage"`
	OK      bool          `json:"ok"`
	Skipped bool          `json:"skipped,omitempty"`
	Detail  string        `json:"detail,omitempty"`
	Took    time.Duration `json:"took"`
	Code    hotspare.Code `json:"code,omitempty"`
	Why     string        `json:"why,omitempty"`
	Fix     string        `json:"fix,omitempty"`
}

// ProbeReport lists all seven stages.
type ProbeReport struct {
	OK     bool          `json:"ok"`
	Stages []StageResult `json:"stages"`
	Power  PowerState    `json:"power"`
	UUID   string        `json:"uuid,omitempty"`
}

// Failed gives the first stage that failed, or nil.
func (p *ProbeReport) Failed() *StageResult {
	for i := range p.Stages {
		if s := &p.Stages[i]; !s.OK && !s.Skipped {
			return s
		}
	}
	return nil
}

// Probe tries a BMC from its address to the identity of its machine and says
// which stage fails and how to mend it. It switches nothing. A wrong password
// is tried as often as the driver needs to find out that it is wrong. For a BMC
// that has a Queue, call it within Queue.Exclusive.
func Probe(ctx context.Context, a Access, opts ProbeOptions) ProbeReport {
	if opts.StageTimeout == 0 {
		opts.StageTimeout = 15 * time.Second
	}
	p := &probe{ctx: ctx, access: a, opts: opts}
	defer p.close()
	p.stage(StageAddress, a.Resolve)
	p.stage(StagePort, a.Reach)
	p.open()
	p.stage(StagePower, p.power)
	if opts.TestBoot {
		p.stage(StageBoot, p.testBoot)
	} else {
		p.showBoot()
	}
	p.stage(StageIdentity, p.identity)
	p.report.OK = p.report.Failed() == nil
	return p.report
}

type probe struct {
	ctx    context.Context // of one Probe call, which is one method call long
	access Access
	opts   ProbeOptions
	driver Driver
	report ProbeReport
	failed bool
}

func (p *probe) stage(s Stage, f func(context.Context) (string, error)) {
	if p.failed {
		p.skip(s, "an earlier stage failed")
		return
	}
	ctx, cancel := context.WithTimeout(p.ctx, p.opts.StageTimeout)
	defer cancel()
	start := time.Now()
	detail, err := f(ctx)
	p.add(StageResult{Stage: s, Detail: detail, Took: time.Since(start)}, err)
}

func (p *probe) skip(s Stage, why string) {
	p.report.Stages = append(p.report.Stages, StageResult{Stage: s, Skipped: true, Detail: why})
}

func (p *probe) add(r StageResult, err error) {
	if err == nil {
		r.OK = true
	} else {
		p.failed = true
		r.Why = err.Error()
		var e *hotspare.Error
		if errors.As(err, &e) {
			r.Code, r.Why, r.Fix = e.Code, e.Why, e.Fix
			if r.Why == "" {
				r.Why = e.What
			}
		}
	}
	p.report.Stages = append(p.report.Stages, r)
}

// open fills two stages: opening a session proves the password, and, because
// sessions are opened at the level that power control needs, the privilege.
func (p *probe) open() {
	if p.failed {
		p.skip(StageAuthentication, "an earlier stage failed")
		p.skip(StagePrivilege, "an earlier stage failed")
		return
	}
	ctx, cancel := context.WithTimeout(p.ctx, p.opts.StageTimeout)
	defer cancel()
	start := time.Now()
	d, err := p.access.Open(ctx)
	took := time.Since(start)
	p.driver = d
	switch {
	case err == nil:
		p.add(StageResult{Stage: StageAuthentication, Took: took}, nil)
		p.add(StageResult{Stage: StagePrivilege}, nil)
	case errors.Is(err, ErrPrivilege):
		p.add(StageResult{Stage: StageAuthentication, Took: took}, nil)
		p.add(StageResult{Stage: StagePrivilege}, err)
	default:
		p.add(StageResult{Stage: StageAuthentication, Took: took}, err)
		p.skip(StagePrivilege, "an earlier stage failed")
	}
}

func (p *probe) power(ctx context.Context) (string, error) {
	state, err := p.driver.PowerState(ctx)
	if err != nil {
		return "", err
	}
	p.report.Power = state
	if state == PowerUnknown {
		return "", NewError(hotspare.CodeBMCRefused, "", "the power state is neither on nor off", nil)
	}
	return state.String(), nil
}

// showBoot reads the order. That a BMC cannot show it is no fault of the machine.
func (p *probe) showBoot() {
	if p.failed {
		p.skip(StageBoot, "an earlier stage failed")
		return
	}
	ctx, cancel := context.WithTimeout(p.ctx, p.opts.StageTimeout)
	defer cancel()
	start := time.Now()
	order, err := p.driver.BootOrder(ctx)
	if err != nil {
		p.skip(StageBoot, "not tried; the boot order cannot be read: "+err.Error())
		return
	}
	p.add(StageResult{Stage: StageBoot, Detail: order.String(), Took: time.Since(start)}, nil)
}

// testBoot asks for one network boot and gives the order that is read back.
func (p *probe) testBoot(ctx context.Context) (string, error) {
	if order, err := p.driver.BootOrder(ctx); err == nil && order.NetworkFirst(false) {
		return order.String() + "; left so, for a request for one start would take its place", nil
	}
	if err := p.driver.SetNextBootPXE(ctx, false); err != nil {
		return "", err
	}
	// BMCs may take a moment to show what they took.
	for tries := 5; ; tries-- {
		order, err := p.driver.BootOrder(ctx)
		switch {
		case err != nil:
			return "pxe, once; it was accepted, and cannot be read back", nil //nolint:nilerr // accepted is what this stage asks
		case order.Device == DevicePXE:
			return order.String(), nil
		case tries <= 1 || pause(ctx, time.Second) != nil:
			return "", NewError(hotspare.CodeBMCBootOrder, "", fmt.Sprintf("it took %q and shows %q", BootOrder{Device: DevicePXE}, order), nil)
		}
	}
}

func (p *probe) identity(ctx context.Context) (string, error) {
	uuid, err := p.driver.SystemUUID(ctx)
	if err != nil {
		return "", err
	}
	p.report.UUID = uuid
	if p.opts.ExpectUUID != "" && !SameUUID(uuid, p.opts.ExpectUUID) {
		return "", wrongNode("", uuid, p.opts.ExpectUUID)
	}
	return uuid, nil
}

func (p *probe) close() {
	if p.driver == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(p.ctx), 5*time.Second)
	defer cancel()
	_ = p.driver.Close(ctx) // nothing to report: the probe is over
}
