package api

import (
	"context"
	"net/netip"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"hotspare"
)

// Networking shows the links that are served, what DHCP sees on them, and the CA of
// HTTPS boot.
type Networking interface {
	Links(ctx context.Context) ([]Link, error)
	BootCA(ctx context.Context) (BootCA, error)
}

// Link is one interface of the appliance and what is served on it.
type Link struct {
	Interface string         `json:"interface"`
	Addresses []netip.Addr   `json:"addresses" doc:"the appliance's own"`
	Up        bool           `json:"up"`
	Why       string         `json:"why,omitempty" doc:"why it is not up"`
	DHCP      string         `json:"dhcp" enum:"authoritative,proxy,off"`
	HTTPS     bool           `json:"https" doc:"boot files are served over TLS too"`
	Pools     []AddressPool  `json:"pools"`
	Counters  *DHCPCounters  `json:"counters,omitempty" doc:"since the start; none where DHCP is off"`
	Foreign   []ForeignDHCP  `json:"foreign" doc:"other DHCP servers that were seen"`
	Alarms    []NetworkAlarm `json:"alarms" doc:"what stands, the newest first"`
}

// AddressPool is how full the range of a network is.
type AddressPool struct {
	Prefix netip.Prefix `json:"prefix"`
	Size   int          `json:"size"`
	Used   int          `json:"used"`
}

// DHCPCounters count what DHCP saw on a link.
type DHCPCounters struct {
	Received  uint64 `json:"received"`
	Answered  uint64 `json:"answered"`
	Malformed uint64 `json:"malformed"`
	Dropped   uint64 `json:"dropped" doc:"too many at once"`
	Limited   uint64 `json:"limited" doc:"too many of one machine"`
	Unknown   uint64 `json:"unknown" doc:"too many of unknown machines together"`
	NoAddress uint64 `json:"noAddress" doc:"nothing was free"`
	Conflicts uint64 `json:"conflicts" doc:"somebody else had the address"`
	NAKs      uint64 `json:"naks"`
	Failed    uint64 `json:"failed" doc:"an answer was not sent or a lease not written"`
}

// ForeignDHCP is another DHCP server on a link.
type ForeignDHCP struct {
	Server   netip.Addr `json:"server"`
	MAC      string     `json:"mac,omitempty"`
	Vendor   string     `json:"vendor,omitempty"`
	Offers   string     `json:"offers"`
	First    time.Time  `json:"first"`
	Last     time.Time  `json:"last"`
	Taken    uint64     `json:"taken" doc:"offers of its that machines took"`
	Fix      string     `json:"fix,omitempty" doc:"what to do; nothing where it is expected"`
	Expected bool       `json:"expected" doc:"it gives the addresses where hotspare does not"`
}

// NetworkAlarm is something on a link that an operator has to look at.
type NetworkAlarm struct {
	Code  string    `json:"code"`
	Text  string    `json:"text"`
	Fix   string    `json:"fix,omitempty"`
	First time.Time `json:"first"`
	Last  time.Time `json:"last"`
}

// BootCA is the CA of HTTPS boot, to be enrolled in firmware.
type BootCA struct {
	Certificate   string    `json:"certificate" doc:"PEM"`
	SignatureList []byte    `json:"signatureList" doc:"as the UEFI variable TlsCaCertificate holds it"`
	Fingerprint   string    `json:"fingerprint" doc:"SHA-256"`
	NotAfter      time.Time `json:"notAfter"`
}

func (r routes) registerNetwork(h huma.API) {
	get(h, "list-links", "/api/v1/links", "The links that are served and what DHCP sees on them", func(ctx context.Context, _ *struct{}) (*body[[]Link], error) {
		all, err := r.Networking.Links(ctx)
		if err != nil {
			return nil, problem(err)
		}
		return &body[[]Link]{all}, nil
	})
	get(h, "get-link", "/api/v1/links/{name}", "One link, by its interface", func(ctx context.Context, in *named) (*body[Link], error) {
		all, err := r.Networking.Links(ctx)
		if err != nil {
			return nil, problem(err)
		}
		name := segment(in.Name)
		for _, l := range all {
			if l.Interface == name {
				return &body[Link]{l}, nil
			}
		}
		return nil, problem(&hotspare.Error{Code: hotspare.CodeNotFound, What: "there is no such link", Where: name, Fix: "hotspare get links"})
	})
	get(h, "get-boot-ca", "/api/v1/boot-ca", "The CA certificate that firmware enrols for HTTPS boot", func(ctx context.Context, _ *struct{}) (*body[BootCA], error) {
		ca, err := r.Networking.BootCA(ctx)
		if err != nil {
			return nil, problem(err)
		}
		return &body[BootCA]{ca}, nil
	})
}
