package store

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"hotspare"
)

// sealer encrypts secrets with AES-256-GCM; the name is bound in as additional
// data, so that a sealed value cannot be moved to another name.
type sealer struct{ aead cipher.AEAD }

const sealVersion = 1

// openSealer reads the key file, or draws a key for a new store.
func openSealer(path string) (*sealer, error) {
	k, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		k, err = newKey(path)
	}
	if err != nil {
		return nil, fmt.Errorf("engine store: key: %w", err)
	}
	if len(k) != 32 {
		return nil, &hotspare.Error{
			Code: hotspare.CodeCorrupt, What: "the key of the secrets is damaged", Where: path, Why: fmt.Sprintf("it has %d bytes, not 32", len(k)),
			Fix: "restore the file from a backup, or remove it and apply the nodes with their passwords again",
		}
	}
	block, err := aes.NewCipher(k)
	if err != nil {
		return nil, err
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, err
	}
	return &sealer{aead}, nil
}

func newKey(path string) ([]byte, error) {
	k := make([]byte, 32)
	if _, err := rand.Read(k); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	_, err = f.Write(k)
	return k, errors.Join(err, f.Sync(), f.Close(), syncDir(filepath.Dir(path)))
}

func (s *sealer) seal(name string, secret hotspare.Secret) ([]byte, error) {
	out := make([]byte, 1+s.aead.NonceSize(), 1+s.aead.NonceSize()+len(secret.Reveal())+s.aead.Overhead())
	out[0] = sealVersion
	if _, err := rand.Read(out[1:]); err != nil {
		return nil, err
	}
	return s.aead.Seal(out, out[1:], []byte(secret.Reveal()), []byte(name)), nil
}

func (s *sealer) open(name string, sealed []byte) (hotspare.Secret, error) {
	n := s.aead.NonceSize()
	if len(sealed) < 1+n || sealed[0] != sealVersion {
		return hotspare.Secret{}, damagedSecret(name, errors.New("unknown form"))
	}
	clear, err := s.aead.Open(nil, sealed[1:1+n], sealed[1+n:], []byte(name))
	if err != nil {
		return hotspare.Secret{}, damagedSecret(name, err)
	}
	return hotspare.NewSecret(string(clear)), nil
}

func damagedSecret(name string, err error) error {
	return &hotspare.Error{
		Code: hotspare.CodeCorrupt, What: "a secret cannot be opened", Where: name, Why: "it was sealed with another key, or is damaged", Err: err,
		Fix: "apply the resource with its password again",
	}
}
