package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"hotspare/storage"
	"hotspare/testenv/lab"
)

// credentials are everything that an initiator needs to log in to a volume.
type credentials struct{ initiator, user, secret, target string }

// credentials reads those of the live grant of a volume from a copy of the
// appliance's table, as a thief of the node's memory would have them.
func (w *world) credentials(volume string) credentials {
	w.t.Helper()
	table, err := os.ReadFile(filepath.Join(w.stateDir(), "exports.db"))
	if err != nil {
		w.t.Fatal(err)
	}
	copied := filepath.Join(w.t.TempDir(), "exports.db")
	if err := os.WriteFile(copied, table, 0o600); err != nil {
		w.t.Fatal(err)
	}
	snap, err := w.site.Snapshot(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	uids := noVolumes{}
	for _, v := range snap.Volumes {
		uids[v.Name] = v.Target[strings.LastIndex(v.Target, ":")+1:]
	}
	x, err := storage.OpenExports(copied, storage.Options{Volumes: uids})
	if err != nil {
		w.t.Fatal(err)
	}
	defer x.Close()
	live, ok := x.Live(volume)
	if !ok {
		w.t.Fatalf("%s has no live grant", volume)
	}
	target, err := x.TargetName(volume)
	if err != nil {
		w.t.Fatal(err)
	}
	e, err := x.Find(live.Initiator, target)
	if err != nil {
		w.t.Fatal(err)
	}
	return credentials{live.Initiator, e.User, e.Secret.Reveal(), target}
}

func (w *world) stateDir() string {
	return filepath.Dir(filepath.Dir(w.site.Trace("orders", "witness")))
}

// noVolumes has identities and no devices: the copy is only read.
type noVolumes map[string]string

func (noVolumes) OpenVolume(name string) (storage.Device, error) {
	return nil, fmt.Errorf("%s: not here", name)
}

func (v noVolumes) VolumeUID(name string) (string, error) { return v[name], nil }

// login logs in with the credentials by libiscsi's own client and gives what it
// said.
func (w *world) login(c credentials) (string, error) {
	w.t.Helper()
	url := fmt.Sprintf("iscsi://%s%%%s@10.77.0.1:3260/%s/0", c.user, c.secret, c.target)
	out, err := lab.Exec(w.t.Context(), w.lab.ClientNamespace(), "iscsi-inq", "-i", c.initiator, url).CombinedOutput()
	return strings.TrimSpace(string(out)), err
}
