package appliance

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"
)

func TestWhatAKilledBuildLeftIsRemovedAtTheNextStart(t *testing.T) {
	state := t.TempDir()
	for _, dir := range []string{buildPrefix + "123/root/etc", "images"} {
		if err := os.MkdirAll(filepath.Join(state, dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	a := &Appliance{cfg: Config{State: state}, log: slog.New(slog.DiscardHandler)}
	if err := a.dropBuilds(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(state, buildPrefix+"123")); !os.IsNotExist(err) {
		t.Errorf("the build's folder is left: %v", err)
	}
	if _, err := os.Stat(filepath.Join(state, "images")); err != nil {
		t.Errorf("another folder is gone: %v", err)
	}
}
