package slots

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"hotspare/haengine/agentlink"
)

var abc = agentlink.SlotLayout{Slots: []string{"A", "B", "C"}, SlotBytes: 8 << 20}

func newDisk(t *testing.T, size int64) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "disk"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	return f
}

// What we write, sfdisk of util-linux finds in order.
func TestPartitionTableIsInOrderForSfdisk(t *testing.T) {
	for _, sector := range []int64{512, 4096} {
		f := newDisk(t, 64<<20)
		if _, err := Divide(f, 64<<20, sector, abc); err != nil {
			t.Fatal(err)
		}
		if sector != 512 {
			continue // sfdisk takes a file's sectors to have 512 bytes
		}
		if out, err := exec.Command("sfdisk", "--verify", f.Name()).CombinedOutput(); err != nil || !bytes.Contains(out, []byte("No errors detected")) {
			t.Errorf("sfdisk --verify: %v\n%s", err, out)
		}
		out, err := exec.Command("sfdisk", "--json", f.Name()).Output()
		if err != nil {
			t.Fatal(err)
		}
		var found struct {
			PartitionTable struct {
				Label      string
				Partitions []struct {
					Start, Size int64
					Name, Type  string
				}
			}
		}
		if err := json.Unmarshal(out, &found); err != nil {
			t.Fatal(err)
		}
		p := found.PartitionTable.Partitions
		if found.PartitionTable.Label != "gpt" || len(p) != 4 || p[0].Name != "hotspare-record" || p[3].Name != "hotspare-C" ||
			p[1].Start*512 != slotsAt || p[3].Start*512 != slotsAt+2*abc.SlotBytes || p[3].Size*512 != abc.SlotBytes ||
			!strings.HasPrefix(p[1].Type, "8F3D4A11-6A1C-4E52-9B1E-") {
			t.Errorf("sfdisk finds %s", out)
		}
	}
}

func TestTheRecordSurvivesAWriteThatIsCut(t *testing.T) {
	const size = 64 << 20
	f := newDisk(t, size)
	r, err := Divide(f, size, 512, abc)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		r.Find("B").Started = i + 1
		if err := r.Write(f); err != nil {
			t.Fatal(err)
		}
		again, err := Read(f, size)
		if err != nil || again.Find("B").Started != i+1 || again.seq != r.seq {
			t.Fatalf("after write %d: %+v, %v", i, again, err)
		}
	}
	// The newest place is torn: what was before it holds.
	torn := r.at + int64(r.seq%2)*recordGap
	if _, err := f.WriteAt([]byte("torn"), torn+recordHead+9); err != nil {
		t.Fatal(err)
	}
	again, err := Read(f, size)
	if err != nil || again.Find("B").Started != 4 {
		t.Fatalf("after a torn write: %+v, %v", again, err)
	}
	// And the next write goes to the torn place, not to the whole one.
	again.Find("B").Started = 9
	if err := again.Write(f); err != nil {
		t.Fatal(err)
	}
	if last, err := Read(f, size); err != nil || last.Find("B").Started != 9 {
		t.Fatalf("%+v, %v", last, err)
	}
}

func TestAWholeDiskHasItsRecordAtItsEnd(t *testing.T) {
	const size = 16 << 20
	f := newDisk(t, size)
	if _, err := Read(f, size); !errors.Is(err, ErrNone) {
		t.Fatalf("a blank disk: %v", err)
	}
	r, err := Whole(f, size)
	if err != nil {
		t.Fatal(err)
	}
	r.Copies = []Copy{{Copy: agentlink.Copy{App: "orders", State: agentlink.CopyWriting}, Written: 5}}
	if err := r.Write(f); err != nil {
		t.Fatal(err)
	}
	got, err := Read(f, size)
	if err != nil || got.Layout != nil || got.Find("").App != "orders" || got.Find("").Written != 5 {
		t.Fatalf("%+v, %v", got, err)
	}
	if at, length, err := got.Place("", size); err != nil || at != 0 || length != size-recordArea {
		t.Errorf("place: %d, %d, %v", at, length, err)
	}
	if _, _, err := got.Place("A", size); err == nil {
		t.Error("a disk without slots has a slot A")
	}
}

