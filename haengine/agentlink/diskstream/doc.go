// Package diskstream is the form in which a disk's contents travel to a node that
// installs them: 1 MiB chunks, each compressed and with its own SHA-256, runs of
// zeros as their length alone, and one digest of the whole. A stream may begin at
// any chunk, which is how one that broke goes on.
//
// The form, version 1, all numbers little endian:
//
//	header   "HSDS", version 2, zero 2, chunk size 4, length of the contents 8,
//	         offset at which this stream begins 8, CRC-32C of these 28 bytes 4
//	record   kind 1, zero 3, payload length 4, offset 8, length 8,
//	         CRC-32C of these 24 bytes 4; then
//	  data   SHA-256 of the chunk 32, payload: one zstd frame (RFC 8878)
//	  zeros  nothing
//	  end    the digest 32
//
// Records follow each other without gaps in order of their offsets. The digest is
// the SHA-256 of "HSDS1", the length of the contents in 8 bytes and the SHA-256
// of every chunk in order, zero ones too. So a disk is verified on several
// processors at once.
//
// Who may have the contents, and where they go, is for others.
package diskstream
