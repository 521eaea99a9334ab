// Package archive unpacks a newc cpio archive (Linux
// Documentation/driver-api/early-userspace/buffer-format.rst) as the kernel
// unpacks an initramfs: with owners, modes, devices and hard links, in order, a
// later file in the place of an earlier one. Nothing is written outside the
// folder, whatever the archive says.
//
// Where the archive comes from, and whether it is to be believed, is for others.
package archive

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"github.com/u-root/u-root/pkg/cpio"
	"golang.org/x/sys/unix"
)

// Unpack writes the files of an archive below dir.
func Unpack(from io.ReaderAt, dir string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	u := unpacker{root: root, links: map[uint64]string{}}
	files := cpio.Newc.Reader(from)
	for {
		rec, err := files.ReadRecord()
		if errors.Is(err, io.EOF) || err == nil && rec.Name == cpio.Trailer {
			return nil
		}
		if err != nil {
			return fmt.Errorf("unpack the archive: %w", err)
		}
		if err := u.put(rec); err != nil {
			return fmt.Errorf("unpack %q: %w", rec.Name, err)
		}
	}
}

type unpacker struct {
	root  *os.Root
	links map[uint64]string // inode -> first name, of files with several
}

func (u *unpacker) put(rec cpio.Record) error {
	name := strings.TrimPrefix(path.Clean("/"+rec.Name), "/")
	mode := fs.FileMode(rec.Mode & 0o777)
	if name == "" {
		return u.root.Chmod(".", mode)
	}
	kind := rec.Mode & cpio.S_IFMT
	if err := u.room(name, kind); err != nil {
		return err
	}
	switch kind {
	case cpio.S_IFDIR:
		if err := u.root.Mkdir(name, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	case cpio.S_IFREG:
		if err := u.file(name, rec); err != nil {
			return err
		}
	case cpio.S_IFLNK:
		to, err := io.ReadAll(io.NewSectionReader(rec, 0, int64(rec.FileSize)))
		if err != nil {
			return err
		}
		if err := u.root.Symlink(string(to), name); err != nil {
			return err
		}
		return u.root.Lchown(name, int(rec.UID), int(rec.GID))
	case cpio.S_IFCHR, cpio.S_IFBLK, cpio.S_IFIFO, cpio.S_IFSOCK:
		if err := u.node(name, rec); err != nil {
			return err
		}
	default:
		return fmt.Errorf("a file of the type %#o", kind)
	}
	if err := u.root.Lchown(name, int(rec.UID), int(rec.GID)); err != nil {
		return err
	}
	for bit, flag := range map[uint64]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky} {
		if rec.Mode&bit != 0 {
			mode |= flag
		}
	}
	return u.root.Chmod(name, mode)
}

// room makes the folders above a name, and takes away what stands in its place.
func (u *unpacker) room(name string, kind uint64) error {
	if dir := path.Dir(name); dir != "." {
		if err := u.root.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	switch st, err := u.root.Lstat(name); {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case st.IsDir() && kind == cpio.S_IFDIR:
		return nil
	default:
		return u.root.Remove(name)
	}
}

// file writes a regular file. Of several names of one inode, the archive gives
// the contents with any of them.
func (u *unpacker) file(name string, rec cpio.Record) error {
	flag := os.O_WRONLY | os.O_CREATE | os.O_TRUNC
	if rec.NLink > 1 {
		if other, ok := u.links[rec.Ino]; ok {
			if err := u.root.Link(other, name); err != nil {
				return err
			}
			if rec.FileSize == 0 {
				return nil
			}
		} else {
			u.links[rec.Ino] = name
		}
	}
	f, err := u.root.OpenFile(name, flag, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, io.NewSectionReader(rec, 0, int64(rec.FileSize)))
	return errors.Join(err, f.Close())
}

func (u *unpacker) node(name string, rec cpio.Record) error {
	dir, err := u.root.Open(path.Dir(name))
	if err != nil {
		return err
	}
	defer dir.Close()
	return unix.Mknodat(int(dir.Fd()), path.Base(name), uint32(rec.Mode), int(unix.Mkdev(uint32(rec.Rmajor), uint32(rec.Rminor))))
}
