package cow

// plant is a bug put in on purpose: tests show with each that they would see
// it. No option of the package sets one.
type plant uint8

const (
	plantNone        plant = iota
	plantStaleCache        // the cache serves what a place held before
	plantFreeEarly         // a freed slot is given out before its record is durable
	plantThawed            // a change goes into a node that the checkpoint is to write as it was
	plantSweepLive         // the mark forgets a volume
	plantPlaceEarly        // a node's place is given out while the last checkpoint names it
	plantGeneration        // recovery takes births later than the checkpoint for older
	plantNoBarrier         // after a power loss all of the log counts
	plantNoDirty           // overwriting does not mark its region
	plantLostDirty         // a checkpoint forgets that regions are still unsealed
	plantLostMapped        // recovery does not take the slots that the log maps
	plantWideBarrier       // a barrier covers what was written after the sync of the data
)
