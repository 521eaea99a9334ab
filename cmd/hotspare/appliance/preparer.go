package appliance

import (
	"context"

	"hotspare"
	"hotspare/haengine"
)

// preparer is runner.Preparer. This version composes no standby: it refuses, and
// the engine says so and goes on with cold starts.
type preparer struct{}

func notComposed(what, where string) error {
	return &hotspare.Error{
		Code: hotspare.CodeInvalid, What: what + " is not offered by this version", Where: where,
		Fix: "remove `standby` from the pool and the ways from the application's policy",
	}
}

// Install refuses.
func (preparer) Install(_ context.Context, i haengine.Install) (haengine.LocalCopy, error) {
	return haengine.LocalCopy{}, notComposed("installing on a local disk", i.Node)
}

// Preload refuses.
func (preparer) Preload(_ context.Context, p haengine.Preload) error {
	return notComposed("preloading a node in standby", p.Node)
}

// DisableCopies refuses.
func (preparer) DisableCopies(_ context.Context, d haengine.DisableCopies) error {
	return notComposed("disabling local copies", d.Node)
}

// Park refuses.
func (b *boots) Park(_ context.Context, p haengine.ParkNode) error {
	return notComposed("standby", p.Node)
}
