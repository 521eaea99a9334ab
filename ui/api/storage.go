package api

import (
	"context"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humafiber"
)

// Keeper takes the operator's orders about volumes: what is done at once, what
// takes its time (a task), and how the store is.
type Keeper interface {
	ChangeVolume(ctx context.Context, c VolumeChange) (Accepted, error)
	BeginTask(ctx context.Context, r TaskRequest) (Task, error)
	Storage(ctx context.Context) (Storage, error)
}

// Tasks shows and ends what takes its time. Task waits, for a few seconds at the
// most, until the task has a later revision than after.
type Tasks interface {
	Tasks(ctx context.Context) ([]Task, error)
	Task(ctx context.Context, id string, after uint64) (Task, error)
	AbortTask(ctx context.Context, id, by string) error
}

// VolumeChange is one of snapshot (As names the part behind @), clone (As is the
// new volume), resize (Size) and delete.
type VolumeChange struct {
	Verb   string
	Volume string
	As     string
	Size   int64
	By     string
}

// TaskRequest asks for one of export (File, Format), copy (To or From, As) and
// scrub, the last of all volumes when Volume is empty.
type TaskRequest struct {
	Kind   string
	Volume string
	File   string
	Format string
	To     string
	From   string
	As     string
	Rate   int64 // bytes per second; 0: the kind's own
	By     string
	Local  bool // asked over the unix socket: any path of the appliance may be named
}

// Task is an operation that takes its time. It lives in memory: a restart of the
// appliance ends and forgets it.
type Task struct {
	ID       string       `json:"id"`
	Kind     string       `json:"kind"`            // export, copy, scrub, image import, ...
	Volume   string       `json:"volume"`          // or image that it is about; empty: all
	Image    string       `json:"image,omitempty"` // name:version that an import or build made
	State    string       `json:"state"`           // running, done, failed, aborted
	Text     string       `json:"text"`            // what it does now or did, in a sentence
	Done     int64        `json:"doneBytes"`
	Total    int64        `json:"totalBytes"` // at most; 0: not known
	By       string       `json:"by"`
	Begun    time.Time    `json:"begun"`
	Ended    *time.Time   `json:"ended,omitempty"`
	Findings []string     `json:"findings,omitempty"` // of a scrub: what is bad, and where
	File     *WrittenFile `json:"file,omitempty"`     // of an export
	Problem  *Problem     `json:"problem,omitempty"`  // why it failed
	Revision uint64       `json:"revision"`           // grows with every change
}

// WrittenFile is what an export wrote.
type WrittenFile struct {
	Path      string `json:"path"`
	SizeBytes int64  `json:"sizeBytes"` // of the disk
	FileBytes int64  `json:"fileBytes"` // that the file occupies
}

// Storage is how the volume store is.
type Storage struct {
	Folder     string    `json:"folder"`
	FreeBytes  int64     `json:"freeBytes"` // of its file system
	TotalBytes int64     `json:"totalBytes"`
	Volumes    int       `json:"volumes"`
	Snapshots  int       `json:"snapshots"`
	Stopped    []Stopped `json:"stopped"` // volumes that serve nobody any more
	Scrub      ScrubView `json:"scrub"`
	Reclaim    Reclaim   `json:"reclaim"`
}

// Reclaim is what the store does to give space back.
type Reclaim struct {
	Running      bool    `json:"running"`
	FreedBytes   int64   `json:"freedBytes"`    // since the start
	PerSecond    float64 `json:"perSecond"`     // bytes of it, lately
	WaitingBytes int64   `json:"waitingBytes"`  // that the next pass will look for, about
	PendingBytes int64   `json:"pendingBytes"`  // free at the next flush
	Why          string  `json:"why,omitempty"` // why the last pass ended early
}

// Stopped is a volume that is stopped, and why.
type Stopped struct {
	Volume string   `json:"volume"`
	Why    *Problem `json:"why"`
}

// ScrubView says when the store was last read whole, and what was found.
type ScrubView struct {
	Running  bool       `json:"running"`
	Last     *time.Time `json:"last,omitempty"` // when the last whole one ended
	Bytes    int64      `json:"bytes,omitempty"`
	OK       bool       `json:"ok"`                 // of the last one
	Findings []string   `json:"findings,omitempty"` // of the last one
	Next     *time.Time `json:"next,omitempty"`     // none: the schedule is off
}

