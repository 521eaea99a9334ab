package debian

import (
	"bytes"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// TestInitramfs has cpio(1) read what we make: programs come with what they need.
func TestInitramfs(t *testing.T) {
	var a Initramfs
	a.File("/etc/deep/file", 0o600, []byte("text"))
	a.File("/etc/deep/file", 0o600, []byte("the first one counts"))
	a.Symlink("/bin/sh", "busybox")
	for _, p := range []string{"iscsiadm", "busybox", "iscsid"} { // busybox is static
		if err := a.Program(t.Context(), p); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.Program(t.Context(), "no-such-program"); err == nil {
		t.Error("a program that is missing is added")
	}
	cmd := exec.Command("cpio", "--quiet", "-itv")
	cmd.Stdin = bytes.NewReader(a.Bytes())
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("cpio: %v\n%s", err, out)
	}
	var names []string
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line)
		names = append(names, f[8])
		if f[8] == "etc/deep/file" && (f[0] != "-rw-------" || f[4] != "4") {
			t.Errorf("%s", line)
		}
	}
	for _, want := range []string{"etc", "etc/deep", "bin/sh", "usr/sbin/iscsiadm", "sbin/iscsiadm", "sbin/busybox", "lib64/ld-linux-x86-64.so.2", "lib/x86_64-linux-gnu/libc.so.6"} {
		if !slices.Contains(names, want) {
			t.Errorf("%s is missing:\n%s", want, out)
		}
	}
	slices.Sort(names)
	if n := len(slices.Compact(slices.Clone(names))); n != len(names) {
		t.Errorf("%d entries, %d names", len(names), n)
	}
}

// TestModulesComeAfterWhatTheyNeed orders the modules of a real kernel.
func TestModulesComeAfterWhatTheyNeed(t *testing.T) {
	k, err := FetchKernel(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	all, err := k.order(t.Context(), []string{"iscsi_tcp", "dm-multipath", "iscsi_tcp", "no_such_module"})
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, m := range all {
		needs, err := dependsOn(m.data)
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range needs {
			if !seen[n] && k.modules[n] != "" {
				t.Errorf("%s comes before %s", m.name, n)
			}
		}
		if seen[m.name] {
			t.Errorf("%s comes twice", m.name)
		}
		seen[m.name] = true
	}
	for _, want := range []string{"iscsi_tcp", "libiscsi", "scsi_transport_iscsi", "dm_multipath", "dm_mod"} {
		if !seen[want] {
			t.Errorf("%s is missing", want)
		}
	}
}
