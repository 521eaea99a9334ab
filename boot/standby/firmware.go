package standby

import (
	"bytes"
	"context"
	"crypto/sha256"
	"debug/elf"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// maxFirmware bounds the firmware of one archive, in bytes.
const maxFirmware = 96 << 20

// firmwareOf gives the names of the firmware files that a module may ask for, as
// MODULE_FIRMWARE wrote them into it.
func firmwareOf(module []byte) []string {
	f, err := elf.NewFile(bytes.NewReader(module))
	if err != nil {
		return nil
	}
	section := f.Section(".modinfo")
	if section == nil {
		return nil
	}
	info, err := section.Data()
	if err != nil {
		return nil
	}
	var out []string
	for entry := range bytes.SplitSeq(info, []byte{0}) {
		if name, ok := strings.CutPrefix(string(entry), "firmware="); ok && fs.ValidPath(name) {
			out = append(out, name)
		}
	}
	return out
}

// firmware reads what the modules may ask for from a folder like /lib/firmware.
// Most modules name files for many cards, of which a host has few: what is not
// there is given back by name.
func firmware(ctx context.Context, dir string, modules map[string][]byte) (files map[string][]byte, missing []string, err error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, nil, err
	}
	defer root.Close()
	files = map[string][]byte{}
	total := 0
	for _, module := range modules {
		for _, name := range firmwareOf(module) {
			if _, ok := files[name]; ok {
				continue
			}
			if err := ctx.Err(); err != nil {
				return nil, nil, err
			}
			data, err := readFirmware(root, name)
			if errors.Is(err, fs.ErrNotExist) {
				missing = append(missing, name)
				continue
			}
			if err != nil {
				return nil, nil, err
			}
			if total += len(data); total > maxFirmware {
				return nil, nil, fmt.Errorf("the firmware has more than %d bytes", maxFirmware)
			}
			files[name] = data
		}
	}
	slices.Sort(missing)
	return files, slices.Compact(missing), nil
}

// readFirmware reads a file, which may be compressed. Links within the folder are
// followed.
func readFirmware(root *os.Root, name string) ([]byte, error) {
	for _, suffix := range []string{"", ".zst", ".xz"} {
		f, err := root.Open(filepath.FromSlash(name + suffix))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		defer f.Close()
		return decompress(name+suffix, f)
	}
	return nil, fs.ErrNotExist
}

// stamp addresses the state of a folder without reading its files: by names,
// sizes and times.
func stamp(ctx context.Context, dir string) (string, error) {
	h := sha256.New()
	err := filepath.WalkDir(dir, func(at string, d fs.DirEntry, err error) error {
		if err != nil || ctx.Err() != nil {
			return errors.Join(err, ctx.Err())
		}
		if d.IsDir() {
			return nil
		}
		st, err := d.Info()
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(h, "%q %d %d\n", at, st.Size(), st.ModTime().UnixNano())
		return err
	})
	return hex.EncodeToString(h.Sum(nil)), err
}

// firmwarePath is where the kernel looks for a firmware file.
func firmwarePath(name string) string { return path.Join("/lib/firmware", name) }
