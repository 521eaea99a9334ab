package dhcp

import (
	"context"
)

// IPv6 stub
type IPv6 struct{}

func (x IPv6) withDefaults() IPv6     { return x }
func (x IPv6) validate(bad bad) error { return nil }

type v6 struct{}

func (s *Server) serve6(context.Context) error { return nil }
