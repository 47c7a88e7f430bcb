package disk

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/holdfastdb/holdfast/storage/raftlog"
)

// promises are what the Raft logs on a disk said was durable. The next process must find it there, whatever happened to
// the one before. A write counts as asked for from its begin and as promised from its end.
type promises struct {
	mu     sync.Mutex
	groups map[uint32]promise
	lost   []error
}

// vote is a term and the candidate that got the vote in it. Both are durable or none.
type vote struct {
	term      uint64
	candidate string
}

type promise struct {
	term, last uint64
	vote       vote
	half       uint64 // the term of a vote of which the candidate has not come
	asked      []vote // votes that were being written
}

func newPromises() *promises { return &promises{groups: make(map[uint32]promise)} }

// copy is what still holds after the process has ended at this moment. freeze is called before anything else is promised.
func (p *promises) copy(freeze func()) *promises {
	p.mu.Lock()
	defer p.mu.Unlock()
	freeze()
	return &promises{groups: maps.Clone(p.groups), lost: slices.Clone(p.lost)}
}

func (p *promises) change(group uint32, f func(*promise)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	one := p.groups[group]
	f(&one)
	p.groups[group] = one
}

const keyTerm = "CurrentTerm"

// check compares what a log holds after a restart with what was promised.
func (p *promises) check(group uint32, l raftlog.Log) error {
	term, err1 := l.GetUint64([]byte(keyTerm))
	votedTerm, err2 := l.GetUint64([]byte(raftlog.KeyVoteTerm))
	candidate, err3 := l.Get([]byte(raftlog.KeyVoteCandidate))
	if errors.Is(err3, raftlog.ErrKeyNotFound) {
		err3 = nil
	}
	last, err4 := l.LastIndex()
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		return err
	}
	has := vote{votedTerm, string(candidate)}
	p.change(group, func(one *promise) {
		if term < one.term {
			p.lost = append(p.lost, fmt.Errorf("group %d: term %d was stored, after a restart it is %d", group, one.term, term))
		}
		if has != one.vote && !slices.Contains(one.asked, has) {
			p.lost = append(p.lost, fmt.Errorf("group %d: the vote %v was stored, after a restart it is %v", group, one.vote, has))
		}
		if last < one.last {
			p.lost = append(p.lost, fmt.Errorf("group %d: entries up to %d were stored, after a restart there are some up to %d", group, one.last, last))
		}
		*one = promise{term: term, last: last, vote: has}
	})
	return nil
}

// Applied is told that a replica is about to apply an entry. It must be on disk here: it may be committed only because this
// replica was counted.
func (d *Disk) Applied(group uint32, index uint64) {
	d.promises.change(group, func(one *promise) {
		if one.last < index {
			d.promises.lost = append(d.promises.lost, fmt.Errorf("group %d: entry %d is applied, and only those up to %d are on disk", group, index, one.last))
		}
	})
}

// Lost tells of what was durable once and was not there after a restart, or was used before it was durable.
func (d *Disk) Lost() []error {
	d.promises.mu.Lock()
	defer d.promises.mu.Unlock()
	return slices.Clone(d.promises.lost)
}

// Write is what a Raft log stores.
type Write int

// The writes in which a disk may lose its power.
const (
	Entries Write = iota
	Votes         // also one half of a vote
)

// CutAt has cut called once, in the middle of what Raft does, right after its log said for the nth time from now on that
// such a write is stored. It is to take the power away; nil calls it off.
func (d *Disk) CutAt(what Write, n int, cut func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.cutIn, d.cutAt, d.cut = what, n, cut
}

// stored counts down to the cut.
func (d *Disk) stored(what Write) {
	d.mu.Lock()
	cut := d.cut
	if what != d.cutIn {
		cut = nil
	}
	if cut != nil {
		if d.cutAt--; d.cutAt > 0 {
			cut = nil
		} else {
			d.cut = nil
		}
	}
	d.mu.Unlock()
	if cut != nil {
		cut()
	}
}
