package shard

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/hashicorp/raft"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/storage"
	"github.com/holdfastdb/holdfast/storage/plant"
)

// machine lets Raft drive the state machine. Raft calls it from one goroutine.
type machine struct {
	*fsm.Machine
	state     *storage.Shard
	log       Durability
	sync      func() error
	onApplied func(fsm.Applied)
	onCommit  func([]*raft.Log)
	onFatal   func(error)
	// restored is called after a received state has replaced the old one.
	restored func() error
	entries  []fsm.LogEntry

	turn     sync.Mutex // who uses Apply, Query, Flush or Reload
	watchers []*watcher // guarded by turn

	mu       sync.Mutex
	advanced chan struct{}    // closed, and replaced, when the position moves; nil while nobody waits
	received *storage.Install // a complete state that waits for Restore
}

func openMachine(cfg Config) (*machine, error) {
	m, err := fsm.Open(cfg.Registry, cfg.State)
	if err != nil {
		return nil, err
	}
	return &machine{Machine: m, state: cfg.State, log: cfg.Durability, sync: cfg.Sync, onApplied: cfg.OnApplied, onCommit: cfg.OnCommit, onFatal: cfg.OnFatal}, nil
}

// ApplyBatch implements raft.BatchingFSM. The answers are *fsm.Outcome.
func (m *machine) ApplyBatch(logs []*raft.Log) []any {
	answers := make([]any, len(logs))
	if err := m.durable(logs[len(logs)-1].Index); err != nil {
		m.onFatal(fmt.Errorf("apply: %w", err))
		return answers
	}
	if m.onCommit != nil {
		m.onCommit(logs)
	}
	m.entries = m.entries[:0]
	for _, l := range logs {
		e := fsm.LogEntry{Index: l.Index, Term: l.Term}
		if l.Type == raft.LogConfiguration {
			e.Configuration = l.Data
		} else {
			e.Data = l.Data
		}
		m.entries = append(m.entries, e)
	}
	m.turn.Lock()
	outcomes, err := m.Machine.Apply(m.entries)
	if err == nil && len(m.watchers) > 0 {
		m.tell(outcomes)
	}
	m.turn.Unlock()
	if err != nil {
		m.onFatal(fmt.Errorf("apply: %w", err))
		return answers
	}
	for i := range outcomes {
		answers[i] = &outcomes[i]
	}
	m.moved()
	return answers
}

// durable waits for an entry to be on disk here: what Raft calls committed may be on disk only at others, which is too few
// if this replica has been counted.
func (m *machine) durable(index uint64) error {
	if m.log == nil || m.log.Durable() >= index || plant.On(plant.CountUnsynced) {
		return nil
	}
	done := make(chan error, 1)
	m.log.When(index, func(err error) { done <- err })
	return <-done
}

// Apply implements raft.FSM.
func (m *machine) Apply(l *raft.Log) any { return m.ApplyBatch([]*raft.Log{l})[0] }

func (m *machine) moved() {
	m.mu.Lock()
	if m.advanced != nil {
		close(m.advanced)
		m.advanced = nil
	}
	m.mu.Unlock()
	if m.onApplied != nil {
		m.onApplied(m.Applied())
	}
}

// wait returns when the state includes the entry index.
func (m *machine) wait(ctx context.Context, index uint64) error {
	for {
		m.mu.Lock()
		if m.Applied().Index >= index {
			m.mu.Unlock()
			return nil
		}
		if m.advanced == nil {
			m.advanced = make(chan struct{})
		}
		advanced := m.advanced
		m.mu.Unlock()
		select {
		case <-advanced:
		case <-ctx.Done():
			return fmt.Errorf("wait for entry %d: %w", index, ctx.Err())
		}
	}
}

// flush brings the state database up to what was applied.
func (m *machine) flush() error {
	m.turn.Lock()
	defer m.turn.Unlock()
	if err := m.Flush(); err != nil {
		m.onFatal(err)
		return err
	}
	return nil
}

// query answers from memory; see fsm.Machine.Query.
func (m *machine) query(calls []fsm.Call) ([]fsm.Result, fsm.Applied, error) {
	m.turn.Lock()
	defer m.turn.Unlock()
	results, applied, err := m.Query(calls)
	if err != nil {
		return nil, fsm.Applied{}, fmt.Errorf("query: %w", err)
	}
	return results, applied, nil
}

// close releases the state machine after Raft has stopped.
func (m *machine) close() error {
	m.turn.Lock()
	defer m.turn.Unlock()
	return errors.Join(m.Flush(), m.Close())
}

// Snapshot implements raft.FSM: there is nothing to copy, see snapshot.go.
func (m *machine) Snapshot() (raft.FSMSnapshot, error) {
	if plant.On(plant.TruncateEarly) {
		return fence{func() error { return nil }}, nil
	}
	if err := m.flush(); err != nil {
		return nil, err
	}
	return fence{m.sync}, nil
}

// fence is the snapshot of a state that is on disk already: once it is durable, Raft may cut the log.
type fence struct{ sync func() error }

func (f fence) Persist(sink raft.SnapshotSink) error {
	if err := f.sync(); err != nil {
		_ = sink.Cancel()
		return err
	}
	return sink.Close()
}

func (f fence) Release() {}

// Restore implements raft.FSM: it puts the received state in place.
func (m *machine) Restore(r io.ReadCloser) error {
	defer r.Close()
	m.mu.Lock()
	in := m.received
	m.received = nil
	m.mu.Unlock()
	if in == nil {
		return fmt.Errorf("restore: no state was received")
	}
	if err := m.replace(in); err != nil {
		return fmt.Errorf("restore: %w", err)
	}
	if err := m.restored(); err != nil {
		m.onFatal(fmt.Errorf("restore: %w", err))
		return err
	}
	m.moved()
	return nil
}

// replace puts a received state in the place of the old one. Nothing may flush in between: what the machine has in
// memory belongs to the old one.
func (m *machine) replace(in *storage.Install) error {
	m.turn.Lock()
	defer m.turn.Unlock()
	if err := m.Wait(); err != nil { // or what is being written would come after what was received
		m.onFatal(err)
		return err
	}
	if err := in.Apply(); err != nil {
		return err
	}
	if err := m.Reload(); err != nil {
		m.onFatal(fmt.Errorf("restore: %w", err)) // the old state is gone, the new one is unreadable
		return err
	}
	m.gap()
	return nil
}

// keep holds a complete received state for Restore.
func (m *machine) keep(in *storage.Install) error {
	m.mu.Lock()
	old := m.received
	m.received = in
	m.mu.Unlock()
	if old != nil {
		return old.Discard()
	}
	return nil
}
