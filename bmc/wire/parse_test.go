package wire

import (
	"testing"

	"hotspare"
	"hotspare/bmc"
)

// What ipmitool 1.8.18/1.8.19 prints, and what it means.
func TestClassify(t *testing.T) {
	for _, c := range []struct {
		output string
		want   hotspare.Code // "" : the text does not tell
	}{
		{"Error: Unable to establish IPMI v2 / RMCP+ session", ""},
		{"> RAKP 2 HMAC is invalid\nError: Unable to establish IPMI v2 / RMCP+ session", hotspare.CodeBMCPassword},
		{"RAKP 2 message indicates an error : unauthorized name\nError: Unable to establish IPMI v2 / RMCP+ session", hotspare.CodeBMCPassword},
		{"RAKP 2 message indicates an error : unauthorized role requested", hotspare.CodeBMCPrivilege},
		{"RAKP 2 message indicates an error : unauthorized role or privilege level requested", hotspare.CodeBMCPrivilege},
		{"Set Session Privilege Level to ADMINISTRATOR failed: Unknown (0x81)", hotspare.CodeBMCPrivilege},
		{"Set Chassis Power Control to Up/On failed: Insufficient privilege level", hotspare.CodeBMCPrivilege},
		{"Set Chassis Power Control to Down/Off failed: Command not supported in present state", hotspare.CodeBMCRefused},
		{"Set Chassis Power Control to Down/Off failed: Node busy", hotspare.CodeBMCRefused},
		{"Error in open session response message : no matching cipher suite", hotspare.CodeBMCRefused},
		{"Error in open session response message : invalid authentication algorithm", hotspare.CodeBMCRefused},
		{"Get Auth Capabilities error\nError: Unable to establish IPMI v2 / RMCP+ session", hotspare.CodeBMCUnreachable},
		{"Address lookup for nohost failed", hotspare.CodeBMCUnreachable},
		{"", ""},
	} {
		if got := hotspare.CodeOf(classify("bmc", c.output, nil)); got != c.want {
			t.Errorf("%q: %q, want %q", c.output, got, c.want)
		}
	}
}

func TestParseChassisPower(t *testing.T) {
	for output, want := range map[string]bmc.PowerState{
		"Chassis Power is on\n":                                bmc.PowerOn,
		"Chassis Power is off\n":                               bmc.PowerOff,
		"Loading IANA PEN Registry...\nChassis Power is off\n": bmc.PowerOff,
		"Chassis Power is off\nChassis Power is on\n":          bmc.PowerUnknown,
		"Chassis Power is unknown":                             bmc.PowerUnknown,
		"Unable to get Chassis Power Status: off":              bmc.PowerUnknown,
		"Close Session command failed\nChassis Power is on\n":  bmc.PowerOn,
		"chassis power is off":                                 bmc.PowerUnknown,
		"":                                                     bmc.PowerUnknown,
	} {
		if got := parseChassisPower(output); got != want {
			t.Errorf("%q: %v, want %v", output, got, want)
		}
	}
}

// bootParam is what ipmitool prints: 1.8.19 has the verbosity and the console the
// right way round, 1.8.18 mixed up their labels.
func bootParam(state, data, words string) string {
	return "Boot parameter version: 1\nBoot parameter 5 is " + state + "\nBoot parameter data: " + data + "\n Boot Flags :\n" + words
}

