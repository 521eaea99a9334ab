package appliance

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"strconv"
	"time"

	"hotspare"
	"hotspare/boot"
	"hotspare/boot/httpboot"
	"hotspare/boot/standby"
	"hotspare/haengine"
	"hotspare/haengine/agentlink"
	"hotspare/images"
)

// boots is runner.Booter, the boot protocols' Director and the source of their
// artefacts: one record of attempts behind all of them.
type boots struct {
	cfg      Config
	attempts *attempts
	bmcs     *bmcs
	images   *images.Repository
	volumes  *volumes
	host     *hostEnvironment
	cache    string // of initramfs
	ca       func() []byte
	nodes    func(name string) (*haengine.NodeState, bool)
	byMAC    func(boot.MAC) (*haengine.NodeState, bool)
	ladders  *ladders // what is seen of boots
	finder   *discovery
	log      *slog.Logger

	disks     *diskStreams
	inventory *inventory // of nodes

	// send gives an order to a node's agent, ask gives what it answers too; set before
	// anything is served.
	send func(ctx context.Context, h haengine.Order, bootID string, o agentlink.Order) error
	ask  func(ctx context.Context, h haengine.Order, bootID string, o agentlink.Order) (agentlink.Result, error)
	// grant gives the live grant of an application, or nil; likewise.
	grant func(app string) *haengine.Grant
	// nearby gives the link over which a node's agent has come; likewise.
	nearby func(node string) LinkConfig
}

// Boot prepares the answers for the node and powers it on. A node that joined
// for this epoch is left alone; so is one that is on (the engine has proven it
// off before the first try).
func (b *boots) Boot(ctx context.Context, o haengine.Boot) error {
	n, ok := b.nodes(o.Node)
	if !ok {
		return noNode(o.Node)
	}
	img, err := b.starts(o)
	if err != nil {
		return err
	}
	if o.Way != haengine.WayColdSAN { // before the attempt replaces what the node has
		if _, err := b.initramfs(ctx, img); err != nil {
			return err
		}
	}
	if o.BootID != "" {
		return b.kexec(ctx, o, n.Spec, img)
	}
	x, err := b.attempts.begin(n.Spec, o, img.Ref())
	if err != nil {
		return err
	}
	if !x.Redeemed.IsZero() {
		return nil
	}
	b.ladders.power(o.Node, fmt.Sprintf("it is to become %s under epoch %d (%s)", o.App, o.Epoch, o.Way), o.Epoch)
	res, err := b.powerOn(ctx, n, o.Turn)
	if err != nil {
		b.ladders.powerFailed(o.Node, err)
		return transient(err)
	}
	b.log.InfoContext(ctx, "node powered on", "node", o.Node, "app", o.App, "epoch", o.Epoch, "wasOn", res.WasOn)
	return nil
}

// starts gives the image that a grant is started with: the one that its root was
// cloned from, or that was installed; else what the reference stands for now.
func (b *boots) starts(o haengine.Boot) (images.Image, error) {
	if o.Way.NeedsVolume() {
		return b.volumes.rootImage(o.App, o.Epoch, o.Image)
	}
	ref := o.Image
	if g := b.grant(o.App); g != nil && g.Epoch == o.Epoch && g.Copy != nil {
		ref = g.Copy.Image
	}
	return b.pinned(o.Node, o.App, o.Epoch, ref)
}

// pinned gives the image that a node was booted with for a grant; for any other one
// what a reference stands for.
func (b *boots) pinned(node, app string, epoch haengine.Epoch, ref string) (images.Image, error) {
	if x, ok := b.attempts.byNode(node); ok && epoch != 0 && x.Mode == forGrant && x.App == app && x.Epoch == epoch {
		return b.images.Resolve(x.Image)
	}
	return b.images.Resolve(ref)
}

// CancelBoot takes back the answers and the token of an epoch.
func (b *boots) CancelBoot(_ context.Context, c haengine.CancelBoot) error {
	return b.attempts.end(c.Node, c.App, c.Epoch)
}

