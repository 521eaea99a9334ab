package e2e

import (
	"fmt"
	"strings"

	"hotspare/testenv/lab"
	"hotspare/testenv/lab/site"
)

// credentials gives those of the live grant of a volume.
func (w *world) credentials(volume string) site.Credentials {
	w.t.Helper()
	c, err := w.site.Credentials(w.t.Context(), volume)
	if err != nil {
		w.t.Fatal(err)
	}
	return c
}

// login logs in with the credentials by libiscsi's own client and gives what it
// said.
func (w *world) login(c site.Credentials) (string, error) {
	w.t.Helper()
	url := fmt.Sprintf("iscsi://%s%%%s@10.77.0.1:3260/%s/0", c.User, c.Secret, c.Target)
	out, err := lab.Exec(w.t.Context(), w.lab.ClientNamespace(), "iscsi-inq", "-i", c.Initiator, url).CombinedOutput()
	return strings.TrimSpace(string(out)), err
}
