package agentlink_test

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"hotspare"
	"hotspare/haengine"
	"hotspare/haengine/agentlink"
)

func rawFrame(text string) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(len(text)))
	return append(b, text...)
}

func TestFramesComeBackAsTheyWentOut(t *testing.T) {
	h := agentlink.Heartbeat{
		Seq: 3, Phase: agentlink.PhaseOnline, App: "orders", Epoch: 7,
		Resources: []agentlink.Resource{{Name: "data", Kind: haengine.ResourceMount, State: agentlink.ResourceOnline}},
	}
	frame, err := agentlink.Encode(agentlink.KindHeartbeat, h)
	if err != nil {
		t.Fatal(err)
	}
	stream := bytes.NewReader(append(frame, frame...))
	for range 2 {
		e, err := agentlink.Read(stream, agentlink.MaxFrame)
		if err != nil {
			t.Fatal(err)
		}
		got, err := agentlink.Decode[agentlink.Heartbeat](e)
		if err != nil || !reflect.DeepEqual(got, h) || e.Kind != agentlink.KindHeartbeat {
			t.Fatalf("got %+v, %v", got, err)
		}
	}
	if _, err := agentlink.Read(stream, agentlink.MaxFrame); !errors.Is(err, io.EOF) {
		t.Errorf("the end of the stream gives %v, want EOF", err)
	}
}

func TestBadFramesAreRefused(t *testing.T) {
	good := rawFrame(`{"v":1,"kind":"hello","body":{}}`)
	for _, c := range []struct {
		name string
		in   []byte
		want error
	}{
		{"longer than the limit", rawFrame(strings.Repeat(" ", 2000)), agentlink.ErrFrameSize},
		{"announces 4 GiB", []byte{0xff, 0xff, 0xff, 0xff, '{'}, agentlink.ErrFrameSize},
		{"empty", rawFrame(""), agentlink.ErrFrameSize},
		{"cut in the length", good[:3], io.ErrUnexpectedEOF},
		{"cut in the text", good[:9], io.ErrUnexpectedEOF},
		{"not JSON", rawFrame("hello"), agentlink.ErrFrameBody},
		{"another version", rawFrame(`{"v":2,"kind":"hello","body":{}}`), agentlink.ErrFrameVersion},
		{"no version", rawFrame(`{"kind":"hello","body":{}}`), agentlink.ErrFrameVersion},
	} {
		t.Run(c.name, func(t *testing.T) {
			if _, err := agentlink.Read(bytes.NewReader(c.in), 1000); !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
		})
	}
	if _, err := agentlink.Encode(agentlink.KindReport, agentlink.Report{Why: strings.Repeat("x", agentlink.MaxFrame)}); !errors.Is(err, agentlink.ErrFrameSize) {
		t.Errorf("a message above the limit is encoded: %v", err)
	}
}

func FuzzRead(f *testing.F) {
	f.Add(rawFrame(`{"v":1,"kind":"hello","body":{"node":"n1"}}`))
	f.Add(rawFrame(`{"v":1,"kind":"order","body":{"id":"1","bootId":"b","power":{"action":"off"}}}`))
	for _, o := range []agentlink.Order{kexecOrder(), installOrder()} {
		frame, err := agentlink.EncodeOrder(o)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(frame)
	}
	f.Add(rawFrame(`{"v":1,"kind":"announce","body":{"facts":{"disks":[{"id":"x","copies":[{"slot":"A"}]}],"nics":[{}]}}}`))
	f.Add([]byte{0, 0, 0, 1, '{'})
	f.Fuzz(func(t *testing.T, in []byte) {
		e, err := agentlink.Read(bytes.NewReader(in), 4096)
		if err != nil {
			return
		}
		if _, err := agentlink.Decode[agentlink.Heartbeat](e); err == nil && len(e.Body) == 0 {
			t.Error("a message without a body was decoded")
		}
		if j, err := agentlink.Decode[agentlink.Join](e); err == nil {
			_ = j.Facts.Bounded()
		}
		_, _ = agentlink.Decode[agentlink.Progress](e)
		o, err := agentlink.DecodeOrder(e)
		if err != nil {
			return
		}
		if err := o.Validate(); err != nil {
			t.Errorf("a decoded order is not valid: %v", err)
		}
		frame, err := agentlink.EncodeOrder(o)
		if err != nil {
			return // e.g. an address that JSON brought in and does not take out
		}
		e, err = agentlink.Read(bytes.NewReader(frame), agentlink.MaxFrame)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := agentlink.DecodeOrder(e); err != nil || again.ID != o.ID || again.Epoch != o.Epoch {
			t.Errorf("an order changed on its way: %+v, %v", again, err)
		}
	})
}

