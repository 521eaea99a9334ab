package plaintarget

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"hotspare"
	"hotspare/storage/cow"
)

const (
	memoryRoot    = "/dev/shm"
	memoryPattern = "hotspare-target-*"
)

// memoryDir makes a directory in memory, a file system like any other to the
// store, so that what runs on it is the same code as on a disk. What killed runs
// left there is removed: nobody has its lock any more.
func memoryDir() (string, error) {
	left, err := filepath.Glob(filepath.Join(memoryRoot, memoryPattern))
	if err != nil {
		return "", fmt.Errorf("plaintarget: %w", err)
	}
	for _, dir := range left {
		if err := removeAbandoned(dir); err != nil {
			return "", err
		}
	}
	dir, err := os.MkdirTemp(memoryRoot, memoryPattern)
	if err != nil {
		return "", &hotspare.Error{Code: hotspare.CodeNotFound, What: "there is no place in memory for volumes", Where: memoryRoot,
			Fix: "mount a tmpfs there, or keep the volumes in a directory", Err: err}
	}
	return dir, nil
}

// removeAbandoned removes dir unless a process has its store open. One that has
// no store yet is being made by another run and is left alone.
func removeAbandoned(dir string) error {
	if _, err := os.Stat(filepath.Join(dir, "super")); err != nil {
		return nil
	}
	lock, err := cow.OSFileSystem(dir).Lock()
	if errors.Is(err, cow.ErrLocked) || errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("plaintarget: lock %s: %w", dir, err)
	}
	return errors.Join(os.RemoveAll(dir), lock.Close())
}
