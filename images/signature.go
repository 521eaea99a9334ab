package images

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"slices"

	"aead.dev/minisign"

	"hotspare"
)

// Signer is who signed an image's file.
type Signer struct {
	KeyID   string `json:"keyId"`   // of the trusted key, in hex
	Comment string `json:"comment"` // the signed comment
}

const maxSignature = 4096

// trustedKeys reads minisign public keys: the base64 line of a .pub file, with or
// without its comment line.
func trustedKeys(texts []string) ([]minisign.PublicKey, error) {
	var keys []minisign.PublicKey
	for i, text := range texts {
		var k minisign.PublicKey
		if err := k.UnmarshalText([]byte(text)); err != nil {
			return nil, &hotspare.Error{Code: hotspare.CodeInvalid, What: "a trusted key is not a minisign public key", Where: fmt.Sprintf("key %d", i+1),
				Fix: "give the second line of the .pub file that minisign -G wrote", Err: err}
		}
		keys = append(keys, k)
	}
	return keys, nil
}

// readSignature checks what can be known of a signature before the file is read,
// and gives the key that it names.
func (r *Repository) readSignature(text []byte) (*minisign.PublicKey, error) {
	refuse := func(why, fix string, err error) error {
		return &hotspare.Error{Code: hotspare.CodeImageSignature, What: "the signature is not accepted", Why: why, Fix: fix, Err: err}
	}
	if len(text) == 0 {
		if r.opts.SignedOnly {
			return nil, refuse("only signed images are taken, and this one comes without", "sign it (minisign -Sm FILE) and give its .minisig file", nil)
		}
		return nil, nil
	}
	if len(text) > maxSignature {
		return nil, refuse(fmt.Sprintf("%d bytes are too many for one", len(text)), "give the .minisig file", nil)
	}
	var s minisign.Signature
	if err := s.UnmarshalText(text); err != nil {
		return nil, refuse("it is not of minisign", "give the .minisig file", err)
	}
	if s.Algorithm != minisign.HashEdDSA {
		return nil, refuse("it is of the old kind that does not hash the file first", "sign it with minisign 0.10 or later, without -l", nil)
	}
	i := slices.IndexFunc(r.keys, func(k minisign.PublicKey) bool { return k.ID() == s.KeyID })
	if i < 0 {
		return nil, refuse(fmt.Sprintf("it was made with the key %016X, which is not trusted", s.KeyID), "add the public key to images.trustedKeys in the configuration, if it is to be trusted", nil)
	}
	return &r.keys[i], nil
}

// checked is what the file's bytes were found to be.
type checked struct {
	sha256 string
	signer Signer
}

// checkFile reads the whole file once for its SHA-256 and its signature.
func checkFile(ctx context.Context, f io.ReaderAt, size int64, key *minisign.PublicKey, signature []byte, tell func(int64)) (checked, error) {
	h := sha256.New()
	var in io.Reader = &countedReader{ctx: ctx, r: io.NewSectionReader(f, 0, size), tell: tell}
	var signed *minisign.Reader
	if key != nil {
		signed = minisign.NewReader(in)
		in = signed
	}
	n, err := io.CopyBuffer(h, struct{ io.Reader }{in}, make([]byte, pieceSize))
	if err != nil {
		return checked{}, fmt.Errorf("images: read the file: %w", err)
	}
	if n < size {
		return checked{}, truncated("the file", n, size-n, n)
	}
	c := checked{sha256: hex.EncodeToString(h.Sum(nil))}
	if key == nil {
		return c, nil
	}
	if !signed.Verify(*key, signature) {
		return c, &hotspare.Error{Code: hotspare.CodeImageSignature, What: "the signature does not fit the file", Where: fmt.Sprintf("key %016X", key.ID()),
			Why: "the file is not the one that was signed, or its signed comment was changed", Fix: fixCopy}
	}
	var s minisign.Signature
	if err := s.UnmarshalText(signature); err != nil {
		return c, fmt.Errorf("images: %w", err)
	}
	c.signer = Signer{fmt.Sprintf("%016X", key.ID()), printable(s.TrustedComment)}
	return c, nil
}
