package storagetest

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
)

// Writes are the operations that change a disk, by what tests call them.
var Writes = map[string][]errorfs.OpKind{
	"write":  {errorfs.OpFileWrite, errorfs.OpFileWriteAt},
	"sync":   {errorfs.OpFileSync, errorfs.OpFileSyncData, errorfs.OpFileSyncTo},
	"create": {errorfs.OpCreate, errorfs.OpReuseForWrite, errorfs.OpFilePreallocate, errorfs.OpMkdirAll, errorfs.OpOpenDir, errorfs.OpLock},
	"rename": {errorfs.OpRename, errorfs.OpLink},
	"remove": {errorfs.OpRemove, errorfs.OpRemoveAll},
}

// Reads are those that do not.
var Reads = map[string][]errorfs.OpKind{
	"open": {errorfs.OpOpen, errorfs.OpStat, errorfs.OpFileStat, errorfs.OpList},
	"read": {errorfs.OpFileRead, errorfs.OpFileReadAt},
}

// Life is what one process does with a store, or some do, one after the other.
type Life interface {
	// Run is the life, with fatal as the store's OnFatal. It returns what the first call has answered that failed.
	Run(disk vfs.FS, fatal func(error)) error
	// Acknowledged returns a check that a disk has what was acknowledged up to now, and nothing that never was.
	Acknowledged() func(left vfs.FS) error
}

// TestFailures lives a life once for each operation that it has on the disk, and that one fails. Of what is not written or
// synced somebody must be told, be it the caller or, once, OnFatal. And whenever the power is cut, when the operation fails or when the process has ended,
// what was acknowledged is there.
func TestFailures(t *testing.T, operations map[string][]errorfs.OpKind, life func(*testing.T) Life) {
	for name, kinds := range operations {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for nth := 1; !t.Failed(); nth++ {
				if d := NewDisk(nth, kinds...); !d.fails(t, life(t)) {
					return // there are no more
				}
			}
		})
	}
}

// fails lives a life, and tells whether an operation has failed in it.
func (d *Disk) fails(t *testing.T, life Life) bool {
	t.Helper()
	var checks []func()
	cut := func(when string, kept ...bool) {
		check := life.Acknowledged() // before the power goes
		for _, unsynced := range kept {
			left := d.Crash(unsynced)
			checks = append(checks, func() {
				if err := check(left); err != nil {
					t.Errorf("the power is cut %s, what was not synced is there: %v: %v", when, unsynced, err)
				}
			})
		}
	}
	d.broken = func() { cut("at the failure", false) }
	told := make(chan error, 1)
	go func() { told <- life.Run(d, d.End) }()
	var answer error
	select {
	case answer = <-told:
	case <-d.gone:
	case <-time.After(time.Minute):
		t.Error("no call returns, and the process does not end")
	}
	cut("at the end", false, true)
	for _, check := range checks {
		check()
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.failed == nil && (answer != nil || len(d.ends) > 0):
		t.Errorf("nothing failed, and yet a call answers %v, and the process ends for %v", answer, d.ends)
	case len(d.ends) > 1:
		t.Errorf("the process ends more than once: %v", d.ends)
	case answer == nil && len(d.ends) == 0 && d.failed != nil && matters(*d.failed):
		t.Error("nobody is told")
	}
	if d.failed == nil {
		return false
	}
	if t.Failed() {
		t.Errorf("when the operation on %s failed", d.failed.Path)
	}
	return true
}

// matters tells of an operation that nobody may pass over. A table or a prepared file is made anew if it cannot be written,
// and what cannot be removed is in nobody's way.
func matters(op errorfs.Op) bool {
	written := slices.Contains(Writes["write"], op.Kind) || slices.Contains(Writes["sync"], op.Kind)
	return written && !strings.HasSuffix(op.Path, ".sst") && !strings.HasSuffix(op.Path, "spare")
}
