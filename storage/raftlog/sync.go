package raftlog

import (
	"errors"
	"runtime"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/holdfastdb/holdfast/storage/plant"
)

// syncer makes what the groups write durable. Writers put their batches into the write-ahead log without waiting; one
// goroutine syncs it, as often as the disk can, and tells those whose writes that has made durable. So the writes that
// come while a sync is under way share the next one, of whatever groups they are.
type syncer struct {
	db     *pebble.DB
	before func()
	onSync func(time.Duration)

	mu      sync.Mutex
	syncs   uint64    // how many were begun
	written uint64    // how many writes there were
	synced  uint64    // how many of them are durable
	since   time.Time // since when the oldest that is not durable waits; zero if all are
	syncing bool
	later   time.Time // since when the oldest waits that the sync under way does not cover
	begun   uint64
	writing map[uint64]time.Time // batches on their way into the log, which may have to wait for the disk too
	waiting []waiter
	err     error // why nothing becomes durable any more

	wake  chan struct{}
	stop  chan struct{}
	ended chan struct{}
}

// waiter is who waits for the first writes to be durable.
type waiter struct {
	writes uint64
	done   func(error)
}

var errClosed = errors.New("raftlog: closed")

func newSyncer(db *pebble.DB, opts Options) *syncer {
	s := &syncer{
		db: db, before: opts.BeforeSync, onSync: opts.OnSync, writing: make(map[uint64]time.Time),
		wake: make(chan struct{}, 1), stop: make(chan struct{}), ended: make(chan struct{}),
	}
	go s.run() // until close
	return s
}

// begin says that a batch is about to be written, and returns what wrote needs.
func (s *syncer) begin() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.begun++
	s.writing[s.begun] = time.Now()
	return s.begun
}

// wrote says that a batch is in the write-ahead log, and returns how many there are now.
func (s *syncer) wrote(id uint64) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	start := s.writing[id]
	delete(s.writing, id)
	s.written++
	oldest := &s.since
	if s.syncing {
		oldest = &s.later
	}
	if oldest.IsZero() {
		*oldest = start
	}
	select {
	case s.wake <- struct{}{}:
	default:
	}
	return s.written
}

// durable tells how many writes are.
func (s *syncer) durable() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.synced
}

// pending is how long the oldest write has been waiting, be it for its place in the log or for a sync.
func (s *syncer) pending() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	var longest time.Duration
	if !s.since.IsZero() {
		longest = time.Since(s.since)
	}
	for _, since := range s.writing {
		longest = max(longest, time.Since(since))
	}
	return longest
}

// when calls done once the first writes are durable, or with the reason why they never will be: at once, or from the
// syncer's goroutine, which it must not block.
func (s *syncer) when(writes uint64, done func(error)) {
	s.mu.Lock()
	if s.synced < writes && s.err == nil {
		s.waiting = append(s.waiting, waiter{writes, done})
		s.mu.Unlock()
		return
	}
	err := s.err
	if s.synced >= writes {
		err = nil
	}
	s.mu.Unlock()
	done(err)
}

// wait waits for the first writes to be durable.
func (s *syncer) wait(writes uint64) error {
	done := make(chan error, 1)
	s.when(writes, func(err error) { done <- err })
	return <-done
}

func (s *syncer) run() {
	failed := errClosed
	defer func() { // also when what Pebble calls fatal has ended the goroutine
		s.mu.Lock()
		s.err = failed
		waiting := s.waiting
		s.waiting = nil
		s.mu.Unlock()
		for _, w := range waiting {
			w.done(failed)
		}
		close(s.ended)
	}()
	for {
		select {
		case <-s.wake:
		case <-s.stop:
			return
		}
		runtime.Gosched() // groups that are about to write come along
		if s.clean() {    // by the sync before, with which they came
			continue
		}
		if err := s.sync(); err != nil {
			failed = err
			return
		}
	}
}

// clean tells that everything written is durable.
func (s *syncer) clean() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.written == s.synced
}

// sync makes durable what was written so far: a sync of the write-ahead log covers what was put there before without one.
func (s *syncer) sync() error {
	s.mu.Lock()
	writes, start := s.written, time.Now()
	s.syncs++
	s.syncing = true
	mark := appendMark(nil, s.syncs)
	s.mu.Unlock()
	if s.before != nil {
		s.before()
	}
	options := pebble.Sync
	if plant.On(plant.LogUnsynced) {
		options = pebble.NoSync
	}
	if err := s.db.LogData(mark, options); err != nil {
		return err
	}
	s.mu.Lock()
	s.synced, s.since, s.later, s.syncing = writes, s.later, time.Time{}, false
	var ready []waiter
	rest := s.waiting[:0]
	for _, w := range s.waiting {
		if w.writes <= writes {
			ready = append(ready, w)
		} else {
			rest = append(rest, w)
		}
	}
	clear(s.waiting[len(rest):])
	s.waiting = rest
	s.mu.Unlock()
	if s.onSync != nil {
		s.onSync(time.Since(start))
	}
	for _, w := range ready {
		w.done(nil)
	}
	return nil
}

// close ends the goroutine, and syncs twice if there was anything to sync, see verify. Nobody may write any more.
func (s *syncer) close() error {
	close(s.stop)
	<-s.ended
	if s.written == 0 || !errors.Is(s.err, errClosed) {
		return nil
	}
	return errors.Join(s.sync(), s.sync())
}
