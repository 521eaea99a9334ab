package images

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"hotspare"
)

// versions imports a disk under several versions, an hour after each other.
func versions(t *testing.T, dir string, d *disks, refs ...string) (*Repository, *time.Time) {
	t.Helper()
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	r, err := Open(t.Context(), dir, Options{Disks: d, Now: func() time.Time { now = now.Add(time.Hour); return now }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	tree := rootTree(t)
	for i, ref := range refs {
		write(t, tree+"/etc/serial", []byte(fmt.Sprint(i)))
		name, version, _ := strings.Cut(ref, ":")
		if _, err := r.Import(t.Context(), ImportRequest{Name: name, Version: version, Path: mke2fs(t, tree)}); err != nil {
			t.Fatal(err)
		}
	}
	return r, &now
}

// The outcome of a test stays with what was tested, also after a restart.
func TestTestsAreKept(t *testing.T) {
	dir, d := t.TempDir(), newDisks(t)
	r, now := versions(t, dir, d, "orders:1")
	img, err := r.Get("orders", "1")
	if err != nil || !img.Tested.At.IsZero() {
		t.Fatalf("%+v, %v", img.Tested, err)
	}
	if _, err := r.RecordTest(t.Context(), "orders", "1", strings.Repeat("0", 64), Test{OK: true}); hotspare.CodeOf(err) != hotspare.CodeConflict {
		t.Errorf("another image's test: %v", err)
	}
	if _, err := r.RecordTest(t.Context(), "orders", "1", img.Digest, Test{Text: strings.Repeat("x", maxTestText+1)}); hotspare.CodeOf(err) != hotspare.CodeInvalid {
		t.Errorf("a long text: %v", err)
	}
	want := Test{At: *now, By: "me", Way: "cold-iscsi", Machine: "QEMU, BIOS", Text: "no root"}
	if got, err := r.RecordTest(t.Context(), "orders", "1", img.Digest, want); err != nil || got.Tested != want || got.Kernel.Path == "" {
		t.Errorf("%+v, %v", got, err)
	}
	r.Close()
	r, err = Open(t.Context(), dir, Options{Disks: d})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if got, err := r.Get("orders", "1"); err != nil || got.Tested != want {
		t.Errorf("after a restart %+v, %v", got.Tested, err)
	}
}

func TestChannels(t *testing.T) {
	dir, d := t.TempDir(), newDisks(t)
	r, _ := versions(t, dir, d, "orders:1", "orders:2", "orders:3")
	leads := func(want string) {
		t.Helper()
		img, err := r.Resolve("orders:stable")
		if err != nil || img.Version != want {
			t.Fatalf("orders:stable is %s, %v; want %s", img.Ref(), err, want)
		}
	}
	promote := func(version string) {
		t.Helper()
		if _, err := r.Promote(t.Context(), "orders", version, "stable", "me", "why"); err != nil {
			t.Fatal(err)
		}
		leads(version)
	}
	back := func() (Channel, error) { return r.Rollback(t.Context(), "orders", "stable", "me", "bad") }
	promote("1")
	if _, err := back(); hotspare.CodeOf(err) != hotspare.CodeConflict {
		t.Errorf("back from the first: %v", err)
	}
	promote("2")
	promote("2") // changes nothing
	promote("3")
	for _, want := range []string{"2", "1"} {
		if _, err := back(); err != nil {
			t.Fatal(err)
		}
		leads(want)
	}
	promote("3")
	if c, err := back(); err != nil || c.Version != "1" || len(c.History) != 7 {
		t.Errorf("%+v, %v", c, err)
	}
	for _, c := range []struct {
		name, version, channel string
		code                   hotspare.Code
	}{
		{"orders", "9", "stable", hotspare.CodeNotFound}, {"orders", "1", "2", hotspare.CodeInvalid}, {"orders", "1", "Up", hotspare.CodeInvalid},
		{"orders", "1", "../x", hotspare.CodeInvalid}, {"none", "1", "stable", hotspare.CodeNotFound},
	} {
		if _, err := r.Promote(t.Context(), c.name, c.version, c.channel, "", ""); hotspare.CodeOf(err) != c.code {
			t.Errorf("%+v: %v", c, err)
		}
	}
	if err := r.Delete(t.Context(), "orders", "1"); hotspare.CodeOf(err) != hotspare.CodeConflict {
		t.Errorf("a version that a channel leads to is deleted: %v", err)
	}
	if _, err := r.Import(t.Context(), ImportRequest{Name: "orders", Version: "stable", Path: mke2fs(t, rootTree(t))}); hotspare.CodeOf(err) != hotspare.CodeImageExists {
		t.Errorf("a version with a channel's name: %v", err)
	}
	// They survive a restart; a damaged one is told and nothing is removed then.
	r.Close()
	r = open(t, dir, d)
	leads("1")
	r.Close()
	file := filepath.Join(dir, "channels", "orders@stable.json")
	whole := mustRead(t, file)
	write(t, file, bytes.Replace(whole, []byte(`"back":true`), []byte(`"back":null`), 1))
	r = open(t, dir, d)
	if p := r.Problems(); len(p) != 1 || hotspare.CodeOf(p[0]) != hotspare.CodeCorrupt {
		t.Errorf("problems %v", p)
	}
	if _, err := r.PreviewGarbage(t.Context(), nobody{}, Retention{}); err == nil {
		t.Error("garbage is looked for while a channel cannot be read")
	}
	r.Close()
	write(t, file, whole)
	r = open(t, dir, d)
	if err := r.DeleteChannel(t.Context(), "orders", "stable"); err != nil || len(r.Channels("")) != 0 {
		t.Errorf("delete: %v", err)
	}
}

type nobody struct{ uses []Use }

func (n nobody) ImageUses(context.Context) ([]Use, error) { return n.uses, nil }

func TestGarbage(t *testing.T) {
	dir, d := t.TempDir(), newDisks(t)
	r, _ := versions(t, dir, d, "orders:1", "orders:2", "orders:3", "orders:4", "orders:5", "web:1", "web:2")
	for _, v := range []string{"1", "2"} {
		if _, err := r.Promote(t.Context(), "orders", v, "stable", "", ""); err != nil {
			t.Fatal(err)
		}
	}
	users := nobody{[]Use{{"orders:4", "application a"}, {"web", "application b"}}}
	g, err := r.PreviewGarbage(t.Context(), users, Retention{Newest: 1})
	if err != nil {
		t.Fatal(err)
	}
	refs := func(all []GarbageItem) []string {
		var out []string
		for _, i := range all {
			out = append(out, i.Ref)
			if i.Why == "" {
				t.Errorf("%s: no reason", i.Ref)
			}
		}
		slices.Sort(out)
		return out
	}
	if got := refs(g.Remove); !slices.Equal(got, []string{"orders:3", "web:1"}) || g.Bytes < 2<<20 {
		t.Errorf("removes %v, %d bytes", got, g.Bytes)
	}
	if got := refs(g.Keep); !slices.Equal(got, []string{"orders:1", "orders:2", "orders:4", "orders:5", "web:2"}) {
		t.Errorf("keeps %v", got)
	}
	if len(r.List()) != 7 {
		t.Error("a preview removed something")
	}
	old, _ := r.Get("orders", "3")
	done, err := r.CollectGarbage(t.Context(), users, Retention{Newest: 1})
	if err != nil || !slices.Equal(refs(done.Remove), refs(g.Remove)) || done.Bytes != g.Bytes {
		t.Errorf("%+v, %v; the preview said %+v", done, err, g)
	}
	if _, err := os.Stat(filepath.Join(d.dir, old.Volume)); !os.IsNotExist(err) {
		t.Errorf("the volume is there still: %v", err)
	}
	for _, img := range r.List() {
		checkKernel(t, r, img)
	}
	for _, c := range []struct {
		uses []Use
		o    Retention
	}{
		{nil, Retention{Newest: 9}}, {nil, Retention{Newest: 1, Age: 1000 * time.Hour}}, {nil, Retention{Newest: 1, Names: []string{"web"}}},
		{[]Use{{"orders:unknown", "application c"}}, Retention{Newest: 1}},
	} {
		if g, err := r.PreviewGarbage(t.Context(), nobody{c.uses}, c.o); err != nil || len(g.Remove) != 0 {
			t.Errorf("%+v removes %v, %v", c, g.Remove, err)
		}
	}
	if g, err := r.PreviewGarbage(t.Context(), nobody{}, Retention{Newest: 1}); err != nil || len(g.Remove) != 1 || g.Remove[0].Ref != "orders:4" {
		t.Errorf("%+v, %v", g, err)
	}
}

// An upload goes on where it ended, also in another process, and becomes an image
// only when it is the file that was promised.
func TestUploads(t *testing.T) {
	dir, d := t.TempDir(), newDisks(t)
	r := open(t, dir, d)
	disk := mke2fs(t, rootTree(t))
	command(t, "", "gzip", "-1", disk)
	data := mustRead(t, disk+".gz")
	sum := fmt.Sprintf("%x", sha256.Sum256(data))
	u, err := r.BeginUpload(t.Context(), int64(len(data)), sum, "me")
	if err != nil {
		t.Fatal(err)
	}
	half := len(data) / 2
	if half > MaxAppend {
		t.Fatal("the test's file is too large")
	}
	if u, err = r.Append(t.Context(), u.ID, 0, data[:half]); err != nil || u.Offset != int64(half) {
		t.Fatalf("%+v, %v", u, err)
	}
	for _, off := range []int64{0, int64(half) + 1, int64(half) - 1} {
		if _, err := r.Append(t.Context(), u.ID, off, data[:1]); hotspare.CodeOf(err) != hotspare.CodeConflict {
			t.Errorf("a piece at %d: %v", off, err)
		}
	}
	r.Close()
	r = open(t, dir, d)
	if u, err = r.Upload(u.ID); err != nil || u.Offset != int64(half) || u.SHA256 != sum {
		t.Fatalf("after a restart %+v, %v", u, err)
	}
	if _, err := r.Append(t.Context(), u.ID, u.Offset, append(bytes.Clone(data[half:]), 'x')); hotspare.CodeOf(err) != hotspare.CodeInvalid {
		t.Errorf("too much: %v", err)
	}
	if u, err = r.Append(t.Context(), u.ID, u.Offset, data[half:]); err != nil || u.Offset != u.Size {
		t.Fatalf("%+v, %v", u, err)
	}
	img, err := r.Import(t.Context(), ImportRequest{Name: "orders", Path: u.Path, SHA256: u.SHA256})
	if err != nil {
		t.Fatal(err)
	}
	checkKernel(t, r, img)
	if err := r.EndUpload(u.ID); err != nil {
		t.Error(err)
	}
	for _, id := range []string{u.ID, "../records", "", strings.Repeat("a", 65)} {
		if _, err := r.Upload(id); hotspare.CodeOf(err) != hotspare.CodeNotFound {
			t.Errorf("%q: %v", id, err)
		}
	}
	for range maxUploads {
		if _, err := r.BeginUpload(t.Context(), 5, sum, ""); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := r.BeginUpload(t.Context(), 5, sum, ""); hotspare.CodeOf(err) != hotspare.CodeConflict {
		t.Errorf("one more: %v", err)
	}
	r.Close()
	r, err = Open(t.Context(), dir, Options{Disks: d, Now: func() time.Time { return time.Now().Add(8 * 24 * time.Hour) }})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if all, err := r.Uploads(); err != nil || len(all) != 0 {
		t.Errorf("after a week %d uploads are left, %v", len(all), err)
	}
}

// Signatures made by Debian's minisign.
func TestSignatures(t *testing.T) {
	dir := t.TempDir()
	key := func(name string) string {
		cmd := exec.Command("minisign", "-G", "-W", "-p", name+".pub", "-s", name+".key")
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("minisign: %v: %s (Debian package minisign)", err, out)
		}
		return string(mustRead(t, filepath.Join(dir, name+".pub")))
	}
	trusted, other := key("trusted"), key("other")
	disk := mke2fs(t, rootTree(t))
	sign := func(with string, more ...string) []byte {
		command(t, dir, "minisign", append([]string{"-S", "-s", with + ".key", "-m", disk, "-x", "out.minisig", "-t", "release 7"}, more...)...)
		return mustRead(t, filepath.Join(dir, "out.minisig"))
	}
	good := sign("trusted")
	repo := func(o Options) *Repository {
		o.Disks = newDisks(t)
		r, err := Open(t.Context(), t.TempDir(), o)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { r.Close() })
		return r
	}
	r := repo(Options{TrustedKeys: []string{trusted}, SignedOnly: true})
	img, err := r.Import(t.Context(), ImportRequest{Name: "orders", Path: disk, Signature: good})
	if err != nil {
		t.Fatal(err)
	}
	if img.Signer.Comment != "release 7" || len(img.Signer.KeyID) != 16 {
		t.Errorf("signer %+v", img.Signer)
	}
	changed := filepath.Join(dir, "changed.raw")
	command(t, "", "cp", "--sparse=always", disk, changed)
	patch(t, changed, 20<<20, func(b []byte) { b[0] = 1 })
	for _, c := range []struct {
		name      string
		file      string
		signature []byte
		says      string
	}{
		{"none", disk, nil, "only signed"},
		{"of another key", disk, sign("other"), "not trusted"},
		{"of the old kind", disk, sign("trusted", "-l"), "old kind"},
		{"of another file", changed, good, "does not fit"},
		{"another comment", disk, bytes.Replace(good, []byte("release 7"), []byte("release 8"), 1), "does not fit"},
		{"no signature", disk, []byte("hello"), "not of minisign"},
		{"much too long", disk, bytes.Repeat([]byte("x"), 5000), "too many"},
	} {
		_, err := r.Import(t.Context(), ImportRequest{Name: "x", Path: c.file, Signature: c.signature})
		if hotspare.CodeOf(err) != hotspare.CodeImageSignature || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	if _, err := repo(Options{}).Import(t.Context(), ImportRequest{Name: "x", Path: disk, Signature: good}); hotspare.CodeOf(err) != hotspare.CodeImageSignature {
		t.Errorf("no key is trusted: %v", err)
	}
	if _, err := repo(Options{TrustedKeys: []string{other}}).Import(t.Context(), ImportRequest{Name: "x", Path: disk}); err != nil {
		t.Errorf("a signature is not asked for: %v", err)
	}
	if _, err := Open(t.Context(), t.TempDir(), Options{Disks: newDisks(t), TrustedKeys: []string{"hello"}}); hotspare.CodeOf(err) != hotspare.CodeInvalid {
		t.Errorf("a key that is none: %v", err)
	}
}

// Records of the version before are read, and their images are what they were.
func TestRecordsOfVersionOne(t *testing.T) {
	img := Image{Name: "orders", Version: "1", Digest: strings.Repeat("a", 64), Volume: "image-aaaaaaaaaaaaaaaa", Format: FormatRaw, SourceSHA256: strings.Repeat("b", 64)}
	b, err := encodeRecord(img)
	if err != nil {
		t.Fatal(err)
	}
	got, err := decodeRecord(bytes.Replace(b, []byte(`{"version":2`), []byte(`{"version":1`), 1))
	if err != nil || !got.Facts.Has(StartKernel) || got.Facts.Init != InitUnknown || got.DigestKind != "" {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := decodeRecord(bytes.Replace(b, []byte(`{"version":2`), []byte(`{"version":3`), 1)); hotspare.CodeOf(err) != hotspare.CodeStoreFormat {
		t.Errorf("a later version: %v", err)
	}
}

// The digest of a disk is the same however it is read.
func TestDigestOfAVolume(t *testing.T) {
	disk := mke2fs(t, rootTree(t))
	f, err := os.Open(disk)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	c := holes{&rawSource{f, diskSize}}
	if got, err := DigestOf(t.Context(), c, DigestTree, func(Step) {}); err != nil || got != diskDigestOf(t, disk) {
		t.Errorf("%s, %v", got, err)
	}
	if got, err := DigestOf(t.Context(), c, "", func(Step) {}); err != nil || got != fileSHA256(t, disk) {
		t.Errorf("plain: %s, %v", got, err)
	}
}

type holes struct{ *rawSource }

func (h holes) Extents(_ context.Context, visit func(off, n int64) error) error {
	for off := int64(0); ; {
		start, end, err := h.data(off)
		if err != nil || start == end {
			return err
		}
		if err := visit(start, end-start); err != nil {
			return err
		}
		off = end
	}
}
