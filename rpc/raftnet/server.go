package raftnet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/holdfastdb/holdfast/storage/wire"
)

// The service between nodes. Messages are bytes, see codec.go.
const (
	serviceName   = "holdfast.peer.v1.Peer"
	methodFrames  = "/" + serviceName + "/Frames"
	methodInstall = "/" + serviceName + "/Install"
	methodCall    = "/" + serviceName + "/Call"
)

var (
	framesDesc  = grpc.StreamDesc{StreamName: "Frames", ServerStreams: true, ClientStreams: true}
	installDesc = grpc.StreamDesc{StreamName: "Install", ServerStreams: true, ClientStreams: true}
)

// Register serves the other nodes.
func (n *Net) Register(s *grpc.Server) {
	frames, install := framesDesc, installDesc
	frames.Handler = func(srv any, st grpc.ServerStream) error { return n.serveFrames(st) }
	install.Handler = func(srv any, st grpc.ServerStream) error { return n.serveInstall(st) }
	s.RegisterService(&grpc.ServiceDesc{
		ServiceName: serviceName,
		HandlerType: (*any)(nil),
		Streams:     []grpc.StreamDesc{frames, install},
		Methods: []grpc.MethodDesc{{MethodName: "Call", Handler: func(_ any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
			return n.serveCall(ctx, decode)
		}}},
	}, n)
}

const (
	headerNode    = "holdfast-node"
	headerTarget  = "holdfast-target"
	headerCluster = "holdfast-cluster"
)

func (n *Net) outgoing(ctx context.Context, target string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, headerNode, n.cfg.NodeID, headerTarget, target, headerCluster, n.cfg.ClusterID())
}

// sender tells which node a request comes from, and refuses one that is not from a member of this node's cluster, or for a
// node that had this one's address before. A stranger, which is in no cluster yet, may ask what is open to it.
func (n *Net) sender(ctx context.Context, open bool) (id string, err error) {
	defer func() {
		if err != nil {
			n.refused(id, err)
		}
	}()
	md, _ := metadata.FromIncomingContext(ctx)
	first := func(key string) string {
		if v := md.Get(key); len(v) > 0 {
			return v[0]
		}
		return ""
	}
	id = first(headerNode)
	mine, theirs := n.cfg.ClusterID(), first(headerCluster)
	switch {
	case mine == "": // nobody can be of the same
		return id, status.Error(codes.FailedPrecondition, "this node belongs to no cluster yet")
	case theirs == "" && !open:
		return id, status.Errorf(codes.FailedPrecondition, "this node belongs to cluster %s, the sender to none", mine)
	case theirs != "" && theirs != mine:
		return id, status.Errorf(codes.FailedPrecondition, "this node belongs to cluster %s, not %s", mine, theirs)
	}
	if target := first(headerTarget); target != "" && target != n.cfg.NodeID {
		return id, status.Errorf(codes.FailedPrecondition, "this is node %s, not %s", n.cfg.NodeID, target)
	}
	if id == "" {
		return id, status.Error(codes.Unauthenticated, "the sender does not say which node it is")
	}
	return id, nil
}

// refusalPause is how long refusals are only counted after one was logged: who is refused tries again and again.
const refusalPause = 10 * time.Second

// refused logs that a request was turned away.
func (n *Net) refused(node string, err error) {
	n.mu.Lock()
	n.refusals.count++
	count, now := n.refusals.count, time.Now()
	tell := now.Sub(n.refusals.logged) >= refusalPause
	if tell {
		n.refusals.logged, n.refusals.count = now, 0
	}
	n.mu.Unlock()
	if tell {
		n.log.Warn("refused a request between nodes", "node", node, "error", err, "refused", count)
	}
}

func encodeCall(method string, request []byte) []byte {
	return append(wire.AppendText(nil, method), request...)
}

func (n *Net) serveCall(ctx context.Context, decode func(any) error) (any, error) {
	var b []byte
	if err := decode(&b); err != nil {
		return nil, err
	}
	d := wire.NewDecoder(b)
	method := d.Text()
	from, err := n.sender(ctx, n.isOpen(method))
	if err != nil {
		return nil, err
	}
	h, ok := n.handler(method)
	if d.Bad() || !ok {
		return nil, status.Errorf(codes.Unimplemented, "no method %q: upgrade this node", method)
	}
	answer, err := h(ctx, from, d.Rest())
	if err != nil {
		return nil, status.Error(codes.Unknown, err.Error())
	}
	return &answer, nil
}

// serveFrames takes the requests of another node's replicas until the stream ends.
func (n *Net) serveFrames(st grpc.ServerStream) error {
	from, err := n.sender(st.Context(), false)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(st.Context())
	in := &inbound{n: n, from: from, ctx: ctx, answers: newQueue(0), lanes: make(map[lane]chan work)}
	stopped := context.AfterFunc(n.ctx, cancel)
	defer func() {
		stopped()
		cancel()
		in.work.Wait()
	}()
	in.work.Go(func() {
		defer cancel()
		_ = in.answers.write(ctx, st.SendMsg) // the other side sees the stream end
	})
	for {
		var b []byte
		if err := st.RecvMsg(&b); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		if err := readFrames(b, in.take); err != nil {
			n.log.Error("bad message between nodes", "node", from, "error", err)
			return status.Error(codes.InvalidArgument, err.Error())
		}
	}
}

// inbound is one stream of another node's requests.
type inbound struct {
	n       *Net
	from    string // node id
	ctx     context.Context
	answers *queue
	work    sync.WaitGroup
	lanes   map[lane]chan work // only the stream's reader uses it
}

