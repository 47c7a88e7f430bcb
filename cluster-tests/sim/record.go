package sim

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"sync"

	"github.com/hashicorp/raft"
)

// record collects the entries that the replicas applied. All must have applied the same at each position: the first one
// to apply an entry decides, and who differs is reported at once.
type record struct {
	mu        sync.Mutex
	groups    map[uint32]map[uint64]*raft.Log
	last      map[replica]uint64
	installs  int
	conflicts []error
}

// replica is a group's replica during one life of a server.
type replica struct {
	life  *life
	group uint32
}

func newRecord() *record {
	return &record{groups: make(map[uint32]map[uint64]*raft.Log), last: make(map[replica]uint64)}
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
		who := replica{l, group}
		if last := r.last[who]; last > 0 && e.Index > last+gap {
			r.installs++
		}
		r.last[who] = e.Index
		first := known[e.Index]
		switch {
		case first == nil:
			kept := *e
			kept.Data = bytes.Clone(e.Data)
			known[e.Index] = &kept
		case first.Term != e.Term || first.Type != e.Type || !bytes.Equal(first.Data, e.Data):
			r.conflicts = append(r.conflicts, fmt.Errorf("group %d: %s applies another entry at %d, of term %d, than was applied before, of term %d",
				group, l.s.name, e.Index, e.Term, first.Term))
		}
	}
}

// entries are those of a group in order.
func (r *record) entries(group uint32) []*raft.Log {
	r.mu.Lock()
	defer r.mu.Unlock()
	list := make([]*raft.Log, 0, len(r.groups[group]))
	for _, e := range r.groups[group] {
		list = append(list, e)
	}
	slices.SortFunc(list, func(a, b *raft.Log) int { return cmp.Compare(a.Index, b.Index) })
	return list
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
