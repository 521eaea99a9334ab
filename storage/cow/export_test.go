package cow

// Names of plants that the model is too slow to meet, or that need a word.
const (
	PlantOfAStory    = "recovery forgets generations"
	PlantOfTwoLosses = "a checkpoint forgets regions that are unsealed"
	PlantOfADataRace = "a change goes into a node that is being written"
	PlantOfARace     = "a barrier covers what came after its sync"
)

// Plants are the bugs that tests put in, by name.
var Plants = map[string]plant{
	"the cache serves what a place held before":          plantStaleCache,
	"a freed slot is given out too early":                plantFreeEarly,
	PlantOfADataRace:                                     plantThawed,
	"the mark forgets a volume":                          plantSweepLive,
	"a node's place is given out too early":              plantPlaceEarly,
	PlantOfAStory:                                        plantGeneration,
	"after a power loss all of the log counts":           plantNoBarrier,
	"overwriting does not mark its region":               plantNoDirty,
	PlantOfTwoLosses:                                     plantLostDirty,
	"recovery does not take the slots that the log maps": plantLostMapped,
	PlantOfARace:                                         plantWideBarrier,
}

// WithPlant gives options with one of Plants.
func (o Options) WithPlant(p plant) Options {
	o.plant = p
	return o
}