const canary = "canary-secret-0123"

func claimOrder() agentlink.Order {
	return agentlink.Order{ID: "91", BootID: "boot-a", App: "orders", Epoch: 7, Claim: &agentlink.Claim{
		Application: haengine.Application{Name: "orders", Address: netip.MustParsePrefix("10.77.0.50/24"), Volumes: []haengine.Volume{{Name: "data", SizeMiB: 64}}},
		Image:       agentlink.Image{RootFS: "btrfs", RootSubvolume: "@"},
		Seed:        map[string]hotspare.Secret{"meta-data": hotspare.NewSecret("instance-id: x\n"), "user-data": hotspare.NewSecret("\x00\xff" + canary)},
		Volumes: []agentlink.Volume{
			{Name: agentlink.RootVolume, Portal: netip.MustParseAddrPort("10.77.0.1:3260"), IQN: "iqn.r", Initiator: "iqn.i", User: "n1", Secret: hotspare.NewSecret(canary)},
			{Name: "data", Portal: netip.MustParseAddrPort("10.77.0.1:3260"), IQN: "iqn.d", Initiator: "iqn.i", User: "n1", Secret: hotspare.NewSecret(canary)},
		},
		Lease: agentlink.LeasePolicy{Lease: haengine.Duration(15 * time.Second), DropBound: haengine.Duration(3 * time.Second)},
	}}
}

// SAFETY S17: the secret of a volume reaches the node and nothing else.
func TestSecretsTravelOnTheLinkAlone(t *testing.T) {
	o := claimOrder()
	frame, err := agentlink.EncodeOrder(o)
	if err != nil {
		t.Fatal(err)
	}
	e, err := agentlink.Read(bytes.NewReader(frame), agentlink.MaxFrame)
	if err != nil {
		t.Fatal(err)
	}
	got, err := agentlink.DecodeOrder(e)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, o) {
		t.Errorf("the order changed on its way:\n%+v\n%+v", got, o)
	}
	text, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	slog.New(slog.NewJSONHandler(&log, nil)).Info("order", "order", o)
	for name, shown := range map[string]string{"JSON": string(text), "fmt": fmt.Sprintf("%+v %#v", *o.Claim, o.Claim.Volumes), "slog": log.String()} {
		if strings.Contains(shown, canary) {
			t.Errorf("%s shows the secret", name)
		}
	}
	config := agentlink.BootConfig{Node: "n1", Appliance: netip.MustParseAddrPort("10.77.0.1:7443"), CA: "pem", Token: hotspare.NewSecret(canary), Mode: agentlink.ModeStart}
	file, err := agentlink.EncodeBootConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	read, err := agentlink.ParseBootConfig(file)
	if err != nil || read.Token.Reveal() != canary || read.Node != "n1" {
		t.Errorf("boot.json comes back as %+v, %v", read, err)
	}
	if text, _ := json.Marshal(config); strings.Contains(string(text), canary) {
		t.Error("the boot configuration shows the token")
	}
	if _, err := agentlink.Encode(agentlink.KindOrder, o); err == nil {
		t.Error("an order went through Encode, which drops its secrets")
	}
}

