package shard

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/storage"
	"github.com/holdfastdb/holdfast/storage/kv"
)

// snapshotStore shows Raft the state itself as its one snapshot: it is persistent and knows its own index, so there is
// no second copy that could disagree with it after a crash. A local snapshot is therefore only a durability fence. A
// received one is collected aside and replaces the state in one step in machine.Restore; until then List tells the
// old position, from then on the new one.
type snapshotStore struct {
	group *Group
	mu    sync.Mutex
	count int
}

const (
	liveID     = "live"
	receivedID = "received"
)

// exportWait bounds how long a snapshot waits for others that are being built.
const exportWait = 10 * time.Minute

// List implements raft.SnapshotStore.
func (s *snapshotStore) List() ([]*raft.SnapshotMeta, error) {
	a := s.group.machine.Applied()
	if a.Index == 0 {
		return nil, nil
	}
	return []*raft.SnapshotMeta{meta(a)}, nil
}

func meta(a fsm.Applied) *raft.SnapshotMeta {
	m := &raft.SnapshotMeta{Version: raft.SnapshotVersionMax, ID: liveID, Index: a.Index, Term: a.Term, ConfigurationIndex: a.ConfigIndex}
	if len(a.Configuration) > 0 {
		m.Configuration = raft.DecodeConfiguration(a.Configuration)
	}
	return m
}

// Open implements raft.SnapshotStore.
func (s *snapshotStore) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	if strings.HasPrefix(id, receivedID) {
		return &raft.SnapshotMeta{Version: raft.SnapshotVersionMax, ID: id}, io.NopCloser(strings.NewReader("")), nil
	}
	ctx, cancel := context.WithTimeout(s.group.ctx, exportWait)
	defer cancel()
	if err := s.group.machine.flush(); err != nil {
		return nil, nil, fmt.Errorf("snapshot of group %d: %w", s.group.cfg.Group, err)
	}
	var applied fsm.Applied
	export, err := s.group.cfg.State.Export(ctx, func(r kv.Reader) (err error) {
		applied, err = fsm.ReadApplied(r)
		return err
	})
	if err != nil {
		return nil, nil, fmt.Errorf("snapshot of group %d: %w", s.group.cfg.Group, err)
	}
	m := meta(applied)
	m.Size = export.Size
	return m, export, nil
}

// Create implements raft.SnapshotStore, for local snapshots (nothing is ever written to the sink) and received ones.
func (s *snapshotStore) Create(_ raft.SnapshotVersion, index, term uint64, _ raft.Configuration, _ uint64, _ raft.Transport) (raft.SnapshotSink, error) {
	s.mu.Lock()
	s.count++
	id := fmt.Sprintf("%s-%d", receivedID, s.count)
	s.mu.Unlock()
	return &sink{group: s.group, id: id, index: index, term: term}, nil
}

// discard removes what was received and not installed.
func (s *snapshotStore) discard() {
	if err := s.group.machine.keep(nil); err != nil {
		s.group.log.Warn("could not remove a received snapshot", "error", err)
	}
}

type sink struct {
	group       *Group
	id          string
	index, term uint64
	install     *storage.Install // nil until something is written
	done        bool
}

func (s *sink) ID() string { return s.id }

func (s *sink) Write(b []byte) (int, error) {
	if s.install == nil {
		if applied := s.group.machine.Applied().Index; s.index < applied {
			return 0, fmt.Errorf("snapshot at entry %d is older than the state at %d", s.index, applied)
		}
		in, err := s.group.cfg.State.NewInstall()
		if err != nil {
			return 0, err
		}
		s.install = in
	}
	return s.install.Write(b)
}

// Close makes a received state ready for Restore. Raft calls it twice for local snapshots.
func (s *sink) Close() error {
	if s.done || s.install == nil {
		return nil
	}
	s.done = true
	if err := s.install.Finish(); err != nil {
		return errors.Join(err, s.install.Discard())
	}
	return s.group.machine.keep(s.install)
}

func (s *sink) Cancel() error {
	if s.done || s.install == nil {
		return nil
	}
	s.done = true
	return s.install.Discard()
}
