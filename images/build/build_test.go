package build

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"hotspare"
)

const minimal = "version: 1\nname: x\nsuite: bookworm\npackages: [abc]\n"

func TestRecipesThatAreRefused(t *testing.T) {
	if _, err := Parse([]byte(minimal)); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		text string
		code hotspare.Code
	}{
		{"{", hotspare.CodeYAML},
		{minimal + "mirror: http://x\n", hotspare.CodeYAML},
		{strings.Replace(minimal, "version: 1", "version: 2", 1), hotspare.CodeInvalid},
		{strings.Replace(minimal, "name: x", "name: ../x", 1), hotspare.CodeInvalid},
		{strings.Replace(minimal, "bookworm", "--setup-hook=reboot", 1), hotspare.CodeInvalid},
		{strings.Replace(minimal, "[abc]", "[]", 1), hotspare.CodeInvalid},
		{strings.Replace(minimal, "[abc]", "['a --x']", 1), hotspare.CodeInvalid},
		{strings.Replace(minimal, "[abc]", "['a,b']", 1), hotspare.CodeInvalid},
		{minimal + "sizeMiB: -1\n", hotspare.CodeInvalid},
		{minimal + "hostname: a b\n", hotspare.CodeInvalid},
		{minimal + "units: {enable: ['a; reboot']}\n", hotspare.CodeInvalid},
		{minimal + "users: [{name: Root}]\n", hotspare.CodeInvalid},
		{minimal + "users: [{name: a, sshKeys: [\"k\\nl\"]}]\n", hotspare.CodeInvalid},
		{minimal + "files: [{path: etc/x}]\n", hotspare.CodeInvalid},
		{minimal + "files: [{path: /etc/../x}]\n", hotspare.CodeInvalid},
		{minimal + "files: [{path: /x, content: a, link: b}]\n", hotspare.CodeInvalid},
		{minimal + "files: [{path: /x, mode: '9'}]\n", hotspare.CodeInvalid},
		{minimal + "files: [{path: /x, owner: '$(reboot)'}]\n", hotspare.CodeInvalid},
	} {
		if _, err := Parse([]byte(c.text)); hotspare.CodeOf(err) != c.code {
			t.Errorf("%q: %v", c.text, err)
		}
	}
	if b, err := os.ReadFile("../../examples/image.yaml"); err != nil {
		t.Error(err)
	} else if _, err := Parse(b); err != nil {
		t.Error(err)
	}
}

// The recipe in the documentation is one.
func TestDocumentedRecipe(t *testing.T) {
	b, err := os.ReadFile("../../docs/images.md")
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(b), "## Recipes\n\n```yaml\n")
	text, _, ok := strings.Cut(after, "```")
	if r, err := Parse([]byte(text)); err != nil || !ok || len(r.Files) != 3 || len(r.Users) != 1 {
		t.Errorf("%+v, %v", r, err)
	}
}

// Whatever stands in a recipe is a word of the script and no more.
func TestScriptQuotes(t *testing.T) {
	r := Recipe{Users: []User{{Name: "app", UID: 1000, Groups: []string{"adm"}, Keys: []string{"ssh-ed25519 AAA it's; $(x) `y`"}}}, Files: []File{{Path: "/a'b", Owner: "app"}}, Units: Units{Mask: []string{"a.timer"}}}
	dir := t.TempDir()
	for _, name := range []string{"useradd", "install", "chown", "chmod", "systemctl", "id"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\nset -- \"${0##*/}\" \"$@\"\nprintf '<%s>' \"$@\"; echo\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	script := strings.ReplaceAll(r.script(), "/home/app", dir+"/home")
	if err := os.MkdirAll(dir+"/home/.ssh", 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sh", "-eu")
	cmd.Stdin, cmd.Env = strings.NewReader(script), []string{"PATH=" + dir + ":/usr/bin:/bin"}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if b, err := os.ReadFile(dir + "/home/.ssh/authorized_keys"); err != nil || string(b) != r.Users[0].Keys[0]+"\n" {
		t.Errorf("%q, %v", b, err)
	}
	for _, want := range []string{"<chown><-h><--><app></a'b>", "<systemctl><mask><--><a.timer>", "<--uid><1000><--groups><adm><app>"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("%s is missing in %s", want, out)
		}
	}
}

// What a killed mmdebstrap left is unmounted before it is removed: /proc and /dev
// of the host are mounted inside.
func TestRemoveUnmountsFirst(t *testing.T) {
	dir, precious := t.TempDir(), t.TempDir()
	keep := filepath.Join(precious, "keep")
	if err := os.WriteFile(keep, []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	inside := filepath.Join(dir, "build", "root", "dev")
	if err := os.MkdirAll(inside, 0o755); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mount", "--bind", precious, inside).CombinedOutput(); err != nil {
		t.Fatalf("mount: %v: %s", err, out)
	}
	t.Cleanup(func() { exec.Command("umount", "-q", inside).Run() }) // only if the test failed
	if err := Remove(filepath.Join(dir, "build")); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(keep); err != nil {
		t.Fatalf("the host's file is gone: %v", err)
	}
}

// The same recipe gives the same bytes, and what it asks for. Two builds take some
// minutes: they belong to the whole tests.
func TestBuildTwice(t *testing.T) {
	if os.Getenv("HOTSPARE_TEST_FULL") == "" {
		t.Skip("two builds take minutes: HOTSPARE_TEST_FULL=1")
	}
	src := `version: 1
name: tiny
suite: bookworm
packages: [systemd, systemd-sysv, udev, kmod, linux-image-cloud-amd64]
hostname: tiny
users: [{name: app, uid: 1000, groups: [adm], sshKeys: ["ssh-ed25519 AAA x"]}]
files:
  - {path: /srv/app/hello, content: "hello\n", mode: "0640", owner: "app:adm"}
  - {path: /etc/motd.link, link: ../etc/motd}
units: {mask: [apt-daily.timer]}
setup: echo set up > /etc/setup
`
	recipe, err := Parse([]byte(src))
	if err != nil {
		t.Fatal(err)
	}
	var disks []string
	for range 2 {
		dir := t.TempDir()
		disk := filepath.Join(dir, "disk.raw")
		work := filepath.Join(dir, "work")
		if err := os.Mkdir(work, 0o755); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { Remove(work) })
		begun := time.Now()
		res, err := Build(t.Context(), recipe, disk, Options{Work: work})
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%d packages, newest of %s, built in %s", len(res.Packages), res.Epoch, time.Since(begun))
		disks = append(disks, disk)
	}
	if out, err := exec.Command("cmp", disks[0], disks[1]).CombinedOutput(); err != nil {
		t.Errorf("two builds differ: %s", out)
	}
	if out, err := exec.Command("e2fsck", "-fn", disks[0]).CombinedOutput(); err != nil {
		t.Errorf("e2fsck: %v: %s", err, out)
	}
	for path, want := range map[string]string{"/etc/hostname": "tiny\n", "/etc/machine-id": "", "/etc/setup": "set up\n", "/srv/app/hello": "hello\n", "/home/app/.ssh/authorized_keys": "ssh-ed25519 AAA x\n"} {
		out, err := exec.Command("debugfs", "-R", "cat "+path, disks[0]).Output()
		if err != nil || string(out) != want {
			t.Errorf("%s is %q, %v", path, out, err)
		}
	}
}
