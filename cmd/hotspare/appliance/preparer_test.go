package appliance

import (
	"bytes"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"hotspare/boot"
	"hotspare/haengine"
	"hotspare/haengine/agentlink"
	"hotspare/haengine/agentlink/diskstream"
	"hotspare/images"
	"hotspare/storage/cow"
)

// The disk of a node's document is there once, whole and free, or nothing is
// installed and the reason is told.
func TestWhichDiskMayBeWritten(t *testing.T) {
	blank := agentlink.Disk{ID: "wwn-1", Serial: "S1", Bytes: 100 << 30, Holds: "blank"}
	ext4 := agentlink.Disk{ID: "wwn-2", Serial: "S2", Bytes: 200 << 30, Holds: "ext4"}
	for _, c := range []struct {
		name  string
		want  *haengine.LocalDisk
		found []agentlink.Disk
		why   string // "" when it may
	}{
		{"not declared", nil, []agentlink.Disk{blank}, "names none"},
		{"by serial", &haengine.LocalDisk{Serial: "S1"}, []agentlink.Disk{blank, ext4}, ""},
		{"by size", &haengine.LocalDisk{MinGiB: 50, MaxGiB: 150}, []agentlink.Disk{blank, ext4}, ""},
		{"not there", &haengine.LocalDisk{ID: "wwn-9"}, []agentlink.Disk{blank}, "none is what"},
		{"two by size", &haengine.LocalDisk{MinGiB: 50}, []agentlink.Disk{blank, ext4}, "2 are what"},
		{"foreign data", &haengine.LocalDisk{Serial: "S2"}, []agentlink.Disk{blank, ext4}, "holds ext4"},
		{"foreign data, not wanted", &haengine.LocalDisk{Serial: "S2", Overwrite: true}, []agentlink.Disk{blank, ext4}, ""},
		{"ours", &haengine.LocalDisk{Serial: "S1"}, []agentlink.Disk{{ID: "wwn-1", Serial: "S1", Holds: "hotspare slots"}}, ""},
		{"read-only", &haengine.LocalDisk{Serial: "S1"}, []agentlink.Disk{{ID: "wwn-1", Serial: "S1", Holds: "blank", ReadOnly: true}}, "read-only"},
		{"no identity", &haengine.LocalDisk{MinGiB: 1}, []agentlink.Disk{{Bytes: 2 << 30, Holds: "blank"}}, "no identity"},
	} {
		ok, why := diskFacts(c.want, c.found)
		if ok != (c.why == "") || !strings.Contains(why, c.why) {
			t.Errorf("%s: %v, %q; want %q", c.name, ok, why, c.why)
		}
	}
}

// What an agent finds on its disks is what the engine decides by; empty slots are
// nothing.
func TestCopiesThatAnAgentFound(t *testing.T) {
	got := copiesOf([]agentlink.Disk{
		{ID: "wwn-1", Copies: []agentlink.Copy{
			{Slot: "A", State: agentlink.CopyReady, App: "orders", Image: "orders:7", Digest: "d", Epoch: 4, Started: 2}, {Slot: "B", State: agentlink.CopyEmpty},
		}},
		{ID: "wwn-2", Copies: []agentlink.Copy{{State: agentlink.CopyStarted, App: "web", Image: "web:1"}}},
		{ID: "wwn-3", Copies: []agentlink.Copy{{Slot: "A", State: agentlink.CopyReady, App: "web", Image: "web:2", Digest: "old"}}},
	}, func(image string) string { return map[string]string{"web:2": "mended"}[image] })
	want := []haengine.LocalCopy{
		{App: "orders", Epoch: 4, Image: "orders:7", Disk: "wwn-1", Slot: "A", Digest: "d", State: haengine.CopyReady},
		{App: "web", Image: "web:1", Disk: "wwn-2", State: haengine.CopyStarted},
		{App: "web", Image: "web:2", Disk: "wwn-3", Slot: "A", Digest: "old", State: haengine.CopyFailed}, // imported anew under its name
	}
	if !slices.Equal(got, want) {
		t.Errorf("%+v", got)
	}
	if none := copiesOf(nil, nil); none == nil || len(none) != 0 {
		t.Error("a node without copies must say so: nil means that nothing was said")
	}
	for _, s := range []agentlink.CopyState{agentlink.CopyWriting, agentlink.CopyReady, agentlink.CopyStarted, agentlink.CopyDisabled, agentlink.CopyFailed} {
		if !slices.Contains([]haengine.CopyState{haengine.CopyWriting, haengine.CopyReady, haengine.CopyStarted, haengine.CopyDisabled, haengine.CopyFailed}, haengine.CopyState(s)) {
			t.Errorf("the engine does not know the state %q", s)
		}
	}
}

