package appliance

import (
	"bytes"
	"slices"
	"strings"
	"time"

	"hotspare"
	"hotspare/boot"
	"hotspare/boot/httpboot"
	"hotspare/boot/ipxe"
	"hotspare/haengine"
	"hotspare/images"
)

// san gives iPXE's script with the secret of the granted root volume, once: the
// way cold-san has no agent that could ask for it.
func (b *boots) san(bootToken string, link LinkConfig) (httpboot.File, error) {
	x, ok := b.attempts.byToken(bootToken)
	if !ok || x.Way != haengine.WayColdSAN {
		return httpboot.File{}, unknownToken()
	}
	logins, err := b.volumes.logins(haengine.Claim{Order: haengine.Order{App: x.App, Epoch: x.Epoch, Node: x.Node}}, b.cfg.portal(link))
	if err != nil {
		return httpboot.File{}, err
	}
	root := logins[0]
	text, err := ipxe.SANScript(ipxe.Volume{
		Portal: root.Portal, Target: root.IQN, LUN: int(root.LUN), Initiator: root.Initiator, User: root.User, Secret: root.Secret,
	})
	if err != nil {
		return httpboot.File{}, err
	}
	if err := b.attempts.spend(bootToken); err != nil {
		return httpboot.File{}, err
	}
	return httpboot.File{ReadSeekCloser: memory{bytes.NewReader(text)}, ModTime: time.Time{}}, nil
}

// bootModes says which firmware the image's disk starts on by itself.
func bootModes(img images.Image) []boot.Firmware {
	var modes []boot.Firmware
	for _, f := range img.Facts.Firmware {
		mode := boot.FirmwareBIOS
		if strings.HasPrefix(f, "uefi-") {
			mode = boot.FirmwareUEFI
		}
		if !slices.Contains(modes, mode) {
			modes = append(modes, mode)
		}
	}
	return modes
}

// sanFetched stands for the hash of a join token in an attempt that has none: the
// volume's secret was given away.
const sanFetched = "san"

// spend notes durably that the secret behind a boot token is given away; the
// second time it is boot.ErrSpent.
func (a *attempts) spend(bootToken string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	for node, x := range a.live {
		if !boot.SameToken(x.BootToken, bootToken) {
			continue
		}
		if x.JoinHash != "" {
			return boot.ErrSpent
		}
		x.JoinHash, x.JoinFetched = sanFetched, a.now()
		a.live[node] = x
		return a.save()
	}
	return unknownToken()
}

func unknownToken() error {
	return &hotspare.Error{Code: hotspare.CodeBootToken, What: "the boot token is not known any more", Fix: "power the node on through hotspare"}
}
