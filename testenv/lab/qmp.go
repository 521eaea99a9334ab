package lab

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"time"
)

// qmpLine bounds one message of QEMU's.
const qmpLine = 1 << 20

// qmp is one connection to a QEMU's monitor (QEMU Machine Protocol
// specification, docs/interop/qmp-spec in QEMU's sources). It is used for one
// short exchange and closed: QEMU serves one client at a time.
type qmp struct {
	conn net.Conn
	in   *bufio.Scanner
}

// qmpMessage is anything that QEMU sends.
type qmpMessage struct {
	Greeting json.RawMessage `json:"QMP"`
	Return   json.RawMessage `json:"return"`
	Event    string          `json:"event"`
	Error    *struct {
		Class string `json:"class"`
		Desc  string `json:"desc"`
	} `json:"error"`
}

// dialQMP connects and leaves the negotiation mode.
func dialQMP(ctx context.Context, socket string) (*qmp, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, fmt.Errorf("QEMU's monitor: %w", err)
	}
	q := &qmp{conn: conn, in: bufio.NewScanner(conn)}
	q.in.Buffer(make([]byte, 0, 4096), qmpLine)
	q.deadline(ctx)
	first, err := q.read()
	if err == nil && first.Greeting == nil {
		err = errors.New("no greeting")
	}
	if err == nil {
		err = q.Execute(ctx, "qmp_capabilities", nil, nil)
	}
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("QEMU's monitor: %w", err)
	}
	return q, nil
}

func (q *qmp) deadline(ctx context.Context) {
	at, ok := ctx.Deadline()
	if !ok {
		at = time.Now().Add(5 * time.Second)
	}
	q.conn.SetDeadline(at) // a closed connection shows at the next read
}

func (q *qmp) read() (qmpMessage, error) {
	if !q.in.Scan() {
		if err := q.in.Err(); err != nil {
			return qmpMessage{}, err
		}
		return qmpMessage{}, errors.New("QEMU closed the connection")
	}
	return parseQMP(q.in.Bytes())
}

func parseQMP(line []byte) (qmpMessage, error) {
	var m qmpMessage
	if err := json.Unmarshal(line, &m); err != nil {
		return m, fmt.Errorf("not understood: %w", err)
	}
	return m, nil
}

// Execute runs one command; the events that come in between are dropped. A
// result is decoded into out unless that is nil.
func (q *qmp) Execute(ctx context.Context, command string, arguments, out any) error {
	q.deadline(ctx)
	request := map[string]any{"execute": command}
	if arguments != nil {
		request["arguments"] = arguments
	}
	if err := json.NewEncoder(q.conn).Encode(request); err != nil {
		return fmt.Errorf("%s: %w", command, err)
	}
	for {
		m, err := q.read()
		if err != nil {
			return fmt.Errorf("%s: %w", command, err)
		}
		switch {
		case m.Error != nil:
			return fmt.Errorf("%s: %s (%s)", command, m.Error.Desc, m.Error.Class)
		case m.Return != nil:
			if out == nil {
				return nil
			}
			return json.Unmarshal(m.Return, out)
		}
	}
}

func (q *qmp) Close() error { return q.conn.Close() }
