package haengine

// CloudInit is what the cloud-init of an image is told, by an application or by a
// node. The texts may hold secrets: their documents hold them in clear, here stand
// references that begin with SealedPrefix; the texts are sealed in the appliance's store.
type CloudInit struct {
	SSHKeys       []string `json:"sshKeys,omitempty" yaml:"sshKeys,omitempty"`             // public keys of the image's default user
	UserData      string   `json:"userData,omitempty" yaml:"userData,omitempty"`           // #cloud-config, a script (#!) or MIME
	VendorData    string   `json:"vendorData,omitempty" yaml:"vendorData,omitempty"`       // likewise, with less weight than the user data
	NetworkConfig string   `json:"networkConfig,omitempty" yaml:"networkConfig,omitempty"` // of the cards that the node does not start from
}

// SealedPrefix begins a reference to a sealed text.
const SealedPrefix = "sealed:"

// Texts gives the fields that are texts, or references to them.
func (c *CloudInit) Texts() []*string { return []*string{&c.UserData, &c.VendorData, &c.NetworkConfig} }
