package ipxe_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"hotspare"
	"hotspare/boot"
	"hotspare/boot/ipxe"
)

// command is one iPXE command of a line, as src/core/exec.c takes it apart.
type command struct {
	words []string
	next  string // ||, &&, ; or ""
}

// parse reads a script the way iPXE does: lines, words at white space, || && ;
// as words of their own, # at the begin of a word ends the line.
func parse(t *testing.T, script string) [][]command {
	t.Helper()
	if !strings.HasPrefix(script, "#!ipxe\n") {
		t.Fatalf("no iPXE script: %q", script)
	}
	var out [][]command
	for _, line := range strings.Split(script, "\n") {
		var cmds []command
		var cur command
		for _, w := range strings.FieldsFunc(line, func(r rune) bool { return strings.ContainsRune(" \t\n\v\f\r", r) }) {
			if w[0] == '#' {
				break
			}
			if w == "||" || w == "&&" || w == ";" {
				cur.next = w
				cmds = append(cmds, cur)
				cur = command{}
				continue
			}
			cur.words = append(cur.words, w)
		}
		if len(cur.words) > 0 || len(cmds) > 0 {
			cmds = append(cmds, cur)
			out = append(out, cmds)
		}
	}
	return out
}

func start(cmdline string) boot.Script {
	return boot.Script{
		Kind: boot.ScriptStart, Title: "node n1 starts", Kernel: "http://10.77.0.1/boot/T/kernel", Cmdline: cmdline, Again: 20 * time.Second, Attempt: "a1b2c3",
		Initrds: []boot.Initrd{{Name: "initrd", URL: "http://10.77.0.1/boot/T/initrd"}, {Name: "join", URL: "http://10.77.0.1/boot/T/join", Once: true}},
	}
}

func TestStartScript(t *testing.T) {
	b, err := ipxe.Write(start("root=/dev/x console=ttyS0 -- single"))
	if err != nil {
		t.Fatal(err)
	}
	want := `#!ipxe
# hotspare boot script, version 1
echo hotspare: node n1 starts
iseq ${hotspare-once} a1b2c3 && goto spent ||
imgfree ||
kernel http://10.77.0.1/boot/T/kernel initrd=initrd initrd=join root=/dev/x console=ttyS0 -- single BOOTIF=01-${netX/mac:hexhyp} || goto failed_kernel
initrd --name initrd http://10.77.0.1/boot/T/initrd || goto failed_initrd
set hotspare-once a1b2c3 || goto failed_join
initrd --name join http://10.77.0.1/boot/T/join || goto failed_join
echo hotspare: all fetched, the kernel starts
boot || goto failed_boot
goto failed_boot
:failed_kernel
echo hotspare: FAILED to load the kernel; iPXE's own message is above
goto again
:failed_initrd
echo hotspare: FAILED to fetch initrd; iPXE's own message is above
goto again
:failed_join
echo hotspare: FAILED to fetch join; iPXE's own message is above
goto again
:spent
echo hotspare: this boot attempt has failed, a new one is needed
goto again
:failed_boot
echo hotspare: FAILED to start the kernel; iPXE's own message is above
:again
echo hotspare: asks again in 20 s
sleep 20 ||
imgfree ||
dhcp netX || goto again
isset ${netX/filename} && chain --replace --autofree ${netX/filename} || chain --replace --autofree ${filename} || goto again
goto again
`
	if string(b) != want {
		t.Errorf("got\n%s\nwant\n%s", b, want)
	}
}

// Only a script of kind local ends; every other one goes on for ever, for an end
// hands the machine back to its firmware and that boots the disk (SAFETY S2a).
func TestOnlyLocalScriptsEnd(t *testing.T) {
	for _, s := range []boot.Script{start(""), {Kind: boot.ScriptWait, Title: "wait"}} {
		b, err := ipxe.Write(s)
		if err != nil {
			t.Fatal(err)
		}
		labels, lines := map[string]bool{}, parse(t, string(b))
		for _, cmds := range lines {
			if w := cmds[0].words; len(w) == 1 && strings.HasPrefix(w[0], ":") {
				labels[w[0][1:]] = true
			}
		}
		for _, cmds := range lines {
			for _, c := range cmds {
				if len(c.words) == 0 {
					continue
				}
				switch c.words[0] {
				case "exit", "shell", "autoboot", "sanboot", "reboot", "poweroff":
					t.Errorf("%s script: %v", s.Kind, c.words)
				case "goto":
					if !labels[c.words[1]] {
						t.Errorf("%s script: no label %s", s.Kind, c.words[1])
					}
				case "echo":
				default:
					if !strings.HasPrefix(c.words[0], ":") && c.next == "" {
						t.Errorf("%s script: the failure of %v ends the script", s.Kind, c.words)
					}
				}
			}
		}
		if last := lines[len(lines)-1][0].words; strings.Join(last, " ") != "goto again" {
			t.Errorf("%s script ends with %v", s.Kind, last)
		}
	}
	b, err := ipxe.Write(boot.Script{Kind: boot.ScriptLocal, Title: "node n1 boots from its own disk"})
	if err != nil || !strings.HasSuffix(string(b), "\nexit 1\n") || strings.Contains(string(b), "exit 0") {
		t.Errorf("local: %v\n%s", err, b)
	}
}

