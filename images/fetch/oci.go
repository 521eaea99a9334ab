package fetch

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"hotspare"
)

const (
	maxManifest = 4 << 20
	maxToken    = 1 << 20
	maxLayers   = 256
)

// Reference names something in a registry: oci://HOST[:PORT]/NAME[:TAG][@DIGEST],
// with #TITLE one file of an artifact of several. oci+http:// is a registry
// without TLS.
type Reference struct {
	Scheme string // https or http
	Host   string
	Name   string
	Tag    string // default latest, when there is no digest
	Digest string // sha256:...
	Title  string
}

var (
	ociHost   = regexp.MustCompile(`^[A-Za-z0-9.-]+(:[0-9]{1,5})?$|^\[[0-9a-fA-F:.]+\](:[0-9]{1,5})?$`)
	ociName   = regexp.MustCompile(`^[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*$`)
	ociTag    = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$`)
	ociDigest = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)
)

// IsReference says whether a text is meant as one.
func IsReference(s string) bool {
	return strings.HasPrefix(s, "oci://") || strings.HasPrefix(s, "oci+http://")
}

// ParseReference reads a reference.
func ParseReference(s string) (Reference, error) {
	bad := func(why string) (Reference, error) {
		return Reference{}, &hotspare.Error{Code: hotspare.CodeInvalid, What: "the OCI reference cannot be read", Where: printable(s), Why: why, Fix: "write oci://HOST/NAME:TAG or oci://HOST/NAME@sha256:DIGEST"}
	}
	var r Reference
	rest, ok := strings.CutPrefix(s, "oci://")
	if r.Scheme = "https"; !ok {
		if rest, ok = strings.CutPrefix(s, "oci+http://"); !ok {
			return bad("it does not begin with oci://")
		}
		r.Scheme = "http"
	}
	rest, r.Title, _ = strings.Cut(rest, "#")
	rest, r.Digest, _ = strings.Cut(rest, "@")
	if r.Host, r.Name, ok = strings.Cut(rest, "/"); !ok || !ociHost.MatchString(r.Host) {
		return bad("it names no host")
	}
	if i := strings.LastIndex(r.Name, ":"); i >= 0 {
		r.Name, r.Tag = r.Name[:i], r.Name[i+1:]
		if !ociTag.MatchString(r.Tag) {
			return bad("the tag is not possible")
		}
	}
	switch {
	case !ociName.MatchString(r.Name) || len(r.Name) > 255:
		return bad("the name is not possible")
	case r.Digest != "" && !ociDigest.MatchString(r.Digest):
		return bad("the digest is not sha256: and 64 hex digits")
	case r.Digest == "" && r.Tag == "":
		r.Tag = "latest"
	}
	if r.Host == "docker.io" {
		r.Host = "registry-1.docker.io"
		if !strings.Contains(r.Name, "/") {
			r.Name = "library/" + r.Name
		}
	}
	return r, nil
}

func printable(s string) string {
	return strings.Map(func(c rune) rune {
		if c < ' ' || c == 0x7f {
			return -1
		}
		return c
	}, s[:min(len(s), 300)])
}

// Artifact is what was pulled.
type Artifact struct {
	// Digest of the manifest, in hex.
	Digest string
	// Layers are archives of a container image, in order; or File is the one
	// file of an artifact.
	Layers []string
	File   string
}

type descriptor struct {
	MediaType string `json:"mediaType"`
	Digest    string `json:"digest"`
	Size      int64  `json:"size"`
	Platform  *struct {
		OS           string `json:"os"`
		Architecture string `json:"architecture"`
	} `json:"platform"`
	Annotations map[string]string `json:"annotations"`
}

type manifest struct {
	MediaType    string       `json:"mediaType"`
	ArtifactType string       `json:"artifactType"`
	Config       descriptor   `json:"config"`
	Layers       []descriptor `json:"layers"`
	Manifests    []descriptor `json:"manifests"`
}

const (
	typeOCIManifest    = "application/vnd.oci.image.manifest.v1+json"
	typeOCIIndex       = "application/vnd.oci.image.index.v1+json"
	typeDockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	typeDockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
	typeOCIConfig      = "application/vnd.oci.image.config.v1+json"
	typeDockerConfig   = "application/vnd.docker.container.image.v1+json"
	annotationTitle    = "org.opencontainers.image.title"
)

// Pull downloads what a reference names for an architecture (GOARCH words) into
// dir: all layers of a container image, or the one file of an artifact. Every byte
// is checked against the digests of the manifest.
func (f *Fetcher) Pull(ctx context.Context, ref, dir, arch string, tell Progress) (Artifact, error) {
	r, err := ParseReference(ref)
	if err != nil {
		return Artifact{}, err
	}
	p := &pull{f: f, ref: r, base: r.Scheme + "://" + r.Host + "/v2/" + r.Name}
	want := r.Tag
	if r.Digest != "" {
		want = r.Digest
	}
	m, digest, err := p.manifest(ctx, want)
	if err != nil {
		return Artifact{}, err
	}
	top := digest
	if len(m.Manifests) > 0 {
		d, err := choose(m.Manifests, arch)
		if err != nil {
			return Artifact{}, p.failed(err.Error(), nil)
		}
		if m, _, err = p.manifest(ctx, d.Digest); err != nil {
			return Artifact{}, err
		}
		if len(m.Manifests) > 0 {
			return Artifact{}, p.failed("an index leads to another index", nil)
		}
	}
	blobs, container, err := p.wanted(m)
	if err != nil {
		return Artifact{}, err
	}
	paths, err := p.blobs(ctx, blobs, dir, tell)
	if err != nil {
		return Artifact{}, err
	}
	a := Artifact{Digest: strings.TrimPrefix(top, "sha256:")}
	if container {
		a.Layers = paths
	} else {
		a.File = paths[0]
	}
	return a, nil
}

// choose takes the manifest for an architecture; one without a platform fits all.
func choose(all []descriptor, arch string) (descriptor, error) {
	var have []string
	for _, d := range all {
		if d.Platform == nil {
			return d, nil
		}
		if (d.Platform.OS == "linux" || d.Platform.OS == "") && d.Platform.Architecture == arch {
			return d, nil
		}
		have = append(have, d.Platform.OS+"/"+d.Platform.Architecture)
	}
	return descriptor{}, fmt.Errorf("it has nothing for linux/%s, only %s", arch, printable(strings.Join(have, ", ")))
}

// wanted gives the blobs to pull.
func (p *pull) wanted(m manifest) (blobs []descriptor, container bool, err error) {
	if len(m.Layers) == 0 || len(m.Layers) > maxLayers {
		return nil, false, p.failed(fmt.Sprintf("the manifest has %d layers", len(m.Layers)), nil)
	}
	total := int64(0)
	for _, l := range m.Layers {
		if !ociDigest.MatchString(l.Digest) || l.Size < 0 || l.Size > p.f.opts.MaxBytes {
			return nil, false, p.failed("a layer has an impossible digest or size", nil)
		}
		if total += l.Size; total > p.f.opts.MaxBytes {
			return nil, false, p.failed(fmt.Sprintf("more than %d bytes", p.f.opts.MaxBytes), nil)
		}
	}
	if p.ref.Title == "" && (m.Config.MediaType == typeOCIConfig || m.Config.MediaType == typeDockerConfig) {
		return m.Layers, true, nil
	}
	if p.ref.Title == "" && len(m.Layers) == 1 {
		return m.Layers, false, nil
	}
	var titles []string
	for _, l := range m.Layers {
		t := l.Annotations[annotationTitle]
		if p.ref.Title != "" && t == p.ref.Title {
			return []descriptor{l}, false, nil
		}
		titles = append(titles, t)
	}
	return nil, false, p.failed("it has these files: "+printable(strings.Join(titles, ", ")), errors.New("name one behind a #"))
}

// pull is one conversation with a registry.
type pull struct {
	f      *Fetcher
	ref    Reference
	base   string
	bearer hotspare.Secret
	basic  bool
}

func (p *pull) failed(why string, err error) error {
	return failed("oci://"+p.ref.Host+"/"+p.ref.Name, why, err)
}

func (p *pull) authorize(r *http.Request) {
	c, known := p.f.opts.Credentials[p.ref.Host]
	switch {
	case !p.bearer.IsZero():
		r.Header.Set("Authorization", "Bearer "+p.bearer.Reveal())
	case p.basic && known:
		r.SetBasicAuth(c.User, c.Password.Reveal())
	}
}

// manifest reads one by tag or digest and checks it.
func (p *pull) manifest(ctx context.Context, want string) (manifest, string, error) {
	accept := strings.Join([]string{typeOCIManifest, typeOCIIndex, typeDockerManifest, typeDockerList}, ", ")
	b, header, err := p.get(ctx, p.base+"/manifests/"+want, accept, maxManifest)
	if err != nil {
		return manifest{}, "", err
	}
	sum := sha256.Sum256(b)
	digest := "sha256:" + hex.EncodeToString(sum[:])
	if said := header.Get("Docker-Content-Digest"); strings.HasPrefix(want, "sha256:") && digest != want || said != "" && strings.HasPrefix(said, "sha256:") && said != digest {
		return manifest{}, "", &hotspare.Error{Code: hotspare.CodeImageDigest, What: "the manifest is not the one that was asked for", Where: p.ref.Host + "/" + p.ref.Name, Why: "its digest is " + digest, Fix: "check the reference and the registry"}
	}
	var m manifest
	if err := json.Unmarshal(b, &m); err != nil {
		return m, "", p.failed("the manifest cannot be read", err)
	}
	known := []string{"", typeOCIManifest, typeOCIIndex, typeDockerManifest, typeDockerList}
	if !slices.Contains(known, m.MediaType) {
		return m, "", p.failed("a manifest of the type "+printable(m.MediaType), nil)
	}
	for _, d := range m.Manifests {
		if !ociDigest.MatchString(d.Digest) {
			return m, "", p.failed("the index has an impossible digest", nil)
		}
	}
	return m, digest, nil
}

// get reads a small answer, and logs in when the registry wants it.
func (p *pull) get(ctx context.Context, at, accept string, limit int64) ([]byte, http.Header, error) {
	for try := 0; ; try++ {
		resp, err := p.f.ask(ctx, at, accept, p.authorize)
		if err != nil {
			return nil, nil, err
		}
		if resp.StatusCode == http.StatusUnauthorized && try == 0 {
			challenge := resp.Header.Get("WWW-Authenticate")
			resp.Body.Close()
			if err := p.logIn(ctx, challenge); err != nil {
				return nil, nil, err
			}
			continue
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return nil, nil, p.failed("the registry answered "+resp.Status, nil)
		}
		b, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
		if err == nil && int64(len(b)) > limit {
			err = fmt.Errorf("an answer of more than %d bytes", limit)
		}
		if err != nil {
			return nil, nil, p.failed("", err)
		}
		return b, resp.Header, nil
	}
}

// ask sends one request whose answer is small.
func (f *Fetcher) ask(ctx context.Context, at, accept string, authorize func(*http.Request)) (*http.Response, error) {
	u, err := url.Parse(at)
	if err != nil {
		return nil, failed("", "the registry names an address that is none", nil)
	}
	if err := f.check(u); err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("User-Agent", "hotspare")
	if accept != "" {
		req.Header.Set("Accept", accept)
	}
	if authorize != nil {
		authorize(req)
	}
	resp, err := f.http.Do(req)
	if err != nil {
		if err = unwrapRefusal(err); lasting(err) {
			return nil, err
		}
		return nil, failed(shown(u), "", clean(err))
	}
	return resp, nil
}

// logIn answers a registry's challenge: with the configured credential, or by a
// token from where it says.
func (p *pull) logIn(ctx context.Context, challenge string) error {
	scheme, rest, _ := strings.Cut(challenge, " ")
	credential, known := p.f.opts.Credentials[p.ref.Host]
	switch strings.ToLower(scheme) {
	case "basic":
		if !known {
			return p.failed("the registry wants a password", errors.New("add it to images.sources.credentials"))
		}
		p.basic = true
		return nil
	case "bearer":
	default:
		return p.failed("the registry wants a log-in of an unknown kind", nil)
	}
	words := challengeWords(rest)
	realm, err := url.Parse(words["realm"])
	if err != nil || realm.Scheme == "" {
		return p.failed("the registry names no place for tokens", nil)
	}
	if p.ref.Scheme == "https" && realm.Scheme != "https" {
		return p.failed("the place for tokens is not secured", nil)
	}
	q := realm.Query()
	if words["service"] != "" {
		q.Set("service", words["service"])
	}
	q.Set("scope", "repository:"+p.ref.Name+":pull") // never more than this
	realm.RawQuery = q.Encode()
	resp, err := p.f.ask(ctx, realm.String(), "", func(r *http.Request) {
		if known {
			r.SetBasicAuth(credential.User, credential.Password.Reveal())
		}
	})
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return p.failed("the place for tokens answered "+resp.Status, nil)
	}
	var token struct {
		Token  string `json:"token"`
		Access string `json:"access_token"`
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxToken)).Decode(&token); err != nil {
		return p.failed("the token cannot be read", errors.New("not JSON"))
	}
	if token.Token == "" {
		token.Token = token.Access
	}
	if token.Token == "" || strings.ContainsAny(token.Token, "\r\n") {
		return p.failed("there is no token in the answer", nil)
	}
	p.bearer = hotspare.NewSecret(token.Token)
	return nil
}

var challengeWord = regexp.MustCompile(`([a-zA-Z]+)="([^"]*)"`)