func TestParseBootFlags(t *testing.T) {
	const (
		ok     = "valid/unlocked"
		words  = "   - Boot Flag Valid\n   - Options apply to all future boots\n   - BIOS EFI boot \n   - Boot Device Selector : Force PXE\n"
		unlike = "   - Boot Flag Invalid\n   - Options apply to only next boot\n   - BIOS PC Compatible (legacy) boot \n   - Boot Device Selector : No override\n"
	)
	pxe := func(every bool, mode bmc.BootMode) bmc.BootOrder {
		return bmc.BootOrder{Device: bmc.DevicePXE, Every: every, Mode: mode}
	}
	for _, c := range []struct {
		name, output string
		want         bmc.BootOrder
		bad          bool
	}{
		{name: "every boot, UEFI", output: bootParam(ok, "e004000000", words), want: pxe(true, bmc.ModeUEFI)},
		{name: "every boot, legacy", output: bootParam(ok, "c004000000", words), want: pxe(true, bmc.ModeLegacy)},
		{name: "once", output: bootParam(ok, "8004000000", words), want: pxe(false, bmc.ModeLegacy)},
		{name: "once, UEFI", output: bootParam(ok, "a004000000", words), want: pxe(false, bmc.ModeUEFI)},
		{name: "OpenBMC, a CD by Redfish", output: bootParam(ok, "8014000000", words), want: bmc.BootOrder{Device: "cdrom", Mode: bmc.ModeLegacy}},
		{name: "the disk at every boot", output: bootParam(ok, "e008000000", words), want: bmc.BootOrder{Device: "disk", Every: true, Mode: bmc.ModeUEFI}},
		{name: "Supermicro's remote disk", output: bootParam(ok, "e024000000", words), want: bmc.BootOrder{Device: "remote media", Every: true, Mode: bmc.ModeUEFI}},
		{name: "upper case", output: bootParam(ok, "E004000000", words), want: pxe(true, bmc.ModeUEFI)},
		{name: "more flags: the screen stays blank, the console is on", output: bootParam(ok, "e006020000", words), want: pxe(true, bmc.ModeUEFI)},
		{name: "the firmware's own, valid", output: bootParam(ok, "e000000000", words)},
		{name: "nothing", output: bootParam(ok, "0000000000", unlike)},
		{name: "Supermicro, left of an earlier boot", output: bootParam("invalid/locked", "2004000000", unlike)},
		{name: "the parameter is invalid, its flags are not", output: bootParam("invalid/locked", "e004000000", words)},
		{name: "the flags are invalid: dropped after 60 s", output: bootParam(ok, "6004000000", words)},
		{name: "the words are not believed", output: bootParam(ok, "0000000000", words)},
		{name: "other lines around it", output: "Loading IANA PEN Registry...\n" + bootParam(ok, "e004000000", words) + "Close Session command failed\n", want: pxe(true, bmc.ModeUEFI)},
		{name: "CRLF", output: "Boot parameter version: 1\r\nBoot parameter 5 is valid/unlocked\r\nBoot parameter data: e004000000\r\n", want: pxe(true, bmc.ModeUEFI)},
		{name: "another version", output: "Boot parameter version: 2\nBoot parameter 5 is valid/unlocked\nBoot parameter data: e004000000\n", bad: true},
		{name: "another parameter", output: "Boot parameter version: 1\nBoot parameter 4 is valid/unlocked\nBoot parameter data: e004000000\n", bad: true},
		{name: "two of them", output: bootParam(ok, "e004000000", words) + bootParam(ok, "0000000000", words), bad: true},
		{name: "four bytes", output: bootParam(ok, "e0040000", words), bad: true},
		{name: "six bytes", output: bootParam(ok, "e00400000000", words), bad: true},
		{name: "no hex", output: bootParam(ok, "e00400000z", words), bad: true},
		{name: "no data", output: "Boot parameter version: 1\nBoot parameter 5 is valid/unlocked\n", bad: true},
		{name: "words only", output: " Boot Flags :\n" + words, bad: true},
		{name: "refused", output: "Get Chassis Boot Parameter 5 failed: Unspecified error\n", bad: true},
		{name: "empty", output: "", bad: true},
	} {
		if got, ok := parseBootFlags(c.output); got != c.want || ok == c.bad {
			t.Errorf("%s: %+v, %v, want %+v, %v", c.name, got, ok, c.want, !c.bad)
		}
	}
}

