package appliance

import (
	"context"
	"maps"
	"slices"

	"hotspare/haengine"
	"hotspare/images"
)

// tellImages tells the engine what the references of applications stand for now:
// those of all that it knows, and more. It must be told before an application that
// uses a reference is applied, and whenever an image or a channel has changed.
func (a *Appliance) tellImages(ctx context.Context, more ...string) error {
	st := a.engine.Snapshot().Durable
	refs := map[string]bool{}
	for _, ref := range more {
		refs[ref] = true
	}
	for _, app := range st.Apps {
		refs[app.Spec.Image] = true
	}
	for _, ref := range slices.Sorted(maps.Keys(refs)) {
		var e haengine.Event
		if img, err := a.images.Resolve(ref); err != nil {
			e = haengine.ImageGone{Ref: ref}
		} else {
			e = haengine.ImageSeen{Image: imageFacts(ref, img)}
		}
		if err := a.engine.Submit(ctx, e); err != nil {
			return err
		}
	}
	return nil
}

// imageFacts says in which ways an image can be started, and why not in others.
func imageFacts(ref string, img images.Image) haengine.ImageFacts {
	f := haengine.ImageFacts{Ref: ref, Image: img.Ref(), Arch: img.Arch, Kernel: kernelID(img), Not: map[haengine.Way]string{}}
	for _, w := range haengine.Ways() {
		if why := notStarted(img, w); why != "" {
			f.Not[w] = why
		} else {
			f.Ways = append(f.Ways, w)
		}
	}
	return f
}

// notStarted says why an image cannot be started in a way.
func notStarted(img images.Image, w haengine.Way) string {
	switch {
	case !composed(w):
		return "this version does not offer it"
	case img.Volume == "":
		return "the image has no disk: it runs from memory"
	case w == haengine.WayColdSAN && !img.Facts.Has(images.StartSAN):
		return "its disk does not start by itself: it has no boot code"
	case w == haengine.WayColdSAN:
		return ""
	case !img.Facts.Has(images.StartKernel):
		return "no kernel with its modules was found in the image"
	}
	return ""
}
