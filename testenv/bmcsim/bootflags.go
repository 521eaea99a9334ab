package bmcsim

import (
	"context"
	"time"

	"github.com/bougou/go-ipmi/pkg/handlers"
	"github.com/bougou/go-ipmi/pkg/types"
)

// bootOptions is what was asked for with Set System Boot Options (IPMI v2.0
// section 28.12) or with Redfish's BootSourceOverride, which both set flags.
type bootOptions struct {
	flags types.BootOptionParam_BootFlags
	ack   *types.BootOptionParam_BootInfoAcknowledge
	// keep is parameter 3: the reasons that do not clear the flags.
	keep byte
	// set is when IPMI set the flags; zero for those that do not expire.
	set time.Time
}

const (
	paramKeepFlags = byte(types.BootOptionParamSelector_BMCBootFlagValidBitClear)
	keepOnTimeout  = 0x08 // of parameter 3
)

// setBoot takes boot flags from either protocol; those of IPMI may expire. refused
// says that the BMC does not know such an order.
func (c *controller) setBoot(flags types.BootOptionParam_BootFlags, ipmi bool) (refused bool) {
	c.mu.Lock()
	f := c.fault
	if f.OnceOnly && flags.Persist {
		if refused = !ipmi; !refused {
			flags.Persist = false
		}
	}
	deaf := f.LyingSuccess || f.KeepsBootOrder || refused
	if !deaf {
		c.boot.flags, c.boot.set = flags, time.Time{}
		if ipmi {
			c.boot.set = time.Now()
		}
	}
	c.mu.Unlock()
	if !deaf {
		c.tellMachine(flags)
	}
	return refused
}

func (c *controller) tellMachine(flags types.BootOptionParam_BootFlags) {
	device := ""
	if flags.BootFlagsValid {
		device = bootDevice(flags.BootDeviceSelector)
	}
	c.opts.Machine.SetNextBoot(device, !flags.Persist)
}

// bootFlags is what is reported.
func (c *controller) bootFlags() types.BootOptionParam_BootFlags {
	c.expireBoot()
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.boot.flags
}

// expireBoot clears the valid bit of flags whose time is over.
func (c *controller) expireBoot() {
	c.mu.Lock()
	b := &c.boot
	over := c.fault.ExpireBootFlags > 0 && !b.set.IsZero() && b.keep&keepOnTimeout == 0 && time.Since(b.set) > c.fault.ExpireBootFlags
	if over {
		b.flags.BootFlagsValid, b.set = false, time.Time{}
	}
	flags := b.flags
	c.mu.Unlock()
	if over {
		c.tellMachine(flags)
	}
}

// spendBoot is what a start leaves: the firmware has read the flags, and those for
// one start are spent.
func (c *controller) spendBoot() {
	c.mu.Lock()
	b := &c.boot
	forget := b.flags.Persist && c.fault.ForgetsBootOrder
	if !b.flags.Persist || forget {
		b.flags, b.set = types.BootOptionParam_BootFlags{}, time.Time{}
	}
	c.mu.Unlock()
	if forget {
		c.tellMachine(types.BootOptionParam_BootFlags{})
	}
}

// keepFlags is parameter 3, which go-ipmi's handlers accept and do not keep.
func keepFlags(c *controller) handlers.Middleware {
	return func(next handlers.Handler) handlers.Handler {
		return handlers.HandlerFunc(func(ctx context.Context, h *handlers.HandlerContext, req []byte) ([]byte, types.CompletionCode, error) {
			if h.Command.NetFn != types.NetFnChassisRequest || len(req) == 0 || req[0]&0x7f != paramKeepFlags {
				return next.Handle(ctx, h, req)
			}
			out, code, err := next.Handle(ctx, h, req) // which looks at the privilege, too
			c.mu.Lock()
			defer c.mu.Unlock()
			switch {
			case h.Command.ID == types.CommandGetSystemBootOptions.ID && code == types.CodeParameterNotSupported:
				return []byte{0x01, paramKeepFlags, c.boot.keep}, types.CodeOK, nil
			case h.Command.ID == types.CommandSetSystemBootOptions.ID && code == types.CodeOK && len(req) > 1:
				c.boot.keep = req[1] & 0x1f
			}
			return out, code, err
		})
	}
}

func bootDevice(s types.BootDeviceSelector) string {
	switch s {
	case types.BootDeviceSelectorForcePXE:
		return "pxe"
	case types.BootDeviceSelectorForceHardDrive:
		return "disk"
	case types.BootDeviceSelectorForceCDROM:
		return "cdrom"
	case types.BootDeviceSelectorForceBIOSSetup:
		return "bios"
	default:
		return ""
	}
}
