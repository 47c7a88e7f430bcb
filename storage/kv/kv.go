// Package kv holds the interfaces through which state machines see storage. It is a leaf: it imports nothing of
// Holdfast and no storage engine, so that packages under fsm can be built and tested without one.
package kv

import "errors"

// ErrNotFound is returned by Reader.Get for a key that has no value.
var ErrNotFound = errors.New("kv: not found")

// Reader is a consistent view of one shard's keys. A Reader is used by one goroutine at a time.
type Reader interface {
	// Get returns the value of key, or ErrNotFound. The slice belongs to the reader: the caller must not change it
	// and must copy what it keeps past the next call on the same Reader.
	Get(key []byte) ([]byte, error)
	// Iter returns an iterator over the keys in [lower, upper) in ascending byte order, positioned before the
	// first. A nil upper means the end of the shard's keys. The iterator does not see writes made after Iter.
	Iter(lower, upper []byte) (Iterator, error)
}

// Iterator walks keys in ascending order. The caller closes it.
type Iterator interface {
	// Next moves to the next key and reports whether there is one. After false, Err tells whether it was the end.
	Next() bool
	// Key and Value are valid until the next call of Next or Close, and must not be changed.
	Key() []byte
	Value() []byte
	Err() error
	Close() error
}

// Writer collects changes. Key and value are copied.
type Writer interface {
	Set(key, value []byte)
	Delete(key []byte)
}

// Batch is a set of changes that becomes visible and durable as one. Its reads see its own writes.
type Batch interface {
	Reader
	Writer
	// Next returns a batch for the changes that follow. Its reads see those of this one, and its commit comes after. This one
	// is not read any more, but takes changes until Commit, of keys that the next one did not change. At most one commit is
	// under way: Next waits for that of the batch before, which must have begun, and returns its error. An error means that the
	// store is broken and that the process must stop.
	Next() (Batch, error)
	// Commit, after Next, begins to commit the changes in the background, atomically. Commits survive a crash of the process
	// as a prefix of all commits of the store, and a power cut once a later durability fence of the store returned.
	Commit()
	// Wait returns when no commit of the batch before this one is under way, with its error.
	Wait() error
	// Close drops the changes of this batch, and of the one before unless its commit has begun, for whose end it waits. It
	// does nothing after Next.
	Close() error
}

// View is a read-only Reader of one moment, which the caller closes.
type View interface {
	Reader
	Close() error
}
