// Package fence is how a node fences itself (SAFETY S2): the lease, the drop,
// and the guard process that resets the machine when the agent cannot.
//
// Times are the node's CLOCK_BOOTTIME as a time.Duration since the kernel
// started; they come in from outside.
//
// The lease of an application ends at (the moment at which the last granted
// heartbeat was sent) + (the lease's duration). When it ends, the drop begins:
// address removed, live files removed, service group killed, witness stopped,
// the appliance told, machine reset. Each step gets a share of the drop bound;
// a step that hangs is left behind. If the agent does not get to the end of the
// drop bound, or dies before, the guard resets the machine.
package fence
