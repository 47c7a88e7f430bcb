package raftnet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/holdfastdb/holdfast/storage/wire"
)

const (
	chunkBytes = 256 << 10
	// installBase and installRate bound how long a state may take: the base and a second for each installRate bytes.
	installBase = 30 * time.Second
	installRate = 1 << 20
)

// installStall is how long either side of a transfer waits for the other's next step. The receiver's main loop waits
// along, so a sender that hangs must not hold it. A variable for tests.
var installStall = 15 * time.Second

// InstallSnapshot implements raft.Transport, over a connection of its own.
func (g *GroupTransport) InstallSnapshot(id raft.ServerID, _ raft.ServerAddress, q *raft.InstallSnapshotRequest, a *raft.InstallSnapshotResponse, data io.Reader) error {
	var err error
	if g.silent.heard(id, q.Term) == nil {
		if err = g.install(id, q, a, data); err != nil {
			g.silent.begin(id, q.Term)
		}
	} else {
		// The state is a copy on disk, and would be old: Raft makes another one when the replica is back.
		if c, ok := data.(io.Closer); ok {
			_ = c.Close() // Raft closes it too, and hears of an error there
		}
		if err = g.awaitSign(id, q.Term); err == nil {
			err = errWasSilent
		}
	}
	if err != nil {
		return fmt.Errorf("send state to %s: %w", id, err)
	}
	return nil
}

func (g *GroupTransport) install(id raft.ServerID, q *raft.InstallSnapshotRequest, a *raft.InstallSnapshotResponse, data io.Reader) error {
	target := nodeOf(string(id))
	p, err := g.n.peer(target)
	if err != nil {
		return err
	}
	conn, err := p.conn(bulkConn)
	if err != nil {
		return err
	}
	limit := installBase + time.Duration(q.Size/installRate)*time.Second
	whole, cancelWhole := context.WithTimeoutCause(g.n.outgoing(g.n.ctx, target), limit, errTimeout)
	defer cancelWhole()
	ctx, cancel := context.WithCancelCause(whole)
	defer cancel(nil)
	t := &transfer{g: g, closed: g.closed(), cancel: cancel}
	if !g.n.spawn(func() { t.watch(ctx) }) {
		return ErrClosed
	}
	st, err := conn.NewStream(ctx, &installDesc, methodInstall)
	if err == nil {
		k, body := appendRequest(nil, q)
		head := (&frame{kind: k, group: g.group, to: string(id), from: g.replica, body: body}).append([]byte{formatVersion})
		var answer []byte
		if answer, err = t.send(st, head, data); err == nil {
			return decodeAnswer(answer, a)
		}
	}
	if cause := context.Cause(ctx); cause != nil {
		return fmt.Errorf("%w: %w", cause, err)
	}
	return err
}

// transfer is a state on its way.
type transfer struct {
	g      *GroupTransport
	closed <-chan struct{}
	cancel context.CancelCauseFunc
	steps  atomic.Int64 // counts what went out
	sent   atomic.Bool  // all did; what remains is the other side's work
}

// send sends a state and returns the answer.
func (t *transfer) send(st grpc.ClientStream, head []byte, data io.Reader) ([]byte, error) {
	err := st.SendMsg(&head)
	for err == nil {
		t.steps.Add(1)
		chunk := make([]byte, chunkBytes) // gRPC keeps it
		n, readErr := io.ReadFull(data, chunk)
		if n > 0 {
			chunk = chunk[:n]
			err = st.SendMsg(&chunk)
		}
		if errors.Is(readErr, io.EOF) || errors.Is(readErr, io.ErrUnexpectedEOF) {
			break
		}
		if readErr != nil {
			return nil, fmt.Errorf("read it: %w", readErr)
		}
	}
	t.sent.Store(true)
	if err == nil {
		err = st.CloseSend()
	}
	if err != nil && !errors.Is(err, io.EOF) { // io.EOF: RecvMsg has the reason
		return nil, err
	}
	var answer []byte
	err = st.RecvMsg(&answer)
	return answer, err
}

