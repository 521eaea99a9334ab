package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"hotspare/ui/api"
)

func (a *everything) BeginImageTask(_ context.Context, r api.ImageTask) (api.Task, error) {
	a.note("image", r.Kind, r.Import.Name, r.Import.File+r.Import.URL, r.Import.Upload, r.Image, fmt.Sprint(r.Local))
	now := time.Now()
	return api.Task{ID: "t1", Kind: "image " + r.Kind, State: "done", Ended: &now}, nil
}

func (a *everything) Channels(_ context.Context, name string) ([]api.ImageChannel, error) {
	a.note("channels", name)
	return []api.ImageChannel{{Name: name, Channel: "stable", Version: "1"}}, nil
}

func (a *everything) ChangeChannel(_ context.Context, c api.ChannelChange) (api.ImageChannel, error) {
	a.note(c.Verb, c.Name, c.Channel, c.Version, c.Reason)
	return api.ImageChannel{Name: c.Name, Channel: c.Channel, History: []api.ImagePromotion{}}, nil
}

func (a *everything) RecordImageTest(_ context.Context, ref, digest string, t api.ImageTest) (api.Image, error) {
	a.note("record test", ref, digest, t.Text)
	return api.Image{}, nil
}

func (a *everything) ImageGarbage(_ context.Context, r api.ImageRetention) (api.ImageGarbage, error) {
	a.note("garbage", fmt.Sprint(r.Names), fmt.Sprint(r.Newest), fmt.Sprint(r.Days))
	return api.ImageGarbage{Remove: []api.ImageVerdict{{Image: "orders:1", Why: "nobody uses it", Bytes: 5}}, Keep: []api.ImageVerdict{}}, nil
}

func (a *everything) Upload(_ context.Context, c api.UploadChange) (api.ImageUpload, error) {
	if c.Verb == "begin" {
		a.upload = api.ImageUpload{ID: "u123456789", SizeBytes: c.Size, SHA256: c.SHA256, PieceBytes: 1 << 20}
	}
	if c.Verb == "append" {
		if c.Offset != a.upload.OffsetBytes {
			panic("a piece at the wrong place")
		}
		a.upload.OffsetBytes += int64(len(c.Data))
	}
	return a.upload, nil
}

// largeFile is more than one piece of an upload.
func largeFile(t *testing.T) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "large")
	if err := os.WriteFile(name, make([]byte, 3<<20+5), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}
