package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"hotspare/testenv/lab"
)

// A service is asked anew every askEvery, whether the last question was answered
// or not, and each question is given up after askPatience: a segment that was lost
// on its way costs a few milliseconds, not TCP's second.
const (
	askEvery    = 5 * time.Millisecond
	askPatience = 400 * time.Millisecond
)

// asked is a question to a service, in a process of its own inside the clients'
// namespace.
type asked struct {
	cmd   *lab.Cmd
	lines *bufio.Scanner
}

// startAsker starts to ask a service: an HTTP URL whose answer holds want, or a
// database that acknowledges an insert.
func startAsker(ctx context.Context, l *lab.Lab, url, want string) (*asked, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	a := &asked{cmd: lab.Exec(ctx, l.ClientNamespace(), self, "serve-asker", "-url", url, "-want", want)}
	a.cmd.Stderr = os.Stderr
	a.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	out, err := a.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := a.cmd.Start(); err != nil {
		return nil, err
	}
	a.lines = bufio.NewScanner(out)
	var ready bool
	if err := a.next(&ready); err != nil {
		return nil, errors.Join(fmt.Errorf("the asker: %w", err), a.stop())
	}
	return a, nil
}

func (a *asked) next(v any) error {
	if !a.lines.Scan() {
		return errors.Join(errors.New("it ended"), a.lines.Err())
	}
	return json.Unmarshal(a.lines.Bytes(), v)
}

// answered waits for the first right answer and gives the moment at which it was
// there.
func (a *asked) answered() (time.Time, error) {
	var at time.Time
	err := a.next(&at)
	return at, errors.Join(err, a.stop())
}

func (a *asked) stop() error {
	err := a.cmd.Process.Kill()
	_ = a.cmd.Wait() // "signal: killed"
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	return err
}

// serveAsker is `bench serve-asker`: it says "true" when it begins, and the moment
// of the first right answer.
func serveAsker(ctx context.Context, args []string) error {
	fs := flag.NewFlagSet("serve-asker", flag.ContinueOnError)
	url := fs.String("url", "", "")
	want := fs.String("want", "", "")
	if err := fs.Parse(args); err != nil {
		return err
	}
	// Whoever has the address is found within milliseconds, not after the second
	// that the kernel waits between two ARP questions.
	for key, value := range map[string]string{"retrans_time_ms": "20", "delay_first_probe_time": "1"} {
		if err := os.WriteFile("/proc/sys/net/ipv4/neigh/"+lab.ClientInterface+"/"+key, []byte(value), 0o644); err != nil {
			return err
		}
	}
	client := &http.Client{Timeout: askPatience, Transport: &http.Transport{DisableKeepAlives: true, DialContext: (&net.Dialer{}).DialContext}}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	fmt.Println("true")
	if strings.HasPrefix(*url, "postgres:") {
		return askDatabase(ctx, *url)
	}
	first := make(chan time.Time, 1)
	tick := time.NewTicker(askEvery)
	defer tick.Stop()
	for {
		select {
		case at := <-first:
			return json.NewEncoder(os.Stdout).Encode(at)
		case <-tick.C:
			go func() {
				if rightAnswer(ctx, client, *url, *want) {
					select {
					case first <- time.Now():
					default:
					}
				}
			}()
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func rightAnswer(ctx context.Context, client *http.Client, url, want string) bool {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return false
	}
	res, err := client.Do(req)
	if err != nil {
		return false
	}
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, 1<<16))
	return err == nil && res.StatusCode == http.StatusOK && strings.Contains(string(b), want)
}

// askDatabase inserts a row into the demo's table. It asks one question after the
// other: each costs the database a process.
func askDatabase(ctx context.Context, url string) error {
	for ctx.Err() == nil {
		if databaseInserts(ctx, url) {
			return json.NewEncoder(os.Stdout).Encode(time.Now())
		}
		select {
		case <-time.After(4 * askEvery):
		case <-ctx.Done():
		}
	}
	return ctx.Err()
}

func databaseInserts(ctx context.Context, url string) bool {
	config, err := pgx.ParseConfig(url)
	if err != nil {
		return false
	}
	config.DialFunc = (&net.Dialer{Timeout: askPatience}).DialContext
	config.DefaultQueryExecMode = pgx.QueryExecModeExec // one round trip
	ctx, cancel := context.WithTimeout(ctx, 5*askPatience)
	defer cancel()
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return false
	}
	defer conn.Close(ctx) // it has answered
	tag, err := conn.Exec(ctx, "insert into entries (client, seq, body) values ('asker', $1, '')", time.Now().UnixNano())
	return err == nil && tag.RowsAffected() == 1
}
