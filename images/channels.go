package images

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"hotspare"
)

const (
	channelVersion = 1
	maxHistory     = 100 // promotions that a channel remembers
)

// Channel is a name that leads to a version of an image: applications name
// "orders:stable" and get what was promoted last. A channel and a version of one
// image never have the same name.
type Channel struct {
	Name    string      `json:"name"`    // of the image
	Channel string      `json:"channel"` // e.g. stable
	Version string      `json:"version"` // where it leads now
	History []Promotion `json:"history"` // oldest first; the last one is where it leads
}

// Promotion is one change of a channel.
type Promotion struct {
	Version string    `json:"version"`
	At      time.Time `json:"at"`
	By      string    `json:"by"`
	Reason  string    `json:"reason,omitempty"`
	Back    bool      `json:"back,omitempty"` // it was a roll back
}

// Ref gives "name:channel".
func (c Channel) Ref() string { return c.Name + ":" + c.Channel }

// Previous gives the version that a roll back leads to, "" if there is none: the
// one before the one that it leads to now, with everything forgotten that was
// rolled back since.
func (c Channel) Previous() string {
	var path []string
	for _, p := range c.History {
		if p.Back && len(path) > 0 {
			path = path[:len(path)-1]
		}
		if len(path) == 0 || path[len(path)-1] != p.Version {
			path = append(path, p.Version)
		}
	}
	if len(path) < 2 {
		return ""
	}
	return path[len(path)-2]
}

// Channel gives one channel.
func (r *Repository) Channel(name, channel string) (Channel, error) {
	r.mu.RLock()
	c, ok := r.channels[name+":"+channel]
	r.mu.RUnlock()
	if !ok {
		return Channel{}, &hotspare.Error{Code: hotspare.CodeNotFound, What: "no such channel", Where: name + ":" + channel,
			Fix: "make it: hotspare image promote " + name + ":VERSION " + channel}
	}
	return c, nil
}

// Channels gives the channels of an image, or of all when name is empty, sorted.
func (r *Repository) Channels(name string) []Channel {
	r.mu.RLock()
	defer r.mu.RUnlock()
	var all []Channel
	for _, c := range r.channels {
		if name == "" || c.Name == name {
			all = append(all, c)
		}
	}
	slices.SortFunc(all, func(a, b Channel) int { return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Channel, b.Channel)) })
	return all
}

// Promote lets a channel lead to a version, and makes the channel if there is
// none.
func (r *Repository) Promote(ctx context.Context, name, version, channel, by, reason string) (Channel, error) {
	leave, err := r.enter(ctx)
	if err != nil {
		return Channel{}, err
	}
	defer leave()
	if !nameGrammar.MatchString(channel) {
		return Channel{}, &hotspare.Error{Code: hotspare.CodeInvalid, What: "a channel cannot have that name", Where: channel, Fix: "take 1-63 of a-z, 0-9, dot, dash, underscore"}
	}
	if _, err := r.Get(name, version); err != nil {
		return Channel{}, err
	}
	if _, err := r.Get(name, channel); err == nil {
		return Channel{}, &hotspare.Error{Code: hotspare.CodeInvalid, What: "a channel cannot have that name", Where: name + ":" + channel, Why: "a version has it", Fix: "take another name"}
	}
	c, err := r.Channel(name, channel)
	if err != nil {
		c = Channel{Name: name, Channel: channel}
	}
	if c.Version == version {
		return c, nil
	}
	return r.lead(c, Promotion{Version: version, At: r.opts.Now().UTC(), By: by, Reason: reason})
}

// Rollback lets a channel lead where it led before, and again, step by step.
func (r *Repository) Rollback(ctx context.Context, name, channel, by, reason string) (Channel, error) {
	leave, err := r.enter(ctx)
	if err != nil {
		return Channel{}, err
	}
	defer leave()
	c, err := r.Channel(name, channel)
	if err != nil {
		return Channel{}, err
	}
	to := c.Previous()
	if to == "" {
		return Channel{}, &hotspare.Error{Code: hotspare.CodeConflict, What: "there is nothing to roll back to", Where: c.Ref(), Why: "it never led elsewhere", Fix: "promote the wanted version"}
	}
	if _, err := r.Get(name, to); err != nil {
		return Channel{}, &hotspare.Error{Code: hotspare.CodeConflict, What: "the version to roll back to is gone", Where: name + ":" + to, Why: "it was deleted", Fix: "import it again, or promote another version"}
	}
	return r.lead(c, Promotion{Version: to, At: r.opts.Now().UTC(), By: by, Reason: reason, Back: true})
}

