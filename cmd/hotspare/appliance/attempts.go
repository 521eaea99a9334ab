package appliance

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"hotspare"
	"hotspare/bmc"
	"hotspare/boot"
	"hotspare/haengine"
	"hotspare/haengine/agentlink"
)

// attempt is one ordered start of one node under one epoch: what its boot paths
// and its one-time join token are worth.
type attempt struct {
	Node        string         `json:"node"`
	MACs        []boot.MAC     `json:"macs"`
	UUID        string         `json:"uuid,omitempty"`
	App         string         `json:"app"`
	Epoch       haengine.Epoch `json:"epoch"`
	Way         haengine.Way   `json:"way"`
	Image       string         `json:"image"`     // name:version, resolved once
	BootToken   string         `json:"bootToken"` // opens kernel and initramfs; reveals no secret
	Created     time.Time      `json:"created"`
	JoinHash    string         `json:"joinHash,omitempty"` // SHA-256 of the join token, minted when the archive is fetched
	JoinFetched time.Time      `json:"joinFetched,omitzero"`
	Redeemed    time.Time      `json:"redeemed,omitzero"`
	BootID      string         `json:"bootId,omitempty"`
}

// joinLife is how long a join token may be redeemed after it was fetched
// (SAFETY, trust level L1: at most 10 minutes).
const joinLife = 10 * time.Minute

// maxRedeemed hashes of spent tokens are kept to name a second use as one; an
// older token is refused all the same, as unknown.
const maxRedeemed = 4096

// attempts keeps the live attempts in one file (mode 0600, written whole and
// renamed), one per node. The join token itself is never stored: its hash is.
type attempts struct {
	path string
	now  func() time.Time

	mu   sync.Mutex
	live map[string]attempt // by node
	dead []string           // hashes of join tokens that were redeemed, of this process and before, oldest first
}

const attemptsVersion = 1

type attemptsFile struct {
	Version  int       `json:"version"`
	Attempts []attempt `json:"attempts"`
	Redeemed []string  `json:"redeemed,omitempty"` // the last ones, so that a second use is told from a wrong token
}

func openAttempts(path string) (*attempts, error) {
	a := &attempts{path: path, now: time.Now, live: map[string]attempt{}}
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return a, nil
	}
	if err != nil {
		return nil, fmt.Errorf("boot attempts: %w", err)
	}
	var f attemptsFile
	if err := json.Unmarshal(b, &f); err != nil || f.Version != attemptsVersion {
		return nil, &hotspare.Error{
			Code: hotspare.CodeStoreFormat, What: "the record of boot attempts cannot be read", Where: path, Err: err,
			Fix: "move the file away: nodes that are booting now will be started again",
		}
	}
	for _, x := range f.Attempts {
		a.live[x.Node] = x
	}
	a.dead = f.Redeemed
	return a, nil
}

// save writes the file; the caller holds mu.
func (a *attempts) save() error {
	f := attemptsFile{Version: attemptsVersion, Redeemed: a.dead}
	for _, x := range a.live {
		f.Attempts = append(f.Attempts, x)
	}
	slices.SortFunc(f.Attempts, func(x, y attempt) int { return x.Created.Compare(y.Created) })
	b, err := json.Marshal(f)
	if err != nil {
		return fmt.Errorf("boot attempts: %w", err)
	}
	if err := writeFile(a.path, b, 0o600); err != nil {
		return fmt.Errorf("boot attempts: %w", err)
	}
	return nil
}

// begin makes the attempt of a node under an epoch, or gives the one that
// exists. An attempt of a lower epoch is replaced; a higher one refuses.
func (a *attempts) begin(n haengine.Node, b haengine.Boot, image string) (attempt, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if old, ok := a.live[n.Name]; ok && old.App == b.App {
		if old.Epoch == b.Epoch {
			return old, nil
		}
		if old.Epoch > b.Epoch {
			return old, staleBoot(n.Name, b.Epoch, old.Epoch)
		}
	}
	x := attempt{Node: n.Name, UUID: n.UUID, App: b.App, Epoch: b.Epoch, Way: b.Way, Image: image, Created: a.now()}
	for _, m := range n.MACs {
		mac, err := boot.ParseMAC(m)
		if err != nil {
			return x, fmt.Errorf("node %s: %w", n.Name, err)
		}
		x.MACs = append(x.MACs, mac)
	}
	token, err := boot.NewToken(rand.Reader)
	if err != nil {
		return x, err
	}
	x.BootToken = token
	a.live[n.Name] = x
	return x, a.save()
}

func staleBoot(node string, asked, have haengine.Epoch) error {
	return &hotspare.Error{
		Code: hotspare.CodeStaleEpoch, What: "a start of an older epoch was refused", Where: node,
		Why: fmt.Sprintf("epoch %d was asked for, epoch %d is booting", asked, have), Fix: "nothing: a newer grant exists",
	}
}

