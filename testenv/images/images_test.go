package images

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"hotspare"
)

func TestRecipes(t *testing.T) {
	if names := Names(); !slices.Equal(names, []string{"orders", "web"}) {
		t.Fatalf("recipes are %v", names)
	}
	digests := map[string]bool{}
	for _, name := range Names() {
		r, err := Load(name)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Contains(r.Packages, "linux-image-cloud-amd64") || !slices.Contains(r.Packages, "systemd-sysv") {
			t.Errorf("%s has no kernel or no init: %v", name, r.Packages)
		}
		d, err := Digest(name)
		if err != nil {
			t.Fatal(err)
		}
		again, _ := Digest(name)
		if d != again || digests[d] {
			t.Errorf("digest of %s: %s, again %s", name, d, again)
		}
		digests[d] = true
	}
	if _, err := Load("nothing"); hotspare.CodeOf(err) != hotspare.CodeNotFound {
		t.Errorf("an unknown recipe: %v", err)
	}
}

func TestRecipesAreRefused(t *testing.T) {
	good := "version: 1\nname: x\nsuite: bookworm\npackages: [a]\nsizeMiB: 100\n"
	if _, err := parseRecipe("x", []byte(good)); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, text string
		code       hotspare.Code
	}{
		{"an unknown field", good + "mirror: http://x\n", hotspare.CodeYAML},
		{"another version", strings.Replace(good, "version: 1", "version: 2", 1), hotspare.CodeInvalid},
		{"another name", strings.Replace(good, "name: x", "name: y", 1), hotspare.CodeInvalid},
		{"no packages", strings.Replace(good, "packages: [a]\n", "", 1), hotspare.CodeInvalid},
		{"no YAML", "{", hotspare.CodeYAML},
	} {
		if _, err := parseRecipe("x", []byte(c.text)); hotspare.CodeOf(err) != c.code {
			t.Errorf("%s: %v, want %s", c.name, err, c.code)
		}
	}
}

// A cached image is taken only when it is whole and of the same recipe.
func TestCacheIsBelievedOnlyWhenWhole(t *testing.T) {
	dir := t.TempDir()
	b, err := New(Options{CacheDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	digest, err := Digest("orders")
	if err != nil {
		t.Fatal(err)
	}
	img := filepath.Join(dir, "orders-"+digest[:16])
	if err := os.MkdirAll(img, 0o755); err != nil {
		t.Fatal(err)
	}
	put := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(img, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	put("image.json", `{"version": 1, "name": "orders", "digest": "`+digest+`"}`)
	put("disk.raw", "")
	put("vmlinuz", "")
	if _, ok := b.Cached("orders"); ok {
		t.Error("an image without its initrd is believed")
	}
	put("initrd", "")
	if _, ok := b.Cached("orders"); !ok {
		t.Error("a whole image is not believed")
	}
	got, err := b.Build(t.Context(), "orders")
	if err != nil || !got.Reused || got.Disk != filepath.Join(img, "disk.raw") {
		t.Errorf("build gives %+v, %v", got, err)
	}
	put("image.json", `{"version": 1, "name": "orders", "digest": "other"}`)
	if _, ok := b.Cached("orders"); ok {
		t.Error("an image of another recipe is believed")
	}
}

func TestTwoBuildersOfOneImageWait(t *testing.T) {
	file := filepath.Join(t.TempDir(), "lock")
	unlock, err := lock(t.Context(), file)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := lock(ctx, file); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("a second lock: %v", err)
	}
	unlock()
	again, err := lock(t.Context(), file)
	if err != nil {
		t.Fatal(err)
	}
	again()
}

// The cluster of the database is made once and never again, whatever is on the
// volume: run the image's own script on a tmpfs in a mount namespace.
func TestOrdersPrepareNeverTouchesWhatIsThere(t *testing.T) {
	dir := t.TempDir()
	script, err := recipes.ReadFile("recipes/orders/files/usr/local/sbin/orders-prepare")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "orders-prepare"), script, 0o755); err != nil {
		t.Fatal(err)
	}
	// chown of a user that this host may not have is not what is tested.
	if err := os.MkdirAll(filepath.Join(dir, "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "bin/chown"), []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	setup := `set -eu
export PATH=` + dir + `/bin:$PATH
mount -t tmpfs none /usr/share && mkdir /usr/share/orders
mkdir -p ` + dir + `/c/main && echo 15 > ` + dir + `/c/main/PG_VERSION && echo pristine > ` + dir + `/c/main/data
tar -C ` + dir + `/c -czf /usr/share/orders/cluster.tar.gz main
mount -t tmpfs none /srv && mkdir /srv/orders
`
	mounted := "mount -t tmpfs none /srv/orders\n"
	for _, c := range []struct{ name, script, want string }{
		{"an empty volume gets a cluster", mounted + "$P; cat /srv/orders/15/main/data; ls -A /srv/orders/15", "pristine\nmain\n"},
		{"a cluster is left alone", mounted + "$P; echo mine > /srv/orders/15/main/data; $P; cat /srv/orders/15/main/data", "mine\n"},
		{"a half made one is made anew", mounted + "mkdir -p /srv/orders/15/new/main; echo x > /srv/orders/15/new/main/junk; $P; cat /srv/orders/15/main/data; ls -A /srv/orders/15", "pristine\nmain\n"},
		{"an empty folder is used", mounted + "mkdir -p /srv/orders/15/main; $P; cat /srv/orders/15/main/data", "pristine\n"},
		{"foreign files stay", mounted + "mkdir -p /srv/orders/15/main; echo x > /srv/orders/15/main/foreign; $P && echo made; ls -A /srv/orders/15/main", "foreign\n"},
		{"another version stays", mounted + "mkdir -p /srv/orders/15/main; echo 13 > /srv/orders/15/main/PG_VERSION; $P && echo made; cat /srv/orders/15/main/PG_VERSION", "13\n"},
		{"no volume, no cluster", "$P && echo made; ls -A /srv/orders; echo end", "end\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			cmd := exec.CommandContext(t.Context(), "unshare", "--mount", "sh", "-c", setup+"set +e\nP="+dir+"/orders-prepare\n"+c.script)
			var said strings.Builder
			cmd.Stderr = &said
			out, err := cmd.Output()
			if err != nil || string(out) != c.want {
				t.Errorf("got %q, %v; want %q; said %q", out, err, c.want, said.String())
			}
		})
	}
}

// What a killed mmdebstrap left is unmounted before it is removed: /proc and
// /dev of the host are mounted inside.
func TestSweepUnmountsBeforeItRemoves(t *testing.T) {
	dir := t.TempDir()
	b, err := New(Options{CacheDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	precious := t.TempDir()
	keep := filepath.Join(precious, "keep")
	if err := os.WriteFile(keep, []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	inside := filepath.Join(dir, "orders.building-1", "root", "dev")
	if err := os.MkdirAll(inside, 0o755); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mount", "--bind", precious, inside).CombinedOutput(); err != nil {
		t.Fatalf("mount: %v: %s", err, out)
	}
	t.Cleanup(func() { exec.Command("umount", "-q", inside).Run() }) // only if the test failed
	if err := b.sweep("orders"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(keep); err != nil {
		t.Fatalf("the host's file is gone: %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "orders.building-1")); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("the unfinished build is left: %v", err)
	}
}
