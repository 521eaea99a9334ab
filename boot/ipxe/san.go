package ipxe

import (
	"net/netip"
	"strconv"
	"strings"

	"hotspare"
)

// Volume is what iPXE needs to boot a volume as the machine's disk.
type Volume struct {
	Portal    netip.AddrPort
	Target    string // IQN
	LUN       int
	Initiator string // IQN of the grant
	User      string // CHAP
	Secret    hotspare.Secret
}

// SANScript writes the script that boots a volume. It carries the secret of the
// grant, so it is served once and never kept; nothing in it prints the secret,
// and iPXE shows neither settings nor scripts. iPXE hands name and secret on to
// the operating system in the iBFT, as the disk's own driver needs them.
//
// When the volume does not boot, the settings are cleared and the script ends
// with an error: the script that called it goes on.
func SANScript(v Volume) ([]byte, error) {
	w := &writer{}
	w.raw("#!ipxe")
	w.raw("# hotspare SAN script, version " + strconv.Itoa(Version))
	if !v.Portal.Addr().Is4() || v.Portal.Port() == 0 {
		w.fail("portal", v.Portal.String(), "want an IPv4 address with a port")
	}
	for _, s := range []struct{ name, what, value string }{
		{"initiator-iqn", "initiator name", v.Initiator}, {"username", "user", v.User}, {"password", "secret", v.Secret.Reveal()},
	} {
		w.raw("set " + s.name + " " + w.setting(s.what, s.value) + " || goto failed")
	}
	uri := "iscsi:" + v.Portal.Addr().String() + "::" + strconv.Itoa(int(v.Portal.Port())) + ":" + strconv.FormatInt(int64(v.LUN), 16) + ":" + w.setting("target name", v.Target)
	w.echo("boots the volume " + v.Target)
	w.raw("sanboot --drive 0x80 " + uri + " ||")
	w.raw(":failed")
	for _, name := range []string{"password", "username", "initiator-iqn"} {
		w.raw("clear " + name + " ||")
	}
	w.raw("exit 1")
	if w.err != nil {
		return nil, w.err
	}
	return []byte(w.b.String()), nil
}

// setting is a value of one word. Its text is never in the error: it may be the
// secret.
func (w *writer) setting(what, v string) string {
	if v == "" || strings.ContainsAny(v, " ") || strings.HasPrefix(v, "-") || refuse(v) != "" {
		w.fail(what, "", "want one word of printable ASCII without $ and \\")
	}
	return v
}
