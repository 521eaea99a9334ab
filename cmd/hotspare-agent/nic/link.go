package nic

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"strings"

	"github.com/vishvananda/netlink"
)

// Link is one NIC. It is known by index: the image's udev may rename it.
type Link struct {
	Index int
	MAC   net.HardwareAddr
}

// BootMAC reads BOOTIF of the kernel's command line ("BOOTIF=01-52-54-00-...",
// as PXELINUX and iPXE write it), or gives nil.
func BootMAC(cmdline string) net.HardwareAddr {
	for _, word := range strings.Fields(cmdline) {
		value, ok := strings.CutPrefix(word, "BOOTIF=")
		if !ok {
			continue
		}
		if parts := strings.Split(value, "-"); len(parts) == 7 {
			value = strings.Join(parts[1:], "-")
		}
		if mac, err := net.ParseMAC(value); err == nil && len(mac) == 6 {
			return mac
		}
	}
	return nil
}

// Up waits for the NIC with the address mac (nil: the first Ethernet NIC), sets
// it up and waits until it has a carrier. say is told what it waits for.
func Up(ctx context.Context, mac net.HardwareAddr, say func(string)) (Link, error) {
	updates := make(chan netlink.LinkUpdate, 64)
	done := make(chan struct{})
	defer close(done)
	if err := netlink.LinkSubscribeWithOptions(updates, done, netlink.LinkSubscribeOptions{
		ListExisting:  true,
		ErrorCallback: func(error) {},
	}); err != nil {
		return Link{}, fmt.Errorf("watch links: %w", err)
	}
	if lo, err := netlink.LinkByName("lo"); err == nil {
		_ = netlink.LinkSetUp(lo)
	}
	said := ""
	tell := func(text string) {
		if text != said {
			said = text
			say(text)
		}
	}
	tell("waiting for network card " + nameOf(mac))
	up := map[int]bool{}
	for {
		select {
		case u, ok := <-updates:
			if !ok {
				return Link{}, errors.New("the kernel's link events ended")
			}
			a := u.Link.Attrs()
			if !wanted(u.Link, mac) {
				continue
			}
			if !up[a.Index] {
				if err := netlink.LinkSetUp(u.Link); err != nil {
					return Link{}, fmt.Errorf("set %s up: %w", a.Name, err)
				}
				up[a.Index] = true
			}
			if a.RawFlags&iffLowerUp != 0 {
				return Link{Index: a.Index, MAC: a.HardwareAddr}, nil
			}
			tell(fmt.Sprintf("waiting for a carrier on %s (%s)", a.Name, a.HardwareAddr))
		case <-ctx.Done():
			return Link{}, fmt.Errorf("%s: %w", said, ctx.Err())
		}
	}
}

const iffLowerUp = 1 << 16 // IFF_LOWER_UP of linux/if.h

func nameOf(mac net.HardwareAddr) string {
	if mac == nil {
		return "(any)"
	}
	return mac.String()
}

func wanted(l netlink.Link, mac net.HardwareAddr) bool {
	a := l.Attrs()
	if mac != nil {
		return bytes.Equal(a.HardwareAddr, mac) && l.Type() == "device"
	}
	return l.Type() == "device" && a.EncapType == "ether" && len(a.HardwareAddr) == 6
}

// MACs gives the addresses of all Ethernet NICs, the one of first at the head.
func MACs(first net.HardwareAddr) []string {
	links, err := netlink.LinkList()
	if err != nil {
		return nil
	}
	var out []string
	for _, l := range links {
		if !wanted(l, nil) {
			continue
		}
		if bytes.Equal(l.Attrs().HardwareAddr, first) {
			out = append([]string{first.String()}, out...)
			continue
		}
		out = append(out, l.Attrs().HardwareAddr.String())
	}
	return out
}
