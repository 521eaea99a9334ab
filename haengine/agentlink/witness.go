package agentlink

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
)

// WitnessBlock is the size and the alignment of one witness record in bytes.
const WitnessBlock = 4096

// Witness is one record that the holder of a grant writes to the application's
// witness volume. The volume is a ring of blocks: record Counter stands in block
// Counter modulo the number of blocks, and the counter goes on over grants, so
// the volume itself shows who wrote when. Epochs never fall as counters rise,
// unless two nodes wrote.
type Witness struct {
	Node     string
	BootID   string
	Epoch    uint64
	Counter  uint64
	UnixNano int64
}

// The layout of a block, big endian: magic 8, version 4, CRC-32C of all that
// follows it 4, epoch 8, counter 8, time 8, node 64, boot id 64, zeros.
var witnessMagic = []byte("HSWITNES")

const (
	witnessVersion = 1
	witnessNameLen = 64
)

// Errors of DecodeWitness.
var (
	ErrWitnessBlank = errors.New("agentlink: the witness block is blank")
	ErrWitnessTorn  = errors.New("agentlink: the witness record is torn")
	ErrWitnessBad   = errors.New("agentlink: the block is no witness record")
)

// EncodeTo fills block, which is WitnessBlock bytes long. Names of more than 64
// bytes are cut.
func (w Witness) EncodeTo(block []byte) {
	clear(block)
	copy(block, witnessMagic)
	binary.BigEndian.PutUint32(block[8:], witnessVersion)
	binary.BigEndian.PutUint64(block[16:], w.Epoch)
	binary.BigEndian.PutUint64(block[24:], w.Counter)
	binary.BigEndian.PutUint64(block[32:], uint64(w.UnixNano))
	copy(block[40:40+witnessNameLen], w.Node)
	copy(block[40+witnessNameLen:40+2*witnessNameLen], w.BootID)
	binary.BigEndian.PutUint32(block[12:], witnessSum(block))
}

// DecodeWitness reads a block.
func DecodeWitness(block []byte) (Witness, error) {
	if len(block) < WitnessBlock {
		return Witness{}, ErrWitnessBad
	}
	block = block[:WitnessBlock]
	if isZero(block) {
		return Witness{}, ErrWitnessBlank
	}
	if !bytes.Equal(block[:8], witnessMagic) || binary.BigEndian.Uint32(block[8:]) != witnessVersion {
		return Witness{}, ErrWitnessBad
	}
	if binary.BigEndian.Uint32(block[12:]) != witnessSum(block) {
		return Witness{}, ErrWitnessTorn
	}
	return Witness{
		Epoch:    binary.BigEndian.Uint64(block[16:]),
		Counter:  binary.BigEndian.Uint64(block[24:]),
		UnixNano: int64(binary.BigEndian.Uint64(block[32:])),
		Node:     string(bytes.TrimRight(block[40:40+witnessNameLen], "\x00")),
		BootID:   string(bytes.TrimRight(block[40+witnessNameLen:40+2*witnessNameLen], "\x00")),
	}, nil
}

func witnessSum(block []byte) uint32 {
	return crc32.Checksum(block[16:WitnessBlock], crc32.MakeTable(crc32.Castagnoli))
}

func isZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