// origin is an operator, and whether the request came over the unix socket,
// where only the appliance's own user gets in.
type origin struct {
	operator
	Local bool
}

// Resolve is called by huma before the handler.
func (o *origin) Resolve(ctx huma.Context) []error {
	o.Local = humafiber.UnwrapV2(ctx).Context().LocalAddr().Network() == "unix"
	return o.operator.Resolve(ctx)
}

// registerStorage registers the operations on volumes. They come before the
// general ones of the same shape: the first that fits is taken.
func (r routes) registerStorage(h huma.API) {
	post := func(id, path, summary string, status int) huma.Operation {
		return huma.Operation{OperationID: id, Method: http.MethodPost, Path: path, Summary: summary, DefaultStatus: status}
	}
	const volume = "/api/v1/volumes/{name}"
	huma.Register(h, post("snapshot-volume", volume+"/actions/snapshot", "Keep the volume as it is now", http.StatusCreated), r.snapshotVolume)
	huma.Register(h, post("clone-volume", volume+"/actions/clone", "Make a writable volume of a volume or snapshot", http.StatusCreated), r.cloneVolume)
	huma.Register(h, post("resize-volume", volume+"/actions/resize", "Let a volume grow; it may be in use", http.StatusOK), r.resizeVolume)
	huma.Register(h, huma.Operation{
		OperationID: "delete-volume", Method: http.MethodDelete, Path: volume, Summary: "Delete a snapshot or a clone", DefaultStatus: http.StatusNoContent,
	}, r.deleteVolume)
	huma.Register(h, post("export-volume", volume+"/actions/export", "Write what a volume holds as a file; it may be in use", http.StatusAccepted), r.exportVolume)
	huma.Register(h, post("copy-volume", volume+"/actions/copy", "Copy a volume to another store or from one; it may be in use", http.StatusAccepted), r.copyVolume)
	huma.Register(h, post("scrub-volume", volume+"/actions/scrub", "Read a volume and compare it with its checksums", http.StatusAccepted), r.scrubVolume)
	huma.Register(h, post("scrub-storage", "/api/v1/storage/actions/scrub", "Read all volumes and compare them with their checksums", http.StatusAccepted), r.scrubStorage)
	get(h, "get-storage", "/api/v1/storage", "How the volume store is", r.storage)
	get(h, "list-tasks", "/api/v1/tasks", "Operations that take their time", r.tasks)
	get(h, "get-task", "/api/v1/tasks/{id}", "One task; with after, wait for a later revision", r.task)
	huma.Register(h, huma.Operation{
		OperationID: "abort-task", Method: http.MethodDelete, Path: "/api/v1/tasks/{id}", Summary: "End a task; what it made so far is removed", DefaultStatus: http.StatusNoContent,
	}, r.abortTask)
}

func (r routes) change(ctx context.Context, c VolumeChange) (*body[Accepted], error) {
	a, err := r.Keeper.ChangeVolume(ctx, c)
	if err != nil {
		return nil, problem(err)
	}
	return &body[Accepted]{a}, nil
}

type newNameInput struct {
	Name string `path:"name"`
	origin
	Body struct {
		As string `json:"as" minLength:"1" maxLength:"128" doc:"snapshot: the part behind @; clone: the new volume's name"`
	}
}

func (r routes) snapshotVolume(ctx context.Context, in *newNameInput) (*body[Accepted], error) {
	return r.change(ctx, VolumeChange{Verb: "snapshot", Volume: in.Name, As: in.Body.As, By: in.By})
}

func (r routes) cloneVolume(ctx context.Context, in *newNameInput) (*body[Accepted], error) {
	return r.change(ctx, VolumeChange{Verb: "clone", Volume: in.Name, As: in.Body.As, By: in.By})
}

type resizeInput struct {
	Name string `path:"name"`
	origin
	Body struct {
		SizeBytes int64 `json:"sizeBytes" minimum:"512" doc:"a multiple of 512; a volume never shrinks"`
	}
}

func (r routes) resizeVolume(ctx context.Context, in *resizeInput) (*body[Accepted], error) {
	return r.change(ctx, VolumeChange{Verb: "resize", Volume: in.Name, Size: in.Body.SizeBytes, By: in.By})
}

type volumeInput struct {
	Name string `path:"name"`
	origin
}

func (r routes) deleteVolume(ctx context.Context, in *volumeInput) (*struct{}, error) {
	if _, err := r.change(ctx, VolumeChange{Verb: "delete", Volume: in.Name, By: in.By}); err != nil {
		return nil, err
	}
	return nil, nil
}

