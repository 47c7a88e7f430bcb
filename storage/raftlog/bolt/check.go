package bolt

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime/debug"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"github.com/holdfastdb/holdfast/storage/raftlog"
)

// BoltDB maps its file into memory and believes it: behind the end of one that was cut off the process gets SIGBUS, a wrong
// page number leads out of the map, and what Open itself finds when it looks for free pages is a panic.

// caught turns a panic of BoltDB, and a fault in its map, into an error about the file.
func caught(path string, f func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%w: %s: %v", raftlog.ErrCorrupt, path, r)
		}
	}()
	err = f()
	for _, damage := range []error{bolterrors.ErrInvalid, bolterrors.ErrChecksum, bolterrors.ErrVersionMismatch} {
		if errors.Is(err, damage) {
			return fmt.Errorf("%w: %s: %w", raftlog.ErrCorrupt, path, err)
		}
	}
	return err
}

// check reads a file as a whole, in this goroutine: BoltDB does the same when it opens one for writing, in another, where
// nobody could catch a fault. It returns the indexes of the entries.
func check(path string) (entries []uint64, err error) {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist) || err == nil && info.Size() == 0:
		return nil, nil // a new one
	case err != nil:
		return nil, err
	case info.Size() < 2*int64(os.Getpagesize()):
		return nil, fmt.Errorf("%w: %s has only %d bytes", raftlog.ErrCorrupt, path, info.Size())
	}
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{ReadOnly: true, Timeout: lockTimeout})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	tx, err := db.Begin(false)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, tx.Rollback()) }()
	if info, err = os.Stat(path); err != nil {
		return nil, err
	}
	if info.Size() < tx.Size() {
		return nil, fmt.Errorf("%w: %s has %d bytes of %d", raftlog.ErrCorrupt, path, info.Size(), tx.Size())
	}
	err = tx.ForEach(func(name []byte, b *bbolt.Bucket) error {
		return b.ForEach(func(key, _ []byte) error {
			if string(name) == logBucket && len(key) == 8 {
				entries = append(entries, binary.BigEndian.Uint64(key))
			}
			return nil
		})
	})
	return entries, err
}

// logBucket is where raft-boltdb keeps the entries, by their indexes.
const logBucket = "logs"

const lockTimeout = 5 * time.Second
