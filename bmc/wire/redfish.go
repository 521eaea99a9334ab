package wire

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	bmclib "github.com/bmc-toolbox/bmclib/v2"
	"github.com/bmc-toolbox/bmclib/v2/providers/redfish"
	"github.com/go-logr/logr"
	"github.com/jacobweinstock/registrar"
	"github.com/stmcginnis/gofish"
	rf "github.com/stmcginnis/gofish/redfish"

	"hotspare"
	"hotspare/bmc"
)

// redfishDriver is a BMC behind bmclib's gofish provider, with one session that
// is opened at the first call, kept, and opened anew when the BMC has forgotten
// it.
type redfishDriver struct {
	cfg    Config
	client *bmclib.Client // nil: no session
	http   *http.Client
	tap    *tap

	refused   error
	refusedAt time.Time
}

func newRedfish(c Config) (*redfishDriver, error) {
	d := &redfishDriver{cfg: c}
	d.http, d.tap = newHTTP(c)
	return d, nil
}

// newHTTP gives a client whose requests end with the context of the present
// call: gofish has no contexts of its own, and bmclib would cap the client's
// time-out by the deadline of the call that opened the session.
func newHTTP(c Config) (*http.Client, *tap) {
	t := &tap{next: &http.Transport{
		// BMCs come with self-signed certificates, and no operator replaces them
		// all; what is sent there is protected from listeners, not from an
		// active impostor on the management network.
		TLSClientConfig:       &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12},
		DialContext:           (&net.Dialer{Timeout: c.ReachTimeout}).DialContext,
		TLSHandshakeTimeout:   c.Timeout,
		ResponseHeaderTimeout: c.Timeout,
		MaxIdleConns:          1,
		IdleConnTimeout:       time.Minute,
	}}
	return &http.Client{Transport: t, Timeout: c.Timeout}, t
}

// tap binds requests to the context of the call in hand and notes how the last
// one ended, which survives whatever the libraries make of it.
type tap struct {
	next *http.Transport

	mu     sync.Mutex
	ctx    context.Context // of the call in hand: a call is one at a time and short
	status int
	err    error
}

func (t *tap) begin(ctx context.Context) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ctx, t.status, t.err = ctx, 0, nil
}

func (t *tap) last() (status int, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.status, t.err
}

// RoundTrip implements http.RoundTripper.
func (t *tap) RoundTrip(req *http.Request) (*http.Response, error) {
	t.mu.Lock()
	ctx := t.ctx
	t.mu.Unlock()
	if ctx != nil {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		merged, cancel := context.WithCancelCause(req.Context())
		stop := context.AfterFunc(ctx, func() { cancel(context.Cause(ctx)) })
		_ = stop // ends with the call's context, which follows each call
		req = req.WithContext(merged)
	}
	resp, err := t.next.RoundTrip(req)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.err = err
	if err == nil {
		t.status = resp.StatusCode
	}
	return resp, err
}

// CloseIdleConnections lets http.Client.CloseIdleConnections reach the transport.
func (t *tap) CloseIdleConnections() { t.next.CloseIdleConnections() }

func (d *redfishDriver) PowerState(ctx context.Context) (bmc.PowerState, error) {
	state := bmc.PowerUnknown
	err := d.call(ctx, func(ctx context.Context, c *bmclib.Client) error {
		text, err := c.GetPowerState(ctx)
		if err == nil {
			state = bmc.ParsePowerState(text)
		}
		return err
	})
	return state, err
}

func (d *redfishDriver) PowerOff(ctx context.Context) error { return d.setPower(ctx, "off") }

func (d *redfishDriver) PowerOn(ctx context.Context) error { return d.setPower(ctx, "on") }

func (d *redfishDriver) setPower(ctx context.Context, state string) error {
	return d.call(ctx, func(ctx context.Context, c *bmclib.Client) error {
		ok, err := c.SetPowerState(ctx, state)
		return accepted(ok, err)
	})
}

// SystemUUID reads ComputerSystem.UUID, which bmclib does not show.
func (d *redfishDriver) SystemUUID(ctx context.Context) (string, error) {
	var uuid string
	err := d.system(ctx, func(s *rf.ComputerSystem, _ []byte) error {
		uuid = strings.ToLower(s.UUID)
		if !bmc.SameUUID(uuid, uuid) {
			return errors.New("the BMC gave no usable system UUID")
		}
		return nil
	})
	return uuid, err
}

