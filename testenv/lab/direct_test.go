package lab

import (
	"slices"
	"strings"
	"testing"

	"hotspare"
)

// What stands beside a node has its processor, its memory and its card, and waits
// to be let run.
func TestAMachineBesideIsOfTheNodesKind(t *testing.T) {
	node := Options{Nodes: Nodes(1)}.withDefaults().Nodes[0]
	m := &machine{node: node, dir: "/lab/n1", accel: "tcg"}
	theirs := m.args(false)
	ours := directArgs(Direct{Name: "peer", MAC: "52:54:00:77:00:61", MemoryMiB: node.MemoryMiB, Kernel: "/k", Initrd: "/i", Cmdline: "quiet", Disks: []DirectDisk{{File: "/a"}, {File: "/b", Keep: true}}}, "tcg", "/lab/peer")
	value := func(args []string, flag string) string {
		i := slices.Index(args, flag)
		if i < 0 || i+1 == len(args) {
			t.Fatalf("%s is missing: %v", flag, args)
		}
		return args[i+1]
	}
	for _, flag := range []string{"-machine", "-accel", "-cpu", "-smp", "-m"} {
		if a, b := value(ours, flag), value(theirs, flag); a != b {
			t.Errorf("%s is %s, a node has %s", flag, a, b)
		}
	}
	text := strings.Join(ours, " ")
	for _, want := range []string{"ifname=tap-peer,", "format=raw,snapshot=on,file=/a ", "format=raw,file=/b ", "-kernel /k", "-initrd /i", "-append quiet", "virtio-net-pci"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is missing: %s", want, text)
		}
	}
	if ours[len(ours)-1] != "-S" {
		t.Errorf("it does not wait: %s", text)
	}
	if strings.Index(text, "file=/a ") > strings.Index(text, "file=/b ") {
		t.Errorf("the disks are in another order: %s", text)
	}
}

func TestAMachineBesideIsNoNode(t *testing.T) {
	l := &Lab{dir: t.TempDir(), spec: spec{Nodes: Nodes(2)}}
	for _, d := range []Direct{{Name: "n1", MAC: "52:54:00:77:00:61"}, {Name: "peer", MAC: "52:54:00:77:00:02"}, {Name: "a/b"}, {Name: "muchtoolongname"}} {
		if _, err := l.StartDirect(t.Context(), d); hotspare.CodeOf(err) != hotspare.CodeInvalid {
			t.Errorf("%+v: %v", d, err)
		}
	}
}
