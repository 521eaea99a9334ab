package appliance

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"

	"hotspare"
	"hotspare/boot"
	"hotspare/boot/grub"
	"hotspare/boot/tftp"
)

// FirmwareConfig says which boot loader each firmware gets. Architectures are
// words (bios, uefi-x64, uefi-x64-http, uefi-arm64, ...) or numbers of option 93.
type FirmwareConfig struct {
	Loaders    map[string]string `yaml:"loaders"`    // architecture to file name; what is not named keeps its default
	SecureBoot map[string]string `yaml:"secureBoot"` // the same for nodes with secureBoot
	More       []string          `yaml:"more"`       // further files that a node's `loader` may name
}

func (f FirmwareConfig) validate() error {
	for _, table := range []map[string]string{f.Loaders, f.SecureBoot} {
		for word, file := range table {
			arch, err := boot.ParseArch(word)
			if err != nil {
				return err
			}
			if !boot.ValidName(file) {
				return fmt.Errorf("loader %q of %s is not a plain file name", file, word)
			}
			if !boot.Fits(file, arch) {
				return fmt.Errorf("firmware %s cannot start a loader named %s", arch, file)
			}
		}
	}
	for _, file := range f.More {
		if !boot.ValidName(file) {
			return fmt.Errorf("loader %q is not a plain file name", file)
		}
	}
	return nil
}

// overlaid lays the configured loaders over the defaults.
func overlaid(def map[boot.Arch]string, configured map[string]string) map[boot.Arch]string {
	for word, file := range configured {
		if arch, err := boot.ParseArch(word); err == nil {
			def[arch] = file
		}
	}
	return def
}

// bootSite is what the boot services know of the appliance. A loader that is not
// installed is not offered: the reason then says so, where a firmware would only
// have seen a failed download.
func (a *Appliance) bootSite() boot.Site {
	f := a.cfg.Firmware
	site := boot.Site{
		Server: a.cfg.Network.links()[0].Address.Addr(), HTTPPort: a.cfg.Network.HTTPPort,
		Loaders: overlaid(boot.DefaultLoaders(), f.Loaders), SecureLoaders: overlaid(boot.DefaultSecureLoaders(), f.SecureBoot),
	}
	for _, table := range []map[boot.Arch]string{site.Loaders, site.SecureLoaders} {
		for arch, name := range table {
			if file, ok := a.boots.installed(name); !ok {
				a.log.Warn("a boot loader is not installed", "firmware", arch.String(), "loader", file, "fix", loaderFix(file))
				delete(table, arch)
			}
		}
	}
	for _, name := range slices.Concat([]string{"ipxe.efi", "snponly.efi", "undionly.kpxe", "undionly.kkpxe", "ipxe.pxe", "shimx64.efi", "shimaa64.efi", "grubx64.efi", "grubaa64.efi"}, f.More) {
		if _, ok := a.boots.installed(name); ok {
			site.MoreLoaders = append(site.MoreLoaders, name)
		}
	}
	return site
}

// installed says whether a loader and all that it fetches by itself are there, or
// else which file is missing.
func (b *boots) installed(name string) (missing string, ok bool) {
	for n := name; n != ""; n = boot.Follower(n) {
		if _, err := b.find(n); err != nil {
			return n, false
		}
	}
	return "", true
}

// agentFor gives the agent for an architecture: the configured file is the one
// for the appliance's own, those for others stand beside it with their name at
// the end (hotspare-agent-arm64).
func (c Config) agentFor(arch string) string {
	if arch == "" || arch == runtime.GOARCH {
		return c.Agent
	}
	return c.Agent + "-" + arch
}

// ipxeLoaders is the folder of Debian's package ipxe.
const ipxeLoaders = "/usr/lib/ipxe"

// debianLoaders are the places of Debian's packages shim-signed and
// grub-efi-*-signed. The names are those that the loaders look for each other by.
func debianLoaders(name string) string {
	switch name {
	case "shimx64.efi":
		return "/usr/lib/shim/shimx64.efi.signed"
	case "grubx64.efi":
		return "/usr/lib/grub/x86_64-efi-signed/grubnetx64.efi.signed"
	case "shimaa64.efi":
		return "/usr/lib/shim/shimaa64.efi.signed"
	case "grubaa64.efi":
		return "/usr/lib/grub/arm64-efi-signed/grubnetaa64.efi.signed"
	}
	return ""
}

