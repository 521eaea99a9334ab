// Package grub writes the GRUB scripts that boot.Script asks for: they are for
// machines whose firmware starts signed loaders only, where shim starts GRUB.
//
// Every value stands between single quotes, in which GRUB takes all but the
// single quote literally; a value that holds one, or anything but printable
// ASCII, is refused (text for a person's eyes is cleaned instead). Kernel
// arguments may not hold quotes or backslashes either: GRUB puts a backslash
// before them when it writes the kernel's command line. CVE-2026-46447 is what
// happens otherwise.
//
// A signed GRUB has all modules in itself and loads no others, so the scripts use
// only what Debian's grubnetx64.efi.signed has. It cannot ask by DHCP as iPXE
// does: the entry script runs the machine's own script from the folder that the
// loader came from, again and again, and that one shows why the machine waits.
// None of them ever ends or reboots, for that would hand the machine to its next
// boot device (SAFETY S2a). Only a script of kind local exits.
//
// What to boot and why is decided in package boot; boot/httpboot and boot/tftp
// serve the scripts. Grammar: GRUB manual, section "Writing full configuration
// files directly"; grub-core/script, grub-core/lib/cmdline.c.
package grub

import (
	"fmt"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"

	"hotspare"
	"hotspare/boot"
)

// Version is that of the scripts' shape; their first line names it.
const Version = 1

// maxCmdline keeps the kernel's command line below x86's COMMAND_LINE_SIZE
// (2048), with room for what the script adds.
const maxCmdline = 1800

