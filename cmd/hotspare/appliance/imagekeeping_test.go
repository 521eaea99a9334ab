package appliance

import (
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"hotspare"
	"hotspare/haengine"
	"hotspare/images"
	"hotspare/ui/api"
	"hotspare/ui/api/client"
)

// bootDisk makes a disk of 8 MiB that a BIOS would start.
func bootDisk(t *testing.T, seed byte) string {
	t.Helper()
	b := make([]byte, 8<<20)
	rand.NewChaCha8([32]byte{seed}).Read(b[:440])
	b[510], b[511] = 0x55, 0xaa
	rand.NewChaCha8([32]byte{seed, 1}).Read(b[2<<20 : 3<<20])
	name := filepath.Join(t.TempDir(), "disk.raw")
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// taskOf begins a task and gives its end.
func taskOf(t *testing.T, cl *client.Client, path string, in any) api.Task {
	t.Helper()
	var x api.Task
	if err := cl.Post(t.Context(), path, in, &x); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	for x.Ended == nil {
		if err := cl.Get(t.Context(), fmt.Sprintf("/api/v1/tasks/%s?after=%d", x.ID, x.Revision), &x); err != nil {
			t.Fatal(err)
		}
	}
	return x
}

const importPath = "/api/v1/images/actions/import"

// An image's whole life through the interface: from a file, a URL and an upload
// that outlives a restart, to a channel, back, verified, and collected.
func TestLifeOfAnImage(t *testing.T) {
	c := config(t)
	c.Images.Sources.Allow = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	a := start(t, c)
	cl := client.New(client.Options{Socket: c.Socket})
	defer cl.Close()
	one := taskOf(t, cl, importPath, api.ImageSource{Name: "web", Version: "1", File: bootDisk(t, 1), Channel: "stable"})
	if one.State != "done" || one.Image != "web:1" {
		t.Fatalf("%+v %v", one, one.Problem)
	}
	second := bootDisk(t, 2)
	source := httptest.NewServer(http.FileServer(http.Dir(filepath.Dir(second))))
	defer source.Close()
	two := taskOf(t, cl, importPath, api.ImageSource{Name: "web", Version: "2", URL: source.URL + "/disk.raw"})
	if two.State != "done" {
		t.Fatalf("%+v %v", two, two.Problem)
	}
	if x := taskOf(t, cl, importPath, api.ImageSource{Name: "web", Version: "x", URL: source.URL + "/disk.raw", SHA256: strings.Repeat("0", 64)}); x.State != "failed" || x.Problem.Code != hotspare.CodeImageDigest {
		t.Errorf("another file: %+v", x)
	}
	if left, err := os.ReadDir(filepath.Join(c.State, "images", "incoming")); err != nil || len(left) != 0 {
		t.Errorf("a download that nobody can use is kept: %v %v", left, err)
	}

	data, err := os.ReadFile(bootDisk(t, 3))
	if err != nil {
		t.Fatal(err)
	}
	var u api.ImageUpload
	if err := cl.Post(t.Context(), "/api/v1/uploads", map[string]any{"sizeBytes": len(data), "sha256": fmt.Sprintf("%x", sha256.Sum256(data))}, &u); err != nil {
		t.Fatal(err)
	}
	for u.OffsetBytes < u.SizeBytes {
		piece := data[u.OffsetBytes:min(u.SizeBytes, u.OffsetBytes+u.PieceBytes)]
		if err := cl.Patch(t.Context(), "/api/v1/uploads/"+u.ID, "application/octet-stream", http.Header{"Upload-Offset": {fmt.Sprint(u.OffsetBytes)}}, piece, &u); err != nil {
			t.Fatal(err)
		}
		if u.OffsetBytes == 4<<20 {
			cl.Close()
			stopAppliance(t, a)
			a = start(t, c)
		}
	}
	if x := taskOf(t, cl, importPath, api.ImageSource{Name: "web", Version: "3", Upload: u.ID}); x.State != "done" {
		t.Fatalf("%+v %v", x, x.Problem)
	}

	var ch api.ImageChannel
	if err := cl.Put(t.Context(), "/api/v1/image-channels/web/stable", map[string]any{"version": "3", "reason": "better"}, &ch); err != nil || ch.Version != "3" || ch.Previous != "1" {
		t.Errorf("promote: %+v, %v", ch, err)
	}
	if err := cl.Post(t.Context(), "/api/v1/image-channels/web/stable/actions/rollback", map[string]any{}, &ch); err != nil || ch.Version != "1" {
		t.Errorf("roll back: %+v, %v", ch, err)
	}
	if x := taskOf(t, cl, "/api/v1/images/web:stable/actions/verify", map[string]any{}); x.State != "done" {
		t.Errorf("verify: %+v %v", x, x.Problem)
	}
	var g api.ImageGarbage
	if err := cl.Get(t.Context(), "/api/v1/image-garbage?newest=1", &g); err != nil || len(g.Remove) != 1 || g.Remove[0].Image != "web:2" || g.Bytes < 1<<20 {
		t.Errorf("preview: %+v, %v", g, err)
	}
	if x := taskOf(t, cl, "/api/v1/images/actions/collect", map[string]any{"newest": 1}); x.State != "done" {
		t.Errorf("collect: %+v %v", x, x.Problem)
	}
	if n := len(a.images.List()); n != 2 {
		t.Errorf("%d versions are left", n)
	}
	defer stopAppliance(t, a)
	testRemoteLimits(t, c)
}

// Over the network no path of the appliance is taken, and no recipe is run.
func testRemoteLimits(t *testing.T, c Config) {
	b, err := os.ReadFile(filepath.Join(c.State, "api.token"))
	if err != nil {
		t.Fatal(err)
	}
	remote := client.New(client.Options{Server: "http://127.0.0.1:8080", Token: hotspare.NewSecret(strings.TrimSpace(string(b)))})
	defer remote.Close()
	var x api.Task
	err = remote.Post(t.Context(), importPath, api.ImageSource{Name: "x", File: "/etc/shadow"}, &x)
	if err == nil || !strings.Contains(err.Error(), "unix socket") {
		t.Errorf("a path over the network: %v", err)
	}
	err = remote.Post(t.Context(), "/api/v1/images/actions/build", map[string]any{"recipe": "version: 1\nname: x\nsuite: bookworm\npackages: [abc]\n"}, &x)
	if err == nil || !strings.Contains(err.Error(), "unix socket") {
		t.Errorf("a recipe over the network: %v", err)
	}
	for _, in := range []api.ImageSource{
		{Name: "x"}, {Name: "x", URL: "http://127.0.0.1/x", Upload: "abcdefgh"}, {Name: "x", URL: "oci://h/a", Signature: "s"}, {Name: "x", Upload: "nonesuch"},
	} {
		if err := remote.Post(t.Context(), importPath, in, &x); err == nil {
			t.Errorf("%+v is taken", in)
		}
	}
}

// Only a root that was looked into, and has no init, is taken for one process; where
// nobody looked, the service group tells: what an earlier version imported starts as
// it did.
func TestOnlyAnImageWithoutAnInitIsOneProcess(t *testing.T) {
	alone := haengine.Application{Resources: []haengine.Resource{{Name: "p", Kind: haengine.ResourceProcess}}}
	for _, c := range []struct {
		init string
		app  haengine.Application
		want bool
	}{
		{"", haengine.Application{}, true}, {"systemd", alone, false}, {"/bin/busybox", alone, false},
		{images.InitUnknown, haengine.Application{}, false}, {images.InitUnknown, alone, true},
	} {
		got, err := (&agents{}).rootOf(t.Context(), haengine.Claim{Way: haengine.WayColdISCSI, Spec: c.app}, images.Image{Facts: images.Facts{Init: c.init}, RootSubvolume: "@"})
		if err != nil || got.Process != c.want || got.RootSubvolume != "@" {
			t.Errorf("init %q: %+v, %v", c.init, got, err)
		}
	}
}