// A whole disk keeps its head apart; a slot needs not, for no firmware looks there.
func TestWhatAnInstallationWrites(t *testing.T) {
	src := diskSource{digest: strings.Repeat("ab", 32), bytes: 1 << 30, partitions: []agentlink.Partition{{Number: 1, Offset: 1 << 20, Bytes: 1 << 20}}}
	img := images.Image{Name: "orders", Version: "7", RootPartition: 1, RootFS: "xfs"}
	whole := installOrder(haengine.LocalDisk{Serial: "S1"}, img, src)
	if whole.Layout != nil || whole.Head != 8<<10 || len(whole.Partitions) != 1 || whole.Consent != agentlink.ConsentBlank {
		t.Errorf("whole disk: %+v", whole)
	}
	slot := installOrder(haengine.LocalDisk{Serial: "S1", Slots: 2, SlotGiB: 4, Overwrite: true}, img, src)
	if slot.Layout == nil || !slices.Equal(slot.Layout.Slots, []string{"A", "B"}) || slot.Layout.SlotBytes != 4<<30 || slot.Slot != "" || slot.Head != 0 || slot.Partitions != nil || slot.Consent != agentlink.ConsentOverwrite {
		t.Errorf("slots: %+v", slot)
	}
	for _, o := range []agentlink.Install{whole, slot} {
		o.Source.URL = "http://10.77.0.1/disk/token"
		if err := (agentlink.Order{ID: "i", BootID: "b", App: "orders", Install: &o}).Validate(); err != nil {
			t.Error(err)
		}
	}
	for fs, want := range map[string]int64{"ext4": 1 << 10, "btrfs": 8 << 10, "xfs": 0} {
		if got := head(images.Image{RootFS: fs}); got != want {
			t.Errorf("the head of a bare %s has %d bytes, want %d", fs, got, want)
		}
	}
}

// The ways that an image can be started in follow from what it is.
func TestWaysOfAnImage(t *testing.T) {
	disk := images.Image{Name: "a", Version: "1", Volume: "v", Kernel: images.Kernel{Version: "6.1", Blob: images.Blob{Digest: strings.Repeat("a", 64)}}, Facts: images.Facts{Starts: []images.Start{images.StartKernel}}}
	memory := images.Image{
		Name: "b", Version: "1", RootPath: "/x", Root: images.Blob{Size: 1 << 20}, Kernel: disk.Kernel, Modules: images.Blob{Digest: "m"},
		Facts: images.Facts{Starts: []images.Start{images.StartRAM}},
	}
	bare := memory
	bare.Modules = images.Blob{}
	huge := memory
	huge.Root.Size = 2 << 30
	for _, c := range []struct {
		name string
		img  images.Image
		ways []haengine.Way
		not  map[haengine.Way]string
	}{
		{"a disk with a kernel", disk, []haengine.Way{haengine.WayStandbySwitch, haengine.WayStandbyKexec, haengine.WayColdISCSI, haengine.WayInstall, haengine.WaySlot},
			map[haengine.Way]string{haengine.WayColdSAN: "no boot code", haengine.WayRAM: "is a disk"}},
		{"a root in memory", memory, []haengine.Way{haengine.WayRAM}, map[haengine.Way]string{haengine.WaySlot: "no disk", haengine.WayColdSAN: "no disk"}},
		{"no modules", bare, nil, map[haengine.Way]string{haengine.WayRAM: "--modules"}},
		{"too large", huge, nil, map[haengine.Way]string{haengine.WayRAM: "2048 MiB"}},
	} {
		f := imageFacts("ref", c.img)
		if !slices.Equal(f.Ways, c.ways) {
			t.Errorf("%s: %v, want %v", c.name, f.Ways, c.ways)
		}
		for w, why := range c.not {
			if !strings.Contains(f.Not[w], why) {
				t.Errorf("%s by %s: %q", c.name, w, f.Not[w])
			}
		}
	}
}

