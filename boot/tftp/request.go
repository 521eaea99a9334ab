package tftp

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Opcodes of RFC 1350 and RFC 2347.
const (
	opRead  = 1
	opWrite = 2
	opData  = 3
	opAck   = 4
	opError = 5
	opOACK  = 6
)

// Error codes of RFC 1350 and RFC 2347.
const (
	codeOther       = 0
	codeNotFound    = 1
	codeAccess      = 2
	codeIllegal     = 4
	codeNegotiation = 8
)

const (
	defaultBlock = 512
	minBlock     = 8     // RFC 2348
	maxBlock     = 65464 // RFC 2348
	headLen      = 4     // opcode and block number before the data
	ipHeads      = 28    // IPv4 and UDP before those
	maxRequest   = 1024  // RFC 2347 says 512; some firmware pads

	// A flight of blocks is kept in memory.
	maxFlight = 1 << 20
	// A client that asks to be waited for longer is served with our timeouts:
	// its session would be held for minutes after it went away.
	maxTimeout = 30 * time.Second
)

// request is a read or write request as it came.
type request struct {
	name    string
	mode    string
	options []option
}

// option is a pair of RFC 2347. Names are compared without case and answered as
// they were asked, for firmware that compares bytes.
type option struct{ name, value string }

var errMalformed = errors.New("malformed request")

// parseRequest takes a packet with the opcode opRead or opWrite. A missing last
// zero and trailing zeros are forgiven: firmware pads.
func parseRequest(b []byte) (request, error) {
	if len(b) < 4 || len(b) > maxRequest {
		return request{}, errMalformed
	}
	field := bytes.Split(bytes.TrimRight(b[2:], "\x00"), []byte{0})
	if len(field) < 2 || len(field[0]) == 0 || len(field[1]) == 0 {
		return request{}, errMalformed
	}
	r := request{name: string(field[0]), mode: strings.ToLower(string(field[1]))}
	seen := map[string]bool{}
	for i := 2; i+1 < len(field) && len(r.options) < 16; i += 2 {
		o := option{string(field[i]), string(field[i+1])}
		if key := strings.ToLower(o.name); !seen[key] { // RFC 2347: once only; the first one counts
			seen[key] = true
			r.options = append(r.options, o)
		}
	}
	return r, nil
}

// asks says whether an option was asked for.
func (r request) asks(name string) bool {
	for _, o := range r.options {
		if strings.EqualFold(o.name, name) {
			return true
		}
	}
	return false
}

// params is what a transfer was agreed to be.
type params struct {
	block   int           // bytes of data in a packet
	window  int           // packets before an acknowledgement (RFC 7440)
	timeout time.Duration // asked for by the client; 0: ours
}

// limits of what is agreed to.
type limits struct {
	window   int
	mtu      int  // of the path to the client; 0: not known
	fragment bool // packets may be longer than the MTU
}

// negotiate answers the options of a request for a file of size bytes. oack is
// nil when there is nothing to agree on: then the data follows at once. An
// option that is unknown or out of its range is left out of the answer, which
// is how RFC 2347 refuses one.
func negotiate(r request, size int64, l limits) (oack []byte, p params) {
	p = params{block: defaultBlock, window: 1}
	var answer []option
	for _, o := range r.options {
		v, err := strconv.ParseUint(o.value, 10, 63)
		if err != nil {
			continue
		}
		switch strings.ToLower(o.name) {
		case "blksize":
			if v < minBlock {
				continue
			}
			p.block = int(min(v, maxBlock))
			if fits := l.mtu - ipHeads - headLen; !l.fragment && l.mtu > 0 {
				p.block = max(minBlock, min(p.block, fits))
			}
			o.value = strconv.Itoa(p.block)
		case "tsize":
			if size == 0 { // curl takes a size of 0 for nonsense
				continue
			}
			o.value = strconv.FormatInt(size, 10)
		case "timeout":
			d := time.Duration(min(v, 256)) * time.Second
			if v < 1 || v > 255 || d > maxTimeout {
				continue
			}
			p.timeout = d
		case "windowsize":
			if v < 1 || v > 65535 {
				continue
			}
			p.window = int(min(v, uint64(l.window)))
			o.value = strconv.Itoa(p.window)
		default:
			continue
		}
		answer = append(answer, o)
	}
	if p.window > 1 && p.window*p.block > maxFlight {
		p.window = max(1, maxFlight/p.block)
		for i, o := range answer {
			if strings.EqualFold(o.name, "windowsize") {
				answer[i].value = strconv.Itoa(p.window)
			}
		}
	}
	if len(answer) == 0 {
		return nil, p
	}
	oack = binary.BigEndian.AppendUint16(nil, opOACK)
	for _, o := range answer {
		oack = append(append(append(append(oack, o.name...), 0), o.value...), 0)
	}
	return oack, p
}

// errorPacket writes an ERROR of RFC 1350.
func errorPacket(code uint16, text string) []byte {
	b := binary.BigEndian.AppendUint16(nil, opError)
	b = binary.BigEndian.AppendUint16(b, code)
	return append(append(b, text...), 0)
}

// refusal is a client's ERROR packet.
type refusal struct {
	code uint16
	text string
}

func (r refusal) Error() string {
	return fmt.Sprintf("the machine ended it with error %d (%.80q)", r.code, r.text)
}

func parseRefusal(b []byte) refusal {
	r := refusal{code: binary.BigEndian.Uint16(b[2:])}
	text, _, _ := bytes.Cut(b[4:], []byte{0})
	r.text = string(text)
	return r
}
