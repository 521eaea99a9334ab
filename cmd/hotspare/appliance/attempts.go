package appliance

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
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

// attempt is one ordered boot of one node, for a grant under its epoch or into
// standby in a turn: what its boot paths and its one-time join token are worth.
type attempt struct {
	Mode        attemptMode    `json:"mode,omitempty"`
	Node        string         `json:"node"`
	MACs        []boot.MAC     `json:"macs"`
	UUID        string         `json:"uuid,omitempty"`
	App         string         `json:"app"`
	Epoch       haengine.Epoch `json:"epoch"`
	Turn        haengine.Turn  `json:"turn,omitempty"` // of a boot into standby
	Way         haengine.Way   `json:"way"`
	Image       string         `json:"image"`     // name:version, resolved once; hostImage and a release: the kernel of the appliance's host
	BootToken   string         `json:"bootToken"` // opens kernel and initramfs; reveals no secret
	Created     time.Time      `json:"created"`
	From        string         `json:"from,omitempty"`     // the parked boot that executes the kernel: nothing is booted from the network
	Kernel      string         `json:"kernel,omitempty"`   // of a boot into standby: the identity of what it runs
	JoinHash    string         `json:"joinHash,omitempty"` // SHA-256 of the join token, minted when the archive is fetched
	Earlier     string         `json:"earlier,omitempty"`  // likewise, of an order that an earlier process gave: whichever comes first is the one use
	JoinFetched time.Time      `json:"joinFetched,omitzero"`
	Redeemed    time.Time      `json:"redeemed,omitzero"`
	BootID      string         `json:"bootId,omitempty"`
}

// attemptMode says what a boot is for.
type attemptMode string

const (
	forGrant   attemptMode = ""        // it carries an application
	forStandby attemptMode = "standby" // it waits for a claim
	forPreload attemptMode = "preload" // no boot: a parked node reads kernel and initramfs
	forInstall attemptMode = "install" // no boot: a node reads the contents of a disk
	forRoot    attemptMode = "root"    // no boot: a node reads a root that runs from memory
)

// purpose says what a boot is for, for people.
func (x attempt) purpose() string {
	switch x.Mode {
	case forStandby:
		return "it waits in standby on the kernel of " + x.Image
	case forPreload:
		return "it keeps " + x.Image + " ready"
	case forInstall:
		return "it installs " + x.Image + " on its disk"
	case forRoot:
		return "it runs " + x.Image + " from memory"
	}
	return fmt.Sprintf("it becomes %s under epoch %d (%s)", x.App, x.Epoch, x.Way)
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

	mu      sync.Mutex
	live    map[string]attempt         // by node
	loads   map[string]attempt         // by token, of preloads, which a restart of the appliance forgets, and of installations, which go on over one
	secrets map[string]hotspare.Secret // by boot token: join secrets that go over the link, for a second try of the order
	dead    []string                   // hashes of join tokens that were redeemed, of this process and before, oldest first
}

const attemptsVersion = 1

type attemptsFile struct {
	Version  int       `json:"version"`
	Attempts []attempt `json:"attempts"`
	Installs []attempt `json:"installs,omitempty"`
	Redeemed []string  `json:"redeemed,omitempty"` // the last ones, so that a second use is told from a wrong token
}

