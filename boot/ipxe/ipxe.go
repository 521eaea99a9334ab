// Package ipxe writes the iPXE scripts that boot.Script asks for.
//
// iPXE has no quoting: a line is split at white space, the words ||, && and ;
// end a command, a word that begins with # begins a comment, and ${...} is
// expanded. So a value is either free of all that or it is refused (Text for a
// person's eyes is cleaned instead, for a strange name must not keep a machine
// from booting). CVE-2026-46447 is what happens otherwise.
//
// Every command that can fail has its ||: a script that ends with an error, or
// with success, hands the machine back to its firmware, which boots the next
// device. Only a script of kind local may do that, with exit 1 (success would
// leave UEFI firmware in its boot manager).
//
// What to boot and why is decided in package boot; the scripts are served by
// boot/httpboot. Grammar: iPXE src/core/exec.c and src/image/script.c.
package ipxe

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"hotspare"
	"hotspare/boot"
)

// Version is that of the scripts' shape; their second line names it.
const Version = 1

// maxCmdline keeps the kernel's command line below x86's COMMAND_LINE_SIZE
// (2048), with room for what the script adds.
const maxCmdline = 1800

// Write gives the script's text. A value that iPXE would not take literally is
// a *hotspare.Error with CodeInvalid.
func Write(s boot.Script) ([]byte, error) {
	w := &writer{}
	w.raw("#!ipxe")
	w.raw("# hotspare boot script, version " + strconv.Itoa(Version))
	switch s.Kind {
	case boot.ScriptStart:
		w.start(s)
	case boot.ScriptSAN:
		w.san(s)
	case boot.ScriptWait:
		w.wait(s)
	case boot.ScriptLocal:
		w.echo(s.Title)
		w.raw("exit 1")
	default:
		return nil, invalid("script kind", string(s.Kind), "no such kind")
	}
	if w.err != nil {
		return nil, w.err
	}
	return []byte(w.b.String()), nil
}

type writer struct {
	b   strings.Builder
	err error
}

func (w *writer) raw(line string) {
	w.b.WriteString(line)
	w.b.WriteByte('\n')
}

// echo shows text on the machine's screen. The prefix keeps the text from being
// read as an option.
func (w *writer) echo(text string) { w.raw("echo hotspare: " + Text(text)) }

func (w *writer) start(s boot.Script) {
	w.echo(s.Title)
	for _, l := range s.Lines {
		w.echo(l)
	}
	kernel := w.url("kernel", s.Kernel)
	args := []string{"kernel", kernel}
	for _, i := range s.Initrds {
		// UEFI kernels find an archive by this argument; BIOS ones ignore it.
		args = append(args, "initrd="+w.word("initrd name", i.Name))
	}
	if c := w.cmdline(s.Cmdline); c != "" {
		args = append(args, c)
	}
	if !strings.Contains(" "+s.Cmdline, " console=") {
		args = append(args, "console=tty0", "console=ttyS0,115200")
	}
	// netX is the interface that booted, whichever number it has.
	args = append(args, "BOOTIF=01-${netX/mac:hexhyp}")
	once := w.once(s)
	if once != "" {
		w.raw("iseq ${" + onceSetting + "} " + once + " && goto spent ||")
	}
	w.raw("imgfree ||")
	w.raw(strings.Join(args, " ") + " || goto failed_kernel")
	for _, i := range s.Initrds {
		if i.Once {
			w.raw("set " + onceSetting + " " + once + " || goto failed_" + label(i.Name))
		}
		w.raw("initrd --name " + i.Name + " " + w.url("initrd "+i.Name, i.URL) + " || goto failed_" + label(i.Name))
	}
	w.echo("all fetched, the kernel starts")
	w.raw("boot || goto failed_boot")
	w.raw("goto failed_boot")
	w.raw(":failed_kernel")
	w.echo("FAILED to load the kernel; iPXE's own message is above")
	w.raw("goto again")
	for _, i := range s.Initrds {
		w.raw(":failed_" + label(i.Name))
		w.echo("FAILED to fetch " + i.Name + "; iPXE's own message is above")
		w.raw("goto again")
	}
	if once != "" {
		w.raw(":spent")
		w.echo("this boot attempt has failed, a new one is needed")
		w.raw("goto again")
	}
	w.raw(":failed_boot")
	w.echo("FAILED to start the kernel; iPXE's own message is above")
	w.again(s.Again)
}

// san fetches the script that carries the volume's secret, once, and runs it. It
// comes back only when the disk did not boot or gave the machine back, and then
// the machine waits: an end would hand it to its next boot device.
func (w *writer) san(s boot.Script) {
	w.echo(s.Title)
	for _, l := range s.Lines {
		w.echo(l)
	}
	once := w.word("attempt", s.Attempt)
	w.raw("iseq ${" + onceSetting + "} " + once + " && goto spent ||")
	w.raw("imgfree ||")
	w.raw("set " + onceSetting + " " + once + " || goto failed_san")
	w.raw("chain --autofree " + w.url("SAN script", s.SAN) + " || goto failed_san")
	w.raw("goto failed_san")
	w.raw(":spent")
	w.echo("this boot attempt has failed, a new one is needed")
	w.raw("goto again")
	w.raw(":failed_san")
	w.echo("FAILED to boot the volume; iPXE's own message is above")
	w.again(s.Again)
}

