package appliance

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"hotspare"
	"hotspare/boot"
	"hotspare/boot/dhcp"
	"hotspare/boot/grub"
	"hotspare/boot/httpboot"
	"hotspare/boot/ipxe"
	"hotspare/boot/tftp"
	"hotspare/storage/iscsi"
	"hotspare/ui"
	"hotspare/ui/api"
)

// serveTarget opens the iSCSI target, with a portal on each link: running nodes get
// their disks back before anything else happens.
func (a *Appliance) serveTarget(ctx context.Context) error {
	// The target pings its sessions itself: TCP's keep-alive beside it would be four
	// system calls of each log-in.
	var portals []net.Listener
	for _, l := range a.cfg.Network.links() {
		ln, err := a.listenAs(ctx, net.ListenConfig{KeepAlive: -1}, "tcp", a.cfg.portal(l))
		if err != nil {
			for _, open := range portals {
				err = errors.Join(err, open.Close())
			}
			return err
		}
		portals = append(portals, ln)
	}
	t := iscsi.New(iscsi.Options{Directory: a.exports, Asked: a.ladders.login, Log: a.log.With("part", "iscsi")})
	for _, ln := range portals {
		a.parts.run("iSCSI target at "+ln.Addr().String(), func(ctx context.Context) error { return t.Serve(ctx, ln) })
	}
	return nil
}

func isInUse(err error) bool { return errors.Is(err, syscall.EADDRINUSE) }

// listen opens a TCP port; the error names who holds it, or says that the
// address is not there.
func (a *Appliance) listen(ctx context.Context, network string, at netip.AddrPort) (net.Listener, error) {
	return a.listenAs(ctx, net.ListenConfig{}, network, at)
}

func (a *Appliance) listenAs(ctx context.Context, c net.ListenConfig, network string, at netip.AddrPort) (net.Listener, error) {
	if at.Addr().Is6() {
		// DHCP has found it on the interface; for a second or two after the link came
		// up the kernel still checks that nobody else has it, and refuses to bind it.
		c.Control = func(_, _ string, rc syscall.RawConn) error {
			var opt error
			err := rc.Control(func(fd uintptr) { opt = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_FREEBIND, 1) })
			return errors.Join(err, opt)
		}
	}
	ln, err := c.Listen(ctx, network, at.String())
	if errors.Is(err, syscall.EADDRNOTAVAIL) {
		return nil, &hotspare.Error{
			Code: hotspare.CodeNoInterface, What: "the appliance's own address is not on this host", Where: at.Addr().String(), Err: err,
			Fix: "add it to " + a.interfaceOf(at.Addr()) + ", or correct network.address",
		}
	}
	return ln, a.taken(err, network, at)
}

// interfaceOf names the interface that one of our addresses should be on.
func (a *Appliance) interfaceOf(own netip.Addr) string {
	if l, ok := a.cfg.Network.holds(own); ok {
		return l.Interface
	}
	return "an interface"
}

// serveBoot starts what machines boot from, on every link.
func (a *Appliance) serveBoot(ctx context.Context) error {
	site := a.bootSite()
	secure, port, err := a.openHTTPS(ctx)
	if err != nil {
		return err
	}
	a.httpsPort, site.HTTPSPort = port, port // before DHCP tells of it
	for _, ln := range secure {
		a.parts.onStop("HTTPS port", closeOnce(ln)) // for a start that fails before it is served
	}
	if err := a.serveDHCP(site); err != nil {
		return err
	}
	for _, l := range a.cfg.Network.links() {
		for _, own := range l.own() {
			if err := a.serveTFTP(site, l, own); err != nil {
				return err
			}
		}
	}
	h, err := httpboot.New(httpboot.Options{
		Site: site, SiteAt: func(own netip.Addr) boot.Site { return siteAt(site, own) }, Director: a.director(nil), Source: a.boots, Script: ipxe.Write, GRUB: grub.Write, Loader: a.boots.loader, MACOf: a.macOf,
		Recorder: a.recorder, Log: a.log.With("part", "http"),
		Refetch: func(ctx context.Context, r httpboot.Refetch) {
			a.compromised(ctx, r.Node, fmt.Sprintf("its join archive was asked for again by %s (%s)", r.Client, r.MAC))
		},
	})
	if err != nil {
		return err
	}
	for _, l := range a.cfg.Network.links() {
		for _, own := range l.own() {
			if err := a.serveHTTP(ctx, netip.AddrPortFrom(own, a.cfg.Network.HTTPPort), a.boots.disks.before(h)); err != nil {
				return err
			}
		}
	}
	a.serveHTTPS(secure, h)
	a.openNetwork()
	return nil
}

// closeOnce closes a listener that may have been closed by who serves on it.
func closeOnce(ln net.Listener) func(context.Context) error {
	return func(context.Context) error {
		if err := ln.Close(); !errors.Is(err, net.ErrClosed) {
			return err
		}
		return nil
	}
}

// serveHTTP serves boot files at one of our addresses.
func (a *Appliance) serveHTTP(ctx context.Context, own netip.AddrPort, h http.Handler) error {
	ln, err := a.listen(ctx, "tcp", own)
	if err != nil {
		return err
	}
	o := httpboot.ServerOptions{Log: a.log.With("part", "http")}
	a.parts.run("HTTP boot at "+own.String(), func(ctx context.Context) error { return httpboot.Serve(ctx, ln, h, o) })
	return nil
}

func (a *Appliance) macOf(addr netip.Addr) (boot.MAC, bool) {
	return a.dhcp.MACOf(addr)
}

