package boot

import "time"

// Language is the one of the loader that runs a script.
type Language string

// Languages of scripts. The zero value is iPXE's.
const (
	LanguageIPXE Language = ""
	LanguageGRUB Language = "grub"
)

// ScriptKind says what a boot script does.
type ScriptKind string

// Kinds of script.
const (
	ScriptStart ScriptKind = "start" // fetch kernel and archives, boot them
	ScriptWait  ScriptKind = "wait"  // say why on the screen, wait, ask again
	ScriptLocal ScriptKind = "local" // hand back to the firmware
	ScriptSAN   ScriptKind = "san"   // boot the granted volume as the machine's disk; iPXE alone can
	ScriptEntry ScriptKind = "entry" // GRUB's own configuration: run the machine's script, over and over
)

// Script is what one boot script shall do, as a value; boot/ipxe and boot/grub
// write it.
type Script struct {
	Kind     ScriptKind
	Language Language
	Title    string        // one line for the machine's screen
	Lines    []string      // more lines for the screen
	Kernel   string        // URL
	SAN      string        // URL of the script that carries the volume's secret; it may be fetched once per attempt
	MAC      MAC           // that the machine boots from, if known; iPXE finds it by itself
	Initrds  []Initrd      // in this order; the kernel unpacks them one over the other
	Attempt  string        // names the boot attempt in a few letters and digits
	Cmdline  string        // without initrd= and BOOTIF=, which the script adds
	Again    time.Duration // how long to wait before it asks again
}

// Initrd is one archive of a start, under the name that errors show.
type Initrd struct {
	Name string
	URL  string
	Once bool // may be fetched once per attempt: the script never tries twice
}
