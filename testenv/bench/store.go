package main

import "context"

func storeFigures(ctx context.Context, o options) ([]figure, error) { return nil, nil }
