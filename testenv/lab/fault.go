package lab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sort"
	"strings"
	"time"

	"hotspare"
	"hotspare/testenv/bmcsim"
)

// Faults that Fail knows.
const (
	PowerCut      = "power-cut"       // QEMU is killed; the BMC reads off
	PowerLoss     = "power-loss"      // power-cut, and the BMC is dead too: the whole feed is gone
	LinkCut       = "link-cut"        // the NIC has no link; the BMC network is another one
	Freeze        = "freeze"          // the processors stop: the machine is on and says nothing
	KernelPanic   = "kernel-panic"    // the guest's kernel dies (needs the lab's images)
	HangService   = "hang-service"    // every process of a unit is stopped (needs the lab's images)
	KillService   = "kill-service"    // a unit is killed once
	CrashService  = "crash-service"   // a unit is killed and cannot be started again until it is healed
	BMCDead       = "bmc-dead"        // the BMC answers nothing
	BMCLyingOff   = "bmc-lying-off"   // accepts power off, does nothing, reports off
	BMCLying      = "bmc-lying"       // accepts every command, does nothing
	BMCRefuse     = "bmc-refuse"      // refuses every power command
	BMCPassword   = "bmc-password"    // refuses the right password
	BMCStall      = "bmc-stall"       // every answer takes ten seconds
	BMCStale      = "bmc-stale"       // reports the power state of ten seconds ago
	BMCSharesFeed = "bmc-shares-feed" // dies whenever its host has no power
)

// serviceFaults are done inside the guest, by the unit's name.
var serviceFaults = map[string]string{HangService: "hang", KillService: "kill", CrashService: "crash"}

// bmcFaults change how a BMC behaves. They add up until the node is healed.
func bmcFaults() map[string]func(*bmcsim.Fault) {
	return map[string]func(*bmcsim.Fault){
		PowerLoss:     func(f *bmcsim.Fault) { f.Dead = true },
		BMCDead:       func(f *bmcsim.Fault) { f.Dead = true },
		BMCLyingOff:   func(f *bmcsim.Fault) { f.LyingOff = true },
		BMCLying:      func(f *bmcsim.Fault) { f.LyingSuccess = true },
		BMCRefuse:     func(f *bmcsim.Fault) { f.Refuse = true },
		BMCPassword:   func(f *bmcsim.Fault) { f.WrongPassword = true },
		BMCStall:      func(f *bmcsim.Fault) { f.Stall = 10 * time.Second },
		BMCStale:      func(f *bmcsim.Fault) { f.StaleState = 10 * time.Second },
		BMCSharesFeed: func(f *bmcsim.Fault) { f.DiesWithHost = true },
	}
}

// Faults lists all kinds.
func Faults() []string {
	kinds := []string{PowerCut, LinkCut, Freeze, KernelPanic}
	for k := range serviceFaults {
		kinds = append(kinds, k)
	}
	for k := range bmcFaults() {
		kinds = append(kinds, k)
	}
	sort.Strings(kinds)
	return kinds
}

// fail does one fault on one node of the daemon.
func (n *daemonNode) fail(ctx context.Context, kind, unit string) error {
	if change, ok := bmcFaults()[kind]; ok {
		n.mu.Lock()
		change(&n.fault)
		n.bmc.SetFault(n.fault)
		n.mu.Unlock()
	}
	var err error
	switch kind {
	case PowerCut, PowerLoss:
		err = n.machine.PowerOff(ctx)
	case LinkCut:
		err = n.machine.setLink(ctx, false)
	case Freeze:
		err = n.machine.pause(ctx, true)
	case KernelPanic:
		err = n.inGuest(ctx, "panic", "kernel")
	default:
		if verb, ok := serviceFaults[kind]; ok {
			if unit == "" {
				return &hotspare.Error{Code: hotspare.CodeInvalid, What: "the fault needs a unit", Where: kind, Fix: "give one, e.g. postgresql@15-main.service"}
			}
			err = n.inGuest(ctx, verb, unit)
		} else if _, ok := bmcFaults()[kind]; !ok {
			return &hotspare.Error{Code: hotspare.CodeInvalid, What: "no such fault", Where: kind, Fix: "take one of " + strings.Join(Faults(), ", ")}
		}
	}
	if err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if kind != PowerCut && kind != KillService { // these two pass by themselves
		n.faults[kind] = unit
	}
	return nil
}