// serviceAddress says whether an address belongs to the appliance or to an
// application, so that DHCP never gives it away.
func (a *Appliance) serviceAddress(addr netip.Addr) bool {
	for _, l := range a.cfg.Network.links() {
		if slices.Contains(l.own(), addr) {
			return true
		}
	}
	for _, app := range a.engine.Snapshot().Durable.Apps {
		if app.Spec.Address.Addr() == addr {
			return true
		}
	}
	return false
}

func (a *Appliance) serveTFTP(site boot.Site, l LinkConfig, at netip.Addr) error {
	own := netip.AddrPortFrom(at, a.cfg.Network.TFTPPort)
	files := map[string]tftp.Opener{}
	for _, name := range site.LoaderFiles() {
		files[name] = func() (io.ReadSeekCloser, error) { return a.boots.loader(name) }
	}
	s, err := tftp.New(tftp.Options{
		Listen: own.String(), Files: files, Resolve: a.overTFTP(siteAt(site, at), l),
		MACOf: a.macOf, Holder: dhcp.PortHolder, Recorder: a.recorder, Log: a.log.With("part", "tftp"),
	})
	if err != nil {
		return err
	}
	a.parts.run("TFTP at "+own.String(), s.Serve)
	if name := site.Loaders[boot.ArchBIOS]; name != "" && at.Is4() {
		a.parts.run("TFTP's check", func(ctx context.Context) error {
			a.checkTFTP(ctx, own, name)
			return nil
		})
	}
	return nil
}

// checkTFTP fetches a loader as a machine would, once: a firewall on this host, or a
// loader that is not installed, is known before the first machine asks.
func (a *Appliance) checkTFTP(ctx context.Context, at netip.AddrPort, name string) {
	n, err := tftp.Probe(ctx, at, name)
	switch {
	case ctx.Err() != nil:
	case err != nil:
		a.log.WarnContext(ctx, "TFTP does not serve the BIOS loader", "file", name, "err", err)
	default:
		a.log.InfoContext(ctx, "TFTP serves", "address", at, "file", name, "bytes", n)
	}
}

// serveAPI opens the unix socket and the TCP port of the API.
func (a *Appliance) serveAPI(ctx context.Context) error {
	token, err := a.apiToken()
	if err != nil {
		return err
	}
	page, err := ui.Page()
	if err != nil {
		return err
	}
	srv, err := api.New(api.Options{
		Verbs:   api.Verbs{Viewer: a, Resources: a, Images: a, Engine: a, Explainer: a, History: a, Keeper: a, Tasks: a, ImageKeeper: a, Booting: a, Discoverer: a, Networking: a},
		Metrics: a.metrics(), Token: token, Page: page, Version: a.version, Log: a.log.With("part", "api"),
	})
	if err != nil {
		return err
	}
	unix, err := a.listenUnix(ctx)
	if err != nil {
		return err
	}
	at, err := netip.ParseAddrPort(a.cfg.API)
	if err != nil {
		return errors.Join(&hotspare.Error{Code: hotspare.CodeInvalid, What: fmt.Sprintf("api %q is not an address with a port", a.cfg.API), Fix: "write it as 127.0.0.1:8080"}, unix.Close())
	}
	tcp, err := a.listen(ctx, "tcp", at)
	if err != nil {
		return errors.Join(err, unix.Close())
	}
	a.parts.run("API", func(ctx context.Context) error {
		stopped := make(chan error, 1)
		stop := context.AfterFunc(ctx, func() {
			bound, cancel := context.WithTimeout(context.Background(), stopBound/2)
			defer cancel()
			stopped <- srv.Shutdown(bound)
		})
		ended := make(chan error, 2)
		go func() { ended <- srv.Serve(unix) }()
		go func() { ended <- srv.Serve(tcp) }()
		err := <-ended
		if stop() { // it ended by itself: take the other one down too
			bound, cancel := context.WithTimeout(context.Background(), stopBound/2)
			defer cancel()
			return errors.Join(err, srv.Shutdown(bound), <-ended)
		}
		return errors.Join(err, <-ended, <-stopped)
	})
	return nil
}

// listenUnix opens the socket with mode 0600. A socket that nobody answers is a
// killed process's and is removed.
func (a *Appliance) listenUnix(ctx context.Context) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(a.cfg.Socket), 0o755); err != nil {
		return nil, fmt.Errorf("API socket: %w", err)
	}
	if c, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "unix", a.cfg.Socket); err == nil {
		return nil, errors.Join(&hotspare.Error{
			Code: hotspare.CodePortTaken, What: "another appliance serves this socket", Where: a.cfg.Socket, Fix: "stop it, or set `socket` to another path",
		}, c.Close())
	}
	if err := os.Remove(a.cfg.Socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("API socket: %w", err)
	}
	mask := syscall.Umask(0o177)
	ln, err := (&net.ListenConfig{}).Listen(ctx, "unix", a.cfg.Socket)
	syscall.Umask(mask)
	if err != nil {
		return nil, fmt.Errorf("API socket: %w", err)
	}
	return ln, nil
}

// serveEngine starts the agents' link, the engine and the eyes that it has.
func (a *Appliance) serveEngine(ctx context.Context) error {
	a.parts.run("engine", a.engine.Run)
	for _, f := range a.floors {
		if err := a.engine.Submit(ctx, f); err != nil {
			return err
		}
	}
	if err := a.tellImages(ctx); err != nil {
		return err
	}
	a.parts.run("agents' link", a.link.Serve)
	a.parts.run("monitors", a.watching)
	a.parts.run("storage sessions", a.storageSessions)
	a.parts.run("self health", a.selfHealth)
	return nil
}
