// Package standby builds the initramfs that every Linux node boots: the static
// agent as /init and the modules of the image's kernel, nothing of the image's
// own initramfs.
//
// What it puts in, as the agent finds it:
//
//	/init                            the agent
//	/dev /proc /sys /run /newroot    empty, with /dev/console and /dev/null
//	/lib/modules/<version>/...       the chosen modules, decompressed to plain .ko
//	/lib/firmware/...                what those modules may ask for, if a folder
//	                                 with it was named
//	/hotspare/initramfs.json         {"version", "kernel", "set"}
//	/hotspare/modules.load           modules to load at once: absolute paths, one
//	                                 a line, dependencies first
//	/hotspare/modules.dep            for every module of the archive one line
//	                                 "path: path path": what must be loaded before
//	                                 it, to be loaded from left to right
//	/hotspare/modules.alias          "alias PATTERN MODULE", the kernel's own
//	                                 format (PATTERN is a glob over a device's
//	                                 modalias), for the modules of the archive
//	                                 that are loaded when their hardware is there
//
// Module names in modules.alias have underscores, file names may have dashes.
//
// Archives are cached by what went into them, built once however many ask at
// the same time, reproducible, and padded to 4 bytes, so that the small archive
// of JoinArchive can follow: the kernel unpacks concatenated archives in order
// (Documentation/driver-api/early-userspace/buffer-format.rst).
//
// BuildEnvironment adds the kernel itself and a manifest with the appliance's
// signature, for nodes that stand by; ChooseKernel says on which kernel.
//
// Fetching the archive (boot/httpboot), and the agent itself, are for others.
package standby

import (
	"context"
	"fmt"
	"log/slog"
	"path"
	"regexp"
	"strings"

	"hotspare"
)

// formatVersion is the version of the archive's layout; it is part of the
// cache's key.
const formatVersion = 1

// Set names a choice of modules.
type Set string

// The sets. Both have what iSCSI, the root file system and virtio need.
const (
	// Lab is small: virtio and e1000 network cards, the lab's watchdog.
	Lab Set = "lab"
	// Generic adds the network cards, watchdogs and IPMI of common servers, and
	// more file systems.
	Generic Set = "generic"
)

// Request says what to build. Agent, KernelVersion and one of ModulesTar and
// ModulesDir are needed.
type Request struct {
	Agent         string // file of the agent: a static ELF program
	KernelVersion string // as in lib/modules/<version>
	// ModulesTar is a tar, plain or compressed with zstd, of
	// lib/modules/<version>, with names relative to it; ModulesDir is that
	// directory.
	ModulesTar, ModulesDir string
	// ModulesDigest addresses the contents of the modules (SHA-256 in hex). If
	// it is empty, it is computed at each call.
	ModulesDigest string
	KernelConfig  string            // file of the kernel's .config; "" goes by the version
	Arch          string            // GOARCH that the agent must have; "" does not check
	Set           Set               // default Generic
	RootFS        string            // file system of the root: its module is required. Default ext4
	Modules       []string          // more modules to put in and load; each is required
	Files         map[string][]byte // more files by absolute path, mode 0644
	// FirmwareDir is a folder like /lib/firmware: what the chosen modules may
	// ask for goes into the archive. "" leaves firmware out.
	FirmwareDir string
	Log         *slog.Logger // nil discards
}

// Result is a built archive.
type Result struct {
	Path        string   `json:"-"` // the file in the cache
	Digest      string   `json:"digest"`
	Size        int64    `json:"size"`        // bytes, a multiple of 4
	Unpacked    int64    `json:"unpacked"`    // bytes of the archive before compression
	Compression string   `json:"compression"` // zstd or gzip
	ModuleCount int      `json:"moduleCount"`
	Load        []string `json:"load"`               // names of what modules.load has, in order
	Absent      []string `json:"absent"`             // optional modules that the kernel does not have
	Firmware    []string `json:"firmware,omitempty"` // files that were put in
	Missing     []string `json:"missing,omitempty"`  // files that modules may ask for and that are not in FirmwareDir
	Reused      bool     `json:"-"`                  // it was in the cache
}

var (
	versionGrammar = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._+~-]{0,127}$`)
	moduleGrammar  = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$`)
)

func (r Request) withDefaults() Request {
	if r.Set == "" {
		r.Set = Generic
	}
	if r.RootFS == "" {
		r.RootFS = "ext4"
	}
	if r.Log == nil {
		r.Log = slog.New(slog.DiscardHandler)
	}
	return r
}

func (r Request) validate() error {
	switch {
	case r.Agent == "":
		return cannot("", "no agent is named", "name the agent's file", nil)
	case !versionGrammar.MatchString(r.KernelVersion):
		return cannot("kernel version", fmt.Sprintf("%q is not possible", r.KernelVersion), "", nil)
	case (r.ModulesDir == "") == (r.ModulesTar == ""):
		return cannot("modules", "exactly one of a tar and a directory is needed", "", nil)
	case r.Set != Lab && r.Set != Generic:
		return cannot("set", fmt.Sprintf("%q is neither lab nor generic", r.Set), "", nil)
	}
	for _, m := range append([]string{r.RootFS}, r.Modules...) {
		if !moduleGrammar.MatchString(m) {
			return cannot("modules", fmt.Sprintf("%q is not the name of a module", m), "", nil)
		}
	}
	for name := range r.Files {
		if !strings.HasPrefix(name, "/") || path.Clean(name) != name || name == "/" || name == "/init" || strings.ContainsRune(name, 0) {
			return cannot(name, "it is not a clean absolute path that may be given", "", nil)
		}
	}
	return nil
}

// cannot makes the one error of this package.
func cannot(where, why, fix string, err error) error {
	return &hotspare.Error{Code: hotspare.CodeInitramfs, What: "the initramfs cannot be built", Where: where, Why: why, Fix: fix, Err: err}
}

// Build gives the initramfs for req, from the cache in cacheDir or newly built.
// Errors other than those of ctx are of CodeInitramfs, or of CodeDiskFull.
func Build(ctx context.Context, req Request, cacheDir string) (Result, error) {
	req = req.withDefaults()
	if err := req.validate(); err != nil {
		return Result{}, err
	}
	in, err := gather(ctx, req)
	if err != nil {
		return Result{}, err
	}
	return cached(ctx, cacheDir, in)
}