func openAttempts(path string) (*attempts, error) {
	a := &attempts{path: path, now: time.Now, live: map[string]attempt{}, loads: map[string]attempt{}, secrets: map[string]hotspare.Secret{}}
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
	for _, x := range f.Installs {
		a.loads[x.BootToken] = x
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
	for _, x := range a.loads {
		if x.Mode != forPreload {
			f.Installs = append(f.Installs, x)
		}
	}
	oldest := func(x, y attempt) int { return x.Created.Compare(y.Created) }
	slices.SortFunc(f.Attempts, oldest)
	slices.SortFunc(f.Installs, oldest)
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
	x, err := newAttempt(n, image, a.now())
	if err != nil {
		return x, err
	}
	x.App, x.Epoch, x.Way, x.From = b.App, b.Epoch, b.Way, b.BootID
	return x, a.keep(x)
}

// park makes the attempt of a node's boot into standby, or gives the one that
// exists. An earlier turn is refused, and so is a node that boots for a grant.
func (a *attempts) park(n haengine.Node, turn haengine.Turn, image, kernel string) (attempt, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if old, ok := a.live[n.Name]; ok {
		switch {
		case old.Mode != forStandby:
			return old, &hotspare.Error{
				Code: hotspare.CodeStaleEpoch, What: "a boot into standby was refused", Where: n.Name,
				Why: fmt.Sprintf("it boots for %s under epoch %d", old.App, old.Epoch), Fix: "nothing: it is parked again when it is free",
			}
		case old.Turn == turn:
			return old, nil
		case old.Turn > turn:
			return old, &hotspare.Error{
				Code: hotspare.CodeStaleEpoch, What: "an older order to park was refused", Where: n.Name,
				Why: fmt.Sprintf("turn %d was asked for, turn %d is under way", turn, old.Turn), Fix: "nothing: a newer order exists",
			}
		}
	}
	x, err := newAttempt(n, image, a.now())
	if err != nil {
		return x, err
	}
	x.Mode, x.Turn, x.Kernel = forStandby, turn, kernel
	return x, a.keep(x)
}

// load gives a token with which a parked node may read the kernel and the
// initramfs of an image, and nothing else.
func (a *attempts) load(n haengine.Node, image string) (attempt, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for token, x := range a.loads {
		if x.Mode == forPreload && a.now().Sub(x.Created) > joinLife {
			delete(a.loads, token)
		}
	}
	for _, x := range a.loads {
		if x.Mode == forPreload && x.Node == n.Name && x.Image == image {
			return x, nil
		}
	}
	x, err := newAttempt(n, image, a.now())
	if err != nil {
		return x, err
	}
	x.Mode = forPreload
	a.loads[x.BootToken] = x
	return x, nil
}

// streams gives a token with which a node may read the contents of an image's disk, or
// a root that runs from memory, and nothing else, until streamed or until it is about
// another image. It is durable: an installation and a claim outlive the appliance's
// process.
func (a *attempts) streams(mode attemptMode, n haengine.Node, image string) (attempt, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for token, x := range a.loads {
		switch {
		case x.Mode != mode || x.Node != n.Name:
		case x.Image == image:
			return x, nil
		default:
			delete(a.loads, token) // a node installs one image at a time
		}
	}
	x, err := newAttempt(n, image, a.now())
	if err != nil {
		return x, err
	}
	x.Mode = mode
	return x, a.change(func() { a.loads[x.BootToken] = x })
}

// streamed ends the token of an installation.
func (a *attempts) streamed(token string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.change(func() { delete(a.loads, token) })
}

// endRoot ends the token of a root that runs from memory.
func (a *attempts) endRoot(node string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.change(func() {
		maps.DeleteFunc(a.loads, func(_ string, x attempt) bool { return x.Mode == forRoot && x.Node == node })
	})
}

// keep makes x the node's attempt, durably; the caller holds mu.
func (a *attempts) keep(x attempt) error {
	old := a.live[x.Node].BootToken
	err := a.change(func() { a.live[x.Node] = x })
	if err == nil && old != x.BootToken {
		delete(a.secrets, old)
	}
	return err
}

// change does what is to be durable: when it cannot be saved, it is taken back, so
// that a second try does not find it as if it were. The caller holds mu.
func (a *attempts) change(do func()) error {
	live, loads, dead := maps.Clone(a.live), maps.Clone(a.loads), slices.Clone(a.dead)
	do()
	err := a.save()
	if err != nil {
		a.live, a.loads, a.dead = live, loads, dead
	}
	return err
}

// only keeps the attempts of nodes that exist.
func (a *attempts) only(exists func(node string) bool) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.change(func() {
		maps.DeleteFunc(a.live, func(node string, _ attempt) bool { return !exists(node) })
		maps.DeleteFunc(a.loads, func(_ string, x attempt) bool { return !exists(x.Node) })
	})
}

// forget drops what is left of a node that is gone.
func (a *attempts) forget(node string) error {
	a.mu.Lock()
	maps.DeleteFunc(a.loads, func(_ string, x attempt) bool { return x.Node == node })
	a.mu.Unlock()
	return a.drop(node, func(attempt) bool { return true })
}

func newAttempt(n haengine.Node, image string, now time.Time) (attempt, error) {
	x := attempt{Node: n.Name, UUID: n.UUID, Image: image, Created: now}
	for _, m := range n.MACs {
		mac, err := boot.ParseMAC(m)
		if err != nil {
			return x, fmt.Errorf("node %s: %w", n.Name, err)
		}
		x.MACs = append(x.MACs, mac)
	}
	var err error
	x.BootToken, err = boot.NewToken(rand.Reader)
	return x, err
}

func staleBoot(node string, asked, have haengine.Epoch) error {
	return &hotspare.Error{
		Code: hotspare.CodeStaleEpoch, What: "a start of an older epoch was refused", Where: node,
		Why: fmt.Sprintf("epoch %d was asked for, epoch %d is booting", asked, have), Fix: "nothing: a newer grant exists",
	}
}

