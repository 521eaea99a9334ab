package api

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humafiber"
	"github.com/danielgtaylor/huma/v2/sse"

	"hotspare"
)

// routes registers every operation. The paths follow the CLI's verbs.
type routes struct {
	Verbs
	done chan struct{} // closed when the server stops; ends the streams
}

type body[T any] struct{ Body T }

type named struct {
	Name string `path:"name"`
}

func (r routes) register(h huma.API) {
	get(h, "snapshot", "/api/v1/snapshot", "Everything that the console shows", r.snapshot)
	list(h, r, "pools", func(s Snapshot) []Pool { return s.Pools }, func(p Pool) string { return p.Name })
	list(h, r, "nodes", func(s Snapshot) []Node { return s.Nodes }, func(n Node) string { return n.Name })
	list(h, r, "images", func(s Snapshot) []Image { return s.Images }, func(i Image) string { return i.Name + ":" + i.Version })
	list(h, r, "volumes", func(s Snapshot) []Volume { return s.Volumes }, func(v Volume) string { return v.Name })
	list(h, r, "applications", func(s Snapshot) []Application { return s.Applications }, func(a Application) string { return a.Name })
	list(h, r, "failovers", func(s Snapshot) []Failover { return s.Failovers }, func(f Failover) string { return f.ID })

	if r.Keeper != nil {
		r.registerStorage(h)
	}
	if r.ImageKeeper != nil {
		r.registerImages(h)
	}
	if r.Discoverer != nil {
		r.registerMachines(h)
	}
	if r.Booting != nil {
		r.registerBoots(h)
	}
	if r.Networking != nil {
		r.registerNetwork(h)
	}
	huma.Register(h, huma.Operation{
		OperationID: "apply", Method: http.MethodPost, Path: "/api/v1/apply", Summary: "Apply YAML documents, all or none",
		RequestBody: &huma.RequestBody{Content: map[string]*huma.MediaType{"application/yaml": {Schema: &huma.Schema{Type: "string"}}}},
	}, r.apply)
	huma.Register(h, huma.Operation{
		OperationID: "delete", Method: http.MethodDelete, Path: "/api/v1/{kind}/{name}", Summary: "Delete a declared resource or an image", DefaultStatus: http.StatusNoContent,
	}, r.delete)
	huma.Register(h, huma.Operation{
		OperationID: "import-image", Method: http.MethodPost, Path: "/api/v1/images", Summary: "Take an image into the repository", DefaultStatus: http.StatusCreated,
		BodyReadTimeout: -1,
	}, r.importImage)
	huma.Register(h, huma.Operation{
		OperationID: "command", Method: http.MethodPost, Path: "/api/v1/{kind}/{name}/actions/{verb}", Summary: "Order a failover, a freeze, a confirmation", DefaultStatus: http.StatusAccepted,
	}, r.command)
	get(h, "explain", "/api/v1/explain/{kind}/{name}", "Why is it so, or why not", r.explain)
	get(h, "events", "/api/v1/events", "Past events", r.events)
	sse.Register(h, huma.Operation{
		OperationID: "follow-events", Method: http.MethodGet, Path: "/api/v1/events/stream", Summary: "Follow events; resumes after Last-Event-ID",
	}, map[string]any{"event": Event{}}, r.follow)
}

func get[I, O any](h huma.API, id, path, summary string, fn func(context.Context, *I) (*O, error)) {
	huma.Register(h, huma.Operation{OperationID: id, Method: http.MethodGet, Path: path, Summary: summary}, fn)
}

// list registers the listing of one kind and the reading of one by name.
func list[T any](h huma.API, r routes, kind string, of func(Snapshot) []T, name func(T) string) {
	get(h, "list-"+kind, "/api/v1/"+kind, "All "+kind, func(ctx context.Context, _ *struct{}) (*body[[]T], error) {
		s, err := r.Viewer.Snapshot(ctx)
		if err != nil {
			return nil, problem(err)
		}
		all := of(s)
		if all == nil {
			all = []T{}
		}
		return &body[[]T]{all}, nil
	})
	get(h, "get-"+kind, "/api/v1/"+kind+"/{name}", "One of "+kind, func(ctx context.Context, in *named) (*body[T], error) {
		s, err := r.Viewer.Snapshot(ctx)
		if err != nil {
			return nil, problem(err)
		}
		for _, v := range of(s) {
			if name(v) == in.Name {
				return &body[T]{v}, nil
			}
		}
		return nil, problem(&hotspare.Error{
			Code: hotspare.CodeNotFound, What: "there is no such " + strings.TrimSuffix(kind, "s"), Where: in.Name,
			Fix: "hotspare get " + kind + " lists what exists",
		})
	})
}

func (r routes) snapshot(ctx context.Context, _ *struct{}) (*body[Snapshot], error) {
	s, err := r.Viewer.Snapshot(ctx)
	if err != nil {
		return nil, problem(err)
	}
	return &body[Snapshot]{s}, nil
}

type applyInput struct {
	DryRun  bool   `query:"dryRun" doc:"check only"`
	Name    string `query:"name" doc:"file name for error texts"`
	RawBody []byte `contentType:"application/yaml"`
	operator
}

// operator resolves who asks, which guard left in the request.
type operator struct{ By string }

// Resolve is called by huma before the handler.
func (o *operator) Resolve(ctx huma.Context) []error {
	o.By, _ = humafiber.UnwrapV2(ctx).Locals(byKey).(string)
	if u := ctx.Header("X-Hotspare-Operator"); u != "" {
		o.By = u + " (" + o.By + ")"
	}
	return nil
}