// heal takes all faults back. A machine whose power was cut stays off.
func (n *daemonNode) heal(ctx context.Context) error {
	n.mu.Lock()
	faults := n.faults
	n.faults = map[string]string{}
	n.fault = bmcsim.Fault{POSTDelay: n.machine.node.POSTDelay}
	n.bmc.SetFault(n.fault)
	n.mu.Unlock()
	// A guest that is dead or was fenced meanwhile is not waited for.
	guest, cancel := context.WithTimeout(ctx, 8*time.Second)
	defer cancel()
	var errs []error
	for kind, unit := range faults {
		switch kind {
		case LinkCut:
			errs = append(errs, n.machine.setLink(ctx, true))
		case Freeze:
			if n.machine.PowerState() {
				errs = append(errs, n.machine.pause(ctx, false))
			}
		case HangService, CrashService:
			// A node that was fenced meanwhile has nothing to heal.
			if n.machine.PowerState() {
				if err := n.inGuest(guest, "heal", unit); err != nil && !errors.Is(err, errNoGuest) {
					errs = append(errs, err)
				}
			}
		}
	}
	return errors.Join(errs...)
}

// guestPort is where the lab's images listen for faults (lab-fault.socket).
const guestPort = "7999"

// errNoGuest says that nothing in the guest listens for faults.
var errNoGuest = errors.New("nothing in the guest listens for faults")

// inGuest asks the lab's own unit inside the guest to do something. The guest is
// found by its MAC among the neighbours of the namespace.
func (n *daemonNode) inGuest(ctx context.Context, verb, unit string) error {
	if !n.machine.PowerState() {
		return fmt.Errorf("%s is off", n.machine.node.Name)
	}
	addrs, err := neighbours(n.machine.node.MAC)
	if err != nil {
		return err
	}
	last := fmt.Errorf("%w: %s: no address of %s is known", errNoGuest, n.machine.node.Name, n.machine.node.MAC)
	for _, addr := range addrs {
		answer, err := askGuest(ctx, addr, verb+" "+unit)
		if err != nil {
			last = fmt.Errorf("%w: %w", errNoGuest, err)
			continue
		}
		if strings.HasPrefix(answer, "ok") {
			return nil
		}
		return fmt.Errorf("%s in %s: %s", verb, n.machine.node.Name, answer)
	}
	return &hotspare.Error{
		Code: hotspare.CodeUnavailable, What: "the fault cannot be done inside the guest", Where: n.machine.node.Name, Err: last,
		Why: "only the lab's images listen for faults, and only while the node is reachable", Fix: "run orders or web on the node, or take another fault, e.g. freeze",
	}
}

func askGuest(ctx context.Context, addr, line string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	conn, err := (&net.Dialer{Timeout: 3 * time.Second}).DialContext(ctx, "tcp", net.JoinHostPort(addr, guestPort))
	if err != nil {
		return "", err
	}
	defer conn.Close()
	at, _ := ctx.Deadline()
	conn.SetDeadline(at) // a dead connection shows at the next call
	if _, err := fmt.Fprintf(conn, "%s\n", line); err != nil {
		return "", err
	}
	answer, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		return "", fmt.Errorf("answer of %s: %w", addr, err)
	}
	return strings.TrimSpace(answer), nil
}

// neighbours gives the IPv4 addresses that the namespace's ARP table knows for a
// MAC (proc_pid_net(5), /proc/net/arp), those on the bridge.
func neighbours(mac string) ([]string, error) {
	// The calling thread decides whose table it is; all of the daemon's are in
	// the lab's namespace.
	b, err := os.ReadFile("/proc/self/net/arp")
	if err != nil {
		return nil, err
	}
	return parseARP(string(b), mac), nil
}

func parseARP(table, mac string) []string {
	var addrs []string
	for _, line := range strings.Split(table, "\n") {
		f := strings.Fields(line)
		if len(f) >= 6 && strings.EqualFold(f[3], mac) && f[5] == Bridge && f[2] != "0x0" {
			addrs = append(addrs, f[0])
		}
	}
	return addrs
}
