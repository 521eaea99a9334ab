package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sort"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"hotspare"
	"hotspare/testenv/bmcsim"
)

// daemonNode is one node of the daemon: the machine and its BMC.
type daemonNode struct {
	machine *machine
	bmc     *bmcsim.BMC

	mu     sync.Mutex
	fault  bmcsim.Fault
	faults map[string]string // kind -> unit, those in force
}

// daemon owns the machines. It runs inside the lab's namespace.
type daemon struct {
	spec  spec
	dir   string
	log   *slog.Logger
	nodes map[string]*daemonNode
	stop  context.CancelFunc
}

// Serve is the lab's daemon; Up starts it as a process of its own, inside the
// namespace. It returns when ctx ends, with all machines off.
func Serve(ctx context.Context, dir string, log *slog.Logger) error {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	s, err := readSpec(dir)
	if err != nil {
		return fmt.Errorf("serve the lab: %w", err)
	}
	// A daemon that was killed left its machines running with nobody to tell
	// their power state.
	if err := killLeftovers(ctx, dir); err != nil {
		return fmt.Errorf("end machines of an earlier daemon: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	d := &daemon{spec: s, dir: dir, log: log, nodes: map[string]*daemonNode{}, stop: cancel}
	g, gctx := errgroup.WithContext(ctx)
	for _, spec := range s.Nodes {
		m := newMachine(s, spec, dir, log)
		fault := bmcsim.Fault{POSTDelay: spec.POSTDelay}
		bmc, err := bmcsim.New(bmcsim.Options{
			Listen: net.JoinHostPort(spec.BMCAddr.String(), "623"), RedfishListen: net.JoinHostPort(spec.BMCAddr.String(), "443"),
			User: spec.BMCUser, Password: spec.BMCPassword, Machine: m, Fault: fault, Log: log.With("node", spec.Name),
		})
		if err != nil {
			cancel()
			return errors.Join(fmt.Errorf("BMC of %s: %w", spec.Name, err), g.Wait())
		}
		d.nodes[spec.Name] = &daemonNode{machine: m, bmc: bmc, fault: fault, faults: map[string]string{}}
		g.Go(func() error { return bmc.Serve(gctx) })
	}
	for i, f := range s.Forwards {
		ln, err := inheritedListener(i)
		if err != nil {
			cancel()
			return errors.Join(fmt.Errorf("forward %s: %w", f.Listen, err), g.Wait())
		}
		g.Go(func() error { return forward(gctx, ln, f.To) })
	}
	g.Go(func() error { return d.control(gctx) })
	err = g.Wait()

	off, done := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer done()
	errs := []error{err}
	for _, n := range d.nodes {
		errs = append(errs, n.machine.PowerOff(off))
	}
	return errors.Join(errs...)
}

// control answers the lab's verbs on a unix socket: HTTP with JSON, version 1 in
// the path.
func (d *daemon) control(ctx context.Context) error {
	file := filepath.Join(d.dir, socketFile)
	if err := os.Remove(file); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	ln, err := net.Listen("unix", file)
	if err != nil {
		return fmt.Errorf("control socket: %w", err)
	}
	if err := os.Chmod(file, 0o600); err != nil {
		ln.Close()
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, r *http.Request) { answer(w, d.status(), nil) })
	mux.HandleFunc("POST /v1/nodes/{node}/{verb}", d.verb)
	srv := &http.Server{Handler: mux, BaseContext: func(net.Listener) context.Context { return ctx }, ReadHeaderTimeout: 5 * time.Second}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		<-ctx.Done()
		bound, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		defer cancel()
		if err := srv.Shutdown(bound); err != nil {
			_ = srv.Close() // it is ending anyway
		}
	}()
	if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("control socket: %w", err)
	}
	<-ended
	return nil
}

// request is the body of a verb.
type request struct {
	Kind string `json:"kind,omitempty"` // of a fault
	Unit string `json:"unit,omitempty"` // for faults inside the guest
}

func (d *daemon) verb(w http.ResponseWriter, r *http.Request) {
	n, ok := d.nodes[r.PathValue("node")]
	if !ok {
		answer(w, nil, &hotspare.Error{Code: hotspare.CodeNotFound, What: "no such node in the lab", Where: r.PathValue("node"), Fix: "hotspare-lab status"})
		return
	}
	var req request
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<16)).Decode(&req); err != nil && !errors.Is(err, io.EOF) {
		answer(w, nil, fmt.Errorf("request: %w", err))
		return
	}
	// A verb is finished even when the one who asked for it goes away.
	ctx := context.WithoutCancel(r.Context())
	var err error
	switch verb := r.PathValue("verb"); verb {
	case "on":
		err = n.machine.PowerOn(ctx)
	case "off":
		err = n.machine.PowerOff(ctx)
	case "fail":
		err = n.fail(ctx, req.Kind, req.Unit)
	case "heal":
		err = n.heal(ctx)
	default:
		err = fmt.Errorf("verb %q is not known", verb)
	}
	d.log.Info("verb", "node", n.machine.node.Name, "verb", r.PathValue("verb"), "kind", req.Kind, "unit", req.Unit, "err", err)
	answer(w, struct{}{}, err)
}