// Return removes the node's assignments when no command can reach it any more.
func (b *boots) Return(ctx context.Context, o haengine.ReturnNode) error {
	if err := errors.Join(b.attempts.endGrants(o.Node), b.attempts.endTurn(o.Node, o.Turn)); err != nil {
		return err
	}
	q, _, err := b.bmcs.queue(o.Node)
	if err != nil {
		return err
	}
	r := right(o.Turn)
	if err := q.Raise(r); err != nil {
		return err
	}
	return q.Release(ctx, r)
}

// initramfs builds or finds the archive for an image's kernel.
func (b *boots) initramfs(ctx context.Context, img images.Image) (standby.Result, error) {
	return standby.Build(ctx, standby.Request{
		Agent: b.cfg.agentFor(img.Arch), KernelVersion: img.Kernel.Version, ModulesTar: img.ModulesPath, ModulesDigest: img.Modules.Digest,
		KernelConfig: img.Kernel.ConfigPath, Arch: img.Arch, Set: standby.Set(b.cfg.Modules), RootFS: img.RootFS, Log: b.log,
	}, b.cache)
}

// Assign is the one decision about a machine, for every protocol.
func (b *boots) Assign(_ context.Context, r boot.Request) (boot.Assignment, error) {
	var x attempt
	var booting bool
	if r.Path.Token != "" {
		if x, booting = b.attempts.byToken(r.Path.Token); !booting {
			a, _ := b.finder.byToken(r.Path.Token)
			return a, nil
		}
	} else {
		x, booting = b.attempts.byMAC(r.MAC)
	}
	if !booting {
		return b.idle(r), nil
	}
	a := boot.Assignment{
		Node: x.Node, Approved: b.approved(x.Node), Kind: boot.KindStart, Token: x.BootToken, Epoch: uint64(x.Epoch), MAC: x.MACs[0],
		Initrd: "hotspare agent", Reason: x.purpose(),
	}
	var img images.Image
	if version, ok := hostVersion(x.Image); ok {
		a.Arch, a.Kernel = runtime.GOARCH, version
	} else {
		var err error
		if img, err = b.images.Resolve(x.Image); err != nil {
			return boot.Assignment{}, err
		}
		a.Arch, a.Kernel = img.Arch, img.Kernel.Version
	}
	a.Cmdline = b.cmdline(img)
	b.firmware(&a)
	if x.Way == haengine.WayColdSAN {
		a.Kind, a.Kernel, a.Initrd, a.Cmdline, a.Modes = boot.KindSAN, "", "", "", bootModes(img)
		if x.JoinHash != "" && r.Path.Token == "" {
			// The volume's secret is out, so this is another boot than the one that
			// was ordered.
			a.Kind, a.Token = boot.KindNone, ""
			a.Reason = fmt.Sprintf("the boot of epoch %d has its volume already; a further one carries nothing until hotspare orders it", x.Epoch)
		}
	}
	if x.From != "" && r.Path.Token == "" {
		// Its kernel came over the agent's link: what asks here is another boot.
		a.Kind, a.Token = boot.KindNone, ""
		a.Reason = "the kernel of epoch " + strconv.FormatUint(uint64(x.Epoch), 10) + " was executed from standby; a boot from the network carries nothing until hotspare orders it"
	}
	if !x.Redeemed.IsZero() {
		// The boot that was ordered has joined. A machine that asks again has
		// started by itself: its grant is bound to the boot id that joined.
		a.Kind, a.Token = boot.KindNone, ""
		a.Reason = "the boot that was ordered has joined already (" + x.purpose() + "); a further one carries nothing until hotspare orders it"
	}
	return a, nil
}

func (b *boots) cmdline(img images.Image) string {
	s := "panic=10 quiet loglevel=4 console=" + b.cfg.Console
	for _, more := range []string{b.cfg.Cmdline, img.Cmdline} {
		if more != "" {
			s += " " + more
		}
	}
	return s
}

