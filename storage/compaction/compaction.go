// Package compaction decides when Pebble may compact, and tells when it does. Pebble's own scheduler decides with a ticker,
// ten times a second in each database, which is a good part of all that an idle node does. This one looks only when
// something happens, and while a compaction runs.
package compaction

import (
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2"
)

// Scheduler lets a database run as many compactions as it allows itself. It is for one database.
type Scheduler struct {
	db pebble.DBForCompaction // set by Register, before anything else is called

	mu       sync.Mutex
	running  int // or about to
	granting bool
	turn     *sync.Cond  // granting has ended
	open     bool        // between Start and Unregister
	sample   *time.Timer // nil while nothing runs
}

// sampleEvery is how often a busy database is asked whether it allows more by now: flushes can change that unseen.
const sampleEvery = 100 * time.Millisecond

var (
	_ pebble.CompactionScheduler   = (*Scheduler)(nil)
	_ pebble.CompactionGrantHandle = (*Scheduler)(nil)
)

// New makes a scheduler for pebble.Options.Experimental.CompactionScheduler.
func New() *Scheduler {
	s := &Scheduler{}
	s.turn = sync.NewCond(&s.mu)
	return s
}

// Register implements pebble.CompactionScheduler.
func (s *Scheduler) Register(_ int, db pebble.DBForCompaction) { s.db = db }

// Start lets compactions begin. It is called when pebble.Open has returned a database: one that begins before runs into what
// Open has closed again, should it fail.
func (s *Scheduler) Start() {
	s.mu.Lock()
	s.open = true
	s.mu.Unlock()
	s.grant()
}

// Unregister implements pebble.CompactionScheduler.
func (s *Scheduler) Unregister() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open = false
	if s.sample != nil {
		s.sample.Stop()
	}
	for s.granting {
		s.turn.Wait()
	}
}

// TrySchedule implements pebble.CompactionScheduler.
func (s *Scheduler) TrySchedule() (bool, pebble.CompactionGrantHandle) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.open || s.running >= s.db.GetAllowedWithoutPermission() {
		return false, nil
	}
	s.started()
	return true, s
}

// UpdateGetAllowedWithoutPermission implements pebble.CompactionScheduler. The database holds locks that a grant needs.
func (s *Scheduler) UpdateGetAllowedWithoutPermission() { go s.grant() } // ends when nothing more is allowed

// started counts a compaction. Called with mu held.
func (s *Scheduler) started() {
	s.running++
	if s.sample == nil {
		s.sample = time.AfterFunc(sampleEvery, s.resample)
	}
}

func (s *Scheduler) resample() {
	s.grant()
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.open || s.running == 0 {
		s.sample = nil
		return
	}
	s.sample.Reset(sampleEvery)
}

// grant starts what waits, as far as the database allows it. Neither lock is held while the other side is called.
func (s *Scheduler) grant() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.granting {
		s.turn.Wait()
	}
	for s.open && s.running < s.db.GetAllowedWithoutPermission() {
		s.granting = true
		s.started()
		s.mu.Unlock()
		waiting, _ := s.db.GetWaitingCompaction()
		accepted := waiting && s.db.Schedule(s)
		s.mu.Lock()
		s.granting = false
		s.turn.Broadcast()
		if !accepted {
			s.running--
			return
		}
	}
}

// Started implements pebble.CompactionGrantHandle.
func (s *Scheduler) Started() {}

// MeasureCPU implements pebble.CompactionGrantHandle.
func (s *Scheduler) MeasureCPU(pebble.CompactionGoroutineKind) {}

// CumulativeStats implements pebble.CompactionGrantHandle.
func (s *Scheduler) CumulativeStats(pebble.CompactionGrantHandleStats) {}

// Done implements pebble.CompactionGrantHandle.
func (s *Scheduler) Done() {
	s.mu.Lock()
	s.running--
	s.mu.Unlock()
	s.grant()
}
