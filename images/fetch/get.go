package fetch

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"hotspare"
)

// Progress hears how much of a file is here; total is 0 when it is not known.
type Progress func(done, total int64)

const stateVersion = 1

// state is what a later try needs to know of an earlier one.
type state struct {
	Version   int    `json:"version"`
	URL       string `json:"url"`
	Validator string `json:"validator"` // strong ETag or Last-Modified; "": begin anew
	Total     int64  `json:"total"`
}

// Get downloads a URL into dir, as the file "data", and gives its path. What an
// earlier Get of the same URL left in dir is gone on with. The folder belongs to
// one download at a time.
func (f *Fetcher) Get(ctx context.Context, from, dir string, tell Progress) (string, error) {
	u, err := url.Parse(from)
	if err != nil {
		return "", &hotspare.Error{Code: hotspare.CodeInvalid, What: "the URL cannot be read", Fix: "write http://HOST/PATH or https://HOST/PATH", Err: errors.New("not a URL")}
	}
	if err := f.check(u); err != nil {
		return "", err
	}
	d := &download{f: f, u: u, dir: dir, tell: tell, limit: f.opts.MaxBytes}
	if c, ok := f.opts.Credentials[u.Host]; ok {
		d.authorize = func(r *http.Request) { r.SetBasicAuth(c.User, c.Password.Reveal()) }
	}
	return d.run(ctx)
}

type download struct {
	f         *Fetcher
	u         *url.URL
	dir       string
	tell      Progress
	limit     int64
	authorize func(*http.Request)
	state     state
	most      int64 // bytes that were here at any time: more is progress
}

func (d *download) data() string { return filepath.Join(d.dir, "data") }

// run tries until the file is here, with pauses that grow while nothing comes.
func (d *download) run(ctx context.Context) (string, error) {
	if d.tell == nil {
		d.tell = func(int64, int64) {}
	}
	ctx, cancel := context.WithTimeoutCause(ctx, d.f.opts.Timeout, fmt.Errorf("it took longer than %s", d.f.opts.Timeout))
	defer cancel()
	d.load()
	pause := d.f.opts.Wait
	for try := 1; ; try++ {
		got, err := d.once(ctx)
		if err == nil {
			return d.data(), nil
		}
		if ctx.Err() != nil {
			if errors.Is(ctx.Err(), context.Canceled) {
				return "", ctx.Err()
			}
			return "", failed(shown(d.u), context.Cause(ctx).Error(), nil)
		}
		if lasting(err) {
			return "", err
		}
		if got {
			try, pause = 1, d.f.opts.Wait
		}
		if try >= d.f.opts.Tries {
			return "", failed(shown(d.u), fmt.Sprintf("%d tries in a row brought nothing", try), clean(err))
		}
		d.f.opts.Log.Warn("a download is interrupted and goes on", "url", shown(d.u), "err", clean(err))
		t := time.NewTimer(pause)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
		}
		pause = min(2*pause, 30*time.Second)
	}
}

// clean takes the URL out of an error: its query may hold a secret.
func clean(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}

func (d *download) load() {
	b, err := os.ReadFile(filepath.Join(d.dir, "state.json"))
	if err == nil {
		err = json.Unmarshal(b, &d.state)
	}
	if err != nil || d.state.Version != stateVersion || d.state.URL != d.u.String() {
		d.state = state{}
	}
}

func (d *download) save() error {
	b, err := json.Marshal(d.state)
	if err != nil {
		return err
	}
	tmp := filepath.Join(d.dir, ".state")
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return diskError(err)
	}
	return diskError(os.Rename(tmp, filepath.Join(d.dir, "state.json")))
}

// once asks for what is missing. got says that something came.
func (d *download) once(ctx context.Context) (got bool, err error) {
	file, err := os.OpenFile(d.data(), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return false, diskError(err)
	}
	defer file.Close()
	off, err := d.begin(file)
	if err != nil {
		return false, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, d.u.String(), nil)
	if err != nil {
		return false, err
	}
	req.Header.Set("User-Agent", "hotspare")
	req.Header.Set("Accept-Encoding", "identity")
	if off > 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", off))
		req.Header.Set("If-Range", d.state.Validator)
	}
	if d.authorize != nil {
		d.authorize(req)
	}
	resp, err := d.f.http.Do(req)
	if err != nil {
		return false, unwrapRefusal(err)
	}
	defer resp.Body.Close()
	if off, err = d.answer(resp, file, off); err != nil {
		return false, err
	}
	if off < 0 { // all of it is here
		return true, nil
	}
	return d.read(file, resp, off, cancel)
}

// begin gives the place to go on at: 0 unless the source can be asked whether it
// still has the same file.
func (d *download) begin(file *os.File) (int64, error) {
	info, err := file.Stat()
	if err != nil {
		return 0, err
	}
	off := info.Size()
	if off > 0 && d.state.Validator == "" {
		return 0, diskError(file.Truncate(0))
	}
	return off, nil
}