// onceSetting remembers, over all scripts of one power cycle, the attempt whose
// once-only archive was asked for. Asking again would look like a thief.
const onceSetting = "hotspare-once"

func (w *writer) once(s boot.Script) string {
	for _, i := range s.Initrds {
		if i.Once {
			return w.word("attempt", s.Attempt)
		}
	}
	return ""
}

func (w *writer) wait(s boot.Script) {
	w.raw("echo")
	w.echo(s.Title)
	w.raw("echo hotspare: MAC ${netX/mac} address ${netX/ip} UUID ${uuid}")
	w.raw("echo hotspare: serial ${serial} maker ${manufacturer} product ${product} asset ${asset}")
	for _, l := range s.Lines {
		w.echo(l)
	}
	w.again(s.Again)
}

// again asks anew: by DHCP first, for what is meant for the machine may have
// changed, and with it the URL.
func (w *writer) again(d time.Duration) {
	if d <= 0 {
		d = 20 * time.Second
	}
	sec := max(1, int(d/time.Second))
	w.raw(":again")
	w.echo(fmt.Sprintf("asks again in %d s", sec))
	w.raw(fmt.Sprintf("sleep %d ||", sec))
	w.raw("imgfree ||")
	w.raw("dhcp netX || goto again")
	// A proxy's answer is not among the settings of the interface.
	w.raw("isset ${netX/filename} && chain --replace --autofree ${netX/filename} || chain --replace --autofree ${filename} || goto again")
	w.raw("goto again")
}

func (w *writer) fail(what, value, why string) {
	if w.err == nil {
		w.err = invalid(what, value, why)
	}
}

func (w *writer) word(what, v string) string {
	if why := refuse(v); why != "" {
		w.fail(what, v, why)
	} else if v == "" || strings.Contains(v, " ") || strings.HasPrefix(v, "-") || label(v) != v {
		w.fail(what, v, "want one word of letters, digits and underscores")
	}
	return v
}

func (w *writer) url(what, v string) string {
	if why := refuse(v); why != "" {
		w.fail(what, v, why)
	} else if !strings.HasPrefix(v, "http://") && !strings.HasPrefix(v, "https://") || strings.Contains(v, " ") {
		w.fail(what, v, "want an http or https URL without blanks")
	}
	return v
}

func (w *writer) cmdline(v string) string {
	if len(v) > maxCmdline {
		w.fail("kernel arguments", v[:40]+"...", fmt.Sprintf("longer than %d bytes", maxCmdline))
		return ""
	}
	if why := refuse(v); why != "" {
		w.fail("kernel arguments", v, why)
	}
	return v
}

// refuse says why iPXE would not take v literally, word by word; "" if it would.
func refuse(v string) string {
	for i := 0; i < len(v); i++ {
		switch c := v[i]; {
		case c == '$':
			return "iPXE would expand $"
		case c == '\\':
			return "a backslash may continue a line"
		case c < ' ' || c > '~':
			return fmt.Sprintf("byte %#x is no printable ASCII", c)
		}
	}
	for _, word := range strings.Split(v, " ") {
		switch {
		case word == "||" || word == "&&" || word == ";":
			return "the word " + word + " ends a command"
		case strings.HasPrefix(word, "#"):
			return "a word that begins with # begins a comment"
		case word == "" && v != "":
			return "blanks at the ends or side by side would be lost"
		}
	}
	return ""
}

// Text makes any text fit for echo: what iPXE would act on becomes harmless.
func Text(v string) string {
	var b strings.Builder
	for _, r := range v {
		switch {
		case r == '\n' || r == '\t' || r == '\r':
			b.WriteByte(' ')
		case r < ' ' || r > '~' || r == '$' || r == '\\':
			b.WriteByte('?')
		default:
			b.WriteRune(r)
		}
	}
	words := strings.Fields(b.String())
	for i, word := range words {
		if word == "||" || word == "&&" || word == ";" || strings.HasPrefix(word, "#") {
			words[i] = "'" + word
		}
	}
	out := strings.Join(words, " ")
	if len(out) > 300 {
		out = out[:300]
	}
	return out
}

func label(name string) string {
	return strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '_' {
			return r
		}
		return '_'
	}, name)
}

func invalid(what, value, why string) error {
	return &hotspare.Error{
		Code: hotspare.CodeInvalid, What: "the " + what + " cannot stand in an iPXE script", Where: fmt.Sprintf("%.120q", value),
		Why: why, Fix: "use printable ASCII without $ and \\, and no word that iPXE reads as a command separator or comment",
	}
}
