package raftlog_test

import (
	"errors"
	"fmt"
	"maps"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/hashicorp/raft"

	"github.com/holdfastdb/holdfast/storage/raftlog"
	"github.com/holdfastdb/holdfast/storage/storagetest"
)

// content is what a group holds: its vote, its term and its entries by index.
type content map[string]string

func (c content) store(logs []*raft.Log) {
	for _, l := range logs {
		c[fmt.Sprintf("%04d", l.Index)] = fmt.Sprintf("%d of %d bytes", l.Term, len(l.Data))
	}
}

// held reads what a group holds.
func held(l raftlog.Log) (content, error) {
	c := make(content)
	first, err1 := l.FirstIndex()
	last, err2 := l.LastIndex()
	term, err3 := l.GetUint64([]byte("CurrentTerm"))
	voted, err4 := l.GetUint64([]byte(raftlog.KeyVoteTerm))
	who, err5 := l.Get([]byte(raftlog.KeyVoteCandidate))
	if errors.Is(err5, raftlog.ErrKeyNotFound) {
		err5 = nil
	}
	if err := errors.Join(err1, err2, err3, err4, err5); err != nil {
		return nil, err
	}
	if term > 0 {
		c["term"] = fmt.Sprint(term)
	}
	if voted > 0 {
		c["vote"] = fmt.Sprintf("%s in %d", who, voted)
	}
	for i := first; i > 0 && i <= last; i++ {
		var e raft.Log
		if err := l.GetLog(i, &e); err != nil {
			return nil, err
		}
		c.store([]*raft.Log{&e})
	}
	return c, nil
}

// history is what a group has been told to hold. The write-ahead log has its changes in their order, so what is left of
// them after a crash is a beginning.
type history struct {
	mu           sync.Mutex
	after        []content // so many changes
	acknowledged int
}

// change notes a change that is about to be made, and returns what its acknowledgement is to be told.
func (h *history) change(how func(content)) (acknowledge func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	next := maps.Clone(h.after[len(h.after)-1])
	how(next)
	h.after = append(h.after, next)
	n := len(h.after) - 1
	return func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.acknowledged = max(h.acknowledged, n)
	}
}

// life is that of a node with three groups. Their writes share syncs, write-ahead logs are closed, flushed, made of spare and
// of used files, and at last the node is restarted.
type life struct{ groups []*history }

func newLife() storagetest.Life {
	var l life
	for range 3 {
		l.groups = append(l.groups, &history{after: []content{{}}})
	}
	return &l
}

func (l *life) Run(disk vfs.FS, fatal func(error)) error {
	return errors.Join(l.run(disk, fatal, 1, 2), l.run(disk, fatal, 3, 3))
}

func (l *life) run(disk vfs.FS, fatal func(error), from, to uint64) error {
	s, err := raftlog.Open(raftlog.Options{FS: disk, Dir: "log", LogBytes: 16 << 10, OnFatal: fatal})
	if err != nil {
		return err
	}
	errs := make([]error, len(l.groups))
	var all sync.WaitGroup
	for i, h := range l.groups {
		all.Go(func() {
			g, err := s.Open(uint32(i))
			for round := from; err == nil && round <= to; round++ {
				err = h.round(g, round, i == 0)
			}
			errs[i] = err
		})
	}
	all.Wait()
	return errors.Join(append(errs, s.Close())...)
}

// round is a term of a group.
func (h *history) round(l raftlog.Log, term uint64, deferred bool) error {
	acknowledge := h.change(func(c content) { c["vote"] = fmt.Sprintf("n%d in %d", term, term) })
	err := errors.Join(l.SetUint64([]byte(raftlog.KeyVoteTerm), term),
		l.Set([]byte(raftlog.KeyVoteCandidate), fmt.Appendf(nil, "n%d", term)))
	if err != nil {
		return err
	}
	acknowledge()
	acknowledge = h.change(func(c content) { c["term"] = fmt.Sprint(term) })
	if err := l.SetUint64([]byte("CurrentTerm"), term); err != nil {
		return err
	}
	acknowledge()
	last, err := l.LastIndex()
	if err != nil {
		return err
	}
	if last > 2 {
		h.change(func(c content) { delete(c, fmt.Sprintf("%04d", last)) })
		if err := l.DeleteRange(last, last); err != nil {
			return err
		}
		first, err := l.FirstIndex()
		if err != nil {
			return err
		}
		h.change(func(c content) { delete(c, fmt.Sprintf("%04d", first)) })
		if err := l.DeleteRange(first, first); err != nil {
			return err
		}
		last--
	}
	for i := range uint64(2) {
		logs := commands(term, last+i+1, last+i+1)
		logs[0].Data = make([]byte, 3<<10)
		acknowledge := h.change(func(c content) { c.store(logs) })
		var d raftlog.Durability
		if deferred {
			d = l.Defer()
		}
		if err := l.StoreLogs(logs); err != nil {
			return err
		}
		if deferred {
			d.When(last+i+1, func(err error) {
				if err == nil {
					acknowledge()
				}
			})
		} else {
			acknowledge()
		}
	}
	return nil
}

func (l *life) Acknowledged() func(left vfs.FS) error {
	var acknowledged []int
	for _, h := range l.groups {
		h.mu.Lock()
		acknowledged = append(acknowledged, h.acknowledged)
		h.mu.Unlock()
	}
	return func(left vfs.FS) error {
		var fatal error
		s, err := raftlog.Open(raftlog.Options{FS: left, Dir: "log", OnFatal: func(err error) { fatal = err }})
		if err != nil {
			return err
		}
		for i, h := range l.groups {
			g, err := s.Open(uint32(i))
			if err != nil {
				return err
			}
			if err := h.check(g, acknowledged[i]); err != nil {
				return fmt.Errorf("group %d: %w", i, err)
			}
		}
		return errors.Join(s.Close(), fatal)
	}
}

// check looks whether a group holds a beginning of its history with what was acknowledged.
func (h *history) check(l raftlog.Log, acknowledged int) error {
	got, err := held(l)
	if err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, want := range h.after[acknowledged:] {
		if maps.Equal(got, want) {
			return nil
		}
	}
	return fmt.Errorf("holds %v, which is none of %v", got, h.after[acknowledged:])
}

// After an error of the disk nobody knows what is on it: the process ends, and nothing is acknowledged that is not there.
func TestAFailingDiskEndsTheProcessBeforeAnythingIsLost(t *testing.T) {
	storagetest.TestFailures(t, storagetest.Writes, newLife)
}
