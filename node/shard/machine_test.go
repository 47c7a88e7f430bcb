package shard

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"github.com/holdfastdb/holdfast/fsm"
)

// lateDisk is a log of which nothing is on disk before the test says so.
type lateDisk struct{ on chan error }

func (d lateDisk) Durable() uint64 { return 0 }

func (d lateDisk) When(_ uint64, done func(error)) { go func() { done(<-d.on) }() }

// What Raft calls committed counts this replica before its disk has the entry.
func TestNothingIsAppliedBeforeItIsOnDiskHere(t *testing.T) {
	for _, test := range []struct {
		name          string
		disk          error
		applied, ends bool
	}{
		{"the disk writes it", nil, true, false},
		{"the disk fails", errors.New("the disk is gone"), false, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCluster(t, three()[:1]...)
				defer c.stop()
				c.leader(c.replicas...)
				time.Sleep(time.Minute) // nothing is on its way
				var ended error
				m := c.replicas[0].machine
				log, onFatal := m.log, m.onFatal
				defer func() { m.log, m.onFatal = log, onFatal }()
				disk := lateDisk{make(chan error)}
				m.log, m.onFatal = disk, func(err error) { ended = err }
				before := m.Applied().Index
				answers := make(chan []any, 1)
				go func() {
					answers <- m.ApplyBatch([]*raft.Log{{Index: before + 1, Term: 1, Data: (&fsm.Entry{Kind: fsm.Nudge, Time: 1}).Append(nil)}})
				}()
				time.Sleep(time.Second)
				if got := m.Applied().Index; got != before {
					t.Fatalf("entry %d was applied", got)
				}
				disk.on <- test.disk
				<-answers
				if got := m.Applied().Index > before; got != test.applied {
					t.Errorf("applied: %v", got)
				}
				if (ended != nil) != test.ends {
					t.Errorf("the replica ends: %v", ended)
				}
			})
		})
	}
}
