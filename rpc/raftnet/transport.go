package raftnet

import (
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/holdfastdb/holdfast/storage/plant"
)

// RaftState is what can be asked of a Raft instance without its main loop. *raft.Raft is one.
type RaftState interface {
	CurrentTerm() uint64
	LastIndex() uint64
}

// Durability tells what of a replica's log is on disk, if the log does not wait for that: what the transport says to
// others must not be ahead of it.
type Durability interface {
	// Durable is an index up to which all entries are on disk.
	Durable() uint64
	// When calls done once an entry is, or with the reason why it will not be. Done must not block.
	When(index uint64, done func(error))
}

// GroupTransport is one replica's raft.Transport. Addresses are replica ids, "<node id>/<generation>".
type GroupTransport struct {
	n        *Net
	group    uint32
	replica  string
	log      Durability // nil if what the log has stored is on disk
	consumer chan raft.RPC
	attached atomic.Pointer[RaftState]
	silent   silences

	mu   sync.Mutex
	done chan struct{} // closed by Close, made anew by Attach: a replica may have several Raft instances in turn
}

var (
	_ raft.Transport   = (*GroupTransport)(nil)
	_ raft.WithPreVote = (*GroupTransport)(nil)
	_ raft.WithClose   = (*GroupTransport)(nil)
)

// consumerLength lets heartbeats through while the main loop is at work on something else.
const consumerLength = 64

// Group makes the transport of a replica, in place of the group's last one. Attach must follow, when Raft has started.
// Log is nil if the replica's log waits for the disk by itself.
func (n *Net) Group(group uint32, replicaID string, log Durability) *GroupTransport {
	g := &GroupTransport{n: n, group: group, replica: replicaID, log: log, consumer: make(chan raft.RPC, consumerLength), done: make(chan struct{})}
	n.mu.Lock()
	n.groups[group] = g
	n.mu.Unlock()
	return g
}

// Attach tells the Raft instance that the transport serves.
func (g *GroupTransport) Attach(r RaftState) {
	g.mu.Lock()
	select {
	case <-g.done:
		g.done = make(chan struct{})
	default:
	}
	g.mu.Unlock()
	g.silent.forget()
	g.attached.Store(&r)
	g.n.mu.Lock()
	g.n.groups[g.group] = g
	g.n.mu.Unlock()
}

func (g *GroupTransport) state() RaftState {
	if p := g.attached.Load(); p != nil {
		return *p
	}
	return nil
}

func (g *GroupTransport) closed() <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.done
}

// Close implements raft.WithClose: no more requests are taken. raft.Shutdown calls it.
func (g *GroupTransport) Close() error {
	g.attached.Store(nil)
	g.n.mu.Lock()
	if g.n.groups[g.group] == g {
		delete(g.n.groups, g.group)
	}
	g.n.mu.Unlock()
	g.mu.Lock()
	defer g.mu.Unlock()
	select {
	case <-g.done:
	default:
		close(g.done)
	}
	return nil
}

// Consumer implements raft.Transport.
func (g *GroupTransport) Consumer() <-chan raft.RPC { return g.consumer }

// LocalAddr implements raft.Transport.
func (g *GroupTransport) LocalAddr() raft.ServerAddress { return raft.ServerAddress(g.replica) }

// EncodePeer implements raft.Transport.
func (g *GroupTransport) EncodePeer(_ raft.ServerID, addr raft.ServerAddress) []byte {
	return []byte(addr)
}

// DecodePeer implements raft.Transport.
func (g *GroupTransport) DecodePeer(b []byte) raft.ServerAddress { return raft.ServerAddress(b) }

// SetHeartbeatHandler implements raft.Transport and does nothing: the handler would change Raft's term outside of its
// main loop (hashicorp/raft #695).
func (g *GroupTransport) SetHeartbeatHandler(func(raft.RPC)) {}

func nodeOf(replica string) string {
	node, _, _ := strings.Cut(replica, "/")
	return node
}

// appendTimeout bounds an append, which waits for the other side's disk.
const appendTimeout = 10 * time.Second

func (g *GroupTransport) start(target raft.ServerID, request any) (*call, error) {
	p, err := g.n.peer(nodeOf(string(target)))
	if err != nil {
		return nil, err
	}
	which, patient := beatConn, false
	if q, ok := request.(*raft.AppendEntriesRequest); ok {
		// Raft goes on sending heartbeats after it has stepped down, as long as an append is under way that nobody answers:
		// a leader that hears nobody would keep its followers loyal for that long.
		if g.deposed(q.Term) {
			return nil, errNotLeader
		}
		if g.n.cfg.DiskStalled != nil && g.n.cfg.DiskStalled() {
			return nil, errDiskStalled
		}
		if isHeartbeat(q) {
			patient = g.silent.heard(target, q.Term) == nil // entries wait for the answer
		} else {
			which, request = entryConn, g.committed(q)
		}
	}
	k, body := appendRequest(nil, request)
	return p.send(which, &frame{kind: k, group: g.group, to: string(target), from: g.replica, body: body, patient: patient})
}

