package raftnet

import (
	"context"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
)

// RaftState is what can be asked of a Raft instance without its main loop. *raft.Raft is one.
type RaftState interface {
	CurrentTerm() uint64
	LastIndex() uint64
}

// GroupTransport is one replica's raft.Transport. Addresses are replica ids, "<node id>/<generation>".
type GroupTransport struct {
	n        *Net
	group    uint32
	replica  string
	consumer chan raft.RPC
	attached atomic.Pointer[RaftState]

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

// Group makes the transport of a replica. It takes requests from Attach on.
func (n *Net) Group(group uint32, replicaID string) *GroupTransport {
	g := &GroupTransport{n: n, group: group, replica: replicaID, consumer: make(chan raft.RPC, consumerLength), done: make(chan struct{})}
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
	k, body := appendRequest(nil, request)
	return p.send(&frame{kind: k, group: g.group, to: string(target), from: g.replica, body: body})
}

func (g *GroupTransport) ask(target raft.ServerID, request, answer any, timeout time.Duration) error {
	c, err := g.start(target, request)
	if err != nil {
		return err
	}
	body, err := c.wait(timeout)
	if err != nil {
		return err
	}
	return decodeAnswer(body, answer)
}

// AppendEntries implements raft.Transport.
func (g *GroupTransport) AppendEntries(id raft.ServerID, _ raft.ServerAddress, q *raft.AppendEntriesRequest, a *raft.AppendEntriesResponse) error {
	if !isHeartbeat(q) {
		return g.ask(id, q, a, appendTimeout)
	}
	if g.n.cfg.DiskStalled != nil && g.n.cfg.DiskStalled() {
		return errDiskStalled
	}
	return g.ask(id, q, a, g.n.cfg.Heartbeat)
}

// RequestVote implements raft.Transport.
func (g *GroupTransport) RequestVote(id raft.ServerID, _ raft.ServerAddress, q *raft.RequestVoteRequest, a *raft.RequestVoteResponse) error {
	return g.ask(id, q, a, g.n.cfg.Heartbeat)
}

// RequestPreVote implements raft.WithPreVote.
func (g *GroupTransport) RequestPreVote(id raft.ServerID, _ raft.ServerAddress, q *raft.RequestPreVoteRequest, a *raft.RequestPreVoteResponse) error {
	return g.ask(id, q, a, g.n.cfg.Heartbeat)
}

// TimeoutNow implements raft.Transport.
func (g *GroupTransport) TimeoutNow(id raft.ServerID, _ raft.ServerAddress, q *raft.TimeoutNowRequest, a *raft.TimeoutNowResponse) error {
	return g.ask(id, q, a, g.n.cfg.Heartbeat)
}

const (
	chunkBytes = 256 << 10
	// installBase and installRate bound how long a state may take: the base and a second for each installRate bytes.
	installBase = 30 * time.Second
	installRate = 1 << 20
)

// InstallSnapshot implements raft.Transport, over a connection of its own.
func (g *GroupTransport) InstallSnapshot(id raft.ServerID, _ raft.ServerAddress, q *raft.InstallSnapshotRequest, a *raft.InstallSnapshotResponse, data io.Reader) error {
	p, err := g.n.peer(nodeOf(string(id)))
	if err != nil {
		return err
	}
	conn, err := p.conn(bulkConn)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(g.n.outgoing(g.n.ctx), installBase+time.Duration(q.Size/installRate)*time.Second)
	defer cancel()
	st, err := conn.NewStream(ctx, &installDesc, methodInstall)
	if err != nil {
		return fmt.Errorf("send state to %s: %w", id, err)
	}
	k, body := appendRequest(nil, q)
	message := (&frame{kind: k, group: g.group, to: string(id), from: g.replica, body: body}).append([]byte{formatVersion})
	err = st.SendMsg(&message)
	for err == nil {
		chunk := make([]byte, chunkBytes)
		n, readErr := io.ReadFull(data, chunk)
		if n > 0 {
			chunk = chunk[:n]
			err = st.SendMsg(&chunk)
		}
		if readErr != nil {
			if readErr != io.EOF && readErr != io.ErrUnexpectedEOF {
				return fmt.Errorf("send state to %s: %w", id, readErr)
			}
			break
		}
	}
	if err == nil {
		err = st.CloseSend()
	}
	// After a failed send RecvMsg has the reason.
	if err != nil && err != io.EOF {
		return fmt.Errorf("send state to %s: %w", id, err)
	}
	var answer []byte
	if err := st.RecvMsg(&answer); err != nil {
		return fmt.Errorf("send state to %s: %w", id, err)
	}
	return decodeAnswer(answer, a)
}
