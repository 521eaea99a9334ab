package hotspare

import (
	"errors"
	"strings"
)

// Error is an error that an operator can act on. Code is stable over releases
// and listed in Codes; the other texts may improve. Err is the private cause:
// logs show it, the API does not.
type Error struct {
	Code  Code   // e.g. "IMG-003"
	What  string // what went wrong, e.g. "the qcow2 image names a backing file"
	Where string // file, line, address, resource: "orders.qcow2: header byte 8"
	Why   string // why it is refused or impossible
	Fix   string // what the operator does now
	Err   error
}

// Error gives all texts in one line: code, what, where, why, cause, fix.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(string(e.Code))
	b.WriteString(": ")
	b.WriteString(e.What)
	if e.Where != "" {
		b.WriteString(" (")
		b.WriteString(e.Where)
		b.WriteString(")")
	}
	if e.Why != "" {
		b.WriteString(": ")
		b.WriteString(e.Why)
	}
	if e.Err != nil {
		b.WriteString(": ")
		b.WriteString(e.Err.Error())
	}
	if e.Fix != "" {
		b.WriteString("; fix: ")
		b.WriteString(e.Fix)
	}
	return b.String()
}

// Card gives the error as an operator reads it at a terminal: code and what in
// the first line, then where, why, fix and cause in a line each.
func (e *Error) Card() string {
	var b strings.Builder
	b.WriteString(string(e.Code) + ": " + e.What + "\n")
	line := func(name, text string) {
		if text != "" {
			b.WriteString("  " + name + strings.Repeat(" ", 6-len(name)) + text + "\n")
		}
	}
	line("where", e.Where)
	line("why", e.Why)
	line("fix", e.Fix)
	if e.Err != nil {
		line("cause", e.Err.Error())
	}
	return b.String()
}

// Unwrap gives the private cause.
func (e *Error) Unwrap() error { return e.Err }

// Is makes errors.Is(err, &Error{Code: c}) match any Error with that code.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Code == e.Code && t.What == "" && t.Err == nil
}

// CodeOf gives the code of the outermost Error in err's chain, or "" if there
// is none.
func CodeOf(err error) Code {
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return ""
}