// end takes back an attempt up to and including the epoch.
func (a *attempts) end(node string, epoch haengine.Epoch) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if old, ok := a.live[node]; !ok || (epoch != 0 && old.Epoch > epoch) {
		return nil
	}
	delete(a.live, node)
	return a.save()
}

// byMAC and byToken find an attempt.
func (a *attempts) byMAC(m boot.MAC) (attempt, bool) {
	return a.find(func(x attempt) bool { return slices.Contains(x.MACs, m) })
}

func (a *attempts) byToken(t string) (attempt, bool) {
	return a.find(func(x attempt) bool { return boot.SameToken(x.BootToken, t) })
}

func (a *attempts) byNode(node string) (attempt, bool) {
	return a.find(func(x attempt) bool { return x.Node == node })
}

func (a *attempts) find(match func(attempt) bool) (attempt, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, x := range a.live {
		if match(x) {
			return x, true
		}
	}
	return attempt{}, false
}

// mint makes the join token of the attempt behind a boot token, once. The hash
// is durable before the token is given away.
func (a *attempts) mint(bootToken string) (attempt, hotspare.Secret, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for node, x := range a.live {
		if !boot.SameToken(x.BootToken, bootToken) {
			continue
		}
		if x.JoinHash != "" {
			return x, hotspare.Secret{}, boot.ErrSpent
		}
		var raw [32]byte
		if _, err := rand.Read(raw[:]); err != nil {
			return x, hotspare.Secret{}, err
		}
		sum := sha256.Sum256(raw[:])
		x.JoinHash, x.JoinFetched = hex.EncodeToString(sum[:]), a.now()
		a.live[node] = x
		return x, hotspare.NewSecret(hex.EncodeToString(raw[:])), a.save()
	}
	return attempt{}, hotspare.Secret{}, &hotspare.Error{
		Code: hotspare.CodeBootToken, What: "the boot token is not known any more", Fix: "power the node on through hotspare",
	}
}

// redeem spends a join token for the machine that the facts describe.
func (a *attempts) redeem(hash [sha256.Size]byte, facts agentlink.Facts) (attempt, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	h := hex.EncodeToString(hash[:])
	for _, x := range a.live {
		if x.JoinHash == h && x.BootID != "" && x.BootID == facts.BootID {
			return x, nil // the same boot asks again: its answer was lost with an earlier process
		}
	}
	if slices.Contains(a.dead, h) {
		return attempt{}, &hotspare.Error{
			Code: hotspare.CodeTokenReused, What: "this join token was used before", Why: "it is for one boot and one use",
			Fix: "power the node on through hotspare; find out who else can read its boot traffic",
		}
	}
	for node, x := range a.live {
		if x.JoinHash != h {
			continue
		}
		if err := x.admits(facts, a.now()); err != nil {
			return x, err
		}
		x.Redeemed, x.BootID = a.now(), facts.BootID
		a.live[node] = x
		a.dead = append(a.dead, h)
		a.dead = a.dead[max(0, len(a.dead)-maxRedeemed):]
		return x, a.save()
	}
	return attempt{}, refuseJoin("the token is not known", "it belongs to a start that was taken back, or to another appliance")
}

// owner gives the node that a join token was minted for, if that start is live.
func (a *attempts) owner(hash [sha256.Size]byte) string {
	h := hex.EncodeToString(hash[:])
	x, _ := a.find(func(x attempt) bool { return x.JoinHash == h })
	return x.Node
}

// admits checks that the machine is the one that was started.
func (x attempt) admits(f agentlink.Facts, now time.Time) error {
	if now.Sub(x.JoinFetched) > joinLife {
		return refuseJoin("the token is too old", fmt.Sprintf("it was fetched %s ago and lives %s", now.Sub(x.JoinFetched).Round(time.Second), joinLife))
	}
	if x.UUID != "" && f.UUID != "" && !bmc.SameUUID(x.UUID, f.UUID) {
		return refuseJoin("the token belongs to another machine", fmt.Sprintf("node %s has the UUID %s, this machine %s", x.Node, x.UUID, f.UUID))
	}
	for _, m := range f.MACs {
		if mac, err := boot.ParseMAC(m); err == nil && slices.Contains(x.MACs, mac) {
			return nil
		}
	}
	return refuseJoin("the token belongs to another machine", fmt.Sprintf("none of its MAC addresses %v is one of node %s", f.MACs, x.Node))
}

func refuseJoin(what, why string) error {
	return &hotspare.Error{Code: hotspare.CodeJoinRefused, What: what, Why: why, Fix: "power the node on through hotspare: each boot gets a token of its own"}
}

// writeFile replaces a file so that a crash leaves the old or the new contents.
func writeFile(path string, b []byte, mode fs.FileMode) error {
	dir := filepath.Dir(path)
	tmp, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name()) // gone after the rename
	if err := errors.Join(tmp.Chmod(mode), write(tmp, b), tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	if err := os.Rename(tmp.Name(), path); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func write(f *os.File, b []byte) error {
	_, err := f.Write(b)
	return err
}
