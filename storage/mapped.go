package storage

// Mapper is a Device that knows which of its bytes are mapped: those that are
// not read as zeros and take no space.
type Mapper interface {
	// Mapped says whether the byte at off is mapped, and for how many bytes from
	// there on the same is true, at most limit. It may give fewer than are true.
	Mapped(off, limit int64) (mapped bool, n int64, err error)
}

// Mapped is the device's, through the gate. A device that does not know counts
// as mapped.
func (a *Attachment) Mapped(off, limit int64) (mapped bool, n int64, err error) {
	if !a.gate.enter() {
		return false, 0, ErrRevoked
	}
	defer a.gate.leave()
	if m, ok := a.dev.(Mapper); ok {
		return m.Mapped(off, limit)
	}
	return true, min(limit, a.dev.Size()-off), nil
}