// A refusal of parameter 3 is passed over; a session that failed is not.
func TestUnknownParameter(t *testing.T) {
	for output, want := range map[string]bool{
		"Unable to send RAW command (channel=0x0 netfn=0x0 lun=0x0 cmd=0x8 rsp=0x80): Unknown (0x80)":  true,
		"Unable to send RAW command (channel=0x0 netfn=0x0 lun=0x0 cmd=0x8 rsp=0xc1): Invalid command": true,
		"Unable to send RAW command (channel=0x0 netfn=0x0 lun=0x0 cmd=0x8)":                           false,
		"Error: Unable to establish IPMI v2 / RMCP+ session":                                           false,
		"": false,
	} {
		if got := unknownParameter(output); got != want {
			t.Errorf("%q: %v, want %v", output, got, want)
		}
	}
}

func TestParseBootOverride(t *testing.T) {
	boot := func(fields string) string { return `{"Id":"1","Boot":{` + fields + `}}` }
	const (
		pxe      = `"BootSourceOverrideTarget":"Pxe"`
		every    = `"BootSourceOverrideEnabled":"Continuous"`
		once     = `"BootSourceOverrideEnabled":"Once"`
		disabled = `"BootSourceOverrideEnabled":"Disabled"`
	)
	for _, c := range []struct {
		name, doc string
		want      bmc.BootOrder
		bad       bool
	}{
		{name: "every boot, UEFI", doc: boot(every + "," + pxe + `,"BootSourceOverrideMode":"UEFI"`), want: bmc.BootOrder{Device: "pxe", Every: true, Mode: bmc.ModeUEFI}},
		{name: "every boot, legacy", doc: boot(every + "," + pxe + `,"BootSourceOverrideMode":"Legacy"`), want: bmc.BootOrder{Device: "pxe", Every: true, Mode: bmc.ModeLegacy}},
		{name: "every boot, no mode (Redfish 1.0)", doc: boot(every + "," + pxe), want: bmc.BootOrder{Device: "pxe", Every: true}},
		{name: "a mode that is null", doc: boot(every + "," + pxe + `,"BootSourceOverrideMode":null`), want: bmc.BootOrder{Device: "pxe", Every: true}},
		{name: "once", doc: boot(once + "," + pxe), want: bmc.BootOrder{Device: "pxe"}},
		{name: "the disk", doc: boot(every + `,"BootSourceOverrideTarget":"Hdd"`), want: bmc.BootOrder{Device: "disk", Every: true}},
		{name: "UEFI HTTP", doc: boot(every + `,"BootSourceOverrideTarget":"UefiHttp"`), want: bmc.BootOrder{Device: "uefihttp", Every: true}},
		{name: "spent, and its target left (iDRAC)", doc: boot(disabled + "," + pxe)},
		{name: "disabled, target null", doc: boot(disabled + `,"BootSourceOverrideTarget":null`)},
		{name: "every boot from nothing", doc: boot(every + `,"BootSourceOverrideTarget":"None"`)},
		{name: "no boot", doc: `{"Id":"1"}`, bad: true},
		{name: "an empty boot", doc: boot(``), bad: true},
		{name: "every boot from nowhere", doc: boot(every), bad: true},
		{name: "another word", doc: boot(`"BootSourceOverrideEnabled":"Sometimes",` + pxe), bad: true},
		{name: "another case", doc: boot(`"BootSourceOverrideEnabled":"continuous",` + pxe), bad: true},
		{name: "a number", doc: boot(`"BootSourceOverrideEnabled":1,` + pxe), bad: true},
		{name: "no JSON", doc: `<html>`, bad: true},
	} {
		b, err := parseBootOverride([]byte(c.doc))
		if (err != nil) != c.bad || err == nil && b.order() != c.want {
			t.Errorf("%s: %+v, %v, want %+v", c.name, b.order(), err, c.want)
		}
	}
}