func (r *Repository) lead(c Channel, p Promotion) (Channel, error) {
	c.Version = p.Version
	c.History = append(slices.Clone(c.History), p)
	if over := len(c.History) - maxHistory; over > 0 {
		c.History = c.History[over:]
	}
	b, err := encodeChannel(c)
	if err != nil {
		return Channel{}, err
	}
	if err := writeDurably(r.channelPath(c), b); err != nil {
		return Channel{}, diskError("write the channel", err)
	}
	r.mu.Lock()
	r.channels[c.Ref()] = c
	r.mu.Unlock()
	r.opts.Log.Info("channel leads elsewhere", "channel", c.Ref(), "version", c.Version, "by", p.By, "back", p.Back)
	return c, nil
}

// DeleteChannel removes a channel; the versions stay.
func (r *Repository) DeleteChannel(ctx context.Context, name, channel string) error {
	leave, err := r.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	c, err := r.Channel(name, channel)
	if err != nil {
		return err
	}
	path := r.channelPath(c)
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("images: remove the channel: %w", err)
	}
	if err := syncDir(filepath.Dir(path)); err != nil {
		return err
	}
	r.mu.Lock()
	delete(r.channels, c.Ref())
	r.mu.Unlock()
	return nil
}

func (r *Repository) channelPath(c Channel) string {
	return filepath.Join(r.dir, "channels", c.Name+"@"+c.Channel+".json")
}

// channelRecord is the durable form of a channel; sha256 covers the bytes of
// channel.
type channelRecord struct {
	Version int             `json:"version"`
	Channel json.RawMessage `json:"channel"`
	SHA256  string          `json:"sha256"`
}

func encodeChannel(c Channel) ([]byte, error) {
	body, err := json.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("images: encode the channel: %w", err)
	}
	sum := sha256.Sum256(body)
	return json.Marshal(channelRecord{channelVersion, body, hex.EncodeToString(sum[:])})
}

func decodeChannel(b []byte) (Channel, error) {
	var rec channelRecord
	if err := json.Unmarshal(b, &rec); err != nil {
		return Channel{}, err
	}
	if rec.Version != channelVersion {
		return Channel{}, &hotspare.Error{Code: hotspare.CodeStoreFormat, What: "the channel's file is of another version",
			Why: fmt.Sprintf("version %d, this program knows %d", rec.Version, channelVersion), Fix: "use the hotspare that wrote it, or promote again"}
	}
	if sum := sha256.Sum256(rec.Channel); hex.EncodeToString(sum[:]) != rec.SHA256 {
		return Channel{}, errors.New("its checksum differs")
	}
	var c Channel
	if err := json.Unmarshal(rec.Channel, &c); err != nil {
		return Channel{}, err
	}
	if !nameGrammar.MatchString(c.Name) || !nameGrammar.MatchString(c.Channel) || !versionGrammar.MatchString(c.Version) {
		return Channel{}, errors.New("a field has an impossible value")
	}
	return c, nil
}

// loadChannels reads all channels. One that cannot be read is a problem, as a
// record is: what it leads to is not known, so nothing is removed.
func (r *Repository) loadChannels() error {
	dir := filepath.Join(r.dir, "channels")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("images: read the channels: %w", err)
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if strings.HasPrefix(e.Name(), ".") { // a write that did not finish
			if err := os.Remove(path); err != nil {
				return fmt.Errorf("images: %w", err)
			}
			continue
		}
		b, err := os.ReadFile(path)
		var c Channel
		if err == nil {
			c, err = decodeChannel(b)
		}
		if err == nil && filepath.Base(r.channelPath(c)) != e.Name() {
			err = fmt.Errorf("it is of %s", c.Ref())
		}
		if err != nil {
			err = &hotspare.Error{Code: hotspare.CodeCorrupt, What: "a channel cannot be read", Where: path, Fix: "restore the file from a backup, or remove it and promote again", Err: err}
			r.opts.Log.Error("channel set aside", "err", err)
			r.broken = append(r.broken, err)
			continue
		}
		r.channels[c.Ref()] = c
	}
	return nil
}
