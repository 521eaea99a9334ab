package client

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"testing"
	"time"

	"go.uber.org/goleak"

	"hotspare/haengine/agentlink"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// options gives whole options with a CA that is valid from notBefore on.
func options(t *testing.T, notBefore time.Time) Options {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: notBefore, NotAfter: notBefore.AddDate(1, 0, 0), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return Options{
		Addr: "127.0.0.1:1", CA: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), Facts: agentlink.Facts{BootID: "boot-a"},
		Beat: func() agentlink.Heartbeat { return agentlink.Heartbeat{} }, Acked: func(time.Duration, agentlink.HeartbeatAck) {},
		Order: func(context.Context, agentlink.Order) agentlink.Result { return agentlink.Result{OK: true} },
		Now:   func() time.Duration { return time.Second },
	}
}

// A clock that stands before the CA's first day is wrong: certificates are
// checked as of that day.
func TestClockBeforeTheCAIsNotBelieved(t *testing.T) {
	future := time.Now().Add(10 * 365 * 24 * time.Hour).Truncate(time.Second)
	c, err := New(options(t, future))
	if err != nil {
		t.Fatal(err)
	}
	if got := c.tlsConfig().Time(); !got.Equal(future) {
		t.Errorf("the time is taken as %s, want %s", got, future)
	}
	c, err = New(options(t, time.Now().Add(-time.Hour)))
	if err != nil {
		t.Fatal(err)
	}
	if got := c.tlsConfig().Time(); time.Since(got) > time.Minute {
		t.Errorf("the time is taken as %s", got)
	}
}

// While the link is down, reports wait in a bounded list; conclusive ones stay
// longest.
func TestReportsWaitWithoutGrowingForEver(t *testing.T) {
	c, err := New(options(t, time.Now()))
	if err != nil {
		t.Fatal(err)
	}
	c.Report(agentlink.Report{Resource: "first", Conclusive: true})
	for i := range 10 * maxReports {
		c.Report(agentlink.Report{Resource: fmt.Sprint(i)})
	}
	if len(c.reports) != maxReports || c.reports[0].Resource != "first" {
		t.Errorf("%d reports wait, the first is %q", len(c.reports), c.reports[0].Resource)
	}
	last := c.reports[maxReports-1]
	if want := fmt.Sprint(10*maxReports - 1); last.Resource != want || last.UpMillis != 1000 {
		t.Errorf("the last report is %+v, want %s", last, want)
	}
	c.reportsSeen(last.Seq)
	if len(c.reports) != 0 {
		t.Errorf("%d reports wait after all were acknowledged", len(c.reports))
	}
}

func TestResultsAreRememberedWithinBounds(t *testing.T) {
	b := orderBook{done: map[string]agentlink.Result{}, running: map[string]bool{}}
	for i := range 3 * maxOrders {
		id := fmt.Sprint(i)
		if fresh, _, finished := b.begin(id); !fresh || finished {
			t.Fatalf("order %s is not fresh", id)
		}
		if fresh, _, finished := b.begin(id); fresh || finished {
			t.Fatalf("order %s is begun twice", id)
		}
		b.finish(id, agentlink.Result{OrderID: id, OK: true})
		if _, r, finished := b.begin(id); !finished || r.OrderID != id {
			t.Fatalf("the result of order %s is forgotten", id)
		}
	}
	if len(b.done) != maxOrders || len(b.running) != 0 {
		t.Errorf("%d results, %d running", len(b.done), len(b.running))
	}
}

func TestOptionsAreChecked(t *testing.T) {
	for name, spoil := range map[string]func(*Options){
		"no address": func(o *Options) { o.Addr = "" },
		"no boot id": func(o *Options) { o.Facts.BootID = "" },
		"no CA":      func(o *Options) { o.CA = nil },
		"broken CA":  func(o *Options) { o.CA = []byte("pem") },
		"no orders":  func(o *Options) { o.Order = nil },
		"no clock":   func(o *Options) { o.Now = nil },
	} {
		o := options(t, time.Now())
		spoil(&o)
		if _, err := New(o); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