// problem is an error on the wire.
type problem struct {
	Code  hotspare.Code `json:"code,omitempty"`
	What  string        `json:"what"`
	Where string        `json:"where,omitempty"`
	Why   string        `json:"why,omitempty"`
	Fix   string        `json:"fix,omitempty"`
	Cause string        `json:"cause,omitempty"`
}

func answer(w http.ResponseWriter, value any, err error) {
	w.Header().Set("Content-Type", "application/json")
	if err == nil {
		json.NewEncoder(w).Encode(value) //nolint:errcheck // the client is gone
		return
	}
	p := problem{What: err.Error()}
	if e, ok := errors.AsType[*hotspare.Error](err); ok {
		p = problem{Code: e.Code, What: e.What, Where: e.Where, Why: e.Why, Fix: e.Fix}
		if e.Err != nil {
			p.Cause = e.Err.Error()
		}
	}
	w.WriteHeader(http.StatusUnprocessableEntity)
	json.NewEncoder(w).Encode(p) //nolint:errcheck // the client is gone
}

// NodeStatus is one machine as it is.
type NodeStatus struct {
	Name     string            `json:"name"`
	Power    string            `json:"power"` // on, off
	PID      int               `json:"pid,omitempty"`
	Since    time.Time         `json:"since"` // of the last power change
	Boots    int               `json:"boots"` // power-ons since the daemon began
	LastEnd  string            `json:"last_end,omitempty"`
	NextBoot string            `json:"next_boot,omitempty"`
	MAC      string            `json:"mac"`
	UUID     string            `json:"uuid"`
	BMC      string            `json:"bmc"`
	Faults   map[string]string `json:"faults,omitempty"` // kind -> unit
	Serial   string            `json:"serial"`           // the console's log
}

// Status is the whole lab.
type Status struct {
	Name            string       `json:"name"`
	Namespace       string       `json:"namespace"`
	ClientNamespace string       `json:"client_namespace"`
	Accel           string       `json:"accel"`
	Nodes           []NodeStatus `json:"nodes"`
	Forwards        []Forward    `json:"forwards,omitempty"`
}

func (d *daemon) status() Status {
	s := Status{Name: d.spec.Name, Namespace: "hs-" + d.spec.Name, ClientNamespace: "hs-" + d.spec.Name + "-client", Accel: d.spec.Accel, Forwards: d.spec.Forwards}
	for _, n := range d.nodes {
		s.Nodes = append(s.Nodes, n.status())
	}
	sort.Slice(s.Nodes, func(i, j int) bool { return s.Nodes[i].Name < s.Nodes[j].Name })
	return s
}

func (n *daemonNode) status() NodeStatus {
	m := n.machine
	st := NodeStatus{Name: m.node.Name, Power: "off", MAC: m.node.MAC, UUID: m.node.UUID, BMC: m.node.BMCAddr.String(), Serial: filepath.Join(m.dir, "serial.log")}
	m.state.Lock()
	st.Since, st.Boots, st.LastEnd, st.NextBoot = m.since, m.boots, m.lastEnd, m.bootDev
	if m.cmd != nil {
		st.Power, st.PID = "on", m.cmd.Process.Pid
	}
	m.state.Unlock()
	n.mu.Lock()
	defer n.mu.Unlock()
	st.Faults = map[string]string{}
	for k, v := range n.faults {
		st.Faults[k] = v
	}
	return st
}

// inheritedListener is the i-th one that Up has opened on the host.
func inheritedListener(i int) (net.Listener, error) {
	f := os.NewFile(uintptr(3+i), "forward")
	defer f.Close()
	return net.FileListener(f)
}

// forward copies connections to an address in the namespace until ctx ends.
func forward(ctx context.Context, ln net.Listener, to string) error {
	stop := context.AfterFunc(ctx, func() { ln.Close() })
	defer stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		in, err := ln.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("forward: %w", err)
		}
		wg.Go(func() { pipe(ctx, in, to) })
	}
}

func pipe(ctx context.Context, in net.Conn, to string) {
	defer in.Close()
	out, err := (&net.Dialer{Timeout: 3 * time.Second}).DialContext(ctx, "tcp", to)
	if err != nil {
		return
	}
	defer out.Close()
	stop := context.AfterFunc(ctx, func() { in.Close(); out.Close() })
	defer stop()
	var wg sync.WaitGroup
	half := func(dst, src net.Conn) {
		io.Copy(dst, src) //nolint:errcheck // either side may leave at any time
		if c, ok := dst.(*net.TCPConn); ok {
			c.CloseWrite() //nolint:errcheck // as above
		}
	}
	wg.Go(func() { half(out, in) })
	half(in, out)
	wg.Wait()
}
