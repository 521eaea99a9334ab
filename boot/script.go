package boot

import "time"

// ScriptKind says what an iPXE script does.
type ScriptKind string

// Kinds of script.
const (
	ScriptStart ScriptKind = "start" // fetch kernel and archives, boot them
	ScriptWait  ScriptKind = "wait"  // say why on the screen, wait, ask again
	ScriptLocal ScriptKind = "local" // hand back to the firmware
)

// Script is what one iPXE script shall do, as a value; boot/ipxe writes it.
type Script struct {
	Kind    ScriptKind
	Title   string        // one line for the machine's screen
	Lines   []string      // more lines for the screen
	Kernel  string        // URL
	Initrds []Initrd      // in this order; the kernel unpacks them one over the other
	Attempt string        // names the boot attempt in a few letters and digits
	Cmdline string        // without initrd= and BOOTIF=, which the script adds
	Again   time.Duration // how long to wait before it asks again
}

// Initrd is one archive of a start, under the name that errors show.
type Initrd struct {
	Name string
	URL  string
	Once bool // may be fetched once per attempt: the script never tries twice
}