// committed is a request that tells of no commit beyond what is on disk here: Raft counts the leader itself for the
// majority as soon as its log has an entry.
func (g *GroupTransport) committed(q *raft.AppendEntriesRequest) *raft.AppendEntriesRequest {
	if g.log == nil || plant.On(plant.CountUnsynced) {
		return q
	}
	durable := g.log.Durable()
	if q.LeaderCommitIndex <= durable {
		return q
	}
	less := *q
	less.LeaderCommitIndex = durable
	return &less
}

// stored calls done when what an answer says about the log is true of the disk too.
func (g *GroupTransport) stored(request, answer any, done func(error)) {
	q, isAppend := request.(*raft.AppendEntriesRequest)
	if g.log == nil || !isAppend || len(q.Entries) == 0 {
		done(nil)
		return
	}
	if a, ok := answer.(*raft.AppendEntriesResponse); !ok || !a.Success {
		done(nil)
		return
	}
	g.log.When(q.Entries[len(q.Entries)-1].Index, done)
}

func (g *GroupTransport) ask(target raft.ServerID, request, answer any, timeout time.Duration) error {
	c, err := g.start(target, request)
	if err != nil {
		return err
	}
	body, err := c.wait(timeout, g.n.ctx.Done(), g.closed())
	if err != nil {
		return err
	}
	return decodeAnswer(body, answer)
}

// AppendEntries implements raft.Transport.
func (g *GroupTransport) AppendEntries(id raft.ServerID, _ raft.ServerAddress, q *raft.AppendEntriesRequest, a *raft.AppendEntriesResponse) error {
	if !isHeartbeat(q) {
		return g.append(id, q, a)
	}
	if err := g.ask(id, q, a, g.n.cfg.Heartbeat); err != nil {
		return err
	}
	g.silent.end(id)
	return nil
}

// maxPiece bounds the entries of one request, as encoded, unless it is a single one. Raft counts entries, not bytes.
const maxPiece = 8 << 20

// append sends a request in pieces that fit a message, one after the other: each is a lawful append of its own, and the
// whole has succeeded when the last has.
func (g *GroupTransport) append(id raft.ServerID, q *raft.AppendEntriesRequest, a *raft.AppendEntriesResponse) error {
	if err := g.awaitSign(id, q.Term); err != nil {
		return err
	}
	for _, piece := range pieces(q, maxPiece) {
		if err := g.ask(id, piece, a, appendTimeout); err != nil {
			g.silent.begin(id, q.Term)
			return err
		}
		if !a.Success || a.Term > q.Term {
			return nil
		}
	}
	return nil
}

// pieces splits a request such that no piece with more than one entry has more than limit bytes. All but the last tell of
// no commit beyond their own entries: what the follower has there may be another leader's.
func pieces(q *raft.AppendEntriesRequest, limit int) []*raft.AppendEntriesRequest {
	var list []*raft.AppendEntriesRequest
	rest, size := *q, 0
	for i := 0; i < len(rest.Entries); i++ {
		n := logBytes(rest.Entries[i])
		if i > 0 && size+n > limit {
			piece, last := rest, rest.Entries[i-1]
			piece.Entries = rest.Entries[:i:i]
			piece.LeaderCommitIndex = min(q.LeaderCommitIndex, last.Index)
			list = append(list, &piece)
			rest.Entries, rest.PrevLogEntry, rest.PrevLogTerm = rest.Entries[i:], last.Index, last.Term
			i, size = 0, 0
		}
		size += n
	}
	return append(list, &rest)
}

// logBytes is about what an entry takes in a message.
func logBytes(l *raft.Log) int { return len(l.Data) + len(l.Extensions) + 48 }

func appendBytes(q *raft.AppendEntriesRequest) int {
	size := 0
	for _, l := range q.Entries {
		size += logBytes(l)
	}
	return size
}

// RequestVote implements raft.Transport.
func (g *GroupTransport) RequestVote(id raft.ServerID, _ raft.ServerAddress, q *raft.RequestVoteRequest, a *raft.RequestVoteResponse) error {
	return g.ask(id, q, a, g.n.cfg.Election)
}

// RequestPreVote implements raft.WithPreVote.
func (g *GroupTransport) RequestPreVote(id raft.ServerID, _ raft.ServerAddress, q *raft.RequestPreVoteRequest, a *raft.RequestPreVoteResponse) error {
	return g.ask(id, q, a, g.n.cfg.Election)
}

// TimeoutNow implements raft.Transport.
func (g *GroupTransport) TimeoutNow(id raft.ServerID, _ raft.ServerAddress, q *raft.TimeoutNowRequest, a *raft.TimeoutNowResponse) error {
	return g.ask(id, q, a, g.n.cfg.Election)
}
