package appliance

import (
	"context"

	"hotspare"
	"hotspare/haengine"
)

// preparer is runner.Preparer. What is not composed it refuses, and the engine says
// so and goes on with other ways.
type preparer struct{ boots *boots }

// composed says which ways this version starts.
func composed(w haengine.Way) bool {
	switch w {
	case haengine.WayStandbySwitch, haengine.WayStandbyKexec, haengine.WayColdISCSI, haengine.WayColdSAN:
		return true
	}
	return false
}

func notComposed(what, where string) error {
	return &hotspare.Error{
		Code: hotspare.CodeInvalid, What: what + " is not offered by this version", Where: where,
		Fix: "remove it from `ways` of the application's policy",
	}
}

// Install refuses.
func (preparer) Install(_ context.Context, i haengine.Install) (haengine.LocalCopy, error) {
	return haengine.LocalCopy{}, notComposed("installing on a local disk", i.Node)
}

// DisableCopies refuses.
func (preparer) DisableCopies(_ context.Context, d haengine.DisableCopies) error {
	return notComposed("disabling local copies", d.Node)
}