func (r routes) apply(ctx context.Context, in *applyInput) (*body[[]Applied], error) {
	name := in.Name
	if name == "" {
		name = "request"
	}
	out, err := r.Resources.Apply(ctx, name, in.RawBody, in.By, in.DryRun)
	if err != nil {
		return nil, problem(err)
	}
	return &body[[]Applied]{out}, nil
}

type deleteInput struct {
	Kind string `path:"kind" enum:"nodes,pools,applications,images"`
	Name string `path:"name"`
	operator
}

func (r routes) delete(ctx context.Context, in *deleteInput) (*struct{}, error) {
	var err error
	if in.Kind == "images" {
		name, version, _ := strings.Cut(in.Name, ":")
		err = r.Images.DeleteImage(ctx, name, version, in.By)
	} else {
		err = r.Resources.Delete(ctx, strings.TrimSuffix(in.Kind, "s"), in.Name, in.By)
	}
	if err != nil {
		return nil, problem(err)
	}
	return nil, nil
}

type importInput struct {
	Body ImageImport
	operator
}

func (r routes) importImage(ctx context.Context, in *importInput) (*body[Image], error) {
	img, err := r.Images.ImportImage(ctx, in.Body, in.By)
	if err != nil {
		return nil, problem(err)
	}
	return &body[Image]{img}, nil
}

type commandInput struct {
	Kind string `path:"kind" enum:"applications,nodes,pools,site"`
	Name string `path:"name" doc:"of the site: -"`
	Verb string `path:"verb" enum:"failover,freeze,unfreeze,confirm-off,unquarantine"`
	Body struct {
		To     string `json:"to,omitempty" doc:"failover: the wanted node"`
		Way    string `json:"way,omitempty" enum:"standby-switch,standby-kexec,cold-iscsi,cold-san,ram,install,slot" doc:"failover: start it in this way only"`
		Reason string `json:"reason,omitempty"`
		For    string `json:"for,omitempty" doc:"freeze: a duration such as 2h; until lifted when left out"`
	}
	operator
}

// Accepted says what was begun.
type Accepted struct {
	ID   string `json:"id,omitempty"`
	Text string `json:"text"`
}

func (r routes) command(ctx context.Context, in *commandInput) (*body[Accepted], error) {
	c := Command{
		Verb: in.Verb, Kind: strings.TrimSuffix(in.Kind, "s"), Name: in.Name, To: in.Body.To, Way: in.Body.Way,
		By: in.By, Reason: in.Body.Reason, Until: in.Body.For,
	}
	if c.Kind == "site" {
		c.Name = ""
	}
	id, err := r.Engine.Command(ctx, c)
	if err != nil {
		return nil, problem(err)
	}
	return &body[Accepted]{Accepted{ID: id, Text: in.Verb + " of " + c.Kind + " " + c.Name + " accepted"}}, nil
}

type explainInput struct {
	Kind string `path:"kind" enum:"app,failover,node,boot"`
	Name string `path:"name"`
}

func (r routes) explain(ctx context.Context, in *explainInput) (*body[Explanation], error) {
	e, err := r.Explainer.Explain(ctx, in.Kind, segment(in.Name))
	if err != nil {
		return nil, problem(err)
	}
	return &body[Explanation]{e}, nil
}

type eventsInput struct {
	After uint64 `query:"after" doc:"only events after this id"`
	Limit int    `query:"limit" default:"200" minimum:"1" maximum:"5000"`
}

func (r routes) events(ctx context.Context, in *eventsInput) (*body[[]Event], error) {
	ev, err := r.History.Events(ctx, in.After, in.Limit)
	if err != nil {
		return nil, problem(err)
	}
	if ev == nil {
		ev = []Event{}
	}
	return &body[[]Event]{ev}, nil
}

type followInput struct {
	LastEventID uint64 `header:"Last-Event-ID"`
	After       uint64 `query:"after"`
}

// follow streams events until the client or the server goes. A comment every
// few seconds lets either side notice a dead connection (fasthttp sees a
// disconnect at the next flush only).
func (r routes) follow(ctx context.Context, in *followInput, send sse.Sender) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ch, err := r.History.Follow(ctx, max(in.LastEventID, in.After))
	if err != nil {
		return
	}
	if err := send.Comment("connected"); err != nil { // the headers go out with the first bytes
		return
	}
	beat := time.NewTicker(3 * time.Second)
	defer beat.Stop()
	for {
		select {
		case e, ok := <-ch:
			if !ok {
				return
			}
			if err := send(sse.Message{ID: int(e.ID), Data: e}); err != nil {
				return
			}
		case <-beat.C:
			if err := send.Comment("alive"); err != nil {
				return
			}
		case <-r.done:
			return
		case <-ctx.Done():
			return
		}
	}
}

// asProblem gives huma's own errors (a request that does not fit the schema)
// the shape of all others.
func asProblem(_ huma.Context, _ string, v any) (any, error) {
	var m *huma.ErrorModel
	if err, ok := v.(error); ok && errors.As(err, &m) {
		p := &Problem{Status: m.Status, Title: m.Detail, Code: hotspare.CodeInvalid, Fix: "see /api/v1/openapi.json for the shape of this request"}
		if m.Status >= http.StatusInternalServerError {
			p = problem(errors.New(m.Detail))
		}
		for _, d := range m.Errors {
			p.Errors = append(p.Errors, &ProblemField{Where: d.Location, What: d.Message})
		}
		return p, nil
	}
	return v, nil
}
