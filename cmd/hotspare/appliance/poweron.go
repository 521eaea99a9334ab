package appliance

import (
	"context"
	"errors"

	"hotspare/bmc"
	"hotspare/haengine"
	"hotspare/haengine/agentlink"
)

// powerOn switches a node on so that it boots from the network. Of a node whose disk
// holds a copy of an application the firmware is told so for every start. Whatever
// the BMC makes of it, no firmware finds anything to start in a copy (SAFETY S2a):
// one that does not keep the order is told for this start.
func (b *boots) powerOn(ctx context.Context, n *haengine.NodeState, turn haengine.Turn) (bmc.OnResult, error) {
	q, _, err := b.bmcs.queue(n.Spec.Name)
	if err != nil {
		return bmc.OnResult{}, err
	}
	o := b.onOptions(n)
	if len(n.Copies) > 0 {
		o.Network = bmc.NetworkEvery
		res, err := bmc.On(ctx, q, right(turn), o)
		if !errors.Is(err, bmc.ErrBootOrder) {
			return res, err
		}
		b.noOrder(ctx, n, err)
	}
	o.Network = bmc.NetworkOnce
	return bmc.On(ctx, q, right(turn), o)
}

// networkFirst has the node's firmware ask the network before its disks at every
// start, and reads that back.
func (b *boots) networkFirst(ctx context.Context, n *haengine.NodeState) {
	q, _, err := b.bmcs.queue(n.Spec.Name)
	if err == nil {
		_, err = bmc.BootNetworkFirst(ctx, q, right(n.Turn), b.onOptions(n))
	}
	if err != nil {
		b.noOrder(ctx, n, err)
	}
}

func (b *boots) onOptions(n *haengine.NodeState) bmc.OnOptions {
	k, _ := b.inventory.of(n.Spec.Name)
	return bmc.OnOptions{
		Interval: b.cfg.BMC.ReadGap.D(), Deadline: b.cfg.BMC.Deadline.D(), ExpectUUID: n.Spec.UUID, UEFI: n.Spec.SecureBoot || k.Facts.Firmware == agentlink.FirmwareUEFI,
	}
}

func (b *boots) noOrder(ctx context.Context, n *haengine.NodeState, err error) {
	b.log.WarnContext(ctx, "the BMC does not keep the network first in the boot order; set it in the machine's firmware", "node", n.Spec.Name, "err", err)
}
