package api

import (
	"errors"
	"net/http"

	"hotspare"
)

// Problem is an error answer (RFC 9457, application/problem+json) with the
// stable code, the place and the mend. The private cause of an error is not in
// it.
type Problem struct {
	Status int             `json:"status" doc:"HTTP status"`
	Title  string          `json:"title" doc:"what went wrong"`
	Code   hotspare.Code   `json:"code,omitempty" doc:"stable code, explained in docs/errors.md"`
	Where  string          `json:"where,omitempty"`
	Why    string          `json:"why,omitempty"`
	Fix    string          `json:"fix,omitempty" doc:"what to do now"`
	Docs   string          `json:"docs,omitempty"`
	Errors []*ProblemField `json:"errors,omitempty" doc:"single fields of the request"`
}

// ProblemField names one field of the request that is wrong.
type ProblemField struct {
	Where string `json:"where"`
	What  string `json:"what"`
}

// Error gives the problem in one line, as the CLI prints it.
func (p *Problem) Error() string {
	e := hotspare.Error{Code: p.Code, What: p.Title, Where: p.Where, Why: p.Why, Fix: p.Fix}
	return e.Error()
}

// GetStatus gives the HTTP status.
func (p *Problem) GetStatus() int { return p.Status }

// ContentType names the media type of problems.
func (p *Problem) ContentType(string) string { return "application/problem+json" }

// problem is the one mapper from errors to answers.
func problem(err error) *Problem {
	var e *hotspare.Error
	if !errors.As(err, &e) {
		return &Problem{
			Status: http.StatusInternalServerError, Code: hotspare.CodeInternal, Title: "the appliance failed at this request",
			Fix: "look at the appliance's log: journalctl -u hotspare", Docs: docs(hotspare.CodeInternal),
		}
	}
	return &Problem{
		Status: status(e.Code), Title: e.What, Code: e.Code, Where: e.Where, Why: e.Why, Fix: e.Fix, Docs: docs(e.Code),
	}
}

func docs(c hotspare.Code) string { return "docs/errors.md#" + string(c) }

func status(c hotspare.Code) int {
	switch c {
	case hotspare.CodeNotFound:
		return http.StatusNotFound
	case hotspare.CodeUnauthorized:
		return http.StatusUnauthorized
	case hotspare.CodeConflict, hotspare.CodeVolumeBusy, hotspare.CodeImageExists, hotspare.CodeFrozen, hotspare.CodeHeld, hotspare.CodeStaleEpoch:
		return http.StatusConflict
	case hotspare.CodeDiskFull:
		return http.StatusInsufficientStorage
	case hotspare.CodeInternal:
		return http.StatusInternalServerError
	case hotspare.CodeUnavailable:
		return http.StatusServiceUnavailable
	}
	return http.StatusUnprocessableEntity
}
