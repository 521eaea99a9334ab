package grub_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"hotspare"
	"hotspare/boot"
	"hotspare/boot/grub"
)

// lex takes a script apart the way GRUB's lexer does (grub-core/script/yylex.l):
// words at blanks, ; | & and newlines end a command, # at the begin of a word
// begins a comment, single quotes keep everything, double quotes keep blanks.
func lex(t testing.TB, script string) [][]string {
	t.Helper()
	var out [][]string
	var cmd []string
	var word strings.Builder
	inWord := false
	endWord := func() {
		if inWord {
			cmd = append(cmd, word.String())
			word.Reset()
			inWord = false
		}
	}
	endCmd := func() {
		endWord()
		if len(cmd) > 0 {
			out = append(out, cmd)
			cmd = nil
		}
	}
	for i := 0; i < len(script); i++ {
		switch c := script[i]; c {
		case '\'', '"':
			end := strings.IndexByte(script[i+1:], c)
			if end < 0 {
				t.Fatalf("a quote is not closed:\n%s", script)
			}
			inWord = true
			word.WriteString(script[i+1 : i+1+end])
			i += end + 1
		case ' ', '\t':
			endWord()
		case '\n', ';', '|', '&':
			endCmd()
		case '#':
			if inWord {
				word.WriteByte(c)
				continue
			}
			for i+1 < len(script) && script[i+1] != '\n' {
				i++
			}
		default:
			inWord = true
			word.WriteByte(c)
		}
	}
	endCmd()
	return out
}

func start(cmdline string) boot.Script {
	return boot.Script{
		Kind: boot.ScriptStart, Language: boot.LanguageGRUB, Title: "node n1 starts", Kernel: "tftp://10.77.0.1/boot/T/kernel", Cmdline: cmdline, Again: 20 * time.Second, Attempt: "a1b2c3",
		MAC:     boot.MAC{0x52, 0x54, 0, 0x77, 0, 1},
		Initrds: []boot.Initrd{{Name: "initrd", URL: "tftp://10.77.0.1/boot/T/initrd"}, {Name: "join", URL: "tftp://10.77.0.1/boot/T/join", Once: true}},
	}
}

func TestStartScript(t *testing.T) {
	b, err := grub.Write(start("root=/dev/x console=ttyS0 a=$b -- single"))
	if err != nil {
		t.Fatal(err)
	}
	want := `# hotspare boot script, version 1
echo 'hotspare: node n1 starts'
if [ "$hotspare_once" = 'a1b2c3' ]; then
  echo 'hotspare: this boot attempt has failed, a new one is needed'
else
if linux (tftp,10.77.0.1)/boot/T/kernel 'root=/dev/x' 'console=ttyS0' 'a=$b' '--' 'single' 'BOOTIF=01-52-54-00-77-00-01'; then
  set hotspare_once='a1b2c3'
  if initrd (tftp,10.77.0.1)/boot/T/initrd (tftp,10.77.0.1)/boot/T/join; then
    echo 'hotspare: all fetched, the kernel starts'
    boot
    echo 'hotspare: FAILED to start the kernel; the message of GRUB is above'
  else
    echo 'hotspare: FAILED to fetch the archives; the message of GRUB is above'
  fi
else
  echo 'hotspare: FAILED to load the kernel; the message of GRUB is above'
fi
fi
echo 'hotspare: asks again in 20 s'
`
	if string(b) != want {
		t.Errorf("got\n%s\nwant\n%s", b, want)
	}
}

// Only a script of kind local leaves GRUB: an end hands the machine back to its
// firmware, and that boots the next device (SAFETY S2a).
func TestOnlyLocalScriptsLeaveGRUB(t *testing.T) {
	for _, s := range []boot.Script{start(""), {Kind: boot.ScriptWait, Title: "wait"}, {Kind: boot.ScriptEntry}} {
		b, err := grub.Write(s)
		if err != nil {
			t.Fatal(err)
		}
		for _, cmd := range lex(t, string(b)) {
			for _, w := range cmd {
				switch w {
				case "exit", "reboot", "halt", "chainloader", "fwsetup", "normal_exit", "configfile":
					if cmd[0] != "echo" {
						t.Errorf("%s script: %v", s.Kind, cmd)
					}
				}
			}
		}
	}
	b, err := grub.Write(boot.Script{Kind: boot.ScriptLocal, Title: "node n1 boots from its own disk"})
	if err != nil || !strings.HasSuffix(string(b), "\nexit 1\n") {
		t.Errorf("local: %v\n%s", err, b)
	}
}

