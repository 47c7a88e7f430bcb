package raftnet

import (
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// silenceLimit bounds how long an append waits for a replica that is silent. Then it has failed, which costs one of Raft's
// pauses.
const silenceLimit = time.Minute

// silences are the replicas that left the last append unanswered and no heartbeat answered since.
//
// Raft pauses after an append that failed, twice as long each time and up to ten seconds, and sends the replica no entries
// meanwhile, though it may be back: then a majority lives that commits nothing. Appends to a node that is down fail at
// once, so the pauses would get long within seconds. Therefore an append to a silent replica waits for its sign of life
// instead of failing: Raft goes on sending heartbeats, with pauses of no more than half a timeout.
type silences struct {
	mu   sync.Mutex
	ends map[raft.ServerID]chan struct{} // closed when the replica is heard
}

func (s *silences) begin(id raft.ServerID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ends == nil {
		s.ends = make(map[raft.ServerID]chan struct{})
	}
	if s.ends[id] == nil {
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
	for _, heard := range s.ends {
		close(heard)
	}
	s.ends = nil
}

// heard is closed when the replica is heard, and nil if it is not silent.
func (s *silences) heard(id raft.ServerID) <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ends[id]
}

// awaitSign returns at once if a replica is not silent, else when it is heard. It ends with leadership too: Raft does not
// shut down before its appends are done.
func (g *GroupTransport) awaitSign(id raft.ServerID) error {
	heard := g.silent.heard(id)
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
			if !g.mayLead() {
				return errNotLeader
			}
		}
	}
}