// The token of an installation opens one image's disk, over a restart, until the
// installation has ended.
func TestTheTokenOfAnInstallation(t *testing.T) {
	path := filepath.Join(t.TempDir(), "boots.json")
	a := opened(t, path)
	x, err := a.streams(forInstall, n1, "orders:7")
	if err != nil || x.Mode != forInstall {
		t.Fatalf("%+v, %v", x, err)
	}
	a = opened(t, path)
	if again, err := a.streams(forInstall, n1, "orders:7"); err != nil || again.BootToken != x.BootToken {
		t.Errorf("after a restart it is another one: %v", err)
	}
	if _, err := a.begin(n1, bootOf(7), "orders:7"); err != nil {
		t.Fatal(err)
	}
	if got, ok := a.byToken(x.BootToken); !ok || got.Mode != forInstall {
		t.Errorf("a boot ended the installation's token: %+v", got)
	}
	next, err := a.streams(forInstall, n1, "orders:8")
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := a.byToken(x.BootToken); ok {
		t.Error("the token of the image before still lives")
	}
	if err := a.streamed(next.BootToken); err != nil {
		t.Fatal(err)
	}
	if _, ok := opened(t, path).byToken(next.BootToken); ok {
		t.Error("the token outlives its installation")
	}
}

// A disk goes out whole, or from where it ended, to who has the token and to nobody
// else.
func TestADiskIsSentToWhoInstallsIt(t *testing.T) {
	store, err := cow.Open(t.Context(), t.TempDir(), cow.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	const size = 5<<20 + 4096
	if err := store.Create(t.Context(), "golden", size); err != nil {
		t.Fatal(err)
	}
	dev, err := store.OpenVolume("golden")
	if err != nil {
		t.Fatal(err)
	}
	contents := make([]byte, size)
	for i := range contents[:3<<20] {
		contents[i] = byte(i * 7 / 3)
	}
	if _, err := dev.WriteAt(contents[:3<<20], 0); err != nil {
		t.Fatal(err)
	}
	if err := dev.Close(); err != nil {
		t.Fatal(err)
	}
	img := images.Image{Name: "orders", Version: "7", Volume: "golden", SizeBytes: size}
	a := opened(t, filepath.Join(t.TempDir(), "boots.json"))
	x, err := a.streams(forInstall, n1, img.Ref())
	if err != nil {
		t.Fatal(err)
	}
	other, err := a.load(n1, img.Ref())
	if err != nil {
		t.Fatal(err)
	}
	trusted := true
	var told []boot.Entry
	open := func(path string) *diskStreams {
		d, err := openDiskStreams(&diskStreams{
			store: store, token: a.byToken, find: func(string) (images.Image, error) { return img, nil },
			approved: func(string) bool { return trusted },
			tell:     func(e boot.Entry) { told = append(told, e) }, log: slog.New(slog.DiscardHandler), path: path,
		})
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	digests := filepath.Join(t.TempDir(), "digests.json")
	d := open(digests)
	src, err := d.source(t.Context(), img)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := open(digests).source(t.Context(), img); err != nil || again.digest != src.digest {
		t.Errorf("after a restart: %+v, %v", again, err)
	}
	srv := httptest.NewServer(d.before(http.NotFoundHandler()))
	defer srv.Close()
	get := func(path string) (int, []byte) {
		res, err := http.Get(srv.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		return res.StatusCode, b
	}
	for _, from := range []int64{0, 2 << 20} {
		path := streamPath + x.BootToken
		if from > 0 {
			path += "?from=2097152"
		}
		status, b := get(path)
		to := &held{b: make([]byte, size)}
		copy(to.b, contents[:from])
		if _, err := diskstream.Decode(t.Context(), bytes.NewReader(b), to, size, from, src.digest, func(int64) {}); status != http.StatusOK || err != nil || !bytes.Equal(to.b, contents) {
			t.Errorf("from %d: status %d, %v", from, status, err)
		}
	}
	for path, want := range map[string]int{
		streamPath + other.BootToken: http.StatusForbidden, streamPath + strings.Repeat("0", len(x.BootToken)): http.StatusForbidden,
		streamPath + x.BootToken + "?from=1": http.StatusBadRequest, streamPath + x.BootToken + "?from=99999744": http.StatusBadRequest, "/else": http.StatusNotFound,
	} {
		if status, _ := get(path); status != want {
			t.Errorf("%s: %d, want %d", path, status, want)
		}
	}
	trusted = false
	if status, _ := get(streamPath + x.BootToken); status != http.StatusForbidden {
		t.Errorf("a node that is not approved any more: %d", status)
	}
	for _, e := range told {
		if strings.Contains(e.Request+e.Answer+e.Reason.Text, x.BootToken) {
			t.Errorf("the trace shows the token: %+v", e)
		}
	}
	if len(told) != 2 {
		t.Errorf("%d streams were told of", len(told))
	}
}

// held is a disk in memory.
type held struct{ b []byte }

func (h *held) WriteAt(p []byte, at int64) (int, error) { return copy(h.b[at:], p), nil }

func (h *held) Zero(at, n int64) error {
	clear(h.b[at : at+n])
	return nil
}
