package api

import (
	"context"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"
)

// ImageKeeper takes the operator's orders about images: what takes its time (a
// task), channels, uploads and what is not used any more.
type ImageKeeper interface {
	BeginImageTask(ctx context.Context, r ImageTask) (Task, error)
	Channels(ctx context.Context, name string) ([]ImageChannel, error)
	ChangeChannel(ctx context.Context, c ChannelChange) (ImageChannel, error)
	ImageGarbage(ctx context.Context, r ImageRetention) (ImageGarbage, error)
	Upload(ctx context.Context, c UploadChange) (ImageUpload, error)
	RecordImageTest(ctx context.Context, ref, digest string, t ImageTest) (Image, error)
}

// ImageTest is what came of starting an image on a machine of a lab.
type ImageTest struct {
	At      time.Time `json:"at"`
	By      string    `json:"by"`
	OK      bool      `json:"ok"`
	Way     string    `json:"way,omitempty"`
	Machine string    `json:"machine,omitempty"` // e.g. "QEMU, BIOS"
	Text    string    `json:"text"`              // why not, or what was seen
}

// ImageTask asks for one of import (Import), build (Recipe), verify (Image) and
// collect (Retention).
type ImageTask struct {
	Kind      string
	Import    ImageSource
	Recipe    string
	Image     string // name:version or name:channel
	Retention ImageRetention
	By        string
	Local     bool // asked over the unix socket: any path of the appliance may be named
}

// ImageSource says what is imported, and from where: one of File, URL (http,
// https, oci) and Upload, or Kernel and Initrd alone.
type ImageSource struct {
	Name      string            `json:"name" minLength:"1" doc:"name of the image"`
	Version   string            `json:"version,omitempty" doc:"default: the first 12 digits of its digest"`
	File      string            `json:"file,omitempty" doc:"absolute path on the appliance; over the unix socket only"`
	URL       string            `json:"url,omitempty" doc:"http://, https://, or oci://HOST/NAME:TAG"`
	Upload    string            `json:"upload,omitempty" doc:"id of a complete upload"`
	Format    string            `json:"format,omitempty" enum:"auto,raw,qcow2,vmdk,vhd,vhdx,tar,squashfs" doc:"fixed at import and never probed again"`
	SHA256    string            `json:"sha256,omitempty" doc:"of the file; recorded when left out"`
	Signature string            `json:"signature,omitempty" maxLength:"4096" doc:"contents of the file's .minisig"`
	Arch      string            `json:"arch,omitempty" enum:"amd64,arm64" doc:"which image of an OCI index; default amd64"`
	Kernel    string            `json:"kernel,omitempty" doc:"absolute path on the appliance; over the unix socket only"`
	Initrd    string            `json:"initrd,omitempty" doc:"absolute path on the appliance; over the unix socket only"`
	Modules   string            `json:"modules,omitempty" doc:"absolute path of a lib/modules/VERSION on the appliance; over the unix socket only"`
	Cmdline   string            `json:"cmdline,omitempty" doc:"further kernel arguments of this image"`
	DiskBytes int64             `json:"diskBytes,omitempty" minimum:"0" doc:"size of the disk that is made of a tar or a container image"`
	Channel   string            `json:"channel,omitempty" doc:"promote it there when it is imported"`
	Labels    map[string]string `json:"labels,omitempty"`
}

// ImageChannel is a name that leads to a version of an image.
type ImageChannel struct {
	Name     string           `json:"name"`
	Channel  string           `json:"channel"`
	Version  string           `json:"version"`
	Previous string           `json:"previous,omitempty"` // where a roll back leads
	History  []ImagePromotion `json:"history"`            // oldest first
}

// ImagePromotion is one change of a channel.
type ImagePromotion struct {
	Version string    `json:"version"`
	At      time.Time `json:"at"`
	By      string    `json:"by"`
	Reason  string    `json:"reason,omitempty"`
	Back    bool      `json:"back,omitempty"` // it was a roll back
}

