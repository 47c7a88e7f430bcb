package shard

import (
	"errors"
	"fmt"

	"github.com/hashicorp/raft"
)

// The log belongs to the state: it holds the entry that the state ends at, or begins right after it. A received state can
// replace one to which the log belonged; then the log is history that may never have been committed, and goes.

// history is how the log relates to the state.
type history int

const (
	belongs  history = iota
	ends             // the log ends before the state
	conflict         // the log has another entry where the state ends
)

func (g *Group) history() (history, error) {
	applied := g.machine.Applied()
	last, err := g.cfg.Log.LastIndex()
	switch {
	case err != nil:
		return 0, err
	case last == 0 || applied.Index == 0:
		return belongs, nil
	case last < applied.Index:
		return ends, nil
	}
	var entry raft.Log
	err = g.cfg.Log.GetLog(applied.Index, &entry)
	switch {
	case errors.Is(err, raft.ErrLogNotFound):
		return belongs, nil
	case err != nil:
		return 0, err
	case entry.Term != applied.Term:
		return conflict, nil
	}
	return belongs, nil
}

// checkLog removes a log that does not belong to the state, because the process ended between the install of a state and
// what follows it, and refuses one that does not connect to it: entries between the two would be missing for good.
func (g *Group) checkLog() error {
	if err := g.clearStaleLog(); err != nil {
		return err
	}
	first, err := g.cfg.Log.FirstIndex()
	if err != nil {
		return fmt.Errorf("open group %d: %w", g.cfg.Group, err)
	}
	if applied := g.machine.Applied().Index; first > applied+1 {
		return fmt.Errorf("group %d: the state ends at entry %d but the log begins at %d: restore the data directory, or start this node with an empty one",
			g.cfg.Group, applied, first)
	}
	return nil
}

// restored follows the install of a received state, while Raft waits for it. Raft compacts the log only up to the state,
// and keeps what is more recent than its number of trailing entries allows:
//   - a log that ends before the state would stay, with a gap after it, to be sent to others one day;
//   - with another entry at the state's end, Raft would keep comparing with what comes after it and be sent the same state
//     for ever (hashicorp/raft #697): it needs a new instance without that log.
func (g *Group) restored() error {
	h, err := g.history()
	if err != nil {
		return err
	}
	switch h {
	case ends:
		return g.clearStaleLog()
	case conflict:
		g.askRestart("a received state replaced conflicting entries")
	}
	return nil
}

// clearStaleLog removes all entries if they do not belong to the state, which is made durable before. Between the install
// of a state and the restart of Raft other entries may have come, been acknowledged and applied: then the log belongs to
// the state again.
func (g *Group) clearStaleLog() error {
	h, err := g.history()
	if err != nil {
		return fmt.Errorf("read the log of group %d: %w", g.cfg.Group, err)
	}
	if h == belongs {
		return nil
	}
	if err := errors.Join(g.machine.flush(), g.cfg.Sync()); err != nil {
		return fmt.Errorf("sync the state of group %d: %w", g.cfg.Group, err)
	}
	first, err1 := g.cfg.Log.FirstIndex()
	last, err2 := g.cfg.Log.LastIndex()
	if err := errors.Join(err1, err2); err != nil {
		return fmt.Errorf("clear the log of group %d: %w", g.cfg.Group, err)
	}
	g.log.Info("removing a log that does not belong to the state", "first", first, "last", last)
	if err := g.cfg.Log.DeleteRange(first, last); err != nil {
		return fmt.Errorf("clear the log of group %d: %w", g.cfg.Group, err)
	}
	return nil
}
