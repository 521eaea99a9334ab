// Package memory fetches artefacts by HTTP into the node's memory (memfd_create(2))
// and keeps them there: kernels and archives that a parked node may have to
// execute, images that it may have to run from. What arrives is believed only
// when its SHA-256 and length are those that came over the agent link.
//
// What is done with an artefact is for others.
package memory
