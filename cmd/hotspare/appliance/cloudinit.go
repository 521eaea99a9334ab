package appliance

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"hotspare"
	"hotspare/cmd/hotspare/appliance/manifest"
	"hotspare/haengine"
	"hotspare/images"
	"hotspare/images/nocloud"
)

// textsFolder begins the names of the sealed texts of cloudInit blocks. A text is
// never changed under its name: a specification that an order still carries finds
// what it was given with.
const textsFolder = "cloud-init/"

// sealedTexts is where the texts are kept.
type sealedTexts interface {
	Secret(ctx context.Context, name string) (hotspare.Secret, error)
	PutSecret(ctx context.Context, name string, secret hotspare.Secret) error
	DeleteSecret(ctx context.Context, name string) error
	SecretNames(prefix string) []string
}

// seeds makes what the cloud-init of images is told.
type seeds struct {
	texts sealedTexts
	state func() haengine.State
}

func textName(ref string) string {
	return textsFolder + strings.TrimPrefix(ref, haengine.SealedPrefix)
}

// refer checks the cloudInit blocks of documents and replaces each text by a
// reference: the one that it has, where the text is the same. put holds the texts
// that are new, by reference.
func (s seeds) refer(ctx context.Context, docs []manifest.Document) (put map[string]hotspare.Secret, err error) {
	put = map[string]hotspare.Secret{}
	for i := range docs {
		d := &docs[i]
		if d.Block() == nil {
			continue
		}
		if err := checkTexts(d); err != nil {
			return nil, err
		}
		var old haengine.CloudInit
		if b := s.blockOf(d); b != nil {
			old = *b
		}
		refs, olds, given := d.Block().Texts(), old.Texts(), d.CloudInit.Texts()
		for k := range refs {
			switch {
			case !given[k].IsZero():
				if *refs[k], err = s.reference(ctx, *olds[k], *given[k]); err != nil {
					return nil, err
				}
				if *refs[k] != *olds[k] {
					put[*refs[k]] = *given[k]
				}
			case *refs[k] != "" && *refs[k] != *olds[k]:
				return nil, &hotspare.Error{
					Code: hotspare.CodeUnknownRef, What: "a sealed text of cloudInit does not exist", Where: d.Source, Why: *refs[k] + " is not what " + d.Name() + " has now",
					Fix: "write the text itself; a reference can only be left as `hotspare get` shows it",
				}
			}
		}
	}
	return put, nil
}

// blockOf gives the block that the resource has now.
func (s seeds) blockOf(d *manifest.Document) *haengine.CloudInit {
	st := s.state().Durable
	switch {
	case d.Node != nil && st.Nodes[d.Node.Name] != nil:
		return st.Nodes[d.Node.Name].Spec.CloudInit
	case d.Application != nil && st.Apps[d.Application.Name] != nil:
		return st.Apps[d.Application.Name].Spec.CloudInit
	}
	return nil
}

// reference gives the one of before for the same text, or a new one. It says
// nothing about the text: a digest would let short secrets be guessed.
func (s seeds) reference(ctx context.Context, old string, text hotspare.Secret) (string, error) {
	if old != "" {
		kept, err := s.texts.Secret(ctx, textName(old))
		if err == nil && kept.Equal(text) {
			return old, nil
		}
		if err != nil && hotspare.CodeOf(err) != hotspare.CodeNotFound {
			return "", err
		}
	}
	b := make([]byte, 8)
	_, _ = rand.Read(b) // it never fails
	return haengine.SealedPrefix + hex.EncodeToString(b), nil
}

// checkTexts sees to it that cloud-init will take the texts.
func checkTexts(d *manifest.Document) error {
	data := nocloud.Data{
		InstanceID: "check", Keys: d.Block().SSHKeys,
		UserData: d.CloudInit.UserData.Reveal(), VendorData: d.CloudInit.VendorData.Reveal(), NetworkConfig: d.CloudInit.NetworkConfig.Reveal(),
	}
	if d.Node != nil && len(d.Node.MACs) > 0 {
		data.Reserved = d.Node.MACs[:1]
	}
	if _, err := nocloud.Build(data); err != nil {
		return located(err, d)
	}
	return nil
}

// put seals texts under their references.
func (s seeds) put(ctx context.Context, texts map[string]hotspare.Secret) error {
	for ref, text := range texts {
		if err := s.texts.PutSecret(ctx, textName(ref), text); err != nil {
			return err
		}
	}
	return nil
}

