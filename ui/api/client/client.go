// Package client speaks the appliance's REST interface (OpenAPI document at
// /api/v1/openapi.json) over its unix socket or, with the token, over HTTP. The
// CLI is built on it. Errors are *api.Problem as the appliance sent them, or
// *hotspare.Error when it could not be asked.
package client

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/user"
	"strconv"
	"strings"

	"hotspare"
	"hotspare/ui/api"
)

// Options say how the appliance is reached: by Socket, or by Server and Token.
type Options struct {
	Socket string // path of the unix socket
	Server string // e.g. http://10.77.0.1:8080; takes precedence
	Token  hotspare.Secret
}

// Client calls one appliance.
type Client struct {
	base  string
	where string
	token hotspare.Secret
	by    string
	http  *http.Client
}

// New makes a client; nothing is sent yet.
func New(o Options) *Client {
	c := &Client{base: strings.TrimSuffix(o.Server, "/"), where: o.Server, token: o.Token, http: &http.Client{}}
	if o.Server == "" {
		c.base, c.where = "http://appliance", o.Socket
		c.http.Transport = &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", o.Socket)
		}}
	}
	if u, err := user.Current(); err == nil {
		c.by = u.Username
	}
	return c
}

// Close drops idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Get reads path ("/api/v1/nodes") into out, which may be a *json.RawMessage.
func (c *Client) Get(ctx context.Context, path string, out any) error {
	return c.do(ctx, http.MethodGet, path, "", nil, nil, out)
}

// Post sends in as JSON to path and reads the answer into out.
func (c *Client) Post(ctx context.Context, path string, in, out any) error {
	b, err := json.Marshal(in)
	if err != nil {
		return fmt.Errorf("encode request: %w", err)
	}
	return c.do(ctx, http.MethodPost, path, "application/json", nil, b, out)
}

// Apply sends YAML documents; name is the file's, for error texts.
func (c *Client) Apply(ctx context.Context, name string, docs []byte, dryRun bool) ([]api.Applied, error) {
	q := url.Values{"name": {name}, "dryRun": {strconv.FormatBool(dryRun)}}
	var out []api.Applied
	err := c.do(ctx, http.MethodPost, "/api/v1/apply?"+q.Encode(), "application/yaml", nil, docs, &out)
	return out, err
}

// Put sends in as JSON to path and reads the answer into out.
func (c *Client) Put(ctx context.Context, path string, in, out any) error {
	b, err := json.Marshal(in)
	if err != nil {
		return fmt.Errorf("encode request: %w", err)
	}
	return c.do(ctx, http.MethodPut, path, "application/json", nil, b, out)
}

// Patch sends bytes with further headers and reads the answer into out.
func (c *Client) Patch(ctx context.Context, path, contentType string, more http.Header, in []byte, out any) error {
	return c.do(ctx, http.MethodPatch, path, contentType, more, in, out)
}

// Delete deletes path.
func (c *Client) Delete(ctx context.Context, path string) error {
	return c.do(ctx, http.MethodDelete, path, "", nil, nil, nil)
}

func (c *Client) do(ctx context.Context, method, path, contentType string, more http.Header, in []byte, out any) error {
	resp, err := c.send(ctx, method, path, contentType, more, in)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if out == nil || resp.StatusCode == http.StatusNoContent {
		return nil
	}
	if err := json.NewDecoder(resp.Body).Decode(out); err != nil {
		return fmt.Errorf("answer of %s %s: %w", method, path, err)
	}
	return nil
}

// send gives the response of a request that succeeded.
func (c *Client) send(ctx context.Context, method, path, contentType string, more http.Header, in []byte) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, bytes.NewReader(in))
	if err != nil {
		return nil, fmt.Errorf("request: %w", err)
	}
	for name, values := range more {
		req.Header[name] = values
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	if c.by != "" {
		req.Header.Set("X-Hotspare-Operator", c.by)
	}
	if !c.token.IsZero() {
		req.Header.Set("Authorization", "Bearer "+c.token.Reveal())
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.unreachable(ctx, err)
	}
	if resp.StatusCode < 300 {
		return resp, nil
	}
	defer resp.Body.Close()
	p := &api.Problem{}
	body, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if json.Unmarshal(body, p) != nil || p.Title == "" {
		p = &api.Problem{Title: "the appliance answered " + resp.Status, Code: hotspare.CodeInternal, Where: path}
	}
	p.Status = resp.StatusCode
	return nil, p
}

func (c *Client) unreachable(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	e := &hotspare.Error{
		Code: hotspare.CodeUnavailable, What: "the appliance does not answer", Where: c.where, Err: err,
		Fix: "start it with `hotspare serve`, or name another one with --socket or --server",
	}
	if errors.Is(err, os.ErrPermission) {
		e.What, e.Fix = "the appliance's socket is closed to this user", "run as the user of the appliance (root), or use --server with the token"
	}
	return e
}

// Follow calls fn for every event after the given id until ctx ends, the stream
// breaks or fn returns an error. It returns the last id seen.
func (c *Client) Follow(ctx context.Context, after uint64, fn func(api.Event) error) (uint64, error) {
	resp, err := c.send(ctx, http.MethodGet, "/api/v1/events/stream?after="+strconv.FormatUint(after, 10), "", nil, nil)
	if err != nil {
		return after, err
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		data, ok := strings.CutPrefix(lines.Text(), "data: ")
		if !ok {
			continue
		}
		var e api.Event
		if err := json.Unmarshal([]byte(data), &e); err != nil {
			return after, fmt.Errorf("event stream: %w", err)
		}
		after = e.ID
		if err := fn(e); err != nil {
			return after, err
		}
	}
	if ctx.Err() != nil {
		return after, ctx.Err()
	}
	if err := lines.Err(); err != nil {
		return after, c.unreachable(ctx, err)
	}
	return after, io.EOF
}