// end takes back the attempt for a grant of an application up to and including the
// epoch; epochs of two applications say nothing about each other. A boot into
// standby has no epoch: only endTurn takes it back.
func (a *attempts) end(node, app string, epoch haengine.Epoch) error {
	return a.drop(node, func(x attempt) bool { return x.Mode == forGrant && x.App == app && x.Epoch <= epoch })
}

// endGrants takes back whatever grant the node boots for: it is free.
func (a *attempts) endGrants(node string) error {
	return a.drop(node, func(x attempt) bool { return x.Mode == forGrant })
}

// endTurn takes back a boot into standby up to and including the turn.
func (a *attempts) endTurn(node string, turn haengine.Turn) error {
	return a.drop(node, func(x attempt) bool { return x.Mode == forStandby && x.Turn <= turn })
}

func (a *attempts) drop(node string, over func(attempt) bool) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	x, ok := a.live[node]
	if !ok || !over(x) {
		return nil
	}
	err := a.change(func() { delete(a.live, node) })
	if err == nil {
		delete(a.secrets, x.BootToken)
	}
	return err
}

// byMAC and byToken find an attempt.
func (a *attempts) byMAC(m boot.MAC) (attempt, bool) {
	return a.find(func(x attempt) bool { return slices.Contains(x.MACs, m) })
}

func (a *attempts) byToken(t string) (attempt, bool) {
	same := func(x attempt) bool { return boot.SameToken(x.BootToken, t) }
	if x, ok := a.find(same); ok {
		return x, true
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, x := range a.loads {
		if same(x) {
			return x, true
		}
	}
	return attempt{}, false
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
		secret, err := a.draw(node, x)
		return x, secret, err
	}
	return attempt{}, hotspare.Secret{}, &hotspare.Error{
		Code: hotspare.CodeBootToken, What: "the boot token is not known any more", Fix: "power the node on through hotspare",
	}
}

// inLink gives the join token of an attempt whose archive goes over the agent's
// link: the same again for a second try of the order. The hash is durable before
// the token is given away.
func (a *attempts) inLink(x attempt) (hotspare.Secret, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if s, ok := a.secrets[x.BootToken]; ok {
		return s, nil
	}
	now, ok := a.live[x.Node]
	if !ok || now.BootToken != x.BootToken {
		return hotspare.Secret{}, staleBoot(x.Node, x.Epoch, now.Epoch)
	}
	now.Earlier = now.JoinHash // of an order that the node may have carried out: it is still awaited
	s, err := a.draw(x.Node, now)
	if err == nil {
		a.secrets[x.BootToken] = s
	}
	return s, err
}

// draw makes a join token for the node's attempt; the caller holds mu.
func (a *attempts) draw(node string, x attempt) (hotspare.Secret, error) {
	var raw [32]byte
	if _, err := rand.Read(raw[:]); err != nil {
		return hotspare.Secret{}, err
	}
	sum := sha256.Sum256(raw[:])
	x.JoinHash, x.JoinFetched = hex.EncodeToString(sum[:]), a.now()
	if err := a.change(func() { a.live[node] = x }); err != nil {
		return hotspare.Secret{}, err
	}
	return hotspare.NewSecret(hex.EncodeToString(raw[:])), nil
}

// redeem spends a join token for the machine that the facts describe.
func (a *attempts) redeem(hash [sha256.Size]byte, facts agentlink.Facts, approved func(node string) bool) (attempt, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	h := hex.EncodeToString(hash[:])
	for _, x := range a.live {
		if x.has(h) && x.BootID != "" && x.BootID == facts.BootID {
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
		if !x.has(h) {
			continue
		}
		if err := x.admits(facts, a.now()); err != nil {
			return x, err
		}
		if !approved(node) {
			return x, refuseJoin("the node is not approved", "it was deleted, or its approval was taken back, since its boot was ordered")
		}
		x.Redeemed, x.BootID = a.now(), facts.BootID
		return x, a.change(func() {
			a.live[node] = x
			a.dead = append(a.dead, x.JoinHash)
			if x.Earlier != "" {
				a.dead = append(a.dead, x.Earlier)
			}
			a.dead = a.dead[max(0, len(a.dead)-maxRedeemed):]
		})
	}
	return attempt{}, refuseJoin("the token is not known", "it belongs to a start that was taken back, or to another appliance")
}

// owner gives the node that a join token was minted for, if that start is live.
func (a *attempts) owner(hash [sha256.Size]byte) string {
	h := hex.EncodeToString(hash[:])
	x, _ := a.find(func(x attempt) bool { return x.has(h) })
	return x.Node
}

// has says whether a token's hash is one of the attempt's.
func (x attempt) has(hash string) bool {
	return hash != "" && (x.JoinHash == hash || x.Earlier == hash)
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
