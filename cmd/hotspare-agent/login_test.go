package main

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"hotspare"
)

// TestALogInWaitsForATargetThatRestarts: an appliance that is killed in the middle
// of a claim must not cost the node its grant (SAFETY L3).
func TestALogInWaitsForATargetThatRestarts(t *testing.T) {
	unreachable := fmt.Errorf("login: %w", &hotspare.Error{Code: hotspare.CodeNoSession, What: "the log-in did not succeed"})
	refused := &hotspare.Error{Code: hotspare.CodeLoginRefused, What: "not admitted"}
	for _, c := range []struct {
		name  string
		back  time.Duration // when the target answers
		with  error
		claim time.Duration // how long the claim lasts; 0: for ever
		want  error
		least time.Duration
		most  time.Duration
	}{
		{"there at once", 0, nil, 0, nil, 0, 0},
		{"back after a restart", 8 * time.Second, nil, 0, nil, 8 * time.Second, 9 * time.Second},
		{"refused when it is back", 8 * time.Second, refused, 0, refused, 8 * time.Second, 9 * time.Second},
		{"refused at once", 0, refused, 0, refused, 0, 0},
		{"never back", time.Hour, nil, 0, unreachable, loginPatience, loginPatience},
		{"the claim is taken back", time.Hour, nil, 3 * time.Second, unreachable, 3 * time.Second, 3 * time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx := t.Context()
				if c.claim > 0 {
					var cancel context.CancelFunc
					ctx, cancel = context.WithTimeout(ctx, c.claim)
					defer cancel()
				}
				begun, told := time.Now(), 0
				_, err := patientLogin(ctx, func(context.Context) (DiskSession, error) {
					if time.Since(begun) < c.back {
						return nil, unreachable
					}
					return nil, c.with
				}, func(error) { told++ })
				if took := time.Since(begun); !errors.Is(err, c.want) || (c.want == nil) != (err == nil) || took < c.least || took > c.most {
					t.Fatalf("after %s: %v", took, err)
				}
				if want := min(1, int(c.back)); told != want {
					t.Fatalf("told %d times that it waits", told)
				}
			})
		})
	}
}
