package shard

import (
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/storage/kv"
)

var comparing = Timing{Checksum: 10 * time.Second}

// spoil changes a replica's state behind the state machine's back, as a bad disk, bad memory or a bug would.
func (r *replica) spoil() {
	r.t.Helper()
	b := r.engine.Shard(1).NewBatch()
	b.Set([]byte{sumType, 'x'}, []byte("spoiled"))
	next, err := b.Next()
	b.Commit()
	if err == nil {
		err = next.Wait()
	}
	if err == nil {
		err = next.Close()
	}
	if err != nil {
		r.t.Fatal(err)
	}
}

// write adds to the number until it is acknowledged.
func (c *cluster) write(seq uint64) {
	c.t.Helper()
	c.eventually("a write", func() bool {
		_, _, err := c.leader(c.replicas...).add(frame(5, seq, 1))
		return err == nil
	})
}

// fatals collects why replicas cannot go on.
type fatals struct {
	mu  sync.Mutex
	all map[string][]error
}

func (f *fatals) add(r *replica, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.all[string(r.id)] = append(f.all[string(r.id)], err)
}

func (f *fatals) of(r *replica) []error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.all[string(r.id)]
}

func TestReplicasThatAppliedTheSameHaveTheSameSum(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, comparing, comparing, comparing)
		defer c.stop()
		var before fsm.Sum
		for seq := uint64(1); seq <= 5; seq++ {
			c.write(seq)
			time.Sleep(25 * time.Second)
			first := c.replicas[0].Status().Sum
			if first.Index <= before.Index || first.Hash == before.Hash {
				t.Errorf("sum %+v after %+v", first, before)
			}
			for _, r := range c.replicas {
				if s := r.Status(); s.Sum != first || s.Diverged != 0 {
					t.Errorf("%s has %+v, not %+v; %d differ", r.id, s.Sum, first, s.Diverged)
				}
			}
			before = first
		}
		// The client's record expires, the last sums are compared, and that is all.
		time.Sleep(10 * time.Minute)
		last := c.replicas[0].Applied().Index
		time.Sleep(10 * time.Minute)
		if now := c.replicas[0].Applied().Index; now != last {
			t.Errorf("%d entries in an idle group", now-last)
		}
	})
}

// Whoever has another state than the majority stops, the leader too, and nobody else.
func TestAReplicaThatDivergedStops(t *testing.T) {
	for _, leads := range []bool{false, true} {
		name := map[bool]string{false: "a follower", true: "the leader"}[leads]
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCluster(t, comparing, comparing, comparing)
				defer c.stop()
				f := &fatals{all: make(map[string][]error)}
				c.fatal = f.add
				c.write(1)
				leader := c.leader(c.replicas...)
				bad := leader
				if !leads {
					bad = c.others(leader)[0]
				}
				bad.spoil()
				c.write(2)
				c.eventually("the replica stops", func() bool { return len(f.of(bad)) > 0 })
				var diverged *DivergedError
				if err := f.of(bad)[0]; !errors.As(err, &diverged) || diverged.ReplicaID != string(bad.id) || diverged.Own == diverged.Most || diverged.Index == 0 {
					t.Errorf("%v", err)
				}
				for _, r := range c.others(bad) {
					if errs := f.of(r); len(errs) > 0 {
						t.Errorf("%s: %v", r.id, errs)
					}
				}
				for _, r := range c.others(bad) { // whoever may have found it is gone
					c.eventually("each of the others counts it", func() bool { return r.Status().Diverged > 0 })
				}
			})
		})
	}
}

// While nobody can tell who is wrong nobody stops: one of three is away. It is decided when it is back.
func TestWithoutAMajorityNobodyStops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, comparing, comparing, comparing)
		defer c.stop()
		f := &fatals{all: make(map[string][]error)}
		c.fatal = f.add
		c.write(1)
		leader := c.leader(c.replicas...)
		bad, away := c.others(leader)[0], c.others(leader)[1]
		away.link.setCut(true)
		bad.spoil()
		for seq := uint64(2); seq < 8; seq++ {
			c.write(seq)
			time.Sleep(10 * time.Second)
		}
		for _, r := range c.replicas {
			if errs := f.of(r); len(errs) > 0 {
				t.Fatalf("%s: %v", r.id, errs)
			}
		}
		away.link.setCut(false)
		seq := uint64(8)
		c.eventually("the replica stops", func() bool {
			c.write(seq)
			seq++
			return len(f.of(bad)) > 0
		})
		if len(f.of(leader)) > 0 || len(f.of(away)) > 0 {
			t.Errorf("%v, %v", f.of(leader), f.of(away))
		}
	})
}

// A large state is hashed in pieces, and the group closes in the middle of it.
func TestHashingTakesAShareOfTheTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := pacer{ctx: t.Context(), since: time.Now()}
		begin := time.Now()
		for range 8 {
			time.Sleep(time.Millisecond)
			if err := p.pause(hashBurst / 2); err != nil {
				t.Fatal(err)
			}
		}
		if took := time.Since(begin); took != 8*hashShare*time.Millisecond {
			t.Errorf("8 ms of work took %s", took)
		}
	})
}

// closable is a view that nobody may read.
type closable struct {
	kv.View
	closed bool
}

func (c *closable) Close() error {
	c.closed = true
	return nil
}

// An entry that is applied while the group closes begins nothing that would outlive it.
func TestNoHashingBeginsWhenTheGroupCloses(t *testing.T) {
	g := &Group{}
	a := &agreement{g: g}
	a.close()
	view := &closable{}
	a.at(7, &fsm.Entry{}, view)
	g.work.Wait()
	if own, _ := a.last(); !view.closed || own != (fsm.Sum{}) {
		t.Errorf("view closed %v, sum %+v", view.closed, own)
	}
}
