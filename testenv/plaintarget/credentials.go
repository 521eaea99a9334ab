package plaintarget

import (
	"errors"
	"io/fs"
	"os"
	"strings"

	"hotspare"
)

// Credentials are one direction of CHAP, written "user:secret".
type Credentials struct {
	User   string
	Secret hotspare.Secret
}

// ParseCredentials reads "user:secret"; "" gives none. "@FILE" reads them from
// the first line of a file, which keeps them out of the list of processes. No
// error shows any of it.
func ParseCredentials(s string) (Credentials, error) {
	if file, ok := strings.CutPrefix(s, "@"); ok {
		b, err := os.ReadFile(file)
		if err != nil {
			code := hotspare.CodeInvalid
			if errors.Is(err, fs.ErrNotExist) {
				code = hotspare.CodeNotFound
			}
			return Credentials{}, &hotspare.Error{Code: code, What: "the file with the credentials cannot be read", Where: file,
				Fix: "write user:secret into its first line", Err: err}
		}
		s, _, _ = strings.Cut(string(b), "\n")
		if s = strings.TrimSuffix(s, "\r"); s == "" {
			s = ":"
		}
	}
	if s == "" {
		return Credentials{}, nil
	}
	user, secret, ok := strings.Cut(s, ":")
	if !ok || user == "" || len(secret) < 12 || len(secret) > 64 {
		return Credentials{}, &hotspare.Error{Code: hotspare.CodeInvalid, What: "credentials are not understood", Where: "chap",
			Fix: "write user:secret with a secret of 12 to 64 bytes, or @FILE with that in its first line"}
	}
	return Credentials{User: user, Secret: hotspare.NewSecret(secret)}, nil
}
