package appliance

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"hotspare"
	"hotspare/cmd/hotspare/appliance/manifest"
	"hotspare/haengine"
)

// Config is the appliance's configuration file, /etc/hotspare/hotspare.yaml.
type Config struct {
	State     string          `yaml:"state"`    // folder for everything durable
	Socket    string          `yaml:"socket"`   // unix socket of the API, mode 0600
	API       string          `yaml:"api"`      // further address of the API; it asks for the token
	Network   NetworkConfig   `yaml:"network"`  // the links that are served
	Agent     string          `yaml:"agent"`    // static hotspare-agent binary that goes into initramfs
	Loaders   string          `yaml:"loaders"`  // folder with undionly.kpxe, ipxe.efi, snponly.efi (Debian: package ipxe)
	Firmware  FirmwareConfig  `yaml:"firmware"` // which of them each firmware gets
	Console   string          `yaml:"console"`  // kernel console of booted nodes, e.g. ttyS0,115200
	Cmdline   string          `yaml:"cmdline"`  // further kernel arguments of every node
	Modules   string          `yaml:"modules"`  // module set of the initramfs: generic or lab
	BMC       BMCConfig       `yaml:"bmc"`
	Storage   StorageConfig   `yaml:"storage"`
	Images    ImagesConfig    `yaml:"images"`    // where images may come from and which are believed
	Discovery DiscoveryConfig `yaml:"discovery"` // what machines get that nobody has approved

	// PlannedOutage is how long a restart of the appliance may take: before it
	// stops, agents get leases that outlast it. Default 2m; 0s: their usual leases.
	PlannedOutage *haengine.Duration `yaml:"plannedOutage"`
}

// NetworkConfig names the links and what is served on each of them. The fields of
// one link may stand in it directly; further links, or all, are in Links. Ports are
// the same on all links; 0 means the service's own.
type NetworkConfig struct {
	LinkConfig `yaml:",inline"`
	Links      []LinkConfig `yaml:"links"`
	HTTPPort   uint16       `yaml:"httpPort"`
	TFTPPort   uint16       `yaml:"tftpPort"`
	ISCSIPort  uint16       `yaml:"iscsiPort"`
	AgentPort  uint16       `yaml:"agentPort"`
	HTTPS      HTTPSConfig  `yaml:"https"` // boot files over TLS
}

// BMCConfig holds the bounds of BMC commands.
type BMCConfig struct {
	Timeout  haengine.Duration `yaml:"timeout"`  // one command
	ReadGap  haengine.Duration `yaml:"readGap"`  // between the two reads that prove a power off
	Deadline haengine.Duration `yaml:"deadline"` // a whole power off with its proof
	Settle   haengine.Duration `yaml:"settle"`   // longest time from a command to its last effect: the slowest BMC's
}

// LoadConfig reads and checks a configuration file.
func LoadConfig(path string) (Config, error) {
	var c Config
	src, err := os.ReadFile(path)
	if err != nil {
		return c, &hotspare.Error{
			Code: hotspare.CodeNotFound, What: "the configuration cannot be read", Where: path, Err: err,
			Fix: "give --config FILE; examples/hotspare.yaml is a commented start",
		}
	}
	if err := manifest.Decode(path, src, &c); err != nil {
		return c, err
	}
	c = c.WithDefaults()
	return c, c.Validate(path)
}

// WithDefaults fills in what the file leaves out.
func (c Config) WithDefaults() Config {
	def := func(s *string, v string) {
		if *s == "" {
			*s = v
		}
	}
	port := func(p *uint16, v uint16) {
		if *p == 0 {
			*p = v
		}
	}
	span := func(d *haengine.Duration, v time.Duration) {
		if *d == 0 {
			*d = haengine.Duration(v)
		}
	}
	def(&c.State, "/var/lib/hotspare")
	def(&c.Socket, "/run/hotspare/api.sock")
	def(&c.API, "127.0.0.1:8080")
	def(&c.Loaders, "/usr/lib/ipxe")
	def(&c.Agent, "/usr/lib/hotspare/hotspare-agent")
	def(&c.Console, "ttyS0,115200")
	def(&c.Modules, "generic")
	c.Network = c.Network.withDefaults()
	def(&c.Discovery.Mode, "wait")
	port(&c.Network.HTTPPort, 80)
	port(&c.Network.TFTPPort, 69)
	port(&c.Network.ISCSIPort, 3260)
	port(&c.Network.AgentPort, 7443)
	span(&c.BMC.Timeout, 5*time.Second)
	span(&c.BMC.ReadGap, 500*time.Millisecond)
	span(&c.BMC.Deadline, 20*time.Second)
	span(&c.BMC.Settle, 15*time.Second)
	if c.PlannedOutage == nil {
		c.PlannedOutage = new(haengine.Duration(2 * time.Minute))
	}
	c.Storage = c.Storage.withDefaults()
	return c
}

// Validate checks the values against each other; where names the file.
func (c Config) Validate(where string) error {
	bad := func(what, fix string) error {
		return &hotspare.Error{Code: hotspare.CodeInvalid, What: what, Where: where, Fix: fix}
	}
	if !filepath.IsAbs(c.State) {
		return bad(fmt.Sprintf("state %q is not an absolute path", c.State), "give an absolute path")
	}
	if err := c.Network.validate(where); err != nil {
		return err
	}
	if err := c.Storage.validate(); err != nil {
		return bad(err.Error(), "see docs/storage.md; `off: true` ends the schedule")
	}
	if err := c.Firmware.validate(); err != nil {
		return bad("firmware: "+err.Error(), "docs/boot.md lists architectures and loaders")
	}
	if err := c.Discovery.validate(); err != nil {
		return bad(err.Error(), "use wait or environment")
	}
	if d := c.PlannedOutage; d != nil && (*d < 0 || *d > haengine.MaxPlanned) {
		return bad(fmt.Sprintf("plannedOutage is %s", d), "give 0s to 30m; for a longer absence freeze the site first: hotspare freeze")
	}
	if c.Modules != "generic" && c.Modules != "lab" {
		return bad(fmt.Sprintf("modules %q is not known", c.Modules), "use generic or lab")
	}
	if strings.ContainsAny(c.Cmdline, "\n\r") {
		return bad("cmdline holds a line break", "write the kernel arguments in one line")
	}
	return nil
}