func challengeWords(s string) map[string]string {
	out := map[string]string{}
	for _, m := range challengeWord.FindAllStringSubmatch(s[:min(len(s), 4096)], 16) {
		out[strings.ToLower(m[1])] = m[2]
	}
	return out
}

// blobs downloads and checks each blob, into a folder of its own.
func (p *pull) blobs(ctx context.Context, all []descriptor, dir string, tell Progress) ([]string, error) {
	if tell == nil {
		tell = func(int64, int64) {}
	}
	total, before := int64(0), int64(0)
	for _, b := range all {
		total += b.Size
	}
	var paths []string
	for _, b := range all {
		sub := filepath.Join(dir, strings.TrimPrefix(b.Digest, "sha256:"))
		if err := os.MkdirAll(sub, 0o700); err != nil {
			return nil, diskError(err)
		}
		u, err := url.Parse(p.base + "/blobs/" + b.Digest)
		if err != nil {
			return nil, err
		}
		d := &download{f: p.f, u: u, dir: sub, limit: max(b.Size, 1), authorize: p.authorize, tell: func(done, _ int64) { tell(before+done, total) }}
		path, err := d.run(ctx)
		if err != nil {
			return nil, err
		}
		if err := verify(path, b); err != nil {
			return nil, errors.Join(err, os.RemoveAll(sub))
		}
		before += b.Size
		paths = append(paths, path)
	}
	return paths, nil
}

func verify(path string, d descriptor) error {
	f, err := os.Open(path)
	if err != nil {
		return diskError(err)
	}
	defer f.Close()
	h := sha256.New()
	n, err := io.Copy(h, f)
	if err != nil {
		return diskError(err)
	}
	if got := "sha256:" + hex.EncodeToString(h.Sum(nil)); got != d.Digest || n != d.Size {
		return &hotspare.Error{Code: hotspare.CodeImageDigest, What: "a layer differs from what the manifest says", Where: d.Digest, Why: fmt.Sprintf("%d bytes with %s, expected %d", n, got, d.Size), Fix: "check the registry, and import again"}
	}
	return nil
}