func (r routes) begin(ctx context.Context, q TaskRequest, o origin) (*body[Task], error) {
	q.By, q.Local = o.By, o.Local
	t, err := r.Keeper.BeginTask(ctx, q)
	if err != nil {
		return nil, problem(err)
	}
	return &body[Task]{t}, nil
}

type exportInput struct {
	Name string `path:"name"`
	origin
	Body struct {
		BytesPerSecond int64  `json:"bytesPerSecond,omitempty" minimum:"0" doc:"bound of the rate; 0: none"`
		File           string `json:"file" minLength:"1" doc:"name in the appliance's folder of exports; over the unix socket also an absolute path"`
		Format         string `json:"format" enum:"raw,qcow2"`
	}
}

func (r routes) exportVolume(ctx context.Context, in *exportInput) (*body[Task], error) {
	return r.begin(ctx, TaskRequest{Kind: "export", Volume: in.Name, File: in.Body.File, Format: in.Body.Format, Rate: in.Body.BytesPerSecond}, in.origin)
}

type copyInput struct {
	Name string `path:"name"`
	origin
	Body struct {
		BytesPerSecond int64  `json:"bytesPerSecond,omitempty" minimum:"0" doc:"bound of the rate; 0: none"`
		To             string `json:"to,omitempty" doc:"folder of the other store, made when missing; named as the file of an export is"`
		From           string `json:"from,omitempty" doc:"folder of the other store that has the volume"`
		As             string `json:"as,omitempty" doc:"name of the copy; default: the same"`
	}
}

func (r routes) copyVolume(ctx context.Context, in *copyInput) (*body[Task], error) {
	return r.begin(ctx, TaskRequest{Kind: "copy", Volume: in.Name, To: in.Body.To, From: in.Body.From, As: in.Body.As, Rate: in.Body.BytesPerSecond}, in.origin)
}

type scrubInput struct {
	Name string `path:"name"`
	origin
	Body struct {
		BytesPerSecond int64 `json:"bytesPerSecond,omitempty" minimum:"0" doc:"bound of the rate; 0: the configured one"`
	}
}

func (r routes) scrubVolume(ctx context.Context, in *scrubInput) (*body[Task], error) {
	return r.begin(ctx, TaskRequest{Kind: "scrub", Volume: in.Name, Rate: in.Body.BytesPerSecond}, in.origin)
}

type scrubAllInput struct {
	origin
	Body struct {
		BytesPerSecond int64 `json:"bytesPerSecond,omitempty" minimum:"0" doc:"bound of the rate; 0: the configured one"`
	}
}

func (r routes) scrubStorage(ctx context.Context, in *scrubAllInput) (*body[Task], error) {
	return r.begin(ctx, TaskRequest{Kind: "scrub", Rate: in.Body.BytesPerSecond}, in.origin)
}

func (r routes) storage(ctx context.Context, _ *struct{}) (*body[Storage], error) {
	s, err := r.Keeper.Storage(ctx)
	if err != nil {
		return nil, problem(err)
	}
	return &body[Storage]{s}, nil
}

func (r routes) tasks(ctx context.Context, _ *struct{}) (*body[[]Task], error) {
	all, err := r.Tasks.Tasks(ctx)
	if err != nil {
		return nil, problem(err)
	}
	if all == nil {
		all = []Task{}
	}
	return &body[[]Task]{all}, nil
}

type taskInput struct {
	ID    string `path:"id"`
	After uint64 `query:"after" doc:"wait for a revision after this one, some seconds at the most"`
}

func (r routes) task(ctx context.Context, in *taskInput) (*body[Task], error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-r.done: // the server stops: nobody waits on
			cancel()
		case <-ctx.Done():
		}
	}()
	t, err := r.Tasks.Task(ctx, in.ID, in.After)
	if err != nil {
		return nil, problem(err)
	}
	return &body[Task]{t}, nil
}

type abortInput struct {
	ID string `path:"id"`
	origin
}

func (r routes) abortTask(ctx context.Context, in *abortInput) (*struct{}, error) {
	if err := r.Tasks.AbortTask(ctx, in.ID, in.By); err != nil {
		return nil, problem(err)
	}
	return nil, nil
}

// ProblemOf gives an error the shape in which the API shows it, without its
// private cause.
func ProblemOf(err error) *Problem { return problem(err) }
