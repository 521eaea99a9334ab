package lab

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"hotspare"
)

// Names of the interfaces inside the namespace.
const (
	Bridge       = "hsbr0"  // the segment that the appliance serves
	BMCInterface = "hsbmc0" // the BMC network
	clientPeer   = "hsclient0"
	// ClientInterface is the one in the client's namespace.
	ClientInterface = "hseth0"
)

// tapName is a node's port of the bridge.
func tapName(node string) string { return "tap-" + node }

// makeNetwork makes both namespaces. It is a list of commands of ip(8), so that
// a person can read what the network is made of, and repeat it.
func (l *Lab) makeNetwork(ctx context.Context) error {
	ns, client := l.Namespace(), l.ClientNamespace()
	for _, n := range []string{ns, client} {
		if err := ip(ctx, "", "netns add "+n); err != nil {
			return err
		}
	}
	// No router advertisement is believed, and none is sent: what the nodes hear
	// comes from the appliance alone.
	for _, n := range []string{ns, client} {
		err := InNamespace(n, func() error {
			for key, value := range map[string]string{
				"net/ipv6/conf/all/accept_ra": "0", "net/ipv6/conf/default/accept_ra": "0",
				"net/ipv4/ip_forward": "0", "net/ipv6/conf/all/forwarding": "0",
			} {
				if err := os.WriteFile(filepath.Join("/proc/sys", key), []byte(value), 0o644); err != nil && !os.IsNotExist(err) {
					return fmt.Errorf("set %s: %w", key, err)
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	lines := []string{
		"link set lo up",
		"link add " + Bridge + " address 52:54:00:77:ff:01 type bridge stp_state 0 forward_delay 0 mcast_snooping 0",
		"addr add " + l.spec.Network.String() + " dev " + Bridge,
		"link set " + Bridge + " up",
		// A bridge without ports: kernels that lack the dummy device have this.
		"link add " + BMCInterface + " type bridge stp_state 0",
		"addr add " + l.spec.BMCs.String() + " dev " + BMCInterface,
		"link add " + clientPeer + " type veth peer name " + ClientInterface + " netns " + client,
		"link set " + clientPeer + " master " + Bridge + " up",
	}
	for _, n := range l.spec.Nodes {
		lines = append(lines,
			fmt.Sprintf("addr add %s/%d dev %s", n.BMCAddr, l.spec.BMCs.Bits(), BMCInterface),
			"tuntap add dev "+tapName(n.Name)+" mode tap",
			"link set "+tapName(n.Name)+" master "+Bridge+" up")
	}
	lines = append(lines, "link set "+BMCInterface+" up")
	if err := ip(ctx, ns, lines...); err != nil {
		return err
	}
	return ip(ctx, client,
		"link set lo up",
		"addr add "+l.spec.Client.String()+" dev "+ClientInterface,
		"link set "+ClientInterface+" up")
}

// removeNetwork deletes both namespaces of a lab; links go with them.
func removeNetwork(ctx context.Context, name string) error {
	for _, ns := range []string{"hs-" + name + "-client", "hs-" + name} {
		if _, err := os.Stat(filepath.Join("/run/netns", ns)); os.IsNotExist(err) {
			continue
		}
		if err := ip(ctx, "", "netns del "+ns); err != nil {
			return err
		}
	}
	return nil
}

// ip runs lines of ip(8) in a namespace ("": the host's, for netns commands
// alone). The first line that fails is named in the error.
func ip(ctx context.Context, ns string, lines ...string) error {
	for _, line := range lines {
		var args []string
		if ns != "" {
			args = append(args, "-netns", ns)
		}
		out, err := exec.CommandContext(ctx, "ip", append(args, strings.Fields(line)...)...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("ip %s: %w: %s", line, err, strings.TrimSpace(string(out)))
		}
	}
	return nil
}

// InNamespace runs fn on a thread that is in the named network namespace.
// Sockets and processes that fn makes by itself (not in goroutines of its own)
// are born there and stay there.
func InNamespace(ns string, fn func() error) error {
	if ns == "" {
		return fn()
	}
	result := make(chan error, 1)
	go func() {
		// The thread is never unlocked, so it ends with the goroutine and nothing
		// else ever runs on it.
		runtime.LockOSThread()
		result <- func() error {
			f, err := os.Open(filepath.Join("/run/netns", ns))
			if err != nil {
				return &hotspare.Error{Code: hotspare.CodeNotFound, What: "no such network namespace", Where: ns, Err: err, Fix: "hotspare-lab up"}
			}
			defer f.Close()
			if err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("enter namespace %s: %w", ns, err)
			}
			return fn()
		}()
	}()
	return <-result
}

// Dialer makes connections from inside a namespace. The address must be
// numeric: names would be resolved elsewhere.
func Dialer(ns string) func(ctx context.Context, network, address string) (net.Conn, error) {
	return func(ctx context.Context, network, address string) (conn net.Conn, err error) {
		err = InNamespace(ns, func() error {
			conn, err = (&net.Dialer{}).DialContext(ctx, network, address)
			return err
		})
		return conn, err
	}
}

// Exec makes a command that starts inside a namespace with Start or Run of the
// value that it returns.
func Exec(ctx context.Context, ns, name string, args ...string) *Cmd {
	return &Cmd{Cmd: exec.CommandContext(ctx, name, args...), ns: ns}
}

// Cmd is an exec.Cmd whose process is born in a network namespace. Its /sys is
// that of the host's namespace.
type Cmd struct {
	*exec.Cmd
	ns string
}

// Start starts the process.
func (c *Cmd) Start() error { return InNamespace(c.ns, c.Cmd.Start) }

// Run starts it and waits.
func (c *Cmd) Run() error {
	if err := c.Start(); err != nil {
		return err
	}
	return c.Wait()
}

// CombinedOutput runs it and gives what it wrote.
func (c *Cmd) CombinedOutput() (out []byte, err error) {
	err = InNamespace(c.ns, func() error {
		out, err = c.Cmd.CombinedOutput()
		return err
	})
	return out, err
}

// Output runs it and gives its standard output.
func (c *Cmd) Output() (out []byte, err error) {
	err = InNamespace(c.ns, func() error {
		out, err = c.Cmd.Output()
		return err
	})
	return out, err
}