// system reads the one system, for what bmclib does not show, in a short session
// of its own.
func (d *redfishDriver) system(ctx context.Context, use func(s *rf.ComputerSystem, document []byte) error) error {
	return d.call(ctx, func(_ context.Context, _ *bmclib.Client) error {
		c, err := gofish.Connect(gofish.ClientConfig{Endpoint: "https://" + d.cfg.where(), HTTPClient: d.http,
			Username: d.cfg.User, Password: d.cfg.Password.Reveal()})
		if err != nil {
			return err
		}
		defer c.Logout()
		systems, err := c.Service.Systems()
		if err != nil {
			return err
		}
		if len(systems) != 1 {
			return fmt.Errorf("the BMC shows %d systems, expected one", len(systems))
		}
		return use(systems[0], systems[0].RawData)
	})
}

// Close ends the session.
func (d *redfishDriver) Close(ctx context.Context) error {
	defer d.http.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(ctx, d.cfg.Timeout)
	defer cancel()
	return d.closeSession(ctx)
}

func (d *redfishDriver) closeSession(ctx context.Context) error {
	if d.client == nil {
		return nil
	}
	d.tap.begin(ctx)
	err := d.client.Close(ctx)
	d.client = nil
	return err
}

func (d *redfishDriver) open(ctx context.Context) error {
	log := logr.FromSlogHandler(d.cfg.Log.Handler())
	host := d.cfg.Host
	if strings.Contains(host, ":") {
		host = "[" + host + "]" // the provider joins host and port itself
	}
	conn := redfish.New(host, d.cfg.User, d.cfg.Password.Reveal(), log,
		redfish.WithHttpClient(d.http), redfish.WithPort(strconv.Itoa(d.cfg.Port)))
	reg := registrar.NewRegistry(registrar.WithLogger(log))
	reg.Register(redfish.ProviderName, redfish.ProviderProtocol, redfish.Features, nil, conn)
	c := bmclib.NewClient(host, d.cfg.User, d.cfg.Password.Reveal(), bmclib.WithRegistry(reg), bmclib.WithLogger(log))
	if err := c.Open(ctx); err != nil {
		return err
	}
	// bmclib has set the time-out of one request to what was left of this call.
	d.http.Timeout = d.cfg.Timeout
	d.client = c
	return nil
}

// call does one operation in the session, opening it if need be, and once more
// when the BMC no longer knows it.
func (d *redfishDriver) call(ctx context.Context, op func(context.Context, *bmclib.Client) error) error {
	if d.refused != nil && time.Since(d.refusedAt) < d.cfg.PasswordPause {
		return d.refused
	}
	ctx, cancel := context.WithTimeout(ctx, d.cfg.Timeout)
	defer cancel()
	for {
		fresh := d.client == nil
		d.tap.begin(ctx)
		if fresh {
			if err := d.open(ctx); err != nil {
				return d.translate(ctx, err)
			}
		}
		err := op(ctx, d.client)
		if err == nil {
			d.refused = nil
			return nil
		}
		if status, _ := d.tap.last(); status == http.StatusUnauthorized && !fresh {
			d.client = nil // expired or the BMC restarted: its session is gone
			continue
		}
		return d.translate(ctx, err)
	}
}

func (d *redfishDriver) translate(ctx context.Context, err error) error {
	status, netErr := d.tap.last()
	where := d.cfg.where()
	switch {
	case ctx.Err() != nil:
		return bmc.NewError(hotspare.CodeBMCUnreachable, where, "it did not answer in time", context.Cause(ctx))
	case netErr != nil:
		return bmc.NewError(hotspare.CodeBMCUnreachable, where, "", netErr)
	case status == http.StatusUnauthorized:
		e := bmc.NewError(hotspare.CodeBMCPassword, where, "", err)
		d.refused, d.refusedAt = e, time.Now()
		return e
	case status == http.StatusForbidden:
		return bmc.NewError(hotspare.CodeBMCPrivilege, where, "", err)
	case status >= 400:
		return bmc.NewError(hotspare.CodeBMCRefused, where, fmt.Sprintf("HTTP %d", status), err)
	default:
		return bmc.NewError(hotspare.CodeBMCRefused, where, "", err)
	}
}