// Write gives the script's text. A value that GRUB would not take literally is a
// *hotspare.Error with CodeInvalid.
func Write(s boot.Script) ([]byte, error) {
	w := &writer{}
	w.raw("# hotspare boot script, version " + strconv.Itoa(Version))
	switch s.Kind {
	case boot.ScriptEntry:
		w.entry(s)
	case boot.ScriptStart:
		w.start(s)
	case boot.ScriptWait:
		w.wait(s)
	case boot.ScriptLocal:
		w.echo(s.Title)
		w.raw("exit 1")
	default:
		return nil, invalid("script kind", string(s.Kind), "GRUB cannot do that")
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
func (w *writer) echo(text string) { w.raw("echo 'hotspare: " + Text(text) + "'") }

// entry is what GRUB runs by itself, from its own folder. $cmdpath is the folder
// that shim and GRUB came from: it holds the token of the boot.
func (w *writer) entry(s boot.Script) {
	w.raw("set pager=0")
	// Nobody gets a prompt on a machine that waits.
	w.raw("set superusers=hotspare")
	w.raw("export superusers")
	w.raw("while true; do")
	w.raw(`  if source "$cmdpath/grub.cfg"; then true; else`)
	w.raw("    echo 'hotspare: the appliance does not answer'")
	w.raw("  fi")
	w.raw("  sleep " + strconv.Itoa(seconds(s.Again)))
	w.raw("done")
}

func (w *writer) start(s boot.Script) {
	w.echo(s.Title)
	for _, l := range s.Lines {
		w.echo(l)
	}
	once := ""
	for _, i := range s.Initrds {
		if i.Once {
			once = w.word("attempt", s.Attempt)
		}
	}
	if once != "" {
		// A second fetch would look like a thief.
		w.raw(`if [ "$hotspare_once" = '` + once + `' ]; then`)
		w.raw("  echo 'hotspare: this boot attempt has failed, a new one is needed'")
		w.raw("else")
	}
	args := w.cmdline(s.Cmdline)
	if !strings.Contains(" "+s.Cmdline, " console=") {
		args = append(args, "console=tty0", "console=ttyS0,115200")
	}
	if !s.MAC.IsZero() {
		args = append(args, "BOOTIF=01-"+s.MAC.Hyphens())
	}
	line := "if linux " + w.file("kernel", s.Kernel)
	for _, a := range args {
		line += " '" + a + "'"
	}
	w.raw(line + "; then")
	if once != "" {
		w.raw("  set hotspare_once='" + once + "'")
	}
	if len(s.Initrds) > 0 {
		line = "  if initrd"
		for _, i := range s.Initrds {
			line += " " + w.file("initrd "+i.Name, i.URL)
		}
		w.raw(line + "; then")
		w.boot("    ")
		w.raw("  else")
		w.raw("    echo 'hotspare: FAILED to fetch the archives; the message of GRUB is above'")
		w.raw("  fi")
	} else {
		w.boot("  ")
	}
	w.raw("else")
	w.raw("  echo 'hotspare: FAILED to load the kernel; the message of GRUB is above'")
	w.raw("fi")
	if once != "" {
		w.raw("fi")
	}
	w.again(s.Again)
}

func (w *writer) boot(indent string) {
	w.raw(indent + "echo 'hotspare: all fetched, the kernel starts'")
	w.raw(indent + "boot")
	w.raw(indent + "echo 'hotspare: FAILED to start the kernel; the message of GRUB is above'")
}

func (w *writer) wait(s boot.Script) {
	w.raw("smbios --type 1 --get-uuid 8 --set hotspare_uuid")
	w.raw("smbios --type 1 --get-string 7 --set hotspare_serial")
	w.raw("smbios --type 1 --get-string 4 --set hotspare_maker")
	w.raw("smbios --type 1 --get-string 5 --set hotspare_product")
	w.raw("echo")
	w.echo(s.Title)
	w.raw(`echo "hotspare: MAC $net_default_mac address $net_default_ip UUID $hotspare_uuid"`)
	w.raw(`echo "hotspare: serial $hotspare_serial maker $hotspare_maker product $hotspare_product"`)
	for _, l := range s.Lines {
		w.echo(l)
	}
	w.again(s.Again)
}

// again says that the entry script will run this one again.
func (w *writer) again(d time.Duration) {
	w.echo(fmt.Sprintf("asks again in %d s", seconds(d)))
}

func seconds(d time.Duration) int {
	if d <= 0 {
		d = 20 * time.Second
	}
	return max(1, int(d/time.Second))
}

func (w *writer) fail(what, value, why string) {
	if w.err == nil {
		w.err = invalid(what, value, why)
	}
}

func (w *writer) word(what, v string) string {
	for _, c := range []byte(v) {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '_' {
			w.fail(what, v, "want one word of letters, digits and underscores")
			break
		}
	}
	if v == "" {
		w.fail(what, v, "it is empty")
	}
	return v
}

// file gives a URL as GRUB names a file: (tftp,10.77.0.1)/boot/.... Debian's
// signed GRUB has no module for HTTP, and none can be loaded.
func (w *writer) file(what, v string) string {
	u, err := url.Parse(v)
	if err != nil || u.Scheme != "tftp" || u.Port() != "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil {
		w.fail(what, v, "want a tftp URL without port and query")
		return ""
	}
	if a, err := netip.ParseAddr(u.Hostname()); err != nil || !a.Is4() {
		w.fail(what, v, "want the numeric IPv4 address of a server")
	}
	for _, c := range []byte(u.Path) {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && !strings.ContainsRune("/._-", rune(c)) {
			w.fail(what, v, "want a path of letters, digits, slash, dot, hyphen and underscore")
			break
		}
	}
	return "(tftp," + u.Hostname() + ")" + u.Path
}

// cmdline takes the kernel's arguments apart at single blanks.
func (w *writer) cmdline(v string) []string {
	if v == "" {
		return nil
	}
	if len(v) > maxCmdline {
		w.fail("kernel arguments", v[:40]+"...", fmt.Sprintf("longer than %d bytes", maxCmdline))
		return nil
	}
	for _, c := range []byte(v) {
		switch {
		case c < ' ' || c > '~':
			w.fail("kernel arguments", v, fmt.Sprintf("byte %#x is no printable ASCII", c))
		case strings.ContainsRune(`'"\`, rune(c)):
			w.fail("kernel arguments", v, "GRUB puts a backslash before quotes and backslashes")
		}
	}
	args := strings.Split(v, " ")
	for _, a := range args {
		if a == "" {
			w.fail("kernel arguments", v, "blanks at the ends or side by side would be lost")
		}
	}
	return args
}

// Text makes any text fit to stand between single quotes.
func Text(v string) string {
	var b strings.Builder
	for _, r := range v {
		switch {
		case r == '\n' || r == '\t' || r == '\r':
			b.WriteByte(' ')
		case r == '\'':
			b.WriteByte('"')
		case r < ' ' || r > '~' || r == '\\':
			b.WriteByte('?')
		default:
			b.WriteRune(r)
		}
	}
	out := strings.Join(strings.Fields(b.String()), " ")
	if len(out) > 300 {
		out = out[:300]
	}
	return out
}

func invalid(what, value, why string) error {
	return &hotspare.Error{
		Code: hotspare.CodeInvalid, What: "the " + what + " cannot stand in a GRUB script", Where: fmt.Sprintf("%.120q", value),
		Why: why, Fix: "use printable ASCII without quotes and backslashes",
	}
}