// watch ends the transfer when it stands still, or when the replica leads no more: Raft does not shut down before.
func (t *transfer) watch(ctx context.Context) {
	tick := time.NewTicker(installStall / 8)
	defer tick.Stop()
	steps, since := t.steps.Load(), time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.closed:
			t.cancel(ErrClosed)
			return
		case <-tick.C:
			if !t.g.mayLead() {
				t.cancel(errNotLeader)
				return
			}
			if now := t.steps.Load(); now != steps || t.sent.Load() {
				steps, since = now, time.Now()
			} else if time.Since(since) > installStall {
				t.cancel(errTimeout)
				return
			}
		}
	}
}

// mayLead is false when the Raft instance says that it does not lead.
func (g *GroupTransport) mayLead() bool {
	r, ok := g.state().(interface{ State() raft.RaftState })
	return !ok || r.State() == raft.Leader
}

// serveInstall receives a replica's state: the request, then the bytes; then it answers.
func (n *Net) serveInstall(st grpc.ServerStream) error {
	from, err := n.sender(st.Context(), false)
	if err != nil {
		return err
	}
	var b []byte
	if err := st.RecvMsg(&b); err != nil {
		return err
	}
	var f *frame
	err = readFrames(b, func(next *frame) error {
		if f != nil || next.kind != kindSnapshot || nodeOf(next.from) != from {
			return fmt.Errorf("%w: announcement of a state", wire.ErrCorrupt)
		}
		f = next
		return nil
	})
	if err == nil && f == nil {
		err = fmt.Errorf("%w: announcement of a state", wire.ErrCorrupt)
	}
	if err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	g, err := n.local(f.group, f.to)
	if err != nil {
		return status.Error(codes.NotFound, err.Error())
	}
	request, err := decodeRequest(f.kind, f.body)
	if err != nil {
		n.refused(from, err)
		return status.Error(codes.InvalidArgument, err.Error())
	}
	ctx, cancel := context.WithCancel(st.Context())
	defer cancel()
	defer context.AfterFunc(n.ctx, cancel)()
	r := &stateReader{ctx: ctx, chunks: make(chan []byte, 4), left: request.(*raft.InstallSnapshotRequest).Size}
	if !n.spawn(func() { r.receive(st) }) { // ends with the stream, which ends when this returns
		return status.Error(codes.Unavailable, ErrClosed.Error())
	}
	answer, err := g.deliver(ctx, request, r)
	if err != nil {
		return status.Error(codes.Unknown, err.Error())
	}
	out, err := appendAnswer(nil, answer)
	if err != nil {
		return err
	}
	return st.SendMsg(&out)
}

// stateReader is what Raft reads a state from: the bytes that follow on the stream, exactly as many as announced.
type stateReader struct {
	ctx    context.Context
	chunks chan []byte
	end    error // set before chunks is closed
	rest   []byte
	left   int64
	err    error // once given, given again: Raft goes on to drain the reader
}

func (r *stateReader) receive(st grpc.ServerStream) {
	defer close(r.chunks)
	for {
		var b []byte
		if r.end = st.RecvMsg(&b); r.end != nil {
			return
		}
		if len(b) == 0 {
			continue // no progress
		}
		select {
		case r.chunks <- b:
		case <-r.ctx.Done():
			r.end = r.ctx.Err()
			return
		}
	}
}

func (r *stateReader) Read(p []byte) (int, error) {
	if r.err == nil && len(r.rest) == 0 {
		r.err = r.next()
	}
	if r.err != nil {
		return 0, r.err
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

func (r *stateReader) next() error {
	stall := time.NewTimer(installStall)
	defer stall.Stop()
	select {
	case b, ok := <-r.chunks:
		switch r.left -= int64(len(b)); {
		case !ok && errors.Is(r.end, io.EOF) && r.left > 0:
			return io.ErrUnexpectedEOF
		case !ok:
			return r.end
		case r.left < 0:
			return fmt.Errorf("%w: more of a state than announced", wire.ErrCorrupt)
		}
		r.rest = b
		return nil
	case <-stall.C:
		return fmt.Errorf("the sender of a state: %w", errTimeout)
	case <-r.ctx.Done():
		return r.ctx.Err()
	}
}