func TestOrdersAreChecked(t *testing.T) {
	for _, c := range []struct {
		name  string
		spoil func(*agentlink.Order)
	}{
		{"no id", func(o *agentlink.Order) { o.ID = "" }},
		{"a seed outside of its folder", func(o *agentlink.Order) { o.Claim.Seed = map[string]hotspare.Secret{"../../../etc/shadow": {}} }},
		{"a subvolume that is two mount options", func(o *agentlink.Order) { o.Claim.Image.RootSubvolume = "@,suid" }},
		{"no boot", func(o *agentlink.Order) { o.BootID = "" }},
		{"no command", func(o *agentlink.Order) { o.Claim = nil }},
		{"two commands", func(o *agentlink.Order) { o.Drop = &agentlink.Drop{Below: 9} }},
		{"no epoch", func(o *agentlink.Order) { o.Epoch = 0 }},
		{"another application", func(o *agentlink.Order) { o.App = "web" }},
		{"no lease", func(o *agentlink.Order) { o.Claim.Lease.Lease = 0 }},
		{"no drop bound", func(o *agentlink.Order) { o.Claim.Lease.DropBound = 0 }},
		{"no root", func(o *agentlink.Order) { o.Claim.Volumes = o.Claim.Volumes[1:] }},
		{"volume without log-in", func(o *agentlink.Order) { o.Claim.Volumes = o.Claim.Volumes[:1] }},
		{"volume twice", func(o *agentlink.Order) { o.Claim.Volumes[1].Name = agentlink.RootVolume }},
		{"volume without portal", func(o *agentlink.Order) { o.Claim.Volumes[1].Portal = netip.AddrPort{} }},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := claimOrder()
			c.spoil(&o)
			if _, err := agentlink.EncodeOrder(o); err == nil {
				t.Error("the order is accepted")
			}
		})
	}
}

// SAFETY S2: an effect refuses a lower epoch; orders are bound to a boot.
func TestGateRefusesOtherBootsAndLowerEpochs(t *testing.T) {
	g := agentlink.NewGate("boot-a")
	order := func(boot string, epoch uint64) agentlink.Order {
		return agentlink.Order{ID: "1", BootID: boot, App: "orders", Epoch: epoch}
	}
	steps := []struct {
		o    agentlink.Order
		want hotspare.Code
	}{
		{order("boot-a", 7), ""},
		{order("boot-a", 7), ""},
		{order("boot-b", 9), hotspare.CodeConflict},
		{order("boot-a", 6), hotspare.CodeStaleEpoch},
		{agentlink.Order{ID: "2", BootID: "boot-a", App: "orders", Epoch: 7, Drop: &agentlink.Drop{Below: 8}}, ""},
		{order("boot-a", 7), hotspare.CodeStaleEpoch},
		{agentlink.Order{ID: "3", BootID: "boot-a", App: "web", Epoch: 1}, ""},
		{agentlink.Order{ID: "4", BootID: "boot-a", Power: &agentlink.Power{Action: agentlink.PowerOff}}, ""},
	}
	for i, s := range steps {
		if got := hotspare.CodeOf(g.Admit(s.o)); got != s.want {
			t.Errorf("step %d: %q, want %q", i, got, s.want)
		}
	}
	if g.Seen("orders") != 8 {
		t.Errorf("seen %d, want 8", g.Seen("orders"))
	}
}

func TestWitnessRecords(t *testing.T) {
	want := agentlink.Witness{Node: "n1", BootID: "boot-a", Epoch: 7, Counter: 1 << 40, UnixNano: 123456789}
	block := make([]byte, agentlink.WitnessBlock)
	if _, err := agentlink.DecodeWitness(block); !errors.Is(err, agentlink.ErrWitnessBlank) {
		t.Errorf("a blank block gives %v", err)
	}
	want.EncodeTo(block)
	if got, err := agentlink.DecodeWitness(block); err != nil || got != want {
		t.Errorf("got %+v, %v", got, err)
	}
	block[25] ^= 1
	if _, err := agentlink.DecodeWitness(block); !errors.Is(err, agentlink.ErrWitnessTorn) {
		t.Errorf("a changed record gives %v", err)
	}
	block[0] = 'X'
	if _, err := agentlink.DecodeWitness(block); !errors.Is(err, agentlink.ErrWitnessBad) {
		t.Errorf("a foreign block gives %v", err)
	}
	if _, err := agentlink.DecodeWitness(block[:100]); !errors.Is(err, agentlink.ErrWitnessBad) {
		t.Errorf("a short block gives %v", err)
	}
}

func FuzzDecodeWitness(f *testing.F) {
	block := make([]byte, agentlink.WitnessBlock)
	f.Add(block)
	agentlink.Witness{Node: "n", Epoch: 1}.EncodeTo(block)
	f.Add(block)
	f.Fuzz(func(t *testing.T, in []byte) {
		if w, err := agentlink.DecodeWitness(in); err == nil {
			again := make([]byte, agentlink.WitnessBlock)
			w.EncodeTo(again)
			if back, err := agentlink.DecodeWitness(again); err != nil || back != w {
				t.Errorf("a record changed: %+v, %+v, %v", w, back, err)
			}
		}
	})
}
