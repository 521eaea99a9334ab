package initiators_test

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// url is how libiscsi's tools name a volume, with the secrets of both sides.
func (g *target) url(volume string) string {
	return fmt.Sprintf("iscsi://%s%%%s@%s/%s/0?target_user=%s&target_password=%s", chapUser, chapSecret, g.opts.Listen, iqn(volume), mutualUser, mutualSecret)
}

// tool runs a program that has to work and gives what it prints.
func tool(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := runTool(t, name, args...)
	if err != nil {
		t.Fatalf("%s: %v\n%s", name, err, out)
	}
	return out
}

func runTool(t *testing.T, name string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err == nil && strings.Contains(string(out), "verification failed") {
		err = fmt.Errorf("the data differs")
	}
	return string(out), err
}

// TestLibiscsiOfQEMU carries an image to a volume and back, and works on it with
// patterns, with a digest of the header and without.
func TestLibiscsiOfQEMU(t *testing.T) {
	g := startTarget(t, "", map[string]int64{"disk": 64 * mib, "second": 64 * mib}, "127.0.0.1:0")
	dir := t.TempDir()
	image := filepath.Join(dir, "image.qcow2")
	raw := filepath.Join(dir, "raw")
	if err := os.WriteFile(raw, sparseData(64*mib), 0o600); err != nil {
		t.Fatal(err)
	}
	tool(t, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, image)
	tool(t, "qemu-img", "convert", "-n", "-f", "qcow2", "-O", "raw", image, g.url("disk"))
	tool(t, "qemu-img", "compare", "-f", "qcow2", "-F", "raw", image, g.url("disk"))
	// From volume to volume, with the target's and QEMU's idea of what is empty.
	tool(t, "qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", g.url("disk"), g.url("second"))
	tool(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", raw, g.url("second"))

	for _, digest := range []string{"none", "crc32c"} {
		t.Run("digest "+digest, func(t *testing.T) {
			args := []string{"--image-opts"}
			for _, c := range patterns(digest) {
				args = append(args, "-c", c)
			}
			options := fmt.Sprintf("driver=raw,file.driver=iscsi,file.transport=tcp,file.portal=%s,file.target=%s,file.lun=0,file.user=%s,file.password=%s,file.header-digest=%s",
				g.opts.Listen, iqn("disk"), chapUser, chapSecret, digest)
			if out := tool(t, "qemu-io", append(args, options)...); strings.Count(out, "verification failed") > 0 || strings.Count(out, "read ") < 5 {
				t.Errorf("%s", out)
			}
		})
	}

	if out, err := runTool(t, "qemu-io", "-f", "raw", "-r", "-c", "read 0 512", strings.Replace(g.url("disk"), chapSecret, "not-the-secret", 1)); err == nil {
		t.Errorf("a wrong secret is let in:\n%s", out)
	}
	// QEMU's driver does not ask the target for its secret; libiscsi's own tools do.
	tool(t, "iscsi-inq", g.url("disk"))
	if out, err := runTool(t, "iscsi-inq", strings.Replace(g.url("disk"), mutualSecret, "secret-of-an-impostor", 1)); err == nil {
		t.Errorf("libiscsi takes a target with another secret for ours:\n%s", out)
	}

	g.ask("resize disk 80M", nil)
	if out := tool(t, "qemu-img", "info", g.url("disk")); !strings.Contains(out, "80 MiB") {
		t.Errorf("after a resize:\n%s", out)
	}
	tool(t, "qemu-io", "-f", "raw", "-c", "write -P 9 79M 1M", "-c", "read -P 9 79M 1M", g.url("disk"))
}

// patterns are commands of qemu-io: writes of all kinds at odd places, and reads
// that verify them.
func patterns(seed string) []string {
	p := 1 + len(seed)
	return []string{
		fmt.Sprintf("write -P %d 0 4M", p), fmt.Sprintf("write -P %d 1000k 3333k", p+1), fmt.Sprintf("write -f -P %d 512 512", p+2),
		"write -z 2M 64k", "write -z -u 3M 64k", "discard 5M 1M", "flush",
		fmt.Sprintf("read -P %d 0 512", p), fmt.Sprintf("read -P %d 512 512", p+2), fmt.Sprintf("read -P %d 1k 999k", p), fmt.Sprintf("read -P %d 1000k 1048k", p+1),
		"read -P 0 2M 64k", "read -P 0 3M 64k", "read -P 0 5M 1M",
		fmt.Sprintf("aio_write -P %d 8M 2M", p), fmt.Sprintf("aio_write -P %d 10M 2M", p+1), fmt.Sprintf("aio_write -P %d 12M 512", p+2), "aio_flush",
		fmt.Sprintf("read -P %d 8M 2M", p), fmt.Sprintf("read -P %d 10M 2M", p+1), fmt.Sprintf("read -P %d 12M 512", p+2),
	}
}

// sparseData gives n bytes: MiBs of noise, of holes, and of small islands.
func sparseData(n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{7})
	for i := 0; i < n; i += mib {
		switch i / mib % 3 {
		case 0:
			r.Read(b[i : i+mib])
		case 1:
			copy(b[i+mib/2+512:], bytes.Repeat([]byte{byte(i >> 20)}, 512))
		}
	}
	return b
}
