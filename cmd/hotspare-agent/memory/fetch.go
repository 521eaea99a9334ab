package memory

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"hotspare"
	"hotspare/haengine/agentlink"
)

// An artefact is asked for again while the connection breaks, as long as an appliance
// takes to start anew, counted from the last byte that came.
const (
	fetchPatience = time.Minute
	retryPause    = 250 * time.Millisecond
)

// fetch gives an artefact as a read-only file in memory.
func (s *Store) fetch(ctx context.Context, a agentlink.Artefact) (*os.File, error) {
	fd, err := unix.MemfdCreate("hotspare-artefact", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("memory for an artefact: %w", err)
	}
	w := os.NewFile(uintptr(fd), "artefact")
	defer w.Close()
	sum := sha256.New()
	var at int64
	for last := time.Now(); at < a.Bytes; {
		n, err := part(ctx, s.client, a, at, io.MultiWriter(w, sum))
		if at += n; n > 0 {
			last = time.Now()
		}
		if err == nil {
			continue
		}
		var refused *statusError
		if ctx.Err() != nil || errors.As(err, &refused) || time.Since(last) > s.patience {
			return nil, broken(a, fmt.Sprintf("after %d of %d bytes", at, a.Bytes), err)
		}
		select {
		case <-time.After(retryPause):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != a.SHA256 {
		return nil, broken(a, "it has the SHA-256 "+got+" instead of "+a.SHA256, nil)
	}
	return readOnly(w)
}

// readOnly opens a file in memory again: the kernel executes nothing that
// somebody may still write.
func readOnly(f *os.File) (*os.File, error) {
	return os.Open("/proc/self/fd/" + strconv.Itoa(int(f.Fd())))
}

func broken(a agentlink.Artefact, why string, err error) error {
	return &hotspare.Error{Code: hotspare.CodeContents, What: "the artefact did not arrive whole", Where: name(a), Why: why, Err: err}
}

// name says what is fetched and of whom: the last part of its address and the host.
// What is between them holds the boot token, which no error shows.
func name(a agentlink.Artefact) string {
	_, rest, _ := strings.Cut(a.URL, "://")
	host, file, _ := strings.Cut(rest, "/")
	file = file[strings.LastIndexByte(file, '/')+1:]
	if file == "" || len(file) > 24 { // as long as a token
		file = "an artefact"
	}
	return fmt.Sprintf("%s of %s", strings.Trim(strconv.Quote(file), `"`), strings.Trim(strconv.Quote(host), `"`))
}

// bare is an error of net/http or net/url without the address that it names.
func bare(err error) error {
	for {
		var at *url.Error
		if !errors.As(err, &at) {
			return err
		}
		err = at.Err
	}
}

// statusError is an answer that another try does not better.
type statusError struct{ status string }

func (e *statusError) Error() string { return "the server answers " + e.status }

// part copies what follows the offset at, and no more than is missing.
func part(ctx context.Context, client *http.Client, a agentlink.Artefact, at int64, to io.Writer) (int64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, a.URL, nil)
	if err != nil {
		return 0, bare(err)
	}
	want := http.StatusOK
	if at > 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", at))
		want = http.StatusPartialContent
	}
	res, err := client.Do(req)
	if err != nil {
		return 0, bare(err)
	}
	defer res.Body.Close()
	if res.StatusCode != want {
		if res.StatusCode >= 500 {
			return 0, errors.New("the server answers " + res.Status)
		}
		return 0, &statusError{res.Status}
	}
	n, err := io.Copy(to, io.LimitReader(res.Body, a.Bytes-at))
	if err == nil && at+n < a.Bytes {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// Concat gives a read-only file in memory with the contents of a file of size
// bytes and what follows.
func Concat(head *os.File, size int64, tail []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate("hotspare-initrd", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	w := os.NewFile(uintptr(fd), "initrd")
	defer w.Close()
	if _, err := io.Copy(w, io.NewSectionReader(head, 0, size)); err != nil {
		return nil, err
	}
	if _, err := w.Write(tail); err != nil {
		return nil, err
	}
	return readOnly(w)
}
