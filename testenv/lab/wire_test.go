package lab

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

func notifyTerm(ch chan<- os.Signal) { signal.Notify(ch, syscall.SIGTERM) }

func mustAddr(s string) netip.Addr { return netip.MustParseAddr(s) }

// fakeMonitor answers like QEMU: a greeting, then the given lines per request.
func fakeMonitor(t *testing.T, answers ...string) string {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "qmp")
	ln, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		fmt.Fprintln(conn, `{"QMP": {"version": {"qemu": {"major": 7}}, "capabilities": []}}`)
		in := bufio.NewScanner(conn)
		for _, a := range append([]string{`{"return": {}}`}, answers...) {
			if !in.Scan() {
				return
			}
			fmt.Fprintln(conn, a)
		}
	}()
	return socket
}

func TestQMP(t *testing.T) {
	t.Run("events come between request and answer", func(t *testing.T) {
		q, err := dialQMP(t.Context(), fakeMonitor(t, `{"event": "STOP"}`+"\n"+`{"return": {"status": "paused"}}`))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = q.Close() }()
		var out struct{ Status string }
		if err := q.Execute(t.Context(), "query-status", nil, &out); err != nil || out.Status != "paused" {
			t.Fatalf("%+v, %v", out, err)
		}
	})
	t.Run("an error has QEMU's words", func(t *testing.T) {
		q, err := dialQMP(t.Context(), fakeMonitor(t, `{"error": {"class": "DeviceNotFound", "desc": "Device 'net9' not found"}}`))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = q.Close() }()
		if err := q.Execute(t.Context(), "set_link", nil, nil); err == nil || !strings.Contains(err.Error(), "net9") {
			t.Fatalf("got %v", err)
		}
	})
	t.Run("a connection that ends is an error", func(t *testing.T) {
		q, err := dialQMP(t.Context(), fakeMonitor(t))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = q.Close() }()
		if err := q.Execute(t.Context(), "cont", nil, nil); err == nil {
			t.Fatal("no error")
		}
	})
	t.Run("something else than QEMU", func(t *testing.T) {
		socket := filepath.Join(t.TempDir(), "s")
		ln, err := net.Listen("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		go func() {
			if c, err := ln.Accept(); err == nil {
				fmt.Fprintln(c, "220 ESMTP")
				c.Close()
			}
		}()
		if _, err := dialQMP(t.Context(), socket); err == nil {
			t.Fatal("no error")
		}
	})
}

func FuzzQMP(f *testing.F) {
	f.Add([]byte(`{"return": {}}`))
	f.Add([]byte(`{"error": {"class": "x", "desc": "y"}}`))
	f.Add([]byte(`{"event": "STOP", "data": null}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		m, err := parseQMP(line)
		if err == nil && !json.Valid(line) {
			t.Errorf("%q is no JSON and gives %+v", line, m)
		}
	})
}

func TestNeighboursOfAMAC(t *testing.T) {
	table := `IP address       HW type     Flags       HW address            Mask     Device
10.77.0.101      0x1         0x2         52:54:00:77:00:01     *        hsbr0
10.77.0.50       0x1         0x2         52:54:00:77:00:01     *        hsbr0
10.77.0.102      0x1         0x2         52:54:00:77:00:02     *        hsbr0
10.77.0.103      0x1         0x0         52:54:00:77:00:01     *        hsbr0
10.78.0.9        0x1         0x2         52:54:00:77:00:01     *        hsbmc0
`
	if got := parseARP(table, "52:54:00:77:00:01"); !slices.Equal(got, []string{"10.77.0.101", "10.77.0.50"}) {
		t.Errorf("got %v", got)
	}
	if got := parseARP(table, "52:54:00:77:00:09"); got != nil {
		t.Errorf("an unknown MAC has %v", got)
	}
}

func FuzzARP(f *testing.F) {
	f.Add("10.77.0.101 0x1 0x2 52:54:00:77:00:01 * hsbr0\n", "52:54:00:77:00:01")
	f.Fuzz(func(t *testing.T, table, mac string) {
		for _, a := range parseARP(table, mac) {
			if !strings.Contains(table, a) {
				t.Errorf("%q is not in the table", a)
			}
		}
	})
}
