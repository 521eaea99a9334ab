package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"path/filepath"

	"hotspare"
)

// Status asks the daemon how everything is.
func (l *Lab) Status(ctx context.Context) (Status, error) {
	var s Status
	err := l.call(ctx, http.MethodGet, "/v1/status", nil, &s)
	return s, err
}

// PowerOn presses the power button of a node that is off. The product uses the
// BMC; this is for people and tests.
func (l *Lab) PowerOn(ctx context.Context, node string) error {
	return l.call(ctx, http.MethodPost, "/v1/nodes/"+node+"/on", request{}, nil)
}

// PowerOff pulls the node's cord for a moment.
func (l *Lab) PowerOff(ctx context.Context, node string) error {
	return l.call(ctx, http.MethodPost, "/v1/nodes/"+node+"/off", request{}, nil)
}

// Fail does a fault (see Faults) to a node. unit is needed by the faults that
// are done to a service inside the guest.
func (l *Lab) Fail(ctx context.Context, node, kind, unit string) error {
	return l.call(ctx, http.MethodPost, "/v1/nodes/"+node+"/fail", request{Kind: kind, Unit: unit}, nil)
}

// Heal takes all faults of a node back. It does not power it on.
func (l *Lab) Heal(ctx context.Context, node string) error {
	return l.call(ctx, http.MethodPost, "/v1/nodes/"+node+"/heal", request{}, nil)
}

func (l *Lab) call(ctx context.Context, method, path string, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://lab"+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(l.dir, socketFile))
	}}
	defer transport.CloseIdleConnections()
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		return fmt.Errorf("the lab's daemon: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		var p problem
		if err := json.NewDecoder(resp.Body).Decode(&p); err != nil {
			return fmt.Errorf("the lab's daemon: %s", resp.Status)
		}
		return p.err()
	}
	if out == nil {
		return nil
	}
	return json.NewDecoder(resp.Body).Decode(out)
}

// err gives the error back as it was on the daemon's side.
func (p problem) err() error {
	if p.Code == "" {
		return fmt.Errorf("%s", p.What)
	}
	e := &hotspare.Error{Code: p.Code, What: p.What, Where: p.Where, Why: p.Why, Fix: p.Fix}
	if p.Cause != "" {
		e.Err = fmt.Errorf("%s", p.Cause)
	}
	return e
}
