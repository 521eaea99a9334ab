package appliance

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"hotspare/haengine"
	"hotspare/haengine/agentlink"
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
	switch w {
	case haengine.WayRAM:
		return notInMemory(img)
	case haengine.WayColdSAN:
		switch {
		case img.Volume == "":
			return noDisk
		case !img.Facts.Has(images.StartSAN):
			return "its disk does not start by itself: it has no boot code"
		}
		return ""
	}
	switch {
	case img.Volume == "":
		return noDisk
	case !img.Facts.Has(images.StartKernel):
		return "no kernel with its modules was found in the image"
	}
	return ""
}

const noDisk = "the image has no disk: it runs from memory"

func notInMemory(img images.Image) string {
	root, ok := rootFile(img)
	switch {
	case img.Volume != "":
		return "the image is a disk: import a squashfs, or a kernel with an initrd, for it"
	case !ok || !img.Facts.Has(images.StartRAM):
		return "the image has no root that runs from memory"
	case img.Kernel.Version == "" || img.Modules.Digest == "":
		return "it came without its kernel's modules: import it with --kernel and --modules"
	case root.bytes > agentlink.MaxArtefact:
		return fmt.Sprintf("its root has %d MiB, possible are %d", root.bytes>>20, agentlink.MaxArtefact>>20)
	}
	return ""
}
