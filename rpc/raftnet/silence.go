package raftnet

import (
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// silenceLimit bounds how long an append waits for a replica that is silent. Then it has failed, which makes Raft's next pause
// longer: after an hour of silence it is the longest.
const silenceLimit = 5 * time.Minute

// silences are the replicas whose last append has failed and that have answered no heartbeat since, of the term in which
// this replica leads.
//
// Raft pauses after an append that failed, twice as long each time and up to ten seconds, and sends the replica no entries
// meanwhile, though it may be back: then a majority lives that commits nothing. Appends to a node that is down fail at
// once, so the pauses would get long within seconds. Therefore an append to a silent replica waits for its sign of life
// instead of failing: Raft goes on sending heartbeats, at least one in a heartbeat timeout.
type silences struct {
	mu   sync.Mutex
	term uint64
	ends map[raft.ServerID]chan struct{} // closed when the replica is heard
}

func (s *silences) begin(id raft.ServerID, term uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if term > s.term {
		s.clear()
		s.term = term
	}
	if term == s.term && s.ends[id] == nil {
		if s.ends == nil {
			s.ends = make(map[raft.ServerID]chan struct{})
		}
		s.ends[id] = make(chan struct{})
	}
}

func (s *silences) end(id raft.ServerID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if heard := s.ends[id]; heard != nil {
		close(heard)
		delete(s.ends, id)
	}
}

// forget ends all silences: another Raft instance has not heard them.
func (s *silences) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clear()
	s.term = 0
}

func (s *silences) clear() {
	for _, heard := range s.ends {
		close(heard)
	}
	s.ends = nil
}

// heard is closed when the replica is heard, and nil if it is not silent in the term.
func (s *silences) heard(id raft.ServerID, term uint64) <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if term != s.term {
		return nil
	}
	return s.ends[id]
}

// deposed tells that the Raft instance says that it does not lead in the term, or not any more.
func (g *GroupTransport) deposed(term uint64) bool {
	state := g.state()
	return !g.mayLead() || state != nil && state.CurrentTerm() > term
}

// awaitSign returns at once if a replica is not silent, else when it is heard. It ends with leadership too: Raft does not
// shut down before its appends are done.
func (g *GroupTransport) awaitSign(id raft.ServerID, term uint64) error {
	heard := g.silent.heard(id, term)
	if heard == nil {
		return nil
	}
	limit := time.NewTimer(silenceLimit)
	defer limit.Stop()
	look := time.NewTicker(g.n.cfg.Heartbeat / 4)
	defer look.Stop()
	closed := g.closed()
	for {
		select {
		case <-heard:
			return nil
		case <-closed:
			return ErrClosed
		case <-g.n.ctx.Done():
			return ErrClosed
		case <-limit.C:
			return errTimeout
		case <-look.C:
			if g.deposed(term) {
				return errNotLeader
			}
		}
	}
}