// answer checks status and headers. It gives the place that the body begins at,
// -1 when nothing is missing.
func (d *download) answer(resp *http.Response, file *os.File, off int64) (int64, error) {
	switch {
	case resp.StatusCode == http.StatusPartialContent && off > 0:
		start, total, ok := contentRange(resp.Header.Get("Content-Range"))
		if !ok || start != off {
			d.state = state{}
			return 0, errors.Join(fmt.Errorf("the source answered with the range %q", resp.Header.Get("Content-Range")), file.Truncate(0))
		}
		d.state.Total = total
	case resp.StatusCode == http.StatusRequestedRangeNotSatisfiable && off > 0:
		if d.state.Total == off {
			return -1, nil
		}
		d.state = state{}
		return 0, errors.Join(errors.New("the source has another file now"), file.Truncate(0))
	case resp.StatusCode == http.StatusOK:
		off = 0
		if err := file.Truncate(0); err != nil {
			return 0, diskError(err)
		}
		d.state = state{Version: stateVersion, URL: d.u.String(), Validator: validator(resp.Header), Total: max(0, resp.ContentLength)}
		if err := d.save(); err != nil {
			return 0, err
		}
	case resp.StatusCode >= 500 || resp.StatusCode == http.StatusTooManyRequests || resp.StatusCode == http.StatusRequestTimeout:
		return 0, fmt.Errorf("the source answered %s", resp.Status)
	default:
		return 0, failed(shown(d.u), "the source answered "+resp.Status, nil)
	}
	if d.state.Total > d.limit {
		return 0, d.tooLarge(d.state.Total)
	}
	return off, nil
}

func (d *download) tooLarge(n int64) error {
	return &hotspare.Error{Code: hotspare.CodeImageFetch, What: "the file is too large", Where: shown(d.u), Why: fmt.Sprintf("%d bytes; %d are allowed", n, d.limit), Fix: "check the URL, or raise images.maxDiskBytes"}
}

// validator gives what If-Range takes: a strong ETag, or the time of the last
// change.
func validator(h http.Header) string {
	if h.Get("Accept-Ranges") == "none" {
		return ""
	}
	if e := h.Get("ETag"); e != "" && !strings.HasPrefix(e, "W/") {
		return e
	}
	return h.Get("Last-Modified")
}

func contentRange(s string) (start, total int64, ok bool) {
	s, ok = strings.CutPrefix(s, "bytes ")
	span, of, ok2 := strings.Cut(s, "/")
	from, _, ok3 := strings.Cut(span, "-")
	start, err := strconv.ParseInt(from, 10, 64)
	if !ok || !ok2 || !ok3 || err != nil || start < 0 {
		return 0, 0, false
	}
	if of == "*" {
		return start, 0, true
	}
	total, err = strconv.ParseInt(of, 10, 64)
	return start, total, err == nil && total > start
}

// read writes the body, as long as something comes.
func (d *download) read(file *os.File, resp *http.Response, off int64, cancel context.CancelCauseFunc) (got bool, err error) {
	idle := time.AfterFunc(d.f.opts.Idle, func() { cancel(fmt.Errorf("nothing came for %s", d.f.opts.Idle)) })
	defer idle.Stop()
	buf := make([]byte, 256<<10)
	d.tell(off, d.state.Total)
	for {
		n, rerr := resp.Body.Read(buf)
		if n > 0 {
			idle.Reset(d.f.opts.Idle)
			if off+int64(n) > d.limit {
				return true, d.tooLarge(off + int64(n))
			}
			if _, err := file.WriteAt(buf[:n], off); err != nil {
				return got, diskError(err)
			}
			off += int64(n)
			got, d.most = got || off > d.most, max(off, d.most)
			d.tell(off, d.state.Total)
		}
		switch {
		case rerr == nil:
		case errors.Is(rerr, io.EOF):
			if d.state.Total > 0 && off != d.state.Total {
				return got, fmt.Errorf("the source ended after %d of %d bytes", off, d.state.Total)
			}
			return true, diskError(file.Sync())
		default:
			return got, rerr
		}
	}
}

// unwrapRefusal finds our own refusal in what net/http and net made of it.
func unwrapRefusal(err error) error {
	var mine *hotspare.Error
	if errors.As(err, &mine) {
		return mine
	}
	return err
}

func diskError(err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return &hotspare.Error{Code: hotspare.CodeDiskFull, What: "the disk is full", Where: "store the download", Fix: "free space or delete images that are not used, then import again", Err: err}
	}
	return &hotspare.Error{Code: hotspare.CodeImageFetch, What: "the download cannot be stored", Fix: "look at the disk of the state folder", Err: err}
}
