package images

import (
	"context"
	"fmt"
	"time"

	"hotspare"
)

// Test is what came of starting an image on a machine, to see whether it does.
type Test struct {
	At      time.Time `json:"at"`
	By      string    `json:"by"`
	OK      bool      `json:"ok"`
	Way     string    `json:"way,omitempty"`
	Machine string    `json:"machine,omitempty"` // e.g. "QEMU, BIOS"
	Text    string    `json:"text"`              // why not, or what was seen
}

const maxTestText = 2000

// RecordTest keeps the outcome of a test with the image that it is of: digest must
// be the image's, for a version may have been deleted and imported anew meanwhile.
func (r *Repository) RecordTest(ctx context.Context, name, version, digest string, t Test) (Image, error) {
	if len(t.Text) > maxTestText || len(t.Machine) > 100 || len(t.Way) > 30 || len(t.By) > 200 {
		return Image{}, &hotspare.Error{Code: hotspare.CodeInvalid, What: "the outcome of the test is too long", Where: name + ":" + version, Fix: fmt.Sprintf("give at most %d characters", maxTestText)}
	}
	leave, err := r.enter(ctx)
	if err != nil {
		return Image{}, err
	}
	defer leave()
	img, err := r.Get(name, version)
	if err != nil {
		return Image{}, err
	}
	if img.Digest != digest {
		return Image{}, &hotspare.Error{Code: hotspare.CodeConflict, What: "the image is not what was tested", Where: img.Ref(), Why: "its digest is " + img.Digest, Fix: "test it again"}
	}
	img.Tested = t
	if err := r.commit(img); err != nil {
		return Image{}, err
	}
	return r.Get(name, version)
}
