package standby

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/u-root/u-root/pkg/cpio"
	"go.uber.org/goleak"

	"hotspare"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// tinyELF is the smallest static program that the agent's check accepts: an ELF
// header for x86-64 and no segments.
func tinyELF(t *testing.T) string {
	t.Helper()
	b := make([]byte, 64)
	copy(b, "\x7fELF\x02\x01\x01")
	b[16], b[18], b[20], b[52], b[54], b[58] = 2, 62, 1, 64, 56, 64
	name := filepath.Join(t.TempDir(), "agent")
	if err := os.WriteFile(name, b, 0o755); err != nil {
		t.Fatal(err)
	}
	return name
}

const version = "6.1.0-9-test"

// fakeModules makes a module tree in which each module's contents are its
// path, with the compressions that distributions use.
func fakeModules(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), version)
	for name, data := range map[string]string{
		"modules.dep": `kernel/drivers/scsi/iscsi_tcp.ko: kernel/drivers/scsi/libiscsi_tcp.ko kernel/drivers/scsi/libiscsi.ko kernel/drivers/scsi/scsi_transport_iscsi.ko.zst
kernel/drivers/scsi/libiscsi_tcp.ko: kernel/drivers/scsi/libiscsi.ko kernel/drivers/scsi/scsi_transport_iscsi.ko.zst
kernel/drivers/scsi/libiscsi.ko: kernel/drivers/scsi/scsi_transport_iscsi.ko.zst
kernel/drivers/scsi/scsi_transport_iscsi.ko.zst:
kernel/drivers/scsi/sd_mod.ko.xz:
kernel/drivers/net/e1000.ko.gz:
kernel/drivers/net/virtio_net.ko: kernel/net/core/failover.ko
kernel/net/core/failover.ko:
kernel/fs/jfs.ko: kernel/lib/nls.ko
kernel/lib/nls.ko:
kernel/arch/x86/crypto/crc32c-intel.ko:
`,
		"modules.softdep": "softdep libiscsi pre: crc32c-intel nosuch post: jfs\n",
		"modules.builtin": "kernel/fs/ext4/ext4.ko\nkernel/net/packet/af_packet.ko\n",
		"modules.alias": `# Aliases extracted from modules themselves.
alias pci:v00008086d0000100Esv*sd*bc*sc*i* e1000
alias virtio:d00000001v* virtio_net
alias fs-jfs jfs
`,
		"kernel/drivers/scsi/iscsi_tcp.ko":            "iscsi_tcp",
		"kernel/drivers/scsi/libiscsi_tcp.ko":         "libiscsi_tcp",
		"kernel/drivers/scsi/libiscsi.ko":             "libiscsi",
		"kernel/drivers/scsi/scsi_transport_iscsi.ko": "scsi_transport_iscsi",
		"kernel/drivers/scsi/sd_mod.ko":               "sd_mod",
		"kernel/drivers/net/e1000.ko":                 "e1000",
		"kernel/drivers/net/virtio_net.ko":            "virtio_net",
		"kernel/net/core/failover.ko":                 "failover",
		"kernel/fs/jfs.ko":                            "jfs",
		"kernel/lib/nls.ko":                           "nls",
		"kernel/arch/x86/crypto/crc32c-intel.ko":      "crc32c_intel",
	} {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(data), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	command(t, dir, "zstd", "-q", "--rm", "kernel/drivers/scsi/scsi_transport_iscsi.ko")
	command(t, dir, "xz", "kernel/drivers/scsi/sd_mod.ko")
	command(t, dir, "gzip", "kernel/drivers/net/e1000.ko")
	return dir
}

func request(t *testing.T) Request {
	return Request{Agent: tinyELF(t), KernelVersion: version, ModulesDir: fakeModules(t), Set: Lab, Arch: "amd64"}
}

