package witness

import (
	"encoding/hex"
	"encoding/json"
	"strings"
	"testing"

	"hotspare/haengine/agentlink"
	"hotspare/storage"
)

type write struct {
	session, says uint64 // epochs
	node, sayNode string
	boot          string
	counter       uint64
}

// trace renders writes as the target would.
func trace(t *testing.T, writes ...write) string {
	t.Helper()
	var out strings.Builder
	for i, w := range writes {
		block := make([]byte, agentlink.WitnessBlock)
		agentlink.Witness{Node: w.sayNode, BootID: w.boot, Epoch: w.says, Counter: w.counter}.EncodeTo(block)
		b, err := json.Marshal(storage.TraceEntry{
			Version: 1, Seq: uint64(i + 1), UnixNano: int64(i) * 1e8, Epoch: w.session, Node: w.node, BootID: w.boot,
			Op: "write", Length: agentlink.WitnessBlock, Data: hex.EncodeToString(block[:64]),
		})
		if err != nil {
			t.Fatal(err)
		}
		out.Write(append(b, '\n'))
	}
	return out.String()
}

func TestWitness(t *testing.T) {
	n1 := func(counter uint64) write { return write{5, 5, "n1", "n1", "b1", counter} }
	n2 := func(counter uint64) write { return write{6, 6, "n2", "n2", "b2", counter} }
	for _, c := range []struct {
		name, text, fault string
	}{
		{"an orderly hand-over", trace(t, n1(1), n1(2), n2(3), n2(4)), ""},
		{"the old node writes after the hand-over", trace(t, n1(1), n2(2), n1(3)), "n1 wrote under epoch 5 after n2 wrote under epoch 6"},
		{"two boots under one epoch", trace(t, n1(1), write{5, 5, "n1", "n1", "b9", 2}), "wrote under the same epoch 5"},
		{"a writer through another's session", trace(t, n1(1), write{6, 5, "n2", "n1", "b2", 2}), "says epoch 5, its session is of epoch 6"},
		{"a node through another's session", trace(t, n1(1), write{6, 6, "n2", "n1", "b2", 2}), `says node "n1", its session is of node "n2"`},
		{"a writer that did not see the last write", trace(t, n1(1), n1(2), n2(2)), "counts 2 after 2"},
		{"an entry is missing", strings.SplitAfterN(trace(t, n1(1), n1(2), n1(3)), "\n", 2)[0] + strings.SplitAfterN(trace(t, n1(1), n1(2), n1(3)), "\n", 3)[2], "has a gap"},
		{"an unfinished last line", trace(t, n1(1)) + `{"v":1,"se`, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, err := Read(strings.NewReader(c.text))
			if err != nil {
				t.Fatal(err)
			}
			if r.Writes == 0 {
				t.Fatal("no write was seen")
			}
			if c.fault == "" {
				if !r.OK() {
					t.Fatalf("faults: %q", r.Faults)
				}
				return
			}
			if all := strings.Join(r.Faults, "; "); !strings.Contains(all, c.fault) {
				t.Fatalf("faults are %q, want %q", all, c.fault)
			}
		})
	}
}
