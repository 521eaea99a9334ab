// Package ui holds the console: a status page of plain files, embedded in the
// binary, that reads /api/v1/snapshot and follows /api/v1/events/stream. It
// needs no build step; the API (package ui/api) serves it.
package ui

import (
	"embed"
	"io/fs"
)

//go:embed page
var page embed.FS

// Page gives the console's files with index.html at the top.
func Page() (fs.FS, error) { return fs.Sub(page, "page") }