// drop forgets the texts that no resource refers to. Nothing may be applied
// meanwhile: a text is sealed before its resource is there.
func (s seeds) drop(ctx context.Context) error {
	st := s.state().Durable
	used := map[string]bool{}
	note := func(b *haengine.CloudInit) {
		if b != nil {
			for _, ref := range b.Texts() {
				used[textName(*ref)] = true
			}
		}
	}
	for _, n := range st.Nodes {
		note(n.Spec.CloudInit)
	}
	for _, app := range st.Apps {
		note(app.Spec.CloudInit)
	}
	for _, name := range s.texts.SecretNames(textsFolder) {
		if !used[name] {
			if err := s.texts.DeleteSecret(ctx, name); err != nil {
				return err
			}
		}
	}
	return nil
}

// open gives the first text that is there. A reference that was replaced after a
// start was ordered is not: then the one of now counts.
func (s seeds) open(ctx context.Context, refs ...string) (string, error) {
	var missing error
	for _, ref := range refs {
		if ref == "" {
			continue
		}
		text, err := s.texts.Secret(ctx, textName(ref))
		if err == nil {
			return text.Reveal(), nil
		}
		missing = fmt.Errorf("what cloud-init is to be told: %w", err)
	}
	return "", missing
}

// of makes the seed of one start, or none where the application asks for none. Part
// by part the application's word goes before the node's; of the network, whose cards
// the node has, the node's goes first.
func (s seeds) of(ctx context.Context, spec haengine.Application, node string, img images.Image) (map[string]hotspare.Secret, error) {
	if spec.CloudInit == nil {
		return nil, nil
	}
	app, own, latest := *spec.CloudInit, haengine.CloudInit{}, haengine.CloudInit{}
	st := s.state().Durable
	if x := st.Apps[spec.Name]; x != nil && x.Spec.CloudInit != nil {
		latest = *x.Spec.CloudInit
	}
	d := nocloud.Data{Hostname: node, Meta: map[string]string{"application": spec.Name, "node": node, "address": spec.Address.String(), "image": img.Ref()}}
	if x := st.Nodes[node]; x != nil {
		d.Reserved = x.Spec.MACs[:min(1, len(x.Spec.MACs))]
		if x.Spec.CloudInit != nil {
			own = *x.Spec.CloudInit
		}
	}
	for _, k := range append(slices.Clone(app.SSHKeys), own.SSHKeys...) {
		if !slices.Contains(d.Keys, k) {
			d.Keys = append(d.Keys, k)
		}
	}
	for _, part := range []struct {
		into *string
		refs []string
	}{
		{&d.UserData, []string{cmp.Or(app.UserData, own.UserData), latest.UserData}},
		{&d.VendorData, []string{cmp.Or(app.VendorData, own.VendorData), latest.VendorData}},
		{&d.NetworkConfig, []string{cmp.Or(own.NetworkConfig, app.NetworkConfig), latest.NetworkConfig}},
	} {
		if part.refs[0] == "" {
			continue // taken back since, or never there
		}
		text, err := s.open(ctx, part.refs...)
		if err != nil {
			return nil, err
		}
		*part.into = text
	}
	if d.NetworkConfig == "" {
		d.NetworkConfig = nocloud.NoNetwork // the card that is in use is the agent's
	}
	d.InstanceID = nocloud.ID(spec.Name, node, img.Digest, d.UserData, d.VendorData, d.NetworkConfig, strings.Join(d.Keys, "\n"), d.Meta["address"])
	files, err := nocloud.Build(d)
	if err != nil {
		return nil, err
	}
	out := make(map[string]hotspare.Secret, len(files))
	for name, b := range files {
		out[name] = hotspare.NewSecret(string(b))
	}
	return out, nil
}

// fitsCloudInit says why an application's cloudInit could not reach its image.
func fitsCloudInit(app haengine.Application, img images.Image, d *manifest.Document) error {
	if app.CloudInit == nil {
		return nil
	}
	bad := func(why, fix string) error {
		return &hotspare.Error{Code: hotspare.CodeInvalid, What: "cloudInit cannot reach the image", Where: d.Source, Why: why, Fix: fix}
	}
	switch {
	case img.Facts.CloudInit == images.No:
		return bad(img.Ref()+" has no cloud-init", "install cloud-init in the image, or leave cloudInit out")
	case slices.Contains(app.Policy.Ways, haengine.WayColdSAN), !img.Facts.Has(images.StartKernel) && img.Facts.Has(images.StartSAN):
		return bad("in the way cold-san no agent is there to hand it over", "take cold-san out of policy.ways, use an image whose kernel is found, or put the data into the image")
	}
	return nil
}
