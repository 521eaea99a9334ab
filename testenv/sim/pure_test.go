package sim

import (
	"encoding/json"
	"testing"
	"time"

	"hotspare/haengine"
)

// TestDecisionsCanBeReplayed is E1: the same state, moment and event give the
// same state and actions again; a step leaves the state that it began with as it
// was; and what is journalled of a step, merged into what was journalled before,
// is the new durable state.
func TestDecisionsCanBeReplayed(t *testing.T) {
	encode := func(v any) string {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	steps := 0
	for seed := range uint64(4) {
		var journalled haengine.Durable
		Run(Config{Seed: seed + 1, Faulty: 60 * time.Second, audit: func(before haengine.State, now haengine.Stamp, e haengine.Event, after haengine.State, actions []haengine.Action) {
			steps++
			a, x := encode(after), encode(actions)
			b := encode(before)
			again, repeated := haengine.Step(before, now, e)
			if encode(again) != a || encode(repeated) != x {
				t.Fatalf("seed %d: %T at %v decides otherwise when it is replayed", seed+1, e, now.At)
			}
			if encode(before) != b {
				t.Fatalf("seed %d: %T changed the state that it was given", seed+1, e)
			}
			if _, is := e.(haengine.Restarted); is {
				journalled = before.Durable
				if err := json.Unmarshal([]byte(encode(before.Durable)), &journalled); err != nil {
					t.Fatal(err)
				}
			}
			journalled.Merge(after.Delta())
			want := after.Durable
			want.NextAction = journalled.NextAction // observations take numbers, too, and are not journalled ...
			for id := range want.Pending {
				if id > journalled.NextAction { // ... but no number of an effect is given out twice
					t.Fatalf("seed %d: action %d is beyond the journalled counter %d", seed+1, id, journalled.NextAction)
				}
			}
			if encode(journalled) != encode(want) {
				t.Fatalf("seed %d: after %T the journal holds something else than the state", seed+1, e)
			}
		}})
	}
	if steps < 3000 {
		t.Errorf("%d steps only", steps)
	}
}