// ChannelChange is one of promote (Version), rollback and delete.
type ChannelChange struct {
	Verb, Name, Channel, Version, Reason, By string
}

// ImageRetention says what is kept although nobody uses it.
type ImageRetention struct {
	Names  []string `json:"names,omitempty" query:"names" doc:"only these images; all when left out"`
	Newest int      `json:"newest,omitempty" query:"newest" minimum:"0" maximum:"1000" doc:"versions of each name that are kept; 0: 2"`
	Days   int      `json:"days,omitempty" query:"days" minimum:"0" maximum:"36500" doc:"nothing younger is removed"`
}

// ImageGarbage is what a collection would remove, and why the rest stays.
type ImageGarbage struct {
	Remove []ImageVerdict `json:"remove"`
	Keep   []ImageVerdict `json:"keep"`
	Bytes  int64          `json:"bytes"`
}

// ImageVerdict is one version and why it goes or stays.
type ImageVerdict struct {
	Image string `json:"image"`
	Why   string `json:"why"`
	Bytes int64  `json:"bytes,omitempty"` // that its removal frees
}

// UploadChange is one of begin (Size, SHA256), show, append (Offset, Data) and
// end.
type UploadChange struct {
	Verb, ID, SHA256, By string
	Size, Offset         int64
	Data                 []byte
}

// ImageUpload is a file that comes piece by piece. It outlives a restart of the
// appliance; who uploads goes on at OffsetBytes.
type ImageUpload struct {
	ID          string    `json:"id"`
	SizeBytes   int64     `json:"sizeBytes"`
	OffsetBytes int64     `json:"offsetBytes"` // that are here
	SHA256      string    `json:"sha256"`
	By          string    `json:"by"`
	Begun       time.Time `json:"begun"`
	PieceBytes  int64     `json:"pieceBytes"` // the most that one PATCH may bring
}

// registerImages registers the operations on images. They come before the general
// ones of the same shape: the first that fits is taken.
func (r routes) registerImages(h huma.API) {
	post := func(id, path, summary string, status int) huma.Operation {
		return huma.Operation{OperationID: id, Method: http.MethodPost, Path: path, Summary: summary, DefaultStatus: status}
	}
	huma.Register(h, post("begin-image-import", "/api/v1/images/actions/import", "Take an image into the repository: a file, a URL, an OCI reference, an upload", http.StatusAccepted), r.beginImport)
	huma.Register(h, post("build-image", "/api/v1/images/actions/build", "Make an image by a recipe", http.StatusAccepted), r.buildImage)
	huma.Register(h, post("collect-images", "/api/v1/images/actions/collect", "Remove the versions that nobody uses", http.StatusAccepted), r.collectImages)
	huma.Register(h, post("verify-image", "/api/v1/images/{name}/actions/verify", "Read an image and compare it with its digests", http.StatusAccepted), r.verifyImage)
	huma.Register(h, post("record-image-test", "/api/v1/images/{name}/actions/record-test", "Keep with an image whether a machine of a lab started from it", http.StatusOK), r.recordTest)
	get(h, "preview-image-garbage", "/api/v1/image-garbage", "What collect-images would remove, and why the rest stays", r.previewGarbage)
	get(h, "list-image-channels", "/api/v1/image-channels", "Where channels lead, and led before", r.channels)
	const channel = "/api/v1/image-channels/{name}/{channel}"
	huma.Register(h, huma.Operation{OperationID: "promote-image", Method: http.MethodPut, Path: channel, Summary: "Let a channel lead to a version"}, r.promote)
	huma.Register(h, post("roll-back-image", channel+"/actions/rollback", "Let a channel lead where it led before", http.StatusOK), r.rollback)
	huma.Register(h, huma.Operation{OperationID: "delete-image-channel", Method: http.MethodDelete, Path: channel, Summary: "Delete a channel; the versions stay", DefaultStatus: http.StatusNoContent}, r.deleteChannel)
	const upload = "/api/v1/uploads/{id}"
	huma.Register(h, post("begin-upload", "/api/v1/uploads", "Begin to upload a file", http.StatusCreated), r.beginUpload)
	get(h, "get-upload", upload, "How much of an upload is here", r.getUpload)
	huma.Register(h, huma.Operation{
		OperationID: "append-upload", Method: http.MethodPatch, Path: upload, Summary: "Add a piece at the end of an upload",
		MaxBodyBytes: 2 << 20, // the server's own bound is 1 MiB
		RequestBody:  &huma.RequestBody{Content: map[string]*huma.MediaType{"application/octet-stream": {Schema: &huma.Schema{Type: "string", Format: "binary"}}}},
	}, r.appendUpload)
	huma.Register(h, huma.Operation{OperationID: "end-upload", Method: http.MethodDelete, Path: upload, Summary: "Give an upload up", DefaultStatus: http.StatusNoContent}, r.endUpload)
}

