package appliance

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"

	"hotspare/boot"
	"hotspare/boot/httpboot"
)

// linkKey is where a context carries the link that a request came over, when it came
// by a protocol whose own context does not say so.
type linkKey struct{}

func withLink(ctx context.Context, l LinkConfig) context.Context {
	return context.WithValue(ctx, linkKey{}, l)
}

// asked gives the link over which a machine asked for boot files; the first one when
// it did not ask by itself.
func (n NetworkConfig) asked(ctx context.Context) LinkConfig {
	if l, ok := ctx.Value(linkKey{}).(LinkConfig); ok {
		return l
	}
	return n.toward(httpboot.Local(ctx))
}

// siteAt gives the site as the machines see it that ask at one of our addresses.
func siteAt(site boot.Site, own netip.Addr) boot.Site {
	if own.IsValid() {
		site.Server = own
	}
	return site
}

// director is the decision about machines of one link, or, without one, of the link
// that the request came over.
func (a *Appliance) director(l *LinkConfig) boot.Director { return linkDirector{a, l} }

type linkDirector struct {
	a    *Appliance
	link *LinkConfig
}

// Assign is boot.Director. An application's address is on one link: a node that asks
// on another one would start it where nobody reaches it.
func (d linkDirector) Assign(ctx context.Context, r boot.Request) (boot.Assignment, error) {
	x, err := d.a.boots.Assign(ctx, r)
	if err != nil || x.Kind != boot.KindStart && x.Kind != boot.KindSAN || len(d.a.cfg.Network.links()) == 1 {
		return x, err
	}
	link := d.link
	if link == nil {
		asked := d.a.cfg.Network.asked(ctx)
		link = &asked
	}
	if why := d.a.elsewhere(x.Node, *link); why != "" {
		x.Kind, x.Token, x.Reason = boot.KindNone, "", why
	}
	return x, nil
}

// elsewhere says why a node cannot carry what it is booted for: the application's
// address is on another link than the node.
func (a *Appliance) elsewhere(node string, link LinkConfig) string {
	x, ok := a.attempts.byNode(node)
	if !ok || x.App == "" {
		return ""
	}
	app := a.engine.Snapshot().Durable.Apps[x.App]
	if app == nil {
		return ""
	}
	home, ok := a.cfg.Network.carries(app.Spec.Address.Addr())
	if ok && home.Interface == link.Interface {
		return ""
	}
	where := "on none of the appliance's"
	if ok {
		where = "on " + home.Interface
	}
	return fmt.Sprintf("the node asks on the link %s, and the address %s of %s is %s: give the pools of an application nodes of its own link only", link.Interface, app.Spec.Address.Addr(), x.App, where)
}

// listenOnLinks opens a TCP port on each link and gives one listener for all.
func (a *Appliance) listenOnLinks(ctx context.Context, where func(LinkConfig) netip.AddrPort) (net.Listener, error) {
	var all []net.Listener
	for _, l := range a.cfg.Network.links() {
		ln, err := a.listen(ctx, "tcp", where(l))
		if err != nil {
			for _, open := range all {
				err = errors.Join(err, open.Close())
			}
			return nil, err
		}
		all = append(all, ln)
	}
	if len(all) == 1 {
		return all[0], nil
	}
	return newListeners(all), nil
}

// listeners are several that are accepted from as one.
type listeners struct {
	all   []net.Listener
	conns chan accepted
	done  chan struct{}
	once  sync.Once
	err   error
}

type accepted struct {
	conn net.Conn
	err  error
}

func newListeners(all []net.Listener) *listeners {
	l := &listeners{all: all, conns: make(chan accepted), done: make(chan struct{})}
	for _, ln := range all {
		go l.accept(ln)
	}
	return l
}

func (l *listeners) accept(ln net.Listener) {
	for {
		conn, err := ln.Accept()
		select {
		case l.conns <- accepted{conn, err}:
		case <-l.done:
			if conn != nil {
				_ = conn.Close()
			}
			return
		}
		if errors.Is(err, net.ErrClosed) {
			return
		}
	}
}

func (l *listeners) Accept() (net.Conn, error) {
	select {
	case x := <-l.conns:
		return x.conn, x.err
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *listeners) Close() error {
	l.once.Do(func() {
		close(l.done)
		var errs []error
		for _, ln := range l.all {
			errs = append(errs, ln.Close())
		}
		l.err = errors.Join(errs...)
	})
	return l.err
}

// Addr is the first one's.
func (l *listeners) Addr() net.Addr { return l.all[0].Addr() }
