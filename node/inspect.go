package node

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/hashicorp/raft"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/storage"
	"github.com/holdfastdb/holdfast/storage/raftlog"
	"github.com/holdfastdb/holdfast/storage/raftlog/bolt"
)

// StoredLog is the Raft log of one group as a node that has stopped left it in its data directory.
type StoredLog struct {
	Group uint32
	// Applied is how far the stored state is. Entries after it may be committed or not: a state is written behind its
	// log, and at once when a node stops in peace.
	Applied fsm.Applied
	// First and Last are the bounds of the log, 0 if it is empty.
	First, Last uint64
	log         raftlog.Log
	close       []func() error
}

// OpenStoredLog opens the log of a group for reading. Nothing on disk changes.
func OpenStoredLog(dir string, group uint32) (_ *StoredLog, err error) {
	s := &StoredLog{Group: group}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("log of group %d in %s: %w", group, dir, err), s.Close())
		}
	}()
	if _, err := os.Stat(filepath.Join(dir, identityFile)); err != nil {
		return nil, err
	}
	state, err := storage.Open(storage.Options{Dir: filepath.Join(dir, "state"), ReadOnly: true, OnFatal: unreadable})
	if err != nil {
		return nil, err
	}
	s.close = append(s.close, state.Close)
	view := state.Shard(group).View()
	s.Applied, err = fsm.ReadApplied(view)
	_ = view.Close()
	if err != nil {
		return nil, err
	}
	provider, err := openStoredLogs(dir, group)
	if err != nil {
		return nil, err
	}
	s.close = append(s.close, provider.Close)
	if s.log, err = provider.Open(group); err != nil {
		return nil, err
	}
	s.close = append(s.close, s.log.Close)
	var firstErr, lastErr error
	s.First, firstErr = s.log.FirstIndex()
	s.Last, lastErr = s.log.LastIndex()
	return s, errors.Join(firstErr, lastErr)
}

// openStoredLogs finds in which of the two formats a node keeps the log of a group.
func openStoredLogs(dir string, group uint32) (raftlog.Provider, error) {
	dir = filepath.Join(dir, "raft")
	if group == catalogGroup {
		dir = filepath.Join(filepath.Dir(dir), "catalog")
	}
	if _, err := os.Stat(filepath.Join(dir, fmt.Sprintf("group-%d.db", group))); err == nil {
		return bolt.Open(bolt.Options{Dir: dir, ReadOnly: true})
	}
	return raftlog.Open(raftlog.Options{Dir: dir, ReadOnly: true, OnFatal: unreadable})
}

// unreadable ends the process that wanted to read what the disk does not give.
func unreadable(err error) {
	fmt.Fprintln(os.Stderr, "the stored data cannot be read:", err)
	os.Exit(1)
}

// Entries calls f with each entry in order. A gap, as a received snapshot leaves it, is passed over.
func (s *StoredLog) Entries(f func(*raft.Log) error) error {
	for index := s.First; index <= s.Last && index > 0; index++ {
		var l raft.Log
		switch err := s.log.GetLog(index, &l); {
		case errors.Is(err, raft.ErrLogNotFound):
			continue
		case err != nil:
			return fmt.Errorf("log of group %d: %w", s.Group, err)
		}
		if err := f(&l); err != nil {
			return err
		}
	}
	return nil
}

// Close closes the files.
func (s *StoredLog) Close() error {
	var errs []error
	for i := len(s.close) - 1; i >= 0; i-- {
		errs = append(errs, s.close[i]())
	}
	s.close = nil
	return errors.Join(errs...)
}
