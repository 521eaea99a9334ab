package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"hotspare"
	"hotspare/haengine"
	"hotspare/haengine/agentlink"
	"hotspare/haengine/agentlink/client"
)

// unlinked makes an agent whose link was never up.
func unlinked(t *testing.T) *agent {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: big.NewInt(1)}, &x509.Certificate{SerialNumber: big.NewInt(1)}, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	link, err := client.New(client.Options{
		Addr: "10.77.0.1:7443", CA: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), Facts: agentlink.Facts{BootID: "boot-a"},
		Beat: func() agentlink.Heartbeat { return agentlink.Heartbeat{} }, Acked: func(time.Duration, agentlink.HeartbeatAck) {},
		Order: func(context.Context, agentlink.Order) agentlink.Result { return agentlink.Result{} }, Now: func() time.Duration { return 0 },
	})
	if err != nil {
		t.Fatal(err)
	}
	return &agent{link: link, up: func() time.Duration { return 0 }, phase: agentlink.PhaseParked, facts: agentlink.Facts{Kernel: "6.1.0-1", BootID: "boot-a"}}
}

// SAFETY S2: a claim that is under way is given up between its steps when another
// grant of the application becomes known.
func TestAClaimThatIsSupersededGoesNoFurther(t *testing.T) {
	a := unlinked(t)
	l := &load{app: haengine.Application{Name: "orders"}, epoch: 7}
	for _, c := range []struct {
		app  string
		seen uint64
		want hotspare.Code
	}{{"orders", 7, ""}, {"web", 99, ""}, {"orders", 8, hotspare.CodeStaleEpoch}} {
		a.link.Gate().Saw(c.app, c.seen)
		if got := hotspare.CodeOf(a.superseded(l)); got != c.want {
			t.Errorf("after epoch %d of %s: %q, want %q", c.seen, c.app, got, c.want)
		}
	}
}

// The same in the middle of an installation.
func TestAnInstallationThatIsSupersededEnds(t *testing.T) {
	a := unlinked(t)
	synctest.Test(t, func(t *testing.T) {
		ctx, stop := a.whileGranted(t.Context(), agentlink.Order{ID: "i", App: "orders", Epoch: 7})
		defer stop()
		later, stopLater := a.whileGranted(t.Context(), agentlink.Order{ID: "l", App: "orders"})
		defer stopLater()
		time.Sleep(time.Second)
		if ctx.Err() != nil {
			t.Fatal("it ended before it was superseded")
		}
		a.link.Gate().Saw("orders", 8)
		time.Sleep(time.Second)
		if got := hotspare.CodeOf(context.Cause(ctx)); got != hotspare.CodeStaleEpoch {
			t.Errorf("after epoch 8: %q", got)
		}
		if later.Err() != nil {
			t.Error("an installation for later, which has no grant, ended")
		}
	})
}

// One boot carries one application, on the kernel that its image needs, and
// nothing while the node leaves or writes to its disks.
func TestWhatExcludesAClaim(t *testing.T) {
	order := func(kernel string) agentlink.Order {
		return agentlink.Order{ID: "c", App: "orders", Epoch: 7, Claim: &agentlink.Claim{
			Application: haengine.Application{Name: "orders"}, Image: agentlink.Image{Kernel: kernel},
			Lease: agentlink.LeasePolicy{Lease: haengine.Duration(time.Second), DropBound: haengine.Duration(time.Second)},
		}}
	}
	a := unlinked(t)
	if err := a.occupy("writes to a local disk"); err != nil {
		t.Fatal(err)
	}
	if err := a.occupy("is about to leave"); hotspare.CodeOf(err) != hotspare.CodeConflict {
		t.Errorf("two at once: %v", err)
	}
	for _, c := range []struct {
		name   string
		change func()
		kernel string
		want   hotspare.Code
	}{
		{"while it writes to a disk", func() {}, "", hotspare.CodeConflict},
		{"another kernel", a.vacate, "6.1.0-2", hotspare.CodeWrongKernel},
		{"a discovery boot", func() { a.boot.Mode = agentlink.ModeDiscovery }, "6.1.0-1", hotspare.CodeConflict},
		{"a second one", func() {
			a.boot.Mode = agentlink.ModeStandby
			a.load = &load{app: haengine.Application{Name: "web"}, done: true}
		}, "6.1.0-1", hotspare.CodeConflict},
	} {
		c.change()
		if _, err := a.takeOn(order(c.kernel)); hotspare.CodeOf(err) != c.want {
			t.Errorf("%s: %v, want %s", c.name, err, c.want)
		}
	}
	if err := a.occupy("is about to leave"); hotspare.CodeOf(err) != hotspare.CodeConflict {
		t.Errorf("a node that has carried something leaves: %v", err)
	}
}

// A claim does not wait for an installation that nobody waits for: it ends that. One
// that starts from the disk finds the node free only after its end; another one goes
// on at once, also when the disk hangs.
func TestAClaimEndsWhatIsDoneInSpareTime(t *testing.T) {
	for _, wait := range []time.Duration{spareEnd, 0} {
		synctest.Test(t, func(t *testing.T) {
			a := unlinked(t)
			a.comesFirst("a claim", wait) // nothing is under way
			hangs := make(chan struct{})
			ctx, free, err := a.occupyFor(t.Context(), "writes to a local disk", true)
			if err != nil {
				t.Fatal(err)
			}
			if _, _, err := a.occupyFor(t.Context(), "writes to a local disk", true); hotspare.CodeOf(err) != hotspare.CodeConflict {
				t.Errorf("two at once: %v", err)
			}
			go func() {
				<-ctx.Done()
				if wait == 0 {
					<-hangs
				}
				free()
			}()
			a.comesFirst("a claim for orders", wait)
			if err := a.occupy("is claimed"); err != nil {
				t.Errorf("the node is not free: %v", err)
			}
			close(hangs)
			synctest.Wait()
			if a.busy != "is claimed" {
				t.Error("the end of what was given up freed the node of what came after it")
			}
			if err := context.Cause(ctx); hotspare.CodeOf(err) != hotspare.CodeUnavailable || !strings.Contains(err.Error(), "a claim for orders came first") {
				t.Errorf("ended by %v", err)
			}
		})
	}
}