func TestEntryRunsForEverAndGivesNoPrompt(t *testing.T) {
	b, err := grub.Write(boot.Script{Kind: boot.ScriptEntry, Again: 3 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"set superusers=hotspare\n", "while true; do\n", `source "$cmdpath/grub.cfg"`, "  sleep 3\ndone\n"} {
		if !strings.Contains(string(b), want) {
			t.Errorf("no %q in\n%s", want, b)
		}
	}
}

func TestValuesThatGRUBWouldTakeApartAreRefused(t *testing.T) {
	for _, v := range []string{
		"it's", `say "x"`, `back\`, "two\nlines", "tab\tbed", "\x00", "ümlaut", "double  blank", " begin", "end ", strings.Repeat("x", 2000),
	} {
		_, err := grub.Write(start(v))
		var e *hotspare.Error
		if !errors.As(err, &e) || e.Code != hotspare.CodeInvalid || e.Fix == "" {
			t.Errorf("%q: %v", v, err)
		}
	}
	for _, change := range []func(*boot.Script){
		func(s *boot.Script) { s.Kernel = "" },
		func(s *boot.Script) { s.Kernel = "http://10.77.0.1/x" },
		func(s *boot.Script) { s.Kernel = "https://10.77.0.1/x" },
		func(s *boot.Script) { s.Kernel = "tftp://10.77.0.1:69/x" },
		func(s *boot.Script) { s.Kernel = "tftp://example.org/x" },
		func(s *boot.Script) { s.Kernel = "tftp://10.77.0.1/x;reboot" },
		func(s *boot.Script) { s.Kernel = "tftp://10.77.0.1/x%20reboot" },
		func(s *boot.Script) { s.Initrds[1].URL = "tftp://10.77.0.1/$x" },
		func(s *boot.Script) { s.Attempt = "" },
		func(s *boot.Script) { s.Attempt = "x'; exit" },
		func(s *boot.Script) { s.Kind = boot.ScriptSAN },
		func(s *boot.Script) { s.Kind = "" },
	} {
		s := start("")
		change(&s)
		if b, err := grub.Write(s); err == nil {
			t.Errorf("written: %s", b)
		}
	}
}

// What is written is what GRUB reads: the kernel's arguments come back word for
// word, and no text on the screen becomes a command.
func FuzzWrite(f *testing.F) {
	f.Add("root=/dev/sda1 quiet", "node n1 starts")
	f.Add("a=b;c ||x &&y #z $x {a}", "it's; exit")
	f.Add("x # y", "text ; reboot\nexit")
	f.Add("init=/bin/sh\r\nshell", "$net_default_mac $(x) #x \\'")
	f.Fuzz(func(t *testing.T, cmdline, text string) {
		s := start(cmdline)
		s.Title, s.Lines = text, []string{text}
		b, err := grub.Write(s)
		if err != nil {
			if _, err := grub.Write(boot.Script{Kind: boot.ScriptWait, Title: text, Lines: []string{text}}); err != nil {
				t.Fatalf("text alone is refused: %v", err)
			}
			return
		}
		reference, err := grub.Write(start("x"))
		if err != nil {
			t.Fatal(err)
		}
		got, want := lex(t, string(b)), lex(t, string(reference))
		if len(got) != len(want)+1 { // one more line of text
			t.Fatalf("%d commands, want %d:\n%s", len(got), len(want)+1, b)
		}
		for i, cmd := range got {
			j := max(0, i-1)
			if cmd[0] != want[j][0] {
				t.Errorf("command %v, want %v", cmd, want[j])
			}
			if cmd[0] == "echo" && len(cmd) != 2 {
				t.Errorf("text became more than one word: %v", cmd)
			}
			if len(cmd) < 2 || cmd[1] != "linux" {
				continue
			}
			args := cmd[3 : len(cmd)-1] // BOOTIF
			read := strings.Join(args, " ")
			if !strings.Contains(" "+cmdline, " console=") {
				read = strings.TrimSuffix(strings.TrimSuffix(read, "console=tty0 console=ttyS0,115200"), " ")
			}
			if read != cmdline {
				t.Errorf("arguments %q are read as %q", cmdline, read)
			}
		}
	})
}

func TestText(t *testing.T) {
	for in, want := range map[string]string{
		"plain":                  "plain",
		"it's":                   `it"s`,
		"a; b #c $d":             "a; b #c $d",
		"ü\x1b[2J \\n":           "??[2J ?n",
		"a\n\n b":                "a b",
		strings.Repeat("y", 999): strings.Repeat("y", 300),
	} {
		if got := grub.Text(in); got != want {
			t.Errorf("Text(%q) = %q, want %q", in, got, want)
		}
	}
}
