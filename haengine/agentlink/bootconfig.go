package agentlink

import (
	"encoding/json"
	"fmt"
	"net/netip"

	"hotspare"
)

// BootMode says why a node was booted.
type BootMode string

// The boot modes.
const (
	ModeStart     BootMode = "start"     // a claim follows
	ModeDiscovery BootMode = "discovery" // inventory only; without a token the node announces itself
	ModeStandby   BootMode = "standby"   // parked until a claim or a kexec comes, for any application; the epoch is 0
)

// BootConfigPath is where the per-boot archive puts the boot configuration in
// the initramfs.
const BootConfigPath = "/hotspare/boot.json"

// BootConfig is boot.json: what a node must know to join, made by the appliance
// for one boot attempt and fetched once. Use EncodeBootConfig to write it: the
// token marshals as "[secret]" otherwise.
type BootConfig struct {
	Version   int             `json:"version"` // 1
	Node      string          `json:"node"`
	Appliance netip.AddrPort  `json:"appliance"`
	CA        string          `json:"ca"`    // PEM
	Token     hotspare.Secret `json:"token"` // 64 hexadecimal digits; empty in discovery of an unapproved node
	Mode      BootMode        `json:"mode"`
	Epoch     uint64          `json:"epoch,omitempty"`
}

type wireBootConfig struct {
	BootConfig
	Token string `json:"token"`
}

// EncodeBootConfig gives the JSON of boot.json with the token in clear.
func EncodeBootConfig(c BootConfig) ([]byte, error) {
	c.Version = Version
	if err := c.validate(); err != nil {
		return nil, err
	}
	return json.Marshal(wireBootConfig{BootConfig: c, Token: c.Token.Reveal()})
}

// ParseBootConfig reads boot.json.
func ParseBootConfig(text []byte) (BootConfig, error) {
	var w wireBootConfig
	if err := json.Unmarshal(text, &w); err != nil {
		return BootConfig{}, fmt.Errorf("agentlink: %s: %w", BootConfigPath, err)
	}
	c := w.BootConfig
	c.Token = hotspare.NewSecret(w.Token)
	return c, c.validate()
}

func (c BootConfig) validate() error {
	switch {
	case c.Version != Version:
		return fmt.Errorf("agentlink: %s is of version %d, this agent reads %d", BootConfigPath, c.Version, Version)
	case !c.Appliance.IsValid():
		return fmt.Errorf("agentlink: %s names no appliance", BootConfigPath)
	case c.CA == "":
		return fmt.Errorf("agentlink: %s holds no CA", BootConfigPath)
	case c.Mode != ModeStart && c.Mode != ModeDiscovery && c.Mode != ModeStandby:
		return fmt.Errorf("agentlink: %s: mode %q", BootConfigPath, c.Mode)
	case c.Mode == ModeStandby && c.Epoch != 0:
		return fmt.Errorf("agentlink: %s: a standby boot is for no grant, but has epoch %d", BootConfigPath, c.Epoch)
	}
	return nil
}