// unpack gives the files of an archive: contents, or "dir" and "dev".
func unpack(t *testing.T, res Result) map[string]string {
	t.Helper()
	packed, err := os.ReadFile(res.Path)
	if err != nil {
		t.Fatal(err)
	}
	var plain string
	for range 4 { // up to three zeros of padding, which the zstd tool calls garbage
		cmd := exec.Command(res.Compression, "-dc")
		cmd.Stdin = bytes.NewReader(packed)
		out, err := cmd.Output()
		if plain = string(out); err == nil {
			break
		}
		packed = packed[:len(packed)-1]
	}
	got := map[string]string{}
	err = cpio.ForEachRecord(cpio.Newc.Reader(strings.NewReader(plain)), func(r cpio.Record) error {
		b := make([]byte, r.FileSize)
		if len(b) > 0 {
			if _, err := r.ReadAt(b, 0); err != nil {
				return err
			}
		}
		switch r.Mode & cpio.S_IFMT {
		case cpio.S_IFDIR:
			b = []byte("dir")
		case cpio.S_IFCHR:
			b = fmt.Appendf(nil, "dev %d:%d", r.Rmajor, r.Rminor)
		}
		got["/"+r.Name] = string(b)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func TestArchiveHoldsTheModulesInTheOrderOfLoading(t *testing.T) {
	req := request(t)
	req.Files = map[string][]byte{"/etc/note": []byte("hello")}
	res, err := Build(t.Context(), req, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	got := unpack(t, res)
	lib := "/lib/modules/" + version + "/kernel/"
	want := map[string]string{
		"/dev/console": "dev 5:1", "/dev/null": "dev 1:3", "/newroot": "dir", "/proc": "dir", "/sys": "dir", "/run": "dir",
		"/etc/note":                                  "hello",
		lib + "drivers/scsi/sd_mod.ko":               "sd_mod",               // was xz
		lib + "drivers/scsi/scsi_transport_iscsi.ko": "scsi_transport_iscsi", // was zstd
		lib + "drivers/net/e1000.ko":                 "e1000",                // was gzip
		lib + "arch/x86/crypto/crc32c-intel.ko":      "crc32c_intel",
		"/hotspare/modules.load": strings.Join([]string{lib + "net/core/failover.ko", lib + "drivers/net/virtio_net.ko",
			lib + "arch/x86/crypto/crc32c-intel.ko", lib + "drivers/scsi/sd_mod.ko", lib + "drivers/scsi/scsi_transport_iscsi.ko",
			lib + "drivers/scsi/libiscsi.ko", lib + "drivers/scsi/libiscsi_tcp.ko", lib + "drivers/scsi/iscsi_tcp.ko", ""}, "\n"),
		"/hotspare/modules.alias":  "alias pci:v00008086d0000100Esv*sd*bc*sc*i* e1000\nalias virtio:d00000001v* virtio_net\n",
		"/hotspare/initramfs.json": `{"kernel":"` + version + `","set":"lab","version":1}`,
	}
	for name, data := range want {
		if got[name] != data {
			t.Errorf("%s: got %q, want %q", name, got[name], data)
		}
	}
	for name := range got {
		if strings.Contains(name, "jfs") || strings.Contains(name, "nls") {
			t.Errorf("%s was not asked for", name)
		}
	}
	dep := lib + "drivers/net/virtio_net.ko: " + lib + "net/core/failover.ko\n"
	if !strings.Contains(got["/hotspare/modules.dep"], dep) {
		t.Errorf("modules.dep lacks %q:\n%s", dep, got["/hotspare/modules.dep"])
	}
	if res.ModuleCount != 9 || res.Size%4 != 0 || !slices.Contains(res.Absent, "virtio_pci") {
		t.Errorf("result %+v", res)
	}
}

func TestArchiveIsReproducibleAndCached(t *testing.T) {
	req := request(t)
	cache := t.TempDir()
	first, err := Build(t.Context(), req, cache)
	if err != nil {
		t.Fatal(err)
	}
	if first.Reused {
		t.Error("the first build was reused")
	}
	again, err := Build(t.Context(), req, cache)
	if err != nil || !again.Reused || again.Digest != first.Digest || again.Path != first.Path {
		t.Errorf("second build: %+v, %v", again, err)
	}
	elsewhere, err := Build(t.Context(), req, t.TempDir())
	if err != nil || elsewhere.Reused || elsewhere.Digest != first.Digest {
		t.Errorf("another cache: digest %s, want %s (%v)", elsewhere.Digest, first.Digest, err)
	}
	// The same tree as a tar gives the same archive.
	tarReq := req
	tarReq.ModulesDir, tarReq.ModulesTar = "", tarOf(t, req.ModulesDir, "")
	fromTar, err := Build(t.Context(), tarReq, t.TempDir())
	if err != nil || fromTar.Digest != first.Digest {
		t.Errorf("from a tar: digest %s, want %s (%v)", fromTar.Digest, first.Digest, err)
	}
	// A damaged file is noticed and made again.
	if err := os.WriteFile(first.Path, []byte("damaged"), 0o600); err != nil {
		t.Fatal(err)
	}
	healed, err := Build(t.Context(), req, cache)
	if err != nil || healed.Reused || healed.Digest != first.Digest {
		t.Errorf("after damage: %+v, %v", healed, err)
	}
	// Another agent is another archive.
	b, _ := os.ReadFile(req.Agent)
	if err := os.WriteFile(req.Agent, append(b, 1), 0o755); err != nil {
		t.Fatal(err)
	}
	other, err := Build(t.Context(), req, cache)
	if err != nil || other.Reused || other.Digest == first.Digest {
		t.Errorf("another agent: %+v, %v", other, err)
	}
}

// tarOf packs a module tree; an extra name, if given, is put in as a file.
func tarOf(t *testing.T, dir, extra string) string {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if extra != "" {
		if err := w.WriteHeader(&tar.Header{Name: extra, Typeflag: tar.TypeReg, Mode: 0o644}); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.AddFS(os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(t.TempDir(), "modules.tar")
	if err := os.WriteFile(name, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestManyBuildersBuildOnce(t *testing.T) {
	req, cache := request(t), t.TempDir()
	var wg sync.WaitGroup
	results := make([]Result, 12)
	errs := make([]error, len(results))
	for i := range results {
		wg.Go(func() { results[i], errs[i] = Build(t.Context(), req, cache) })
	}
	wg.Wait()
	built := 0
	for i, r := range results {
		if errs[i] != nil {
			t.Fatal(errs[i])
		}
		if !r.Reused {
			built++
		}
		if r.Digest != results[0].Digest {
			t.Error("digests differ")
		}
	}
	if built != 1 {
		t.Errorf("built %d times", built)
	}
}

// A caller that waits for another builder may give up; the lock is not lost.
func TestWaitingBuilderCanGiveUp(t *testing.T) {
	file := filepath.Join(t.TempDir(), "lock")
	unlock, err := lockFile(t.Context(), file)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	gaveUp := make(chan error)
	go func() {
		_, err := lockFile(ctx, file)
		gaveUp <- err
	}()
	cancel()
	if err := <-gaveUp; !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
	unlock()
	unlock, err = lockFile(t.Context(), file)
	if err != nil {
		t.Fatal(err)
	}
	unlock()
}

func TestRefusals(t *testing.T) {
	dynamic := func(t *testing.T) string { return "/bin/ls" }
	script := func(t *testing.T) string {
		name := filepath.Join(t.TempDir(), "agent")
		if err := os.WriteFile(name, []byte("#!/bin/sh\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		return name
	}
	remove := func(names ...string) func(*testing.T, *Request) {
		return func(t *testing.T, r *Request) {
			for _, n := range names {
				if err := os.Remove(filepath.Join(r.ModulesDir, n)); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	for _, c := range []struct {
		name, says string
		change     func(*testing.T, *Request)
	}{
		{"no agent", "no agent is named", func(_ *testing.T, r *Request) { r.Agent = "" }},
		{"agent missing", "the agent cannot be read", func(_ *testing.T, r *Request) { r.Agent += "-gone" }},
		{"agent is a script", "not an ELF program", func(t *testing.T, r *Request) { r.Agent = script(t) }},
		{"agent is dynamic", "not static", func(t *testing.T, r *Request) { r.Agent = dynamic(t) }},
		{"agent of another architecture", "the agent is for EM_X86_64, the image for arm64", func(_ *testing.T, r *Request) { r.Arch = "arm64" }},
		{"no modules", "exactly one", func(_ *testing.T, r *Request) { r.ModulesDir = "" }},
		{"version with a slash", "not possible", func(_ *testing.T, r *Request) { r.KernelVersion = "../6.1" }},
		{"module with a slash", "not the name of a module", func(_ *testing.T, r *Request) { r.Modules = []string{"../x"} }},
		{"file not clean", "not a clean absolute path", func(_ *testing.T, r *Request) { r.Files = map[string][]byte{"/a/../init": nil} }},
		{"file instead of init", "not a clean absolute path", func(_ *testing.T, r *Request) { r.Files = map[string][]byte{"/init": nil} }},
		{"required module absent", "module xfs is neither", func(_ *testing.T, r *Request) { r.RootFS = "xfs" }},
		{"asked module absent", "module zfs is neither", func(_ *testing.T, r *Request) { r.Modules = []string{"zfs"} }},
		{"no modules.dep", "modules.dep", remove("modules.dep")},
		{"module's file missing", "kernel/drivers/scsi/libiscsi.ko", remove("kernel/drivers/scsi/libiscsi.ko")},
		{"dependency unknown", "module lost, which sd_mod needs, is missing", func(t *testing.T, r *Request) {
			appendFile(t, filepath.Join(r.ModulesDir, "modules.dep"), "kernel/drivers/scsi/sd_mod.ko.xz: kernel/lost.ko\n")
		}},
		{"dependency in a circle", "need each other", func(t *testing.T, r *Request) {
			appendFile(t, filepath.Join(r.ModulesDir, "modules.dep"), "kernel/net/core/failover.ko: kernel/drivers/net/virtio_net.ko\n")
		}},
		{"modules.dep is garbage", "is not a dependency", func(t *testing.T, r *Request) {
			appendFile(t, filepath.Join(r.ModulesDir, "modules.dep"), "garbage\n")
		}},
		{"tar leads outside", "not a path inside the tree", func(t *testing.T, r *Request) {
			r.ModulesTar, r.ModulesDir = tarOf(t, r.ModulesDir, "../../etc/passwd"), ""
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			req := request(t)
			c.change(t, &req)
			res, err := Build(t.Context(), req, t.TempDir())
			if hotspare.CodeOf(err) != hotspare.CodeInitramfs || !strings.Contains(fmt.Sprint(err), c.says) {
				t.Errorf("got %+v, %v; want %s with %q", res, err, hotspare.CodeInitramfs, c.says)
			}
		})
	}
}

func appendFile(t *testing.T, name, text string) {
	t.Helper()
	f, err := os.OpenFile(name, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString(text); err != nil {
		t.Fatal(err)
	}
}

// A failed build leaves nothing that a later one would take for an archive.
func TestCancelledBuildLeavesNothing(t *testing.T) {
	req, cache := request(t), t.TempDir()
	req.ModulesDigest = "d"
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Build(ctx, req, cache); !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
	left, err := filepath.Glob(filepath.Join(cache, "*.img"))
	if err != nil || len(left) != 0 {
		t.Errorf("left %v, %v", left, err)
	}
}

// GNU cpio reads the archive of one boot, and finds it closed to others.
func TestJoinArchiveIsPrivate(t *testing.T) {
	b := JoinArchive(map[string][]byte{"/hotspare/boot.json": []byte("secret"), "hotspare/ca.pem": []byte("c"), "/../x": []byte("y")})
	if len(b)%4 != 0 {
		t.Errorf("length %d", len(b))
	}
	dir := t.TempDir()
	cmd := exec.Command("cpio", "-idm", "--quiet", "--no-absolute-filenames")
	cmd.Dir, cmd.Stdin = dir, bytes.NewReader(b)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("cpio: %v\n%s", err, out)
	}
	for name, want := range map[string]fs.FileMode{"hotspare": fs.ModeDir | 0o700, "hotspare/boot.json": 0o600, "hotspare/ca.pem": 0o600, "x": 0o600} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil || info.Mode() != want {
			t.Errorf("%s: %v, %v; want mode %v", name, info, err, want)
		}
	}
	if got, _ := os.ReadFile(filepath.Join(dir, "hotspare/boot.json")); string(got) != "secret" {
		t.Errorf("got %q", got)
	}
	if !bytes.Equal(b, JoinArchive(map[string][]byte{"/../x": []byte("y"), "hotspare/ca.pem": []byte("c"), "/hotspare/boot.json": []byte("secret")})) {
		t.Error("the same files give another archive")
	}
}

func TestCompressionFollowsTheKernel(t *testing.T) {
	for _, c := range []struct{ version, config, want string }{
		{"6.1.0-1-amd64", "", "zstd"},
		{"5.9.0", "", "zstd"},
		{"5.8.18", "", "gzip"},
		{"4.19.0", "", "gzip"},
		{"what", "", "gzip"},
		{"6.1.0", "CONFIG_A=y\nCONFIG_RD_ZSTD=y\n", "zstd"},
		{"6.1.0", "CONFIG_A=y\n# CONFIG_RD_ZSTD is not set\n", "gzip"},
	} {
		if got := compression(c.version, []byte(c.config)); got != c.want {
			t.Errorf("%s %q: %s, want %s", c.version, c.config, got, c.want)
		}
	}
}

// Whatever depmod's files say, a plan loads nothing before what it needs.
func FuzzIndex(f *testing.F) {
	f.Add("a.ko: b.ko\nb.ko:\n", "softdep a pre: c\n", "d.ko\n")
	f.Add("kernel/iscsi_tcp.ko: kernel/sd-mod.ko\nkernel/sd-mod.ko: kernel/iscsi_tcp.ko\n", "softdep", "")
	f.Fuzz(func(t *testing.T, dep, soft, builtin string) {
		ix, err := parseIndex(metadata{dep: []byte(dep), softdep: []byte(soft), builtin: []byte(builtin)})
		if err != nil {
			return
		}
		var all []want
		for name := range ix.file {
			all = append(all, want{name, false, true})
		}
		p, err := ix.choose(all)
		if err != nil {
			return
		}
		done := map[string]bool{}
		for _, m := range p.load {
			for _, d := range ix.deps[m] {
				if !done[d] && !ix.builtin[d] {
					t.Fatalf("%s is loaded before %s", m, d)
				}
			}
			done[m] = true
		}
	})
}
