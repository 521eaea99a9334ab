package appliance

import (
	"context"
	"time"

	"hotspare/bmc"
	"hotspare/haengine"
	"hotspare/haengine/agentlink"
)

// orderBound is how long a BMC may take over its boot order: a start does not wait
// for one that cannot keep any.
const orderBound = 15 * time.Second

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
	if o.Network = bmc.NetworkOnce; len(n.Copies) > 0 && b.networkFirst(ctx, n, turn) {
		o.Network = bmc.NetworkUnasked // one for this start would take its place
	}
	return bmc.On(ctx, q, right(turn), o)
}

// networkFirst has the node's firmware ask the network before its disks at every
// start, and reads that back.
func (b *boots) networkFirst(ctx context.Context, n *haengine.NodeState, turn haengine.Turn) bool {
	o := b.onOptions(n)
	o.Deadline = min(o.Deadline, orderBound)
	q, _, err := b.bmcs.queue(n.Spec.Name)
	if err == nil {
		_, err = bmc.BootNetworkFirst(ctx, q, right(turn), o)
	}
	if err != nil {
		b.log.WarnContext(ctx, "the BMC does not keep the network first in the boot order; set it in the machine's firmware", "node", n.Spec.Name, "err", err)
	}
	return err == nil
}

func (b *boots) onOptions(n *haengine.NodeState) bmc.OnOptions {
	k, _ := b.inventory.of(n.Spec.Name)
	return bmc.OnOptions{
		Interval: b.cfg.BMC.ReadGap.D(), Deadline: b.cfg.BMC.Deadline.D(), ExpectUUID: n.Spec.UUID,
		UEFI: n.Spec.SecureBoot || k.Facts.Firmware == agentlink.FirmwareUEFI,
	}
}
