package nic

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/nclient4"
	"github.com/vishvananda/netlink"
)

// vendorClass names the agent to the DHCP server (option 60).
const vendorClass = "hotspare-agent"

// Boot is the node's boot address.
type Boot struct {
	Address netip.Prefix
	Gateway netip.Addr // zero: none
	lease   *nclient4.Lease
}

// Acquire gets an address by DHCP and sets it. It tries until ctx is done.
func Acquire(ctx context.Context, l Link, say func(string)) (Boot, error) {
	for try := 1; ; try++ {
		boot, err := request(ctx, l, nil)
		if err == nil {
			return boot, apply(l, boot)
		}
		if ctx.Err() != nil {
			return Boot{}, fmt.Errorf("no address by DHCP on %s: %w", l.MAC, err)
		}
		say(fmt.Sprintf("no answer to DHCP on %s yet (try %d): %v", l.MAC, try, err))
	}
}

// Keep renews the boot address until ctx is done. It opens its socket for each
// renewal, by the name that the NIC has then.
func Keep(ctx context.Context, l Link, boot Boot, log *slog.Logger) {
	wait := renewAfter(boot)
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		next, err := request(ctx, l, boot.lease)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			log.Warn("the boot address was not renewed; it is kept", "address", boot.Address, "err", err)
			wait = min(renewAfter(boot), 30*time.Second)
			continue
		}
		if next.Address != boot.Address {
			// The server forgot this node. Sessions live on the old address,
			// so it stays beside the new one.
			log.Warn("DHCP gave another boot address", "old", boot.Address, "new", next.Address)
			if err := apply(l, next); err != nil {
				log.Warn("the new boot address was not set", "err", err)
			}
		}
		boot, wait = next, renewAfter(next)
	}
}

func renewAfter(b Boot) time.Duration {
	lease := b.lease.ACK.IPAddressLeaseTime(time.Hour)
	return max(b.lease.ACK.IPAddressRenewalTime(lease/2), 10*time.Second)
}

// request gets a lease: a new one, or old renewed, or a new one when old is
// refused.
func request(ctx context.Context, l Link, old *nclient4.Lease) (Boot, error) {
	ifi, err := net.InterfaceByIndex(l.Index)
	if err != nil {
		return Boot{}, err
	}
	// The client id is left out: it would differ from the firmware's.
	client, err := nclient4.New(ifi.Name, nclient4.WithHWAddr(l.MAC), nclient4.WithTimeout(time.Second), nclient4.WithRetry(4))
	if err != nil {
		return Boot{}, err
	}
	defer func() { _ = client.Close() }()
	modify := []dhcpv4.Modifier{
		dhcpv4.WithOption(dhcpv4.OptClassIdentifier(vendorClass)),
		dhcpv4.WithRequestedOptions(dhcpv4.OptionSubnetMask, dhcpv4.OptionRouter, dhcpv4.OptionIPAddressLeaseTime,
			dhcpv4.OptionRenewTimeValue, dhcpv4.OptionRebindingTimeValue),
	}
	var lease *nclient4.Lease
	if old != nil {
		lease, err = client.Renew(ctx, old, modify...)
		var nak *nclient4.ErrNak
		if err != nil && !errors.As(err, &nak) {
			return Boot{}, err
		}
	}
	if lease == nil {
		if lease, err = client.Request(ctx, modify...); err != nil {
			return Boot{}, err
		}
	}
	return read(lease)
}

func read(lease *nclient4.Lease) (Boot, error) {
	addr, ok := netip.AddrFromSlice(lease.ACK.YourIPAddr.To4())
	if !ok || addr.IsUnspecified() {
		return Boot{}, errors.New("the DHCP server gave no address")
	}
	bits := 24
	if mask := lease.ACK.SubnetMask(); len(mask) == 4 {
		bits, _ = mask.Size()
	}
	boot := Boot{Address: netip.PrefixFrom(addr, bits), lease: lease}
	if routers := lease.ACK.Router(); len(routers) > 0 {
		if gateway, ok := netip.AddrFromSlice(routers[0].To4()); ok && !gateway.IsUnspecified() {
			boot.Gateway = gateway
		}
	}
	return boot, nil
}

func apply(l Link, boot Boot) error {
	link, err := netlink.LinkByIndex(l.Index)
	if err != nil {
		return err
	}
	if err := netlink.AddrReplace(link, &netlink.Addr{IPNet: ipNet(boot.Address)}); err != nil {
		return fmt.Errorf("set the boot address %s: %w", boot.Address, err)
	}
	if !boot.Gateway.IsValid() {
		return nil
	}
	route := &netlink.Route{LinkIndex: l.Index, Gw: boot.Gateway.AsSlice()}
	if err := netlink.RouteReplace(route); err != nil {
		return fmt.Errorf("set the route by %s: %w", boot.Gateway, err)
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
