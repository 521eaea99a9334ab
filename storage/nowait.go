package storage

// NoWaiter is a Device that can carry out those commands at once that need not
// wait for the disk. A target tries them where waiting would hold up other
// commands, and takes the plain way when they are refused.
type NoWaiter interface {
	// ReadAtNoWait fills p from off if all of it is in memory. After false p
	// holds anything.
	ReadAtNoWait(p []byte, off int64) bool
	// WriteAtNoWait writes p at off. Unless done, any part of p may have been
	// written, as if WriteAt was under way: it must follow, or the command fails.
	WriteAtNoWait(p []byte, off int64) (done bool, err error)
}

// ReadAtNoWait is ReadAt if the volume's device can do it without waiting. After
// false, whatever the reason, p holds anything.
func (a *Attachment) ReadAtNoWait(p []byte, off int64) bool {
	if a.noWait == nil || !a.gate.enter() {
		return false
	}
	defer a.gate.leave()
	m := a.begin()
	if !a.noWait.ReadAtNoWait(p, off) {
		return false // and not measured: it will be begun again
	}
	m.read(len(p))
	return true
}

// WriteAtNoWait is WriteAt if the volume's device can do it without waiting.
// Unless done, a part may have been written.
func (a *Attachment) WriteAtNoWait(p []byte, off int64) (done bool, err error) {
	if a.noWait == nil || a.readOnly || a.trace != nil || !a.gate.enter() {
		return false, nil
	}
	defer a.gate.leave()
	m := a.begin()
	done, err = a.noWait.WriteAtNoWait(p, off)
	if !done {
		return false, nil
	}
	n := len(p)
	if err != nil {
		n = 0
	}
	at := a.watch.ticks()
	m.write(n, at, err)
	a.lastWrite.Store(at)
	return true, err
}
