// Package storage says who may use which volume, and proves when nobody can any
// more. It holds the exports: for every volume a durable epoch, at most one live
// grant, and the sessions that use it now. Every write passes the gate of its
// session, so that a returned Revoke is exclusion evidence (docs/safety.md, S2):
// no byte of an older epoch lands afterwards.
//
// It knows volumes and epochs, no applications and no nodes beyond their names.
// It leaves the bytes to a Device (package cow makes them) and the wire to a
// target (package iscsi); both are its children.
package storage

import "errors"

// Device is a block device. Offsets and lengths are in bytes; any alignment is
// allowed. Implementations are safe for concurrent use; overlapping concurrent
// writes may land in any order, each block wholly.
//
// An acknowledged write survives the end of the process, but survives a power
// loss only after a later Flush returned nil.
type Device interface {
	// ReadAt fills p from off. A range outside the device is an error.
	ReadAt(p []byte, off int64) (int, error)
	// WriteAt writes p at off.
	WriteAt(p []byte, off int64) (int, error)
	// Flush makes all writes that were acknowledged before the call durable.
	// After an error the device is stopped; flushing again does not help.
	Flush() error
	// Discard makes n bytes from off read as zeros and gives their space back
	// where it can.
	Discard(off, n int64) error
	// Size gives the size in bytes.
	Size() int64
	// Close releases the device. It does not flush.
	Close() error
}

// Volumes is where the exports find the devices of volumes; cow.Store is one.
type Volumes interface {
	// OpenVolume gives a device of the named volume.
	OpenVolume(name string) (Device, error)
	// VolumeUID gives the volume's identity: random, never reused.
	VolumeUID(name string) (string, error)
}

var (
	// ErrRevoked is wrapped by the error of every command that comes through a
	// session whose grant was revoked.
	ErrRevoked = errors.New("storage: the grant of this session is revoked")
	// ErrReadOnly is wrapped by the error of a write to a read-only grant.
	ErrReadOnly = errors.New("storage: the grant is read-only")
)