func TestParseGUID(t *testing.T) {
	for output, want := range map[string]string{
		"System GUID  : 8F7C1A52-9a3b-4c1d-8e2f-525400770001\nTimestamp : x": "8f7c1a52-9a3b-4c1d-8e2f-525400770001",
		"System GUID  : 00000000-0000-0000-0000-000000000000":                "",
		"System GUID  :": "",
		"nothing":        "",
	} {
		if got, ok := parseGUID(output); ok != (want != "") || ok && got != want {
			t.Errorf("%q: %q, %v, want %q", output, got, ok, want)
		}
	}
}

// capabilitiesAnswer is an answer as IPMI v2.0 table 22-15 has it: channel 1,
// MD5 for v1.5, extended data, v1.5 and v2.0 sessions.
var capabilitiesAnswer = []byte{0x06, 0x00, 0xff, 0x07, 0x00, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
	0x81, 0x1c, 0x63, 0x20, 0x00, 0x38, 0x00, 0x01, 0x84, 0x04, 0x03, 0x00, 0x00, 0x00, 0x00, 0x1c}

func TestParseCapabilities(t *testing.T) {
	if v2, ok := parseCapabilities(capabilitiesAnswer); !v2 || !ok {
		t.Errorf("an IPMI v2.0 answer reads as v2=%v ok=%v", v2, ok)
	}
	old := append([]byte(nil), capabilitiesAnswer...)
	old[14+8] = 0x04 // no extended data: IPMI v1.5
	if v2, ok := parseCapabilities(old); v2 || !ok {
		t.Errorf("an IPMI v1.5 answer reads as v2=%v ok=%v", v2, ok)
	}
	for i := range capabilitiesAnswer {
		if _, ok := parseCapabilities(capabilitiesAnswer[:i]); ok {
			t.Errorf("a packet of %d bytes is accepted", i)
		}
	}
}

// The checksums of the question are right (IPMI v2.0 section 13.8).
func TestQuestionIsWellFormed(t *testing.T) {
	m := authCapabilities[14:]
	if s := m[0] + m[1] + m[2]; s != 0 {
		t.Errorf("header checksum is off by %#x", s)
	}
	var sum byte
	for _, b := range m[3:] {
		sum += b
	}
	if sum != 0 {
		t.Errorf("body checksum is off by %#x", sum)
	}
	if int(authCapabilities[13]) != len(m) {
		t.Errorf("length says %d, message has %d", authCapabilities[13], len(m))
	}
}

// S16: answers of hostile BMCs never panic and never read as a state.
func FuzzAnswers(f *testing.F) {
	f.Add(capabilitiesAnswer)
	f.Add([]byte("Chassis Power is on\n"))
	f.Add([]byte(bootParam("valid/unlocked", "e004000000", "")))
	f.Add([]byte(`{"Boot":{"BootSourceOverrideEnabled":"Continuous","BootSourceOverrideTarget":"Pxe"}}`))
	f.Add([]byte("System GUID  : 8f7c1a52-9a3b-4c1d-8e2f-525400770001"))
	f.Fuzz(func(t *testing.T, p []byte) {
		parseCapabilities(p)
		s := string(p)
		_ = classify("bmc", s, nil)
		if uuid, ok := parseGUID(s); ok && len(uuid) < 32 {
			t.Errorf("UUID %q from %q", uuid, s)
		}
		if order, ok := parseBootFlags(s); order != (bmc.BootOrder{}) && (!ok || len(s) < len("Boot parameter data: e004000000")) {
			t.Errorf("boot order %v from %q", order, s)
		}
		if b, err := parseBootOverride(p); err == nil && b.order().NetworkFirst(false) && (b.Target != "Pxe" || b.Enabled != "Continuous") {
			t.Errorf("network first from %q", s)
		}
		if parseChassisPower(s) != bmc.PowerUnknown && len(s) < len("Chassis Power is on") {
			t.Errorf("a state from %q", s)
		}
	})
}
