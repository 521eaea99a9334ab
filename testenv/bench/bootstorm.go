package main

import (
	"context"
	"errors"
)

func stormFigures(ctx context.Context, o options) ([]figure, error) {
	return nil, errors.New("not yet")
}
func serveStorm(ctx context.Context, args []string) error { return nil }
