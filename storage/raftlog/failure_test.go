package raftlog_test

import (
	"errors"
	"fmt"
	"sync"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"github.com/hashicorp/raft"

	"github.com/holdfastdb/holdfast/storage/raftlog"
	"github.com/holdfastdb/holdfast/storage/storagetest"
)

// After an error of the disk nobody knows what is on it: the process ends, and nothing is acknowledged that is not there.
func TestAFailingDiskEndsTheProcessBeforeAnythingIsLost(t *testing.T) {
	storagetest.TestFailures(t, storagetest.Writes, lives(2))
}

// What cannot be read is neither missing nor of before.
func TestWhatCannotBeReadIsToldAsAnError(t *testing.T) {
	storagetest.TestFailures(t, storagetest.Reads, lives(1))
}

// An entry whose deletion fails half-way leaves a log that is as long as before, not an empty one.
func TestALogWhoseBoundsCannotBeReadKeepsThem(t *testing.T) {
	disk := vfs.NewMem()
	s, l := opened(t, disk)
	for i := range uint64(20) {
		if err := l.StoreLog(&raft.Log{Index: 1 + i, Term: 1, Data: make([]byte, 4<<10)}); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(l.Close(), s.Close()); err != nil {
		t.Fatal(err)
	}
	breaks := &errorfs.Toggle{Injector: errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind == errorfs.OpFileReadAt {
			return syscall.EIO
		}
		return nil
	})}
	s, l = opened(t, errorfs.Wrap(disk, breaks))
	defer s.Close()
	breaks.On()
	err := l.DeleteRange(1, 1)
	if err == nil {
		err = l.DeleteRange(2, 10)
	}
	breaks.Off()
	first, err1 := l.FirstIndex()
	last, err2 := l.LastIndex()
	if !errors.Is(err, syscall.EIO) || errors.Join(err1, err2) != nil || first == 0 || first > 2 || last != 20 {
		t.Errorf("the deletion answers %v, and the log is [%d, %d]", err, first, last)
	}
}

func opened(t *testing.T, disk vfs.FS) (*raftlog.Store, raftlog.Log) {
	t.Helper()
	s, err := raftlog.Open(raftlog.Options{FS: disk, Dir: "log", LogBytes: 16 << 10, CacheBytes: 1, OnFatal: func(error) {}})
	if err != nil {
		t.Fatal(err)
	}
	l, err := s.Open(1)
	if err != nil {
		t.Fatal(err)
	}
	return s, l
}

// Whether the log is damaged is not known without the list of its files.
func TestALogWhoseFilesCannotBeListedIsNotOpened(t *testing.T) {
	s, err := raftlog.Open(raftlog.Options{FS: storagetest.NewDisk(1, errorfs.OpList), Dir: "log", OnFatal: func(err error) { t.Error(err) }})
	if err == nil {
		err = s.Close()
	}
	if !errors.Is(err, syscall.EIO) {
		t.Errorf("opened: %v", err)
	}
}

// life is that of a node with three groups, of which the first does not wait for the disk. Their writes share syncs,
// write-ahead logs are flushed, and made of spare and of used files, and at last the node is restarted.
type life struct {
	t      *testing.T
	terms  uint64 // before the restart
	groups []*storagetest.History
}

func lives(terms uint64) func(*testing.T) storagetest.Life {
	return func(t *testing.T) storagetest.Life {
		return &life{t, terms, []*storagetest.History{storagetest.NewHistory(), storagetest.NewHistory(), storagetest.NewHistory()}}
	}
}

func (l *life) Run(disk vfs.FS, fatal func(error)) error {
	if err := l.run(disk, fatal, 1, l.terms); err != nil {
		return err
	}
	return l.run(disk, fatal, l.terms+1, l.terms+1)
}

func (l *life) run(disk vfs.FS, fatal func(error), from, to uint64) error {
	s, err := raftlog.Open(raftlog.Options{FS: disk, Dir: "log", LogBytes: 16 << 10, OnFatal: fatal})
	if err != nil {
		return err
	}
	errs := make([]error, len(l.groups))
	var all sync.WaitGroup
	for i, h := range l.groups {
		all.Go(func() { errs[i] = l.member(s, uint32(i), h, from, to) })
	}
	all.Wait()
	return errors.Join(append(errs, s.Close())...)
}