// lane is what must stay in order: the requests of one replica to another.
type lane struct {
	group uint32
	from  string
}

type work struct {
	g       *GroupTransport
	id      uint64
	request any
}

// laneLength bounds the requests that wait in a lane; Raft itself has few under way.
const laneLength = 64

// maxLanes bounds the lanes of a stream, each of which has a goroutine. Replicas that are gone leave theirs behind, so a
// stream may get there; the next begins anew.
const maxLanes = 4096

// take takes one request. An error ends the stream.
func (in *inbound) take(f *frame) error {
	if nodeOf(f.from) != in.from {
		return fmt.Errorf("%w: frame of replica %q from node %q", wire.ErrCorrupt, f.from, in.from)
	}
	if f.kind == kindTerms {
		body, err := in.n.serveTerms(f.body)
		if err != nil {
			in.n.refused(in.from, err)
			in.fail(f.id, err)
			return nil
		}
		in.send(&frame{kind: kindAnswer, id: f.id, body: body})
		return nil
	}
	g, err := in.n.local(f.group, f.to)
	if err != nil {
		in.fail(f.id, err)
		return nil
	}
	if f.kind == kindSnapshot { // Raft would read the state that does not follow here
		return fmt.Errorf("%w: state of a replica among the frames", wire.ErrCorrupt)
	}
	request, err := decodeRequest(f.kind, f.body)
	if err != nil {
		in.n.refused(in.from, err)
		in.fail(f.id, err)
		return nil
	}
	if q, ok := request.(*raft.AppendEntriesRequest); ok && isHeartbeat(q) {
		if answer := g.answerHeartbeat(q); answer != nil {
			in.answer(f.id, answer)
			return nil
		}
	}
	key := lane{f.group, f.from}
	queue := in.lanes[key]
	if queue == nil {
		if len(in.lanes) >= maxLanes {
			return fmt.Errorf("stream of %d replicas: begin a new one", len(in.lanes))
		}
		queue = make(chan work, laneLength)
		in.lanes[key] = queue
		in.work.Go(func() { in.run(queue) })
	}
	select {
	case queue <- work{g, f.id, request}:
	default:
		in.fail(f.id, errBusy)
	}
	return nil
}

// run hands the requests of one lane to Raft, one after the other.
func (in *inbound) run(queue chan work) {
	for {
		select {
		case <-in.ctx.Done():
			return
		case w := <-queue:
			answer, err := w.g.deliver(in.ctx, w.request, nil)
			if err != nil {
				in.fail(w.id, err)
				continue
			}
			// The next request is written while this one's entries go to the disk.
			w.g.stored(w.request, answer, func(err error) {
				if err != nil {
					in.fail(w.id, err)
				} else {
					in.answer(w.id, answer)
				}
			})
		}
	}
}

func (in *inbound) answer(id uint64, answer any) {
	body, err := appendAnswer(nil, answer)
	if err != nil {
		in.fail(id, err)
		return
	}
	in.send(&frame{kind: kindAnswer, id: id, body: body})
}

// send sends an answer, or the asker's deadline tells that there is none.
func (in *inbound) send(f *frame) { _ = in.n.push(in.from, f, in.answers.push) }

func (in *inbound) fail(id uint64, err error) {
	in.send(&frame{kind: kindFailure, id: id, body: []byte(err.Error())})
}

// local finds the replica that a request is for. One of another generation is not it.
func (n *Net) local(group uint32, replica string) (*GroupTransport, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	g := n.groups[group]
	if g == nil || g.replica != replica {
		return nil, fmt.Errorf("%w: %s of group %d", errNoReplica, replica, group)
	}
	return g, nil
}

// isHeartbeat tells an empty append that carries nothing but the leader's term.
func isHeartbeat(q *raft.AppendEntriesRequest) bool {
	return len(q.Entries) == 0 && q.PrevLogEntry == 0 && q.PrevLogTerm == 0 && q.LeaderCommitIndex == 0
}

// answerHeartbeat answers at once what needs no change of state: a term that is ours, or older. For ours a copy goes
// through the main loop, which learns from it that the leader lives; with no room for that the answer must wait too, or a
// replica whose main loop hangs would look alive. Nil means that the main loop answers.
func (g *GroupTransport) answerHeartbeat(q *raft.AppendEntriesRequest) *raft.AppendEntriesResponse {
	state := g.state()
	if state == nil {
		return nil
	}
	header := raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(g.replica), Addr: []byte(g.replica)}
	switch term := state.CurrentTerm(); {
	case q.Term < term:
		return &raft.AppendEntriesResponse{RPCHeader: header, Term: term, LastLog: state.LastIndex()}
	case q.Term > term:
		return nil
	}
	select {
	case g.consumer <- raft.RPC{Command: q, RespChan: make(chan raft.RPCResponse, 1)}:
		return &raft.AppendEntriesResponse{RPCHeader: header, Term: q.Term, LastLog: state.LastIndex(), Success: true}
	default:
		return nil
	}
}

// deliver hands a request to Raft's main loop and waits for the answer.
func (g *GroupTransport) deliver(ctx context.Context, request any, r io.Reader) (any, error) {
	answers := make(chan raft.RPCResponse, 1)
	select {
	case g.consumer <- raft.RPC{Command: request, Reader: r, RespChan: answers}:
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-g.closed():
		return nil, ErrClosed
	}
	select {
	case a := <-answers:
		return a.Response, a.Error
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-g.closed():
		return nil, ErrClosed
	}
}
