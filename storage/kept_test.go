package storage_test

import (
	"bytes"
	"context"
	"errors"
	"path/filepath"
	"testing"

	"hotspare/storage"
)

// TestWhatIsKeptLivesAsLongAsTheGrant follows a target's state through restarts
// to the revocation, and to the next grant, which must not find it.
func TestWhatIsKeptLivesAsLongAsTheGrant(t *testing.T) { // S2.2
	ctx := context.Background()
	path := filepath.Join(t.TempDir(), "exports.db")
	v := volumes{"orders": {data: make([]byte, 1<<16)}}
	e := open(t, path, v)
	g := grant("orders", 1, "n1")
	if err := e.Grant(ctx, g); err != nil {
		t.Fatal(err)
	}
	a, err := login(t, e, g, nil)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := a.Kept("reservations"); b != nil || err != nil {
		t.Fatalf("before anything is kept: %q, %v", b, err)
	}
	for key, value := range map[string]string{"reservations": "held", "other": "stays"} {
		if err := a.Keep(key, []byte(value)); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.Keep("reservations", bytes.Repeat([]byte{1}, 64<<10+1)); err == nil {
		t.Fatal("too much is kept")
	}
	a.End()
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}

	e = open(t, path, v)
	if a, err = login(t, e, g, nil); err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]string{"reservations": "held", "other": "stays", "none": ""} {
		if b, err := a.Kept(key); string(b) != want || err != nil {
			t.Errorf("%s after a restart: %q, %v", key, b, err)
		}
	}
	if err := a.Keep("other", nil); err != nil {
		t.Fatal(err)
	}
	if b, _ := a.Kept("other"); b != nil {
		t.Errorf("a removed key gives %q", b)
	}

	revoked := make(chan error, 1)
	var cut = make(chan struct{})
	b, err := login(t, e, g, func() { close(cut) })
	if err != nil {
		t.Fatal(err)
	}
	a.End()
	go func() {
		_, err := e.Revoke(ctx, "orders", 2)
		revoked <- err
	}()
	<-cut
	if err := b.Keep("reservations", []byte("too late")); !errors.Is(err, storage.ErrRevoked) {
		t.Errorf("keeping after the revocation: %v", err)
	}
	b.End()
	if err := <-revoked; err != nil {
		t.Fatal(err)
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}

	e = open(t, path, v)
	g = grant("orders", 2, "n2")
	if err := e.Grant(ctx, g); err != nil {
		t.Fatal(err)
	}
	if a, err = login(t, e, g, nil); err != nil {
		t.Fatal(err)
	}
	defer a.End()
	if b, err := a.Kept("reservations"); b != nil || err != nil {
		t.Errorf("the next grant finds %q, %v", b, err)
	}
}
