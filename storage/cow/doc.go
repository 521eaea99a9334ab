// Package cow is a copy-on-write store of volumes behind storage.Device.
//
// A volume is a map from clusters of 64 KiB to pieces: slots of the one data
// file, each with the set of 4 KiB blocks that are valid in it. The map is a
// path-copying tree, so a clone or a snapshot copies a root pointer, whatever
// the size, and reading costs the same at any depth. A write to a shared cluster
// takes a new slot for the written blocks alone (no copy-up); a write to blocks
// that the volume owns exclusively overwrites them in place and touches no
// metadata.
//
// Every change of a map is appended to a write-ahead log before the write is
// acknowledged, so an acknowledged write survives the end of the process. Flush
// syncs the data, logs a barrier, syncs the log, and then acknowledges: what it
// acknowledged survives a power loss. A failed sync stops the store for good and
// is never retried, because the kernel drops the dirty pages that it could not
// write. Checksums cover every block of data and all metadata; a mismatch stops
// the volume.
//
// docs/storage.md describes the files and their versions. The package leaves to
// others who may use a volume (package storage) and the wire (package iscsi).
package cow