func (r routes) imageTask(ctx context.Context, q ImageTask, o origin) (*body[Task], error) {
	q.By, q.Local = o.By, o.Local
	t, err := r.ImageKeeper.BeginImageTask(ctx, q)
	if err != nil {
		return nil, problem(err)
	}
	return &body[Task]{t}, nil
}

type beginImportInput struct {
	Body ImageSource
	origin
}

func (r routes) beginImport(ctx context.Context, in *beginImportInput) (*body[Task], error) {
	return r.imageTask(ctx, ImageTask{Kind: "import", Import: in.Body}, in.origin)
}

type buildInput struct {
	Body struct {
		Recipe  string `json:"recipe" minLength:"1" maxLength:"524288" doc:"YAML; the contents of its files included"`
		Version string `json:"version,omitempty" doc:"default: the first 12 digits of its digest"`
		Channel string `json:"channel,omitempty" doc:"promote it there when it is built"`
	}
	origin
}

func (r routes) buildImage(ctx context.Context, in *buildInput) (*body[Task], error) {
	return r.imageTask(ctx, ImageTask{Kind: "build", Recipe: in.Body.Recipe, Import: ImageSource{Version: in.Body.Version, Channel: in.Body.Channel}}, in.origin)
}

type collectInput struct {
	Body ImageRetention
	origin
}

func (r routes) collectImages(ctx context.Context, in *collectInput) (*body[Task], error) {
	return r.imageTask(ctx, ImageTask{Kind: "collect", Retention: in.Body}, in.origin)
}

func (r routes) verifyImage(ctx context.Context, in *volumeInput) (*body[Task], error) {
	return r.imageTask(ctx, ImageTask{Kind: "verify", Image: in.Name}, in.origin)
}

type recordTestInput struct {
	Name string `path:"name" doc:"name:version"`
	Body struct {
		Digest  string `json:"digest" doc:"of what was tested"`
		OK      bool   `json:"ok"`
		Way     string `json:"way,omitempty"`
		Machine string `json:"machine,omitempty"`
		Text    string `json:"text"`
	}
	origin
}

func (r routes) recordTest(ctx context.Context, in *recordTestInput) (*body[Image], error) {
	b := in.Body
	img, err := r.ImageKeeper.RecordImageTest(ctx, in.Name, b.Digest, ImageTest{By: in.By, OK: b.OK, Way: b.Way, Machine: b.Machine, Text: b.Text})
	if err != nil {
		return nil, problem(err)
	}
	return &body[Image]{img}, nil
}

type retentionInput struct{ ImageRetention }

func (r routes) previewGarbage(ctx context.Context, in *retentionInput) (*body[ImageGarbage], error) {
	g, err := r.ImageKeeper.ImageGarbage(ctx, in.ImageRetention)
	if err != nil {
		return nil, problem(err)
	}
	return &body[ImageGarbage]{g}, nil
}

