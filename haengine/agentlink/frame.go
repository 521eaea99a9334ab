package agentlink

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// Version is the version of the protocol that this code speaks. It stands in
// every frame; a frame of another version is refused.
const Version = 1

// Port is the TCP port of the appliance's end.
const Port = 7443

// Limits of one frame's JSON in bytes. MaxJoinFrame holds until the peer has
// proven who it is.
const (
	MaxFrame     = 1 << 20
	MaxJoinFrame = 64 << 10
)

// Errors of a frame that no correct peer sends. The connection is closed.
var (
	ErrFrameSize    = errors.New("agentlink: frame exceeds the limit")
	ErrFrameVersion = errors.New("agentlink: frame of another protocol version")
	ErrFrameBody    = errors.New("agentlink: frame is not what its kind says")
)

// Envelope is one decoded frame. Body is the JSON of the message that Kind
// names; Decode reads it.
type Envelope struct {
	Version int             `json:"v"`
	Kind    Kind            `json:"kind"`
	Body    json.RawMessage `json:"body,omitempty"`
}

// Encode gives the bytes of one frame, length included. Orders are encoded with
// EncodeOrder, which is the only way for a secret to reach the wire.
func Encode(kind Kind, body any) ([]byte, error) {
	if _, isOrder := body.(Order); isOrder {
		return nil, fmt.Errorf("agentlink: an order is encoded with EncodeOrder")
	}
	return encode(kind, body)
}

func encode(kind Kind, body any) ([]byte, error) {
	raw, err := json.Marshal(body)
	if err != nil {
		return nil, fmt.Errorf("agentlink: encode %s: %w", kind, err)
	}
	text, err := json.Marshal(Envelope{Version: Version, Kind: kind, Body: raw})
	if err != nil {
		return nil, fmt.Errorf("agentlink: encode %s: %w", kind, err)
	}
	if len(text) > MaxFrame {
		return nil, fmt.Errorf("%w: %s of %d bytes, limit %d", ErrFrameSize, kind, len(text), MaxFrame)
	}
	frame := make([]byte, 4+len(text))
	binary.BigEndian.PutUint32(frame, uint32(len(text)))
	copy(frame[4:], text)
	return frame, nil
}

// Read reads one frame of at most limit bytes of JSON. It returns io.EOF only
// at a frame's border; memory grows with the bytes that arrive, not with the
// length that a peer claims.
func Read(r io.Reader, limit int) (Envelope, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return Envelope{}, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n == 0 || uint64(n) > uint64(limit) {
		return Envelope{}, fmt.Errorf("%w: %d bytes announced, limit %d", ErrFrameSize, n, limit)
	}
	text, err := io.ReadAll(io.LimitReader(r, int64(n)))
	if err != nil {
		return Envelope{}, err
	}
	if len(text) < int(n) {
		return Envelope{}, io.ErrUnexpectedEOF
	}
	var e Envelope
	if err := json.Unmarshal(text, &e); err != nil {
		return Envelope{}, fmt.Errorf("%w: %w", ErrFrameBody, err)
	}
	if e.Version != Version {
		return Envelope{}, fmt.Errorf("%w: %d, this end speaks %d", ErrFrameVersion, e.Version, Version)
	}
	return e, nil
}

// Decode reads the body of an envelope as a T, which must be of the kind that
// the caller found in it. Orders are decoded with DecodeOrder.
func Decode[T any](e Envelope) (T, error) {
	var v T
	if _, isOrder := any(v).(Order); isOrder {
		return v, fmt.Errorf("agentlink: an order is decoded with DecodeOrder")
	}
	if len(e.Body) == 0 {
		return v, fmt.Errorf("%w: %s without a body", ErrFrameBody, e.Kind)
	}
	if err := json.Unmarshal(e.Body, &v); err != nil {
		return v, fmt.Errorf("%w: %s: %w", ErrFrameBody, e.Kind, err)
	}
	return v, nil
}
