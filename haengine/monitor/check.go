package monitor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"hotspare/haengine"
)

// maxBody is how much of an HTTP answer is searched for the expected text.
const maxBody = 1 << 20

// Look performs one check of m against the service address. A nil error is a
// good sample; the error's text is the sample's why. ctx bounds the whole look.
func Look(ctx context.Context, m haengine.Monitor, service netip.Addr) error {
	var err error
	switch m.Kind {
	case haengine.MonitorHTTP:
		err = lookHTTP(ctx, m, service)
	case haengine.MonitorTCP:
		err = lookTCP(ctx, m, service)
	case haengine.MonitorPostgres:
		err = lookPostgres(ctx, m, service)
	default:
		return fmt.Errorf("monitor %s: kind %q cannot be looked at", m.Name, m.Kind)
	}
	if err != nil && ctx.Err() != nil && errors.Is(context.Cause(ctx), context.DeadlineExceeded) {
		return fmt.Errorf("no answer within %s", m.Timeout)
	}
	return err
}

func lookTCP(ctx context.Context, m haengine.Monitor, service netip.Addr) error {
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", netip.AddrPortFrom(service, m.Port).String())
	if err != nil {
		return err
	}
	return c.Close()
}

// target gives the URL of an HTTP monitor: a path is taken at the service
// address.
func target(m haengine.Monitor, service netip.Addr) (string, error) {
	if !strings.HasPrefix(m.URL, "/") && m.URL != "" {
		u, err := url.Parse(m.URL)
		if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
			return "", fmt.Errorf("%q is not an http URL", m.URL)
		}
		return m.URL, nil
	}
	host := service.String()
	if service.Is6() {
		host = "[" + host + "]"
	}
	if m.Port != 0 && m.Port != 80 {
		host = net.JoinHostPort(service.String(), strconv.Itoa(int(m.Port)))
	}
	path := m.URL
	if path == "" {
		path = "/"
	}
	return "http://" + host + path, nil
}

func lookHTTP(ctx context.Context, m haengine.Monitor, service netip.Addr) error {
	where, err := target(m, service)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, where, nil)
	if err != nil {
		return err
	}
	req.Header.Set("User-Agent", "hotspare-monitor")
	// A connection of its own each time: a kept one would not notice that new
	// clients get in no more. Proxies and redirects would look elsewhere.
	transport := &http.Transport{DisableKeepAlives: true}
	defer transport.CloseIdleConnections()
	client := http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	resp, err := client.Do(req)
	if err != nil {
		var u *url.Error
		if errors.As(err, &u) {
			err = u.Err
		}
		return err
	}
	defer resp.Body.Close()
	want := m.Status
	if want == 0 {
		want = http.StatusOK
	}
	if resp.StatusCode != want {
		return fmt.Errorf("status %d, expected %d", resp.StatusCode, want)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxBody))
	if err != nil {
		return fmt.Errorf("body: %w", err)
	}
	if m.Expect != "" && !strings.Contains(string(body), m.Expect) {
		return fmt.Errorf("the body (%d bytes) does not hold %q", len(body), m.Expect)
	}
	return nil
}

func lookPostgres(ctx context.Context, m haengine.Monitor, service netip.Addr) error {
	cfg, err := pgconn.ParseConfig("")
	if err != nil {
		return fmt.Errorf("postgres: %w", err)
	}
	cfg.Host, cfg.Port = service.String(), m.Port
	if cfg.Port == 0 {
		cfg.Port = 5432
	}
	cfg.User, cfg.Database, cfg.Password = m.User, m.Database, m.Options["password"]
	cfg.TLSConfig, cfg.Fallbacks = nil, nil
	cfg.RuntimeParams = map[string]string{"application_name": "hotspare-monitor"}
	conn, err := pgconn.ConnectConfig(ctx, cfg)
	if err != nil {
		return fmt.Errorf("connect: %w", innermost(err))
	}
	defer conn.Close(ctx)
	results, err := conn.Exec(ctx, m.Query).ReadAll()
	if err != nil {
		return fmt.Errorf("query: %w", err)
	}
	if len(results) == 0 {
		return errors.New("the query gave no result")
	}
	return expectRows(m, results[len(results)-1].Rows)
}

func expectRows(m haengine.Monitor, rows [][][]byte) error {
	if m.Rows != 0 && len(rows) != m.Rows {
		return fmt.Errorf("%d rows, expected %d", len(rows), m.Rows)
	}
	if m.Expect == "" {
		return nil
	}
	if len(rows) == 0 || len(rows[0]) == 0 {
		return fmt.Errorf("no rows, expected %q", m.Expect)
	}
	if got := string(rows[0][0]); got != m.Expect {
		return fmt.Errorf("the first column is %.80q, expected %q", got, m.Expect)
	}
	return nil
}

// innermost drops pgconn's description of the connection string.
func innermost(err error) error {
	for {
		next := errors.Unwrap(err)
		if next == nil {
			return err
		}
		err = next
	}
}