type channelsInput struct {
	Name string `query:"name" doc:"of one image only"`
}

func (r routes) channels(ctx context.Context, in *channelsInput) (*body[[]ImageChannel], error) {
	all, err := r.ImageKeeper.Channels(ctx, in.Name)
	if err != nil {
		return nil, problem(err)
	}
	if all == nil {
		all = []ImageChannel{}
	}
	return &body[[]ImageChannel]{all}, nil
}

func (r routes) changeChannel(ctx context.Context, c ChannelChange) (*body[ImageChannel], error) {
	out, err := r.ImageKeeper.ChangeChannel(ctx, c)
	if err != nil {
		return nil, problem(err)
	}
	return &body[ImageChannel]{out}, nil
}

type promoteInput struct {
	Name    string `path:"name"`
	Channel string `path:"channel"`
	origin
	Body struct {
		Version string `json:"version" minLength:"1"`
		Reason  string `json:"reason,omitempty" maxLength:"500"`
	}
}

func (r routes) promote(ctx context.Context, in *promoteInput) (*body[ImageChannel], error) {
	return r.changeChannel(ctx, ChannelChange{Verb: "promote", Name: in.Name, Channel: in.Channel, Version: in.Body.Version, Reason: in.Body.Reason, By: in.By})
}

type rollbackInput struct {
	Name    string `path:"name"`
	Channel string `path:"channel"`
	origin
	Body struct {
		Reason string `json:"reason,omitempty" maxLength:"500"`
	}
}

func (r routes) rollback(ctx context.Context, in *rollbackInput) (*body[ImageChannel], error) {
	return r.changeChannel(ctx, ChannelChange{Verb: "rollback", Name: in.Name, Channel: in.Channel, Reason: in.Body.Reason, By: in.By})
}

type channelInput struct {
	Name    string `path:"name"`
	Channel string `path:"channel"`
	origin
}

func (r routes) deleteChannel(ctx context.Context, in *channelInput) (*struct{}, error) {
	_, err := r.changeChannel(ctx, ChannelChange{Verb: "delete", Name: in.Name, Channel: in.Channel, By: in.By})
	return nil, err
}

func (r routes) upload(ctx context.Context, c UploadChange) (*body[ImageUpload], error) {
	u, err := r.ImageKeeper.Upload(ctx, c)
	if err != nil {
		return nil, problem(err)
	}
	return &body[ImageUpload]{u}, nil
}

type beginUploadInput struct {
	origin
	Body struct {
		SizeBytes int64  `json:"sizeBytes" minimum:"1"`
		SHA256    string `json:"sha256" doc:"that the whole file must have"`
	}
}

func (r routes) beginUpload(ctx context.Context, in *beginUploadInput) (*body[ImageUpload], error) {
	return r.upload(ctx, UploadChange{Verb: "begin", Size: in.Body.SizeBytes, SHA256: in.Body.SHA256, By: in.By})
}

type uploadInput struct {
	ID string `path:"id"`
	origin
}

func (r routes) getUpload(ctx context.Context, in *uploadInput) (*body[ImageUpload], error) {
	return r.upload(ctx, UploadChange{Verb: "show", ID: in.ID})
}

func (r routes) endUpload(ctx context.Context, in *uploadInput) (*struct{}, error) {
	_, err := r.upload(ctx, UploadChange{Verb: "end", ID: in.ID, By: in.By})
	return nil, err
}

type appendInput struct {
	ID      string `path:"id"`
	Offset  int64  `header:"Upload-Offset" required:"true" minimum:"0" doc:"where the piece begins: the end of what is here"`
	RawBody []byte `contentType:"application/octet-stream"`
	origin
}

func (r routes) appendUpload(ctx context.Context, in *appendInput) (*body[ImageUpload], error) {
	return r.upload(ctx, UploadChange{Verb: "append", ID: in.ID, Offset: in.Offset, Data: in.RawBody, By: in.By})
}