func TestSlotsHavePlaces(t *testing.T) {
	f := newDisk(t, 64<<20)
	r, err := Divide(f, 64<<20, 512, abc)
	if err != nil {
		t.Fatal(err)
	}
	if at, n, err := r.Place("C", 64<<20); err != nil || at != slotsAt+16<<20 || n != 8<<20 || r.Partition("C") != 4 {
		t.Errorf("place of C: %d, %d, %v, partition %d", at, n, err, r.Partition("C"))
	}
	if _, _, err := r.Place("D", 64<<20); err == nil || r.Partition("D") != 0 {
		t.Error("there is a slot D")
	}
	r.Activate("B")
	if c := r.Public(); len(c) != 3 || !c[1].Active || c[0].Active || c[2].State != agentlink.CopyEmpty {
		t.Errorf("copies: %+v", c)
	}
}

func TestImpossibleLayoutsAreRefused(t *testing.T) {
	f := newDisk(t, 16<<20)
	for name, l := range map[string]agentlink.SlotLayout{
		"none": {SlotBytes: mib}, "too large": abc, "no size": {Slots: []string{"A"}}, "odd size": {Slots: []string{"A"}, SlotBytes: 12345},
		"too many": {Slots: make([]string, 99), SlotBytes: mib},
	} {
		if _, err := Divide(f, 16<<20, 512, l); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// Whatever stands on a disk, reading it neither panics nor invents a record.
func FuzzParse(f *testing.F) {
	f.Add([]byte(recordMagic))
	disk := &buffer{b: make([]byte, 4<<20)}
	r, err := Whole(disk, int64(len(disk.b)))
	if err != nil {
		f.Fatal(err)
	}
	r.Copies = []Copy{{Copy: agentlink.Copy{Slot: "", App: "orders"}}}
	if err := r.Write(disk); err != nil {
		f.Fatal(err)
	}
	f.Add(disk.b[r.at+recordGap : r.at+recordGap+400])
	f.Fuzz(func(_ *testing.T, b []byte) {
		r, err := parse(b)
		if err == nil {
			_ = r.Public()
			_, _, _ = r.Place("A", 1<<30)
		}
	})
}

type buffer struct{ b []byte }

func (d *buffer) ReadAt(b []byte, at int64) (int, error)  { return copy(b, d.b[at:]), nil }
func (d *buffer) WriteAt(b []byte, at int64) (int, error) { return copy(d.b[at:], b), nil }
func (d *buffer) Sync() error                             { return nil }

// A disk that was one installation, was divided, and becomes one installation again:
// the newest record counts, whatever older ones stand on it.
func TestADiskThatIsDividedAndIsNot(t *testing.T) {
	const size = 64 << 20
	f := newDisk(t, size)
	whole := func(app string) {
		t.Helper()
		r, err := Whole(f, size)
		if err != nil {
			t.Fatal(err)
		}
		r.Copies = []Copy{{Copy: agentlink.Copy{App: app, State: agentlink.CopyReady}}}
		if err := r.Write(f); err != nil {
			t.Fatal(err)
		}
	}
	for range 3 {
		whole("orders")
	}
	r, err := Divide(f, size, 512, abc)
	if err != nil || !r.Table {
		t.Fatalf("%+v, %v", r, err)
	}
	if got, err := Read(f, size); err != nil || got.Layout == nil || !got.Table {
		t.Fatalf("after it was divided: %+v, %v", got, err)
	}
	whole("web")
	if _, err := f.WriteAt(make([]byte, 2<<20), 0); err != nil {
		t.Fatal(err)
	}
	if got, err := Read(f, size); err != nil || got.Layout != nil || got.Find("").App != "web" {
		t.Fatalf("as one installation again: %+v, %v", got, err)
	}
}

// A division that is cut between record and table is told from one that is whole.
func TestADivisionThatIsCut(t *testing.T) {
	const size = 64 << 20
	d := &cutDisk{buffer: buffer{make([]byte, size)}}
	for d.left = 0; ; d.left++ {
		clear(d.b)
		d.writes = 0
		_, err := Divide(d, size, 512, abc)
		got, rerr := Read(d, size)
		if err == nil {
			if rerr != nil || !got.Table {
				t.Fatalf("whole: %+v, %v", got, rerr)
			}
			break
		}
		if rerr == nil && got.Table {
			t.Fatalf("cut after %d writes, and it looks whole", d.left)
		}
	}
	if d.left < 4 {
		t.Errorf("it was cut in %d places only", d.left)
	}
}

// cutDisk takes so many writes.
type cutDisk struct {
	buffer
	left, writes int
}

func (d *cutDisk) WriteAt(b []byte, at int64) (int, error) {
	if d.writes++; d.writes > d.left {
		return 0, errors.New("cut")
	}
	return d.buffer.WriteAt(b, at)
}
