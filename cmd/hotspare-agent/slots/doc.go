// Package slots is what hotspare writes to a local disk beside an image's own
// contents: a partition table (GPT, UEFI specification 2.10, chapter 5) with
// equal slots, and a record of what was installed where, for whom, and in which
// state.
//
// A disk with slots:
//
//	0       protective MBR, GPT
//	1 MiB   partition 1, the record, 1 MiB
//	2 MiB   partition 2, 3, ...: the slots
//	end     GPT, second copy
//
// A disk that is one installation holds the image from its first byte on, and the
// record 1 MiB before its end. The head of the image, with its boot code and its
// partition table, is kept 256 KiB into the record's area, and zeros stand in its
// place: no firmware finds anything to start on the disk, whoever asks it to (SAFETY
// S2a). The agent of a live grant gives the partitions to the kernel by itself.
//
// The record stands in two places that are written in turn, so that a cut of
// power leaves the old or the new one. Each: "HSLOCAL1", sequence 8, length of
// the JSON 4, CRC-32C of sequence, length and JSON 4, JSON; little endian.
//
// Which disk is meant, what is written into a slot, and what is started, is for
// others.
package slots
