package api

import "context"

// Verbs are what the API can ask of the appliance, which implements them. by
// names the operator for the record.
type Verbs struct {
	Viewer    Viewer
	Resources Resources
	Images    Images
	Engine    Engine
	Explainer Explainer
	History   History
	Keeper    Keeper // with Tasks; nil: no operations on volumes
	Tasks     Tasks
	// ImageKeeper comes with Tasks; nil: images are imported and deleted only.
	ImageKeeper ImageKeeper
	Booting     Booting // nil: no boots

	Discoverer Discoverer // nil: no machines beside the nodes
	Networking Networking // nil: nothing about the links
}

// Viewer gives the state as it is shown.
type Viewer interface {
	Snapshot(ctx context.Context) (Snapshot, error)
}

// Resources takes and deletes declared resources. Apply takes all YAML documents
// of src or none of them; file names their origin in error texts.
type Resources interface {
	Apply(ctx context.Context, file string, src []byte, by string, dryRun bool) ([]Applied, error)
	Delete(ctx context.Context, kind, name, by string) error
}

// Images takes images into the repository and removes them.
type Images interface {
	ImportImage(ctx context.Context, in ImageImport, by string) (Image, error)
	DeleteImage(ctx context.Context, name, version, by string) error
}

// Engine takes the operator's orders to the failover engine.
type Engine interface {
	Command(ctx context.Context, c Command) (string, error)
}

// Command is one order of an operator. Verb is one of failover, freeze,
// unfreeze (of an application, a pool or, with an empty name, the site),
// confirm-off and unquarantine (of a node).
type Command struct {
	Verb   string
	Kind   string // application, node, pool, site
	Name   string
	To     string // failover: the wanted node, if any
	Way    string // failover: start it in this way only; empty: in the one that is expected to be fastest
	By     string
	Reason string
	Until  string // freeze: a duration such as 2h; empty: until lifted
}

// Explainer answers "why?".
type Explainer interface {
	Explain(ctx context.Context, kind, name string) (Explanation, error)
}

// History gives past events, oldest first, and follows new ones. Events gives the
// first limit events after an id, or the newest limit events when after is 0. Follow's channel is closed
// when ctx ends or when the reader is too slow to be served; it then resumes
// from the last id that it saw.
type History interface {
	Events(ctx context.Context, after uint64, limit int) ([]Event, error)
	Follow(ctx context.Context, after uint64) (<-chan Event, error)
}