// member lives through terms of a group, as far as there is no error.
func (l *life) member(s *raftlog.Store, group uint32, h *storagetest.History, from, to uint64) error {
	log, err := s.Open(group)
	if err != nil {
		return err
	}
	held, err := contentOf(log)
	if err != nil {
		return err
	}
	if err := h.Check(held, h.Acknowledged()); err != nil {
		l.t.Errorf("group %d, in the process: %v", group, err)
	}
	var durable raftlog.Durability
	if group == 0 {
		durable = log.Defer()
	}
	for term := from; term <= to; term++ {
		err := vote(log, h, term)
		if err == nil {
			err = cut(log, h)
		}
		if err == nil {
			err = store(log, durable, h, term)
		}
		if err != nil {
			return err
		}
	}
	return log.Close()
}

func vote(l raftlog.Log, h *storagetest.History, term uint64) error {
	acknowledge := h.Change(func(c map[string]string) { c["vote"] = fmt.Sprintf("n%d in %d", term, term) })
	if err := errors.Join(l.SetUint64([]byte(raftlog.KeyVoteTerm), term),
		l.Set([]byte(raftlog.KeyVoteCandidate), fmt.Appendf(nil, "n%d", term))); err != nil {
		return err
	}
	acknowledge()
	acknowledge = h.Change(func(c map[string]string) { c["term"] = fmt.Sprint(term) })
	if err := l.SetUint64([]byte("CurrentTerm"), term); err != nil {
		return err
	}
	acknowledge()
	return nil
}

// cut takes an entry from each end of a log. That is acknowledged with what is stored next.
func cut(l raftlog.Log, h *storagetest.History) error {
	first, err1 := l.FirstIndex()
	last, err2 := l.LastIndex()
	if err := errors.Join(err1, err2); err != nil || last == 0 {
		return err
	}
	h.Change(func(c map[string]string) { delete(c, fmt.Sprint(last)) })
	if err := l.DeleteRange(last, last); err != nil {
		return err
	}
	h.Change(func(c map[string]string) { delete(c, fmt.Sprint(first)) })
	return l.DeleteRange(first, first)
}

func store(l raftlog.Log, durable raftlog.Durability, h *storagetest.History, term uint64) error {
	for range 3 {
		last, err := l.LastIndex()
		if err != nil {
			return err
		}
		entry := commands(term, last+1, last+1)
		entry[0].Data = make([]byte, 2<<10)
		acknowledge := h.Change(func(c map[string]string) { c[fmt.Sprint(last+1)] = described(entry[0]) })
		if err := l.StoreLogs(entry); err != nil {
			return err
		}
		if durable == nil {
			acknowledge()
			continue
		}
		durable.When(last+1, func(err error) {
			if err == nil {
				acknowledge()
			}
		})
	}
	return nil
}

func (l *life) Acknowledged() func(left vfs.FS) error {
	var acknowledged []int
	for _, h := range l.groups {
		acknowledged = append(acknowledged, h.Acknowledged())
	}
	return func(left vfs.FS) (err error) {
		s, err := raftlog.Open(raftlog.Options{FS: left, Dir: "log", LogBytes: 64 << 10, OnFatal: func(err error) { panic(err) }})
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, s.Close()) }()
		for i, h := range l.groups {
			g, err := s.Open(uint32(i))
			if err != nil {
				return err
			}
			held, err := contentOf(g)
			if err == nil {
				err = h.Check(held, acknowledged[i])
			}
			if err != nil {
				return fmt.Errorf("group %d: %w", i, err)
			}
		}
		return nil
	}
}

// contentOf reads what a group holds: its vote, its term, and its entries by index.
func contentOf(l raftlog.Log) (map[string]string, error) {
	held := make(map[string]string)
	first, err1 := l.FirstIndex()
	last, err2 := l.LastIndex()
	term, err3 := l.GetUint64([]byte("CurrentTerm"))
	voted, err4 := l.GetUint64([]byte(raftlog.KeyVoteTerm))
	who, err5 := l.Get([]byte(raftlog.KeyVoteCandidate))
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		return nil, err
	}
	switch {
	case err5 == nil:
		held["vote"] = fmt.Sprintf("%s in %d", who, voted)
	case !errors.Is(err5, raftlog.ErrKeyNotFound):
		return nil, err5
	}
	if term > 0 {
		held["term"] = fmt.Sprint(term)
	}
	for i := first; i > 0 && i <= last; i++ {
		var entry raft.Log
		if err := l.GetLog(i, &entry); err != nil {
			return nil, err
		}
		held[fmt.Sprint(i)] = described(&entry)
	}
	return held, nil
}

func described(l *raft.Log) string { return fmt.Sprintf("%d bytes of term %d", len(l.Data), l.Term) }
