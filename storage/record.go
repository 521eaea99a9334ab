package storage

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"slices"

	"go.etcd.io/bbolt"

	"hotspare"
)

// formatVersion is the version of the bbolt file: bucket "meta" holds "version"
// and "install"; bucket "volumes" holds, per volume name, a JSON record behind
// its CRC32C (4 bytes, big-endian).
const formatVersion = "1"

var (
	metaBucket    = []byte("meta")
	volumesBucket = []byte("volumes")
	crcTable      = crc32.MakeTable(crc32.Castagnoli)
)

// record is the durable state of one volume.
type record struct {
	Epoch uint64       `json:"epoch"`
	Grant *grantRecord `json:"grant,omitempty"`
	// Spent are the initiator names of revoked grants, newest last: none of
	// them is ever granted again.
	Spent []string `json:"spent,omitempty"`
	// Kept is what the target keeps for the live grant.
	Kept *kept `json:"kept,omitempty"`
}

// maxSpent bounds the list: names are random, the list only catches a caller
// that forgets to draw new ones.
const maxSpent = 256

// grantRecord is a grant as it is stored. Secrets are in the clear: the target
// must compute CHAP with them; the file has mode 0600.
type grantRecord struct {
	Epoch        uint64 `json:"epoch"`
	UID          string `json:"uid"`
	Initiator    string `json:"initiator"`
	User         string `json:"user,omitempty"`
	Secret       string `json:"secret,omitempty"`
	MutualUser   string `json:"mutual_user,omitempty"`
	MutualSecret string `json:"mutual_secret,omitempty"`
	Node         string `json:"node,omitempty"`
	BootID       string `json:"boot_id,omitempty"`
	ReadOnly     bool   `json:"read_only,omitempty"`
	Trace        bool   `json:"trace,omitempty"`
}

func newGrantRecord(g Grant, uid string) grantRecord {
	return grantRecord{
		Epoch: g.Epoch, UID: uid, Initiator: g.Initiator,
		User: g.User, Secret: g.Secret.Reveal(),
		MutualUser: g.MutualUser, MutualSecret: g.MutualSecret.Reveal(),
		Node: g.Node, BootID: g.BootID, ReadOnly: g.ReadOnly, Trace: g.Trace,
	}
}

func (g grantRecord) grant(volume string) Grant {
	return Grant{
		Volume: volume, Epoch: g.Epoch, Initiator: g.Initiator,
		User: g.User, Secret: hotspare.NewSecret(g.Secret),
		MutualUser: g.MutualUser, MutualSecret: hotspare.NewSecret(g.MutualSecret),
		Node: g.Node, BootID: g.BootID, ReadOnly: g.ReadOnly, Trace: g.Trace,
	}
}

// admits says whether g may become (or is) the live grant.
func (r record) admits(g Grant, gr grantRecord) error {
	where := fmt.Sprintf("volume %s, epoch %d", g.Volume, g.Epoch)
	if g.Epoch < r.Epoch {
		return &hotspare.Error{Code: hotspare.CodeStaleEpoch, What: "a grant carries an old epoch", Where: where,
			Why: fmt.Sprintf("the volume is at epoch %d", r.Epoch), Fix: "nothing: a newer decision stands"}
	}
	if r.Grant != nil && *r.Grant != gr {
		return &hotspare.Error{Code: hotspare.CodeVolumeBusy, What: "the volume is granted to another initiator", Where: where,
			Why: fmt.Sprintf("%s on node %s holds epoch %d", r.Grant.Initiator, r.Grant.Node, r.Grant.Epoch), Fix: "revoke that grant first"}
	}
	if slices.Contains(r.Spent, g.Initiator) {
		return &hotspare.Error{Code: hotspare.CodeInvalid, What: "an initiator name is used again", Where: where,
			Why: g.Initiator + " belonged to a revoked grant", Fix: "draw a new initiator name for every grant"}
	}
	return nil
}

// revoked gives the record after a revocation below the epoch, and whether it
// differs from r.
func (r record) revoked(below uint64) (record, bool) {
	next, changed := r, false
	if below > r.Epoch {
		next.Epoch, changed = below, true
	}
	if r.Grant != nil && r.Grant.Epoch < below {
		next.Grant, next.Kept, changed = nil, nil, true
		next.Spent = slices.Clone(r.Spent)
		if r.Grant.Initiator != AnyInitiator {
			next.Spent = append(next.Spent, r.Grant.Initiator)
		}
		if n := len(next.Spent) - maxSpent; n > 0 {
			next.Spent = next.Spent[n:]
		}
	}
	return next, changed
}

// save commits a volume's record; bbolt syncs before it returns.
func (e *Exports) save(volume string, r record) error {
	b, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("storage: encode record: %w", err)
	}
	b = append(binary.BigEndian.AppendUint32(nil, crc32.Checksum(b, crcTable)), b...)
	return e.db.Update(func(tx *bbolt.Tx) error {
		return tx.Bucket(volumesBucket).Put([]byte(volume), b)
	})
}

// load reads the whole table, or makes a new one.
func (e *Exports) load() error {
	return e.db.Update(func(tx *bbolt.Tx) error {
		meta, err := tx.CreateBucketIfNotExists(metaBucket)
		if err != nil {
			return err
		}
		vols, err := tx.CreateBucketIfNotExists(volumesBucket)
		if err != nil {
			return err
		}
		switch v := string(meta.Get([]byte("version"))); v {
		case formatVersion:
		case "":
			if err := meta.Put([]byte("version"), []byte(formatVersion)); err != nil {
				return err
			}
			if err := meta.Put([]byte("install"), []byte(NewUID())); err != nil {
				return err
			}
		default:
			return &hotspare.Error{Code: hotspare.CodeStoreFormat, What: "the table of exports has another format",
				Where: e.db.Path(), Why: fmt.Sprintf("it has version %.20q, this program knows %s", v, formatVersion), Fix: "start the release that wrote it"}
		}
		e.install = string(meta.Get([]byte("install")))
		return vols.ForEach(func(k, b []byte) error {
			r, err := decodeRecord(b)
			if err != nil {
				return &hotspare.Error{Code: hotspare.CodeCorrupt, What: "a record of an export is damaged",
					Where: fmt.Sprintf("%s: volume %q", e.db.Path(), k), Fix: "restore exports.db from a backup", Err: err}
			}
			e.volumes[string(k)] = &volume{name: string(k), rec: r, attached: map[*Attachment]struct{}{}}
			return nil
		})
	})
}

func decodeRecord(b []byte) (record, error) {
	var r record
	if len(b) < 4 || crc32.Checksum(b[4:], crcTable) != binary.BigEndian.Uint32(b) {
		return r, fmt.Errorf("storage: checksum of record differs")
	}
	if err := json.Unmarshal(b[4:], &r); err != nil {
		return r, fmt.Errorf("storage: decode record: %w", err)
	}
	return r, nil
}
