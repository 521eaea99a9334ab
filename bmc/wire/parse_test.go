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
	f.Add([]byte("System GUID  : 8f7c1a52-9a3b-4c1d-8e2f-525400770001"))
	f.Fuzz(func(t *testing.T, p []byte) {
		parseCapabilities(p)
		s := string(p)
		_ = classify("bmc", s, nil)
		if uuid, ok := parseGUID(s); ok && len(uuid) < 32 {
			t.Errorf("UUID %q from %q", uuid, s)
		}
		if parseChassisPower(s) != bmc.PowerUnknown && len(s) < len("Chassis Power is on") {
			t.Errorf("a state from %q", s)
		}
	})
}
