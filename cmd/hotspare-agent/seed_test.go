package main

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"hotspare"
)

// The seed lies in memory, over what the image holds there, for root alone.
func TestTheSeedLiesWhereCloudInitLooks(t *testing.T) {
	root := t.TempDir()
	baked := filepath.Join(root, seedDir, "user-data")
	if err := os.MkdirAll(filepath.Dir(baked), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(baked, []byte("#cloud-config\nof: the image\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := placeSeed(root, nil); err != nil {
		t.Fatal(err)
	}
	if got, _ := os.ReadFile(baked); string(got) != "#cloud-config\nof: the image\n" {
		t.Fatalf("without a seed the image's own is %q", got)
	}
	seed := map[string]hotspare.Secret{"meta-data": hotspare.NewSecret("instance-id: x\n"), "user-data": hotspare.NewSecret("#cloud-config\n{}\n")}
	if err := placeSeed(root, seed); err != nil {
		t.Fatal(err)
	}
	for name, text := range seed {
		file := filepath.Join(root, seedDir, name)
		got, err := os.ReadFile(file)
		if err != nil || string(got) != text.Reveal() {
			t.Errorf("%s is %q, %v", name, got, err)
		}
		if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(filepath.Join(root, seedDir), &fs); err != nil || fs.Type != unix.TMPFS_MAGIC {
		t.Errorf("the seed lies on %x, %v", fs.Type, err)
	}
	if err := unix.Unmount(filepath.Join(root, seedDir), 0); err != nil {
		t.Fatal(err)
	}
	if got, _ := os.ReadFile(baked); string(got) != "#cloud-config\nof: the image\n" {
		t.Errorf("the image's own seed became %q", got)
	}
}

// An image is foreign: a link in it leads the seed nowhere else.
func TestTheSeedDoesNotLeaveTheImage(t *testing.T) {
	root, outside := t.TempDir(), t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, "var/lib"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(root, "var/lib/cloud")); err != nil {
		t.Fatal(err)
	}
	if err := placeSeed(root, map[string]hotspare.Secret{"meta-data": hotspare.NewSecret("x")}); err == nil {
		_ = unix.Unmount(filepath.Join(outside, "seed/nocloud"), 0)
		t.Error("the seed was put outside of the image")
	}
	if all, _ := os.ReadDir(outside); len(all) > 0 {
		t.Errorf("outside of the image: %v", all)
	}
}

func TestCloudInitsResultIsRead(t *testing.T) {
	for _, c := range []struct {
		name, text string
		failed     int
		code       hotspare.Code
	}{
		{"well", `{"v1": {"datasource": "DataSourceNoCloud [seed=/var/lib/cloud/seed/nocloud]", "errors": []}}`, 0, ""},
		{"two modules failed", `{"v1": {"datasource": "DataSourceNoCloud", "errors": ["password: x", ["a"]]}}`, 2, ""},
		{"another source", `{"v1": {"datasource": "DataSourceEc2Local", "errors": []}}`, 0, hotspare.CodeOnlineFailed},
		{"no source", `{"v1": {"datasource": null}}`, 0, hotspare.CodeOnlineFailed},
	} {
		failed, err := cloudInitResult([]byte(c.text))
		if failed != c.failed || hotspare.CodeOf(err) != c.code {
			t.Errorf("%s: %d failed, %v", c.name, failed, err)
		}
	}
	if _, err := cloudInitResult([]byte("{")); err == nil {
		t.Error("half a result is read")
	}
}
