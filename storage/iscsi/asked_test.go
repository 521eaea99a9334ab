package iscsi_test

import (
	"strings"
	"testing"

	"hotspare"
	"hotspare/storage/iscsi"
)

func TestEveryLoginIsTold(t *testing.T) {
	type told struct {
		asked iscsi.LoginAsked
		err   error
	}
	all := make(chan told, 8)
	s := newSiteWith(t, iscsi.Options{Asked: func(a iscsi.LoginAsked, err error) { all <- told{a, err} }}, "orders")
	g := s.grant(grantOf("orders", 1, "n1"))
	if err := s.dial().login(g, s.iqn("orders"), false, false); err != nil {
		t.Fatal(err)
	}
	if x := <-all; x.err != nil || x.asked.Initiator != g.Initiator || x.asked.Target != s.iqn("orders") || !strings.HasPrefix(x.asked.Address, "127.0.0.1:") {
		t.Errorf("a log-in is told as %+v", x)
	}
	wrong := g
	wrong.Secret = hotspare.NewSecret("secret-of-somebody")
	stranger := g
	stranger.Initiator = "iqn.test:stranger"
	for _, c := range []struct {
		g    string
		err  error
		says string
	}{
		{"wrong secret", s.dial().login(wrong, s.iqn("orders"), false, false), ""},
		{"stranger", s.dial().login(stranger, s.iqn("orders"), false, false), "no live grant"},
	} {
		x := <-all
		if c.err == nil || hotspare.CodeOf(x.err) != hotspare.CodeLoginRefused || !strings.Contains(x.err.Error(), c.says) {
			t.Errorf("%s is told as %+v", c.g, x)
		}
	}
}
