// Package store keeps what the engine must not lose: its durable state as a
// journal of deltas, the history that operators read, and the secrets of BMCs.
//
// Two files hold the state. engine.log is an append-only list of records, each
// with length, sequence number and CRC-32C; a record is on disk (fdatasync)
// before anything acts on it. engine.db (bbolt) holds the merged state for quick
// starts and look-ups. Where bbolt's file lags behind the log, the log's tail is
// applied; where it cannot be opened (bbolt files have become unreadable after a
// loss of power: etcd-io/bbolt#335), it is put aside and rebuilt from the log.
// A torn last record of the log was never acknowledged and is cut off; damage
// before the end is an error that names the place: nothing is guessed.
//
// Both carry a format version. Secrets are sealed by AES-256-GCM, bound to their
// names, in a file of their own with the key's file (mode 0600) beside it. Memory is the same without a
// disk, for the simulator.
package store
