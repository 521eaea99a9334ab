package process

import (
	"bytes"
	"os"
	"sync"
)

// Bounds of what is kept of a command's words.
const (
	maxLog  = 1 << 20 // bytes of a file; the one before it is kept as well
	maxTail = 500
)

// log is what a command says: in a file, of which one older is kept, and line by
// line to whoever listens.
type log struct {
	path, name string
	words      func(name, line string)

	mu   sync.Mutex
	f    *os.File
	size int
	last []byte // the last words
	line []byte // an unfinished line
}

func newLog(path, name string, words func(string, string)) *log {
	l := &log{path: path, name: name, words: words}
	l.open()
	return l
}

func (l *log) open() {
	_ = os.Rename(l.path, l.path+".old")
	l.f, _ = os.Create(l.path) // without a file the command runs as well
	l.size = 0
}

// Write keeps b. It never fails: a command must not end because of its log.
func (l *log) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.size+len(b) > maxLog {
		_ = l.f.Close()
		l.open()
	}
	if l.f != nil {
		n, _ := l.f.Write(b)
		l.size += n
	}
	l.last = append(l.last, b...)
	if len(l.last) > 2*maxTail {
		l.last = append([]byte(nil), l.last[len(l.last)-maxTail:]...)
	}
	l.speak(b)
	return len(b), nil
}

func (l *log) speak(b []byte) {
	if l.words == nil {
		return
	}
	l.line = append(l.line, b...)
	for {
		line, rest, ok := bytes.Cut(l.line, []byte("\n"))
		if !ok {
			break
		}
		l.words(l.name, string(line))
		l.line = append([]byte(nil), rest...)
	}
	if len(l.line) > maxTail {
		l.line = nil
	}
}

func (l *log) tail() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	text := bytes.TrimSpace(l.last)
	if len(text) == 0 {
		return ""
	}
	return ": " + string(text[max(0, len(text)-maxTail):])
}

func (l *log) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.f != nil {
		_ = l.f.Close()
		l.f = nil
	}
}
