package api

import (
	"context"
	"net/url"

	"github.com/danielgtaylor/huma/v2"

	"hotspare/boot"
)

// Booting shows what machines asked for and how far they came. Boots gives the
// last boot of each machine that was heard lately, without its steps; BootsOf all
// boots of one, which is named by a MAC address or as a node.
type Booting interface {
	Boots(ctx context.Context) ([]boot.Ladder, error)
	BootsOf(ctx context.Context, name string) ([]boot.Ladder, error)
}

// segment decodes a part of a path. The server hands it over as it was sent, and
// clients differ about what they escape: a browser writes the colons of a MAC
// address as %3A.
func segment(s string) string {
	if plain, err := url.PathUnescape(s); err == nil {
		return plain
	}
	return s
}

func (r routes) registerBoots(h huma.API) {
	get(h, "list-boots", "/api/v1/boots", "The last boot of every machine that was heard lately", func(ctx context.Context, _ *struct{}) (*body[[]boot.Ladder], error) {
		all, err := r.Booting.Boots(ctx)
		if err != nil {
			return nil, problem(err)
		}
		return &body[[]boot.Ladder]{all}, nil
	})
	get(h, "get-boots", "/api/v1/boots/{name}", "The boots of one machine, by MAC address or node, the newest first", func(ctx context.Context, in *named) (*body[[]boot.Ladder], error) {
		all, err := r.Booting.BootsOf(ctx, segment(in.Name))
		if err != nil {
			return nil, problem(err)
		}
		return &body[[]boot.Ladder]{all}, nil
	})
}