// find gives the file of a loader: the configured folder comes first.
func (b *boots) find(name string) (string, error) {
	if !boot.ValidName(name) {
		return "", &hotspare.Error{Code: hotspare.CodeInvalid, What: "this is no name of a boot loader", Where: fmt.Sprintf("%.80q", name)}
	}
	file := filepath.Join(b.cfg.Loaders, name)
	_, err := os.Stat(file)
	if err == nil {
		return file, nil
	}
	other := debianLoaders(name)
	if other == "" {
		other = filepath.Join(ipxeLoaders, name)
	}
	if _, err := os.Stat(other); err == nil {
		return other, nil
	}
	return "", errors.Join(&hotspare.Error{
		Code: hotspare.CodeMissingTool, What: "a boot loader is missing", Where: file, Fix: loaderFix(name),
	}, err)
}

func loaderFix(name string) string {
	switch name {
	case "shimx64.efi", "grubx64.efi":
		return "apt-get install shim-signed grub-efi-amd64-signed"
	case "shimaa64.efi", "grubaa64.efi":
		return "put it into the folder `loaders`, from the arm64 packages shim-signed and grub-efi-arm64-signed"
	}
	return "apt-get install ipxe, or put it into the folder `loaders`"
}

// loader opens one of the boot loaders.
func (b *boots) loader(name string) (io.ReadSeekCloser, error) {
	file, err := b.find(name)
	if err != nil {
		return nil, err
	}
	return os.Open(file)
}

// overTFTP answers for what shim and GRUB fetch over TFTP: the decision is the
// plan's, as over HTTP. They have no other protocol, so kernel, initramfs and the
// join archive are among it.
func (a *Appliance) overTFTP(site boot.Site, link LinkConfig) func(context.Context, boot.Request) (tftp.Resolved, error) {
	director := a.director(&link)
	return func(ctx context.Context, r boot.Request) (tftp.Resolved, error) {
		ctx = withLink(ctx, link)
		if p, ok := boot.ParsePath("/" + r.File); ok {
			r.Path = p
			if !p.MAC.IsZero() {
				r.MAC = p.MAC
			}
		}
		asked, err := director.Assign(ctx, r)
		out := tftp.Resolved{Node: asked.Node, MAC: asked.MAC}
		if err != nil {
			a.log.ErrorContext(ctx, "boot decision failed", "file", boot.RedactFile(r.File), "err", err)
		}
		offer, reason := site.Plan(r, asked)
		out.Reason = reason
		switch {
		case offer.Kind == boot.OfferScript:
			if err != nil && offer.Script.Kind == boot.ScriptWait {
				out.Reason = boot.Undecided()
				offer.Script.Lines = []string{"reason: " + out.Reason.String()}
			}
			out.File, out.Reason = a.grubScript(ctx, offer.Script, asked.Node, out.Reason)
		case offer.Kind == boot.OfferContent && offer.Artefact == boot.ArtefactLoader:
			out.File, err = a.boots.loader(offer.BootFile)
			return out, err
		case offer.Kind == boot.OfferContent:
			return a.artefact(ctx, r, offer.Artefact, asked, out)
		}
		return out, nil
	}
}

// grubScript writes a script; one that cannot be written becomes a wait that says
// so on the machine's screen.
func (a *Appliance) grubScript(ctx context.Context, s boot.Script, node string, reason boot.Reason) (io.ReadSeekCloser, boot.Reason) {
	text, err := grub.Write(s)
	if err != nil {
		a.log.ErrorContext(ctx, "boot script refused", "node", node, "err", err)
		reason = boot.Reason{Rule: boot.RuleUndecided, Code: hotspare.CodeOf(err), Text: "the boot script cannot be written: " + err.Error()}
		text, err = grub.Write(boot.Script{Kind: boot.ScriptWait, Title: "this machine waits", Lines: []string{"reason: " + reason.Text}, Again: s.Again})
		if err != nil {
			return nil, reason
		}
	}
	return memory{bytes.NewReader(text)}, reason
}

// artefact opens what a boot token opens. The join archive goes out once, over
// whichever protocol.
func (a *Appliance) artefact(ctx context.Context, r boot.Request, what boot.Artefact, asked boot.Assignment, out tftp.Resolved) (tftp.Resolved, error) {
	f, err := a.boots.Open(ctx, r.Path.Token, what)
	if errors.Is(err, boot.ErrSpent) {
		a.compromised(ctx, asked.Node, fmt.Sprintf("its join archive was asked for again by %s (%s)", r.Client, r.MAC))
		out.Reason = boot.Reason{
			Rule: boot.RuleSpent, Code: hotspare.CodeTokenReused, Text: "the join archive of this boot was fetched before; the boot attempt is void",
			Fix: "find out who fetched it, then boot the node again",
		}
		return out, nil
	}
	if err != nil {
		return out, err
	}
	out.File = f
	return out, nil
}
