package standby

import (
	"bytes"
	"context"
	"crypto/sha256"
	"debug/elf"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
)

// inputs is everything that an archive is made of. The modules themselves are
// read only when it is not in the cache.
type inputs struct {
	req         Request
	agent       []byte
	modules     tree
	digest      string // of modules
	stamp       string // of the firmware folder
	compression string
}

func gather(ctx context.Context, req Request) (inputs, error) {
	in := inputs{req: req, modules: tree{tar: req.ModulesTar, dir: req.ModulesDir}, digest: req.ModulesDigest}
	var err error
	if in.agent, err = os.ReadFile(req.Agent); err != nil {
		return in, cannot(req.Agent, "the agent cannot be read", "build it: make hotspare-agent", err)
	}
	if err := checkAgent(in.agent, req.Arch); err != nil {
		return in, cannot(req.Agent, err.Error(), "build the agent with CGO_ENABLED=0 for the node's architecture", nil)
	}
	var config []byte
	if req.KernelConfig != "" {
		if config, err = os.ReadFile(req.KernelConfig); err != nil {
			return in, cannot(req.KernelConfig, "the kernel's configuration cannot be read", "", err)
		}
	}
	in.compression = compression(req.KernelVersion, config)
	if in.digest == "" {
		if in.digest, err = in.modules.digest(ctx); err != nil {
			return in, in.treeError(ctx, err)
		}
	}
	if req.FirmwareDir != "" {
		if in.stamp, err = stamp(ctx, req.FirmwareDir); err != nil {
			return in, cannot(req.FirmwareDir, "the firmware cannot be read", "", err)
		}
	}
	return in, nil
}

// treeError explains why the modules could not be read.
func (in inputs) treeError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	where, fix := in.modules.tar+in.modules.dir, "import the image again"
	if in.modules.dir != "" {
		fix = "run depmod " + in.req.KernelVersion
	}
	why := "the modules cannot be read"
	if errors.Is(err, fs.ErrNotExist) {
		why = "a file of the modules is missing"
	}
	return cannot(where, why, fix, err)
}

// checkAgent makes sure that the program can run where there is no library.
func checkAgent(b []byte, arch string) error {
	f, err := elf.NewFile(bytes.NewReader(b))
	if err != nil {
		return fmt.Errorf("the agent is not an ELF program")
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return fmt.Errorf("the agent is not static: it asks for a dynamic loader")
		}
	}
	machines := map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64, "386": elf.EM_386}
	if m, ok := machines[arch]; ok && f.Machine != m {
		return fmt.Errorf("the agent is for %s, the image for %s", f.Machine, arch)
	}
	return nil
}

// key addresses an archive by what goes into it.
func (in inputs) key() string {
	sum := func(b []byte) string { h := sha256.Sum256(b); return hex.EncodeToString(h[:]) }
	files := map[string]string{}
	for name, data := range in.req.Files {
		files[name] = sum(data)
	}
	b, err := json.Marshal(struct {
		Format                  int
		Agent, Modules, Version string
		Set                     Set
		RootFS, Compression     string
		Extra                   []string
		Files                   map[string]string
		Wanted                  string // the sets may change without a new format
		Firmware                string `json:",omitempty"`
	}{formatVersion, sum(in.agent), in.digest, in.req.KernelVersion, in.req.Set, in.req.RootFS, in.compression, in.req.Modules, files, fmt.Sprint(wants(in.req)), in.stamp})
	if err != nil {
		panic("standby: " + err.Error()) // strings, numbers and maps of them
	}
	return sum(b)
}

// make builds the archive.
func (in inputs) make(ctx context.Context) ([]byte, Result, error) {
	meta, err := in.modules.metadata(ctx)
	if err != nil {
		return nil, Result{}, in.treeError(ctx, err)
	}
	ix, err := parseIndex(meta)
	if err != nil {
		return nil, Result{}, in.treeError(ctx, err)
	}
	p, err := ix.choose(wants(in.req))
	if err != nil {
		return nil, Result{}, cannot("kernel "+in.req.KernelVersion, err.Error(), "use an image whose kernel has it, or the distribution's full kernel package", nil)
	}
	var names []string
	for _, m := range p.modules {
		names = append(names, ix.file[m])
	}
	files, err := in.modules.read(ctx, names)
	if err != nil {
		return nil, Result{}, in.treeError(ctx, err)
	}
	a := in.skeleton()
	for _, m := range p.modules {
		a.file(ix.installed(in.req.KernelVersion, m), files[ix.file[m]], 0o644)
	}
	blobs, missing, err := in.firmware(ctx, files)
	if err != nil {
		return nil, Result{}, err
	}
	for name, data := range blobs {
		a.file(firmwarePath(name), data, 0o644)
	}
	load, dep, aliases := ix.lists(in.req.KernelVersion, p, meta.alias)
	a.file("/hotspare/modules.load", load, 0o644)
	a.file("/hotspare/modules.dep", dep, 0o644)
	a.file("/hotspare/modules.alias", aliases, 0o644)
	var plain bytes.Buffer
	if err := a.write(&plain); err != nil {
		return nil, Result{}, cannot("", "", "", err)
	}
	out, err := compressTo(in.compression, plain.Bytes())
	if err != nil {
		return nil, Result{}, cannot("", "", "", err)
	}
	sum := sha256.Sum256(out)
	return out, Result{Digest: hex.EncodeToString(sum[:]), Size: int64(len(out)), Unpacked: int64(plain.Len()), Compression: in.compression,
		ModuleCount: len(p.modules), Load: p.load, Absent: p.absent,
		Firmware: slices.Sorted(maps.Keys(blobs)), Missing: missing}, nil
}

// firmware gives what the modules may ask for.
func (in inputs) firmware(ctx context.Context, modules map[string][]byte) (files map[string][]byte, missing []string, err error) {
	if in.req.FirmwareDir == "" {
		return nil, nil, nil
	}
	files, missing, err = firmware(ctx, in.req.FirmwareDir, modules)
	if err != nil && ctx.Err() == nil {
		err = cannot(in.req.FirmwareDir, "the firmware cannot be read", "", err)
	}
	return files, missing, err
}

// skeleton holds all but the modules.
func (in inputs) skeleton() *archive {
	a := newArchive()
	for _, d := range []string{"/dev", "/proc", "/sys", "/run", "/newroot", "/hotspare"} {
		a.dir(d, 0o755)
	}
	a.dir("/tmp", 0o1777)
	a.charDev("/dev/console", 0o600, 5, 1)
	a.charDev("/dev/null", 0o666, 1, 3)
	a.file("/init", in.agent, 0o755)
	about, err := json.Marshal(map[string]any{"version": formatVersion, "kernel": in.req.KernelVersion, "set": in.req.Set})
	if err != nil {
		panic("standby: " + err.Error())
	}
	a.file("/hotspare/initramfs.json", about, 0o644)
	for _, name := range slices.Sorted(maps.Keys(in.req.Files)) {
		a.file(name, in.req.Files[name], 0o644)
	}
	return a
}
