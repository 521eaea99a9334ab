package standby

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"hotspare"
)

// Environment is a kernel and its archive, with a manifest that the appliance has
// signed: what is served is what was built here.
type Environment struct {
	Manifest Manifest
	Kernel   string // file
	Initrd   string // file
	Archive  Result
	Path     string // of the signed manifest
}

// Manifest says what an environment consists of.
type Manifest struct {
	Version int    `json:"version"` // formatVersion
	Kernel  string `json:"kernel"`  // version
	Origin  string `json:"origin"`
	Arch    string `json:"arch,omitempty"`
	Set     Set    `json:"set"`
	Vmlinuz File   `json:"vmlinuz"`
	Initrd  File   `json:"initrd"`
}

// File is one file of an environment.
type File struct {
	SHA256 string `json:"sha256"`
	Bytes  int64  `json:"bytes"`
}

// signed is a manifest as it is kept: the signature (RFC 8032, Ed25519) is over
// context and the manifest's very bytes.
type signed struct {
	Manifest  json.RawMessage `json:"manifest"`
	Signature []byte          `json:"signature"`
}

// signatureContext keeps the signature from being one of anything else.
const signatureContext = "hotspare standby environment v1\n"

// BuildEnvironment builds the archive for a kernel and signs the manifest of
// both. What req says of the kernel is filled in from k. The kernel itself is
// copied into the cache: a package that is upgraded meanwhile does not change
// what nodes boot.
func BuildEnvironment(ctx context.Context, k Kernel, req Request, cacheDir string, key ed25519.PrivateKey) (Environment, error) {
	req.KernelVersion, req.KernelConfig = k.Version, k.Config
	req.ModulesTar, req.ModulesDir, req.ModulesDigest = k.ModulesTar, k.ModulesDir, k.ModulesDigest
	if len(key) != ed25519.PrivateKeySize {
		return Environment{}, cannot("manifest", "there is no key to sign it with", "", nil)
	}
	archive, err := Build(ctx, req, cacheDir)
	if err != nil {
		return Environment{}, err
	}
	image, err := os.ReadFile(k.Image)
	if err != nil {
		return Environment{}, cannot(k.Image, "the kernel cannot be read", "install the kernel package again", err)
	}
	sum := sha256.Sum256(image)
	m := Manifest{
		Version: formatVersion, Kernel: k.Version, Origin: k.Origin, Arch: req.Arch, Set: req.withDefaults().Set,
		Vmlinuz: File{SHA256: hex.EncodeToString(sum[:]), Bytes: int64(len(image))},
		Initrd:  File{SHA256: archive.Digest, Bytes: archive.Size},
	}
	e := Environment{Manifest: m, Archive: archive, Initrd: archive.Path, Kernel: filepath.Join(cacheDir, m.Vmlinuz.SHA256+".vmlinuz")}
	if got, err := digestFile(e.Kernel); err != nil || got != m.Vmlinuz {
		if err := replace(e.Kernel, image); err != nil {
			return Environment{}, cacheError(e.Kernel, err)
		}
	}
	text, err := m.sign(key)
	if err != nil {
		return Environment{}, err
	}
	name := sha256.Sum256([]byte(m.Vmlinuz.SHA256 + m.Initrd.SHA256 + k.Version))
	e.Path = filepath.Join(cacheDir, hex.EncodeToString(name[:])+".manifest")
	if old, err := os.ReadFile(e.Path); err != nil || !bytes.Equal(old, text) {
		if err := replace(e.Path, text); err != nil {
			return Environment{}, cacheError(e.Path, err)
		}
	}
	return e, nil
}

func (m Manifest) sign(key ed25519.PrivateKey) ([]byte, error) {
	text, err := json.Marshal(m)
	if err != nil {
		return nil, err
	}
	return json.Marshal(signed{Manifest: text, Signature: ed25519.Sign(key, append([]byte(signatureContext), text...))})
}

// ParseManifest reads a signed manifest and checks its signature.
func ParseManifest(text []byte, key ed25519.PublicKey) (Manifest, error) {
	var s signed
	if err := json.Unmarshal(text, &s); err != nil {
		return Manifest{}, tampered("manifest", "it is no signed manifest", err)
	}
	if len(key) != ed25519.PublicKeySize || !ed25519.Verify(key, append([]byte(signatureContext), s.Manifest...), s.Signature) {
		return Manifest{}, tampered("manifest", "the signature is not this appliance's", nil)
	}
	var m Manifest
	if err := json.Unmarshal(s.Manifest, &m); err != nil {
		return Manifest{}, tampered("manifest", "it is no manifest", err)
	}
	if m.Version != formatVersion {
		return Manifest{}, tampered("manifest", fmt.Sprintf("it is of version %d, this appliance reads %d", m.Version, formatVersion), nil)
	}
	return m, nil
}

// Verify checks, before it is served, that the environment is still what was
// signed: the manifest by its signature, the files by their digests.
func (e Environment) Verify(key ed25519.PublicKey) error {
	text, err := os.ReadFile(e.Path)
	if err != nil {
		return tampered(e.Path, "the manifest cannot be read", err)
	}
	m, err := ParseManifest(text, key)
	if err != nil {
		return err
	}
	if m != e.Manifest {
		return tampered(e.Path, "the manifest is of another environment", nil)
	}
	for path, want := range map[string]File{e.Kernel: m.Vmlinuz, e.Initrd: m.Initrd} {
		got, err := digestFile(path)
		if err != nil {
			return tampered(path, "a file of the environment cannot be read", err)
		}
		if got != want {
			return tampered(path, "a file of the environment was changed", nil)
		}
	}
	return nil
}

func tampered(where, why string, err error) error {
	return &hotspare.Error{
		Code: hotspare.CodeImageDigest, What: "the standby environment is not what was built", Where: where, Why: why,
		Fix: "remove the file: the environment is built anew", Err: err,
	}
}

func digestFile(path string) (File, error) {
	f, err := os.Open(path)
	if err != nil {
		return File{}, err
	}
	h := sha256.New()
	n, err := io.Copy(h, f)
	if err := errors.Join(err, f.Close()); err != nil {
		return File{}, err
	}
	return File{SHA256: hex.EncodeToString(h.Sum(nil)), Bytes: n}, nil
}
