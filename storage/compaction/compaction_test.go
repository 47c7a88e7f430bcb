package compaction_test

import (
	"encoding/binary"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/holdfastdb/holdfast/storage/compaction"
)

// database is one that allows so many compactions at once and has so many waiting.
type database struct {
	mu               sync.Mutex
	allowed, waiting int
	handles          []pebble.CompactionGrantHandle
}

func (d *database) GetAllowedWithoutPermission() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.allowed
}

func (d *database) GetWaitingCompaction() (bool, pebble.WaitingCompaction) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.waiting > 0, pebble.WaitingCompaction{}
}

func (d *database) Schedule(h pebble.CompactionGrantHandle) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.waiting == 0 {
		return false
	}
	d.waiting--
	d.handles = append(d.handles, h)
	return true
}

func (d *database) set(allowed, waiting int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.allowed, d.waiting = allowed, waiting
}

func (d *database) running() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.handles)
}

// finish ends the oldest compaction.
func (d *database) finish() {
	d.mu.Lock()
	h := d.handles[0]
	d.handles = d.handles[1:]
	d.mu.Unlock()
	h.Done()
}

func TestAsManyRunAsTheDatabaseAllows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &database{allowed: 2}
		s := compaction.New()
		s.Register(1, d)
		if ok, _ := s.TrySchedule(); ok {
			t.Error("a database compacts that is not open yet")
		}
		s.Start()
		for i := range 3 {
			ok, h := s.TrySchedule()
			if ok != (i < 2) {
				t.Fatalf("compaction %d: %v", i, ok)
			}
			if ok {
				d.handles = append(d.handles, h)
			}
		}
		d.set(2, 5)
		d.finish() // what waits takes its place
		if n := d.running(); n != 2 {
			t.Errorf("%d run, 2 are allowed", n)
		}
		d.set(4, 4)
		s.UpdateGetAllowedWithoutPermission()
		synctest.Wait()
		if n := d.running(); n != 4 {
			t.Errorf("%d run, 4 are allowed by now", n)
		}
		d.set(5, 2) // nobody tells
		time.Sleep(time.Second)
		if n := d.running(); n != 5 {
			t.Errorf("%d run, 5 are allowed by now", n)
		}
		d.set(5, 0)
		for d.running() > 0 {
			d.finish()
		}
		if ok, _ := s.TrySchedule(); !ok {
			t.Error("an idle database may not compact")
		}
		s.Unregister()
		d.set(9, 9)
		s.UpdateGetAllowedWithoutPermission()
		synctest.Wait()
		if ok, _ := s.TrySchedule(); ok || d.running() > 0 {
			t.Error("a closed database compacts")
		}
	})
}

// A real database keeps its shape with it: it compacts under load, and closes.
func TestPebbleCompacts(t *testing.T) {
	options := &pebble.Options{
		FS: vfs.NewMem(), MemTableSize: 64 << 10, L0CompactionThreshold: 2,
		CompactionConcurrencyRange: func() (int, int) { return 1, 3 },
	}
	scheduler := compaction.New()
	options.Experimental.CompactionScheduler = scheduler
	db, err := pebble.Open("db", options)
	if err != nil {
		t.Fatal(err)
	}
	scheduler.Start()
	random := rand.New(rand.NewPCG(1, 1))
	value := make([]byte, 256)
	for range 20_000 {
		key := binary.BigEndian.AppendUint64(nil, random.Uint64N(5000))
		if err := db.Set(key, value, pebble.NoSync); err != nil {
			t.Fatal(err)
		}
	}
	if err := db.Flush(); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(10 * time.Second); db.Metrics().Levels[0].Sublevels > 4; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("it does not compact:\n%s", db.Metrics())
		}
	}
	if db.Metrics().Compact.Count == 0 {
		t.Error("no compaction ran")
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
}
