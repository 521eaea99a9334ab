package agentlink

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"strings"
)

// ServerName is the DNS name in the certificate of the appliance's end. A node
// checks this name and the pinned CA; the appliance's addresses may change.
const ServerName = "appliance.hotspare.internal"

// Identity is who a node's certificate says it is: one boot of one node.
type Identity struct {
	Node   string
	BootID string
}

const identityScheme = "hotspare"

// URI gives the identity as it stands in the certificate's subject alternative
// names: hotspare:node/NAME/boot/ID.
func (id Identity) URI() *url.URL {
	return &url.URL{
		Scheme: identityScheme,
		Opaque: "node/" + url.PathEscape(id.Node) + "/boot/" + url.PathEscape(id.BootID),
	}
}

// IdentityOf reads the identity of a verified certificate.
func IdentityOf(c *x509.Certificate) (Identity, error) {
	for _, u := range c.URIs {
		if u.Scheme != identityScheme {
			continue
		}
		parts := strings.Split(u.Opaque, "/")
		if len(parts) != 4 || parts[0] != "node" || parts[2] != "boot" {
			return Identity{}, fmt.Errorf("agentlink: certificate names %q", u)
		}
		node, err := url.PathUnescape(parts[1])
		if err != nil {
			return Identity{}, fmt.Errorf("agentlink: certificate names %q: %w", u, err)
		}
		boot, err := url.PathUnescape(parts[3])
		if err != nil {
			return Identity{}, fmt.Errorf("agentlink: certificate names %q: %w", u, err)
		}
		if node == "" || boot == "" {
			return Identity{}, fmt.Errorf("agentlink: certificate names %q", u)
		}
		return Identity{Node: node, BootID: boot}, nil
	}
	return Identity{}, errors.New("agentlink: the certificate names no node")
}