func TestValuesThatIPXEWouldTakeApartAreRefused(t *testing.T) {
	for _, v := range []string{
		"a || exit 0", "a && shell", "a ; poweroff", "x #comment", "${net0/password}", "a$b", "back\\", "two\nlines", "tab\tbed", "\x00", "ümlaut",
		"double  blank", " begin", "end ", strings.Repeat("x", 2000),
	} {
		_, err := ipxe.Write(start(v))
		var e *hotspare.Error
		if !errors.As(err, &e) || e.Code != hotspare.CodeInvalid || e.Fix == "" {
			t.Errorf("%q: %v", v, err)
		}
	}
	for _, s := range []boot.Script{
		func() boot.Script { s := start(""); s.Kernel = "tftp://x/y"; return s }(),
		func() boot.Script { s := start(""); s.Kernel = "http://x/y --evil"; return s }(),
		func() boot.Script { s := start(""); s.Kernel = ""; return s }(),
		func() boot.Script { s := start(""); s.Initrds[0].Name = "--name"; return s }(),
		func() boot.Script { s := start(""); s.Initrds[1].URL = "http://x/${y}"; return s }(),
		func() boot.Script { s := start(""); s.Attempt = ""; return s }(),
		func() boot.Script { s := start(""); s.Attempt = "x && exit"; return s }(),
		{Kind: "sanboot"}, {},
	} {
		if b, err := ipxe.Write(s); err == nil {
			t.Errorf("written: %s", b)
		}
	}
}

// What is written is what iPXE reads: the kernel's arguments come back word for
// word, and no text on the screen becomes a command.
func FuzzWrite(f *testing.F) {
	f.Add("root=/dev/sda1 quiet", "node n1 starts")
	f.Add("a=b;c ||x &&y '#z", "|| exit 0")
	f.Add("x # y", "text ; poweroff\nshell")
	f.Add("init=/bin/sh\r\nshell", "${net0/mac} $(x) #x")
	f.Fuzz(func(t *testing.T, cmdline, text string) {
		s := start(cmdline)
		s.Title, s.Lines = text, []string{text}
		b, err := ipxe.Write(s)
		if err != nil {
			if _, err := ipxe.Write(boot.Script{Kind: boot.ScriptWait, Title: text, Lines: []string{text}}); err != nil {
				t.Fatalf("text alone is refused: %v", err)
			}
			return
		}
		reference, err := ipxe.Write(start("x"))
		if err != nil {
			t.Fatal(err)
		}
		got, want := parse(t, string(b)), parse(t, string(reference))
		if len(got) != len(want)+1 { // one more line of text
			t.Fatalf("%d lines, want %d:\n%s", len(got), len(want)+1, b)
		}
		for _, cmds := range got {
			if cmds[0].words[0] == "echo" && len(cmds) != 1 {
				t.Errorf("text became a command: %v", cmds)
			}
			if cmds[0].words[0] != "kernel" {
				continue
			}
			args := cmds[0].words[4:]
			args = args[:len(args)-1] // BOOTIF
			read := strings.Join(args, " ")
			if !strings.Contains(" "+cmdline, " console=") {
				read = strings.TrimSuffix(strings.TrimSuffix(read, "console=tty0 console=ttyS0,115200"), " ")
			}
			if read != cmdline || len(cmds) != 2 {
				t.Errorf("arguments %q are read as %q", cmdline, read)
			}
		}
		if strings.Count(string(b), "$") != strings.Count(string(reference), "$") {
			t.Errorf("something is expanded:\n%s", b)
		}
	})
}

func TestText(t *testing.T) {
	for in, want := range map[string]string{
		"plain":                  "plain",
		"a || b && c ; d":        "a '|| b '&& c '; d",
		"#x":                     "'#x",
		"${x} \\":                "?{x} ?",
		"ü\x1b[2J":               "??[2J",
		"a\n\n b":                "a b",
		strings.Repeat("y", 999): strings.Repeat("y", 300),
	} {
		if got := ipxe.Text(in); got != want {
			t.Errorf("Text(%q) = %q, want %q", in, got, want)
		}
	}
}