// approved says whether a node exists and an operator has approved it; both may
// have ended since its boot was ordered.
func (b *boots) approved(node string) bool {
	n, ok := b.nodes(node)
	return ok && n.Spec.Approved
}

// firmware adds what the node's document says of its firmware.
func (b *boots) firmware(a *boot.Assignment) {
	if n, ok := b.nodes(a.Node); ok {
		a.SecureBoot, a.Loader, a.HTTPS = n.Spec.SecureBoot, n.Spec.Loader, boot.HTTPS(n.Spec.HTTPS)
	}
}

// idle is the answer for a machine that nothing was ordered for.
func (b *boots) idle(r boot.Request) boot.Assignment {
	m := r.MAC
	n, ok := b.byMAC(m)
	if !ok {
		return b.finder.stranger(r)
	}
	if !n.Spec.Approved {
		if a, ok := b.finder.unapproved(m, n.Spec.Name); ok {
			return a
		}
	}
	reason := "nothing is ordered for it; it is in state " + string(n.Phase)
	if n.Reason != "" {
		reason += " (" + n.Reason + ")"
	}
	if trouble := b.ladders.trouble(m); trouble != "" {
		reason += "; " + trouble
	}
	return boot.Assignment{
		Node: n.Spec.Name, Approved: n.Spec.Approved, Kind: boot.KindNone, Reason: reason, MAC: m,
		SecureBoot: n.Spec.SecureBoot, Loader: n.Spec.Loader, HTTPS: boot.HTTPS(n.Spec.HTTPS),
	}
}

// Open gives an artefact of the boot behind a token.
func (b *boots) Open(ctx context.Context, token string, what boot.Artefact) (httpboot.File, error) {
	x, ok := b.attempts.byToken(token)
	if !ok {
		if f, ok, err := b.finder.open(ctx, token, what); ok {
			return f, err
		}
		return httpboot.File{}, &hotspare.Error{Code: hotspare.CodeBootToken, What: "the boot token is not known any more", Fix: "power the node on through hotspare"}
	}
	switch what {
	case boot.ArtefactJoin:
		return b.join(token, b.cfg.Network.asked(ctx))
	case boot.ArtefactSAN:
		return b.san(token, b.cfg.Network.asked(ctx))
	}
	if what == boot.ArtefactRoot {
		img, err := b.images.Resolve(x.Image)
		if err != nil {
			return httpboot.File{}, err
		}
		root, ok := rootFile(img)
		if !ok {
			return httpboot.File{}, noRoot(img)
		}
		return root.open()
	}
	kernel, initrd, _, err := b.files(ctx, x.Image)
	if err != nil {
		return httpboot.File{}, err
	}
	switch what {
	case boot.ArtefactKernel:
		return kernel.open()
	case boot.ArtefactInitrd:
		return initrd.open()
	}
	return httpboot.File{}, fmt.Errorf("no artefact %q", what)
}

func (f bootFile) open() (httpboot.File, error) {
	file, err := os.Open(f.path)
	if err != nil {
		return httpboot.File{}, err
	}
	st, err := file.Stat()
	if err != nil {
		return httpboot.File{}, errors.Join(err, file.Close())
	}
	return httpboot.File{ReadSeekCloser: file, ModTime: st.ModTime(), ETag: `"` + f.digest + `"`}, nil
}

// join mints the join token and gives the archive that carries it, once.
func (b *boots) join(bootToken string, link LinkConfig) (httpboot.File, error) {
	x, secret, err := b.attempts.mint(bootToken)
	if err != nil {
		return httpboot.File{}, err
	}
	archive, err := b.joinArchive(x, secret, link)
	if err != nil {
		return httpboot.File{}, err
	}
	return httpboot.File{ReadSeekCloser: memory{bytes.NewReader(archive)}, ModTime: time.Time{}}, nil
}

type memory struct{ *bytes.Reader }

func (memory) Close() error { return nil }
