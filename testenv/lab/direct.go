package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"hotspare"
)

// Direct is a machine of the lab's kind that starts its kernel without firmware
// settings, network or appliance: what a start over hotspare is measured beside.
// It has the processor, the memory and the NIC of a node, and local virtio disks.
type Direct struct {
	Name      string // of its tap and its folder, at most 10 bytes; unlike those of the nodes
	MAC       string
	MemoryMiB int    // default 512
	Kernel    string // file
	Initrd    string // file; "": none
	Cmdline   string
	Disks     []DirectDisk // vda first
}

// DirectDisk is a local disk of a Direct.
type DirectDisk struct {
	File string // raw
	Keep bool   // what is written stays in the file; else it is forgotten at the end
}

// DirectMachine is a Direct that has been started and waits at its power-on.
type DirectMachine struct {
	cmd    *Cmd
	dir    string
	done   chan struct{}
	remove func(context.Context) error
}

// directArgs is the machine's hardware: that of a node with BIOS.
func directArgs(d Direct, accel, dir string) []string {
	args := hardwareOf(NodeSpec{Arch: ArchAMD64, Firmware: FirmwareBIOS}, accel).machine
	args = append([]string{"-name", "guest=hotspare-lab-" + d.Name + ",debug-threads=off"}, args...)
	args = append(args,
		"-smp", "1", "-m", strconv.Itoa(d.MemoryMiB), "-nodefaults", "-no-user-config", "-display", "none",
		"-netdev", "tap,id=net0,ifname="+tapName(d.Name)+",script=no,downscript=no",
		"-device", "virtio-net-pci,id=nic0,netdev=net0,romfile=,mac="+d.MAC,
		"-device", "virtio-rng-pci",
		"-chardev", "file,id=serial0,path="+filepath.Join(dir, "serial.log")+",append=on", "-serial", "chardev:serial0",
		"-qmp", "unix:"+filepath.Join(dir, "qmp.sock")+",server=on,wait=off",
		"-pidfile", filepath.Join(dir, "qemu.pid"),
		"-kernel", d.Kernel, "-append", d.Cmdline,
	)
	if d.Initrd != "" {
		args = append(args, "-initrd", d.Initrd)
	}
	for i, disk := range d.Disks {
		id := "disk" + strconv.Itoa(i)
		snapshot := ",snapshot=on"
		if disk.Keep {
			snapshot = ""
		}
		args = append(args, "-drive", "if=none,id="+id+",format=raw"+snapshot+",file="+disk.File, "-device", "virtio-blk-pci,drive="+id)
	}
	return append(args, "-S")
}

// StartDirect makes the machine on the lab's bridge. Its processors stand still
// until Power. Stop, and Down of the lab, end it.
func (l *Lab) StartDirect(ctx context.Context, d Direct) (_ *DirectMachine, err error) {
	if d.MemoryMiB == 0 {
		d.MemoryMiB = 512
	}
	if len(d.Name) > 10 || !nameForm.MatchString(d.Name) {
		return nil, &hotspare.Error{Code: hotspare.CodeInvalid, What: "the machine cannot be made like this", Where: "name " + d.Name, Why: "a name must be 1 to 10 of a-z, 0-9 and -", Fix: "give another value"}
	}
	for _, n := range l.spec.Nodes {
		if n.Name == d.Name || strings.EqualFold(n.MAC, d.MAC) {
			return nil, &hotspare.Error{Code: hotspare.CodeInvalid, What: "the machine cannot be made like this", Where: d.Name, Why: "it has the name or the MAC address of node " + n.Name, Fix: "give another value"}
		}
	}
	dir := filepath.Join(l.dir, d.Name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	m := &DirectMachine{dir: dir, done: make(chan struct{}), remove: func(ctx context.Context) error {
		return ip(ctx, l.Namespace(), "link del "+tapName(d.Name))
	}}
	if err := os.Remove(m.socket()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	if err := ip(ctx, l.Namespace(), "tuntap add dev "+tapName(d.Name)+" mode tap", "link set "+tapName(d.Name)+" master "+Bridge+" up"); err != nil {
		return nil, err
	}
	out, err := os.OpenFile(filepath.Join(dir, "qemu.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, errors.Join(err, m.remove(ctx))
	}
	defer out.Close()
	m.cmd = Exec(context.WithoutCancel(ctx), l.Namespace(), l.spec.QEMU, directArgs(d, l.spec.Accel, dir)...)
	m.cmd.Stdout, m.cmd.Stderr = out, out
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := m.cmd.Start(); err != nil {
		return nil, errors.Join(&hotspare.Error{Code: hotspare.CodeQEMU, What: "QEMU did not start", Where: d.Name, Err: err, Fix: "apt-get install qemu-system-x86"}, m.remove(ctx))
	}
	go func() {
		defer close(m.done)
		_ = m.cmd.Wait() // how it ended stands in its log
	}()
	if err := m.monitor(ctx, func(context.Context, *qmp) error { return nil }); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w: %s", d.Name, err, tail(out.Name(), 3)), m.Stop(ctx))
	}
	return m, nil
}

func (m *DirectMachine) socket() string { return filepath.Join(m.dir, "qmp.sock") }

// Power lets the processors run and gives the moment before it was asked for.
func (m *DirectMachine) Power(ctx context.Context) (at time.Time, err error) {
	err = m.monitor(ctx, func(ctx context.Context, q *qmp) error {
		at = time.Now()
		return q.Execute(ctx, "cont", nil, nil)
	})
	return at, err
}

// Stop ends QEMU and removes the machine's tap.
func (m *DirectMachine) Stop(ctx context.Context) error {
	err := m.cmd.Process.Kill()
	if errors.Is(err, os.ErrProcessDone) {
		err = nil
	}
	select {
	case <-m.done:
	case <-ctx.Done():
		return errors.Join(err, ctx.Err())
	}
	return errors.Join(err, m.remove(ctx))
}

// monitor runs one exchange. The socket is there a moment after the start.
func (m *DirectMachine) monitor(ctx context.Context, talk func(context.Context, *qmp) error) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	for {
		q, err := dialQMP(ctx, m.socket())
		if err == nil {
			return errors.Join(talk(ctx, q), q.Close())
		}
		select {
		case <-m.done:
			return errors.New("QEMU ended at once")
		case <-ctx.Done():
			return err
		case <-time.After(20 * time.Millisecond):
		}
	}
}
