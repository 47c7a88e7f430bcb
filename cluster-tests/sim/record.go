package sim

import (
	"bytes"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/holdfastdb/holdfast/cluster-tests/check"
)

// record collects the entries that the replicas applied. All must have applied the same at each position: the first one
// to apply an entry decides, and who differs is reported at once.
type record struct {
	mu        sync.Mutex
	groups    map[uint32]map[uint64]*raft.Log
	first     map[*raft.Log]time.Time // when the first replica applied it
	last      map[replica]uint64      // the newest entry that a replica has applied
	installs  int
	conflicts []error
}

type replica struct {
	server string
	group  uint32
}

func newRecord() *record {
	return &record{groups: make(map[uint32]map[uint64]*raft.Log), first: make(map[*raft.Log]time.Time), last: make(map[replica]uint64)}
}

// gap is how many entries at least a received state stands for, seen from those that are applied. Fewer may be missing
// between two: those that Raft writes for itself when a term begins.
const gap = 8

func (r *record) committed(l *life, group uint32, entries []*raft.Log) {
	r.mu.Lock()
	defer r.mu.Unlock()
	known := r.groups[group]
	if known == nil {
		known = make(map[uint64]*raft.Log)
		r.groups[group] = known
	}
	for _, e := range entries {
		who := replica{l.s.name, group}
		if last := r.last[who]; last > 0 && e.Index > last+gap {
			r.installs++
		}
		r.last[who] = max(r.last[who], e.Index)
		first := known[e.Index]
		switch {
		case first == nil:
			kept := *e
			kept.Data = bytes.Clone(e.Data)
			known[e.Index] = &kept
			r.first[&kept] = time.Now()
		case first.Term != e.Term || first.Type != e.Type || !bytes.Equal(first.Data, e.Data):
			r.conflicts = append(r.conflicts, fmt.Errorf("group %d: %s applies another entry at %d, of term %d, than was applied before, of term %d",
				group, l.s.name, e.Index, e.Term, first.Term))
		}
	}
}

// entries are those of a group in order, without a gap: what no replica was given to apply, Raft wrote for itself.
func (r *record) entries(group uint32) []*raft.Log {
	r.mu.Lock()
	defer r.mu.Unlock()
	known := r.groups[group]
	var last uint64
	for index := range known {
		last = max(last, index)
	}
	list := make([]*raft.Log, last)
	for i := range list {
		e := known[uint64(i+1)]
		if e == nil {
			e = &raft.Log{Index: uint64(i + 1), Type: raft.LogNoop}
		}
		list[i] = e
	}
	return list
}

// log is that of a group for the checks, by the clock of a history that began then.
func (r *record) log(group uint32, begin time.Time) (log []check.Entry) {
	entries := r.entries(group)
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range entries {
		one := check.Entry{Index: e.Index, Term: e.Term, Type: e.Type, Data: e.Data}
		if first, ok := r.first[e]; ok {
			one.Told = first.Sub(begin)
		}
		log = append(log, one)
	}
	return log
}

// terms counts the terms, over all groups, in which something was committed.
func (r *record) terms() (count int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, known := range r.groups {
		terms := make(map[uint64]bool)
		for _, e := range known {
			terms[e.Term] = true
		}
		count += len(terms)
	}
	return count
}
