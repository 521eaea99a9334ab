package api

import (
	"context"

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

func (r routes) registerBoots(h huma.API) {
	get(h, "list-boots", "/api/v1/boots", "The last boot of every machine that was heard lately", func(ctx context.Context, _ *struct{}) (*body[[]boot.Ladder], error) {
		all, err := r.Booting.Boots(ctx)
		if err != nil {
			return nil, problem(err)
		}
		return &body[[]boot.Ladder]{all}, nil
	})
	get(h, "get-boots", "/api/v1/boots/{name}", "The boots of one machine, by MAC address or node, the newest first", func(ctx context.Context, in *named) (*body[[]boot.Ladder], error) {
		all, err := r.Booting.BootsOf(ctx, in.Name)
		if err != nil {
			return nil, problem(err)
		}
		return &body[[]boot.Ladder]{all}, nil
	})
}
