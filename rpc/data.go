package rpc

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/fsm/catalog"
	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
	"github.com/holdfastdb/holdfast/storage/plant"
)

// data implements holdfast.v1.Data, the stream that SDKs speak.
type data struct {
	pb.UnimplementedDataServer
	node     Node
	limits   *limits
	sessions *sessions
	metrics  *metrics
	closing  chan struct{}  // closed when streams shall end
	streams  sync.WaitGroup // the readers and writers of all streams
	memory   atomic.Int64   // what the frames of all streams hold
	works    sync.Pool      // of *work
	replies  sync.Pool      // of *reply
}

const (
	// maxFrames bounds the frames of one stream whose answers are not sent; then its reader waits.
	maxFrames = 512
	// maxElsewhere bounds the operations of one frame that are carried out in several groups at the same time.
	maxElsewhere = 64
	// defaultFrameTimeout and maxFrameTimeout bound how long a frame may wait, in milliseconds.
	defaultFrameTimeout = 10_000
	maxFrameTimeout     = fsm.MaxDeadline
	// maxSkew is how far the clock of the node that stamped a frame's deadline may be ahead, in milliseconds: a retry must
	// not be told that its frame makes no sense, for it may have been executed.
	maxSkew = 10_000
)

// ClusterMap implements the service.
func (s *data) ClusterMap(context.Context, *pb.ClusterMapRequest) (*pb.ClusterMapResponse, error) {
	t := s.node.Topology()
	if t == nil {
		return nil, statusOf(errNoTopology)
	}
	r := &pb.ClusterMapResponse{ClusterId: t.Cluster.ID, Epoch: t.Cluster.Epoch}
	for i := range t.Nodes {
		r.Nodes = append(r.Nodes, nodeInfo(s.node, &t.Nodes[i]))
	}
	for i := range t.Shards {
		r.Shards = append(r.Shards, shardInfo(s.node, &t.Shards[i]))
	}
	return r, nil
}

// stream is one SDK's stream.
type stream struct {
	s     *data
	ctx   context.Context
	room  chan struct{} // a slot for each frame whose answer is not sent
	work  sync.WaitGroup
	mu    sync.Mutex
	queue []*reply
	ended bool
	wake  chan struct{}

	held  atomic.Int64  // the memory of its frames
	freed chan struct{} // it holds less than it did

	// Scratch of the reader, which prepares one operation after the other.
	preparing *work
	in        pb.Op
	check     pb.CheckRequest
}

func newStream(ctx context.Context, s *data) *stream {
	return &stream{
		s: s, ctx: ctx, room: make(chan struct{}, maxFrames), wake: make(chan struct{}, 1), freed: make(chan struct{}, 1),
	}
}

// Frames implements the service. It ends with its writer, or without it when that waits for too long; then the reader's
// Recv and the writer's Send end with the stream.
func (s *data) Frames(st grpc.BidiStreamingServer[pb.FrameRequest, pb.FrameResponse]) error {
	ctx, cancel := context.WithCancelCause(st.Context())
	defer cancel(nil)
	x := newStream(ctx, s)
	written, stalled := make(chan struct{}), make(chan struct{})
	s.streams.Go(func() {
		defer x.work.Wait()
		cancel(x.read(st))
	})
	s.streams.Go(func() {
		defer close(written)
		defer x.end()
		x.write(st, stalled)
	})
	select {
	case <-written:
		var refusal *failure
		if errors.As(context.Cause(ctx), &refusal) {
			return refusal
		}
		return nil
	case <-stalled:
		return errStalled
	}
}

// read takes frames in until the client hangs up, or sends what is no frame. Those under way then are finished by their
// shards.
func (x *stream) read(st grpc.BidiStreamingServer[pb.FrameRequest, pb.FrameResponse]) error {
	for x.share() {
		q := &pb.PackedFrame{}
		if err := st.RecvMsg(q); err != nil {
			return err
		}
		all := x.hold(requestMemory(q))
		select {
		case x.room <- struct{}{}:
		case <-x.ctx.Done():
			x.hold(-requestMemory(q))
			return nil
		}
		if all > maxMemory {
			x.refuse(q, pb.FrameError_REASON_OVERLOADED, "this node has too many frames under way")
			continue
		}
		x.frame(q)
	}
	return nil
}

// write sends answers, as many as wait, until the stream ends, or the service and nothing is left to be answered.
// It closes stalled when one has waited for too long.
func (x *stream) write(st grpc.BidiStreamingServer[pb.FrameRequest, pb.FrameResponse], stalled chan<- struct{}) {
	late := time.AfterFunc(stallTimeout, func() { close(stalled) })
	defer late.Stop()
	late.Stop()
	closing := x.s.closing
	for closing != nil || len(x.room) > 0 {
		select {
		case <-x.ctx.Done():
			return
		case <-closing:
			closing = nil
			continue
		case <-x.wake:
		}
		runtime.Gosched()
		x.mu.Lock()
		queue := x.queue
		x.queue = nil
		x.mu.Unlock()
		for i, r := range queue {
			late.Reset(stallTimeout)
			if st.Send(&r.FrameResponse) != nil || !late.Stop() {
				x.drop(queue[i:])
				return
			}
			x.hold(-answerMemory(&r.FrameResponse))
			x.s.sent(r)
			<-x.room
		}
	}
}

// answer ends a frame.
func (x *stream) answer(q *pb.PackedFrame, r *reply) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.ended {
		x.hold(-requestMemory(q))
		return
	}
	x.hold(answerMemory(&r.FrameResponse) - requestMemory(q))
	x.queue = append(x.queue, r)
	select {
	case x.wake <- struct{}{}:
	default:
	}
}

// end drops the answers that wait, and those to come.
func (x *stream) end() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.ended = true
	x.drop(x.queue)
	x.queue = nil
}

func (x *stream) drop(answers []*reply) {
	for _, r := range answers {
		x.hold(-answerMemory(&r.FrameResponse))
	}
}

func (x *stream) refuse(q *pb.PackedFrame, reason pb.FrameError_Reason, message string) {
	e := &pb.FrameError{Reason: reason, Message: message}
	switch reason {
	case pb.FrameError_REASON_NOT_LEADER:
		e.LeaderHint = x.s.leaderAddr(q.Shard)
	case pb.FrameError_REASON_OVERLOADED:
		e.RetryAfterMs = uint32(retryAfter.Milliseconds())
	}
	x.s.metrics.refused(reason)
	x.answer(q, &reply{FrameResponse: pb.FrameResponse{Id: q.Id, Error: e, DeadlineMs: q.DeadlineMs}})
}

func (s *data) leaderAddr(group uint32) string {
	id, _, ok := s.node.Leader(group)
	t := s.node.Topology()
	if !ok || t == nil {
		return ""
	}
	n, _ := t.Node(id)
	return n.GRPC
}

// frame handles one request of the stream; it does not wait for the outcome.
func (x *stream) frame(q *pb.PackedFrame) {
	begin := time.Now()
	s := x.s
	if len(q.Client) != 16 || q.Shard == 0 || len(q.Ops) == 0 || len(q.Ops) > fsm.MaxOps ||
		!q.Query && (q.Seq == 0 || q.AckUpTo >= q.Seq) || q.TimeoutMs > maxFrameTimeout {
		x.refuse(q, pb.FrameError_REASON_INVALID, "malformed frame")
		return
	}
	replica, here := s.node.Replica(q.Shard)
	if !here || !replica.IsLeader() && !(q.Query && plant.On(plant.FollowerReads)) {
		x.refuse(q, pb.FrameError_REASON_NOT_LEADER, "this node does not lead the shard")
		return
	}
	if !q.Query && !x.admit(q, replica) {
		return
	}
	w := s.begin(len(q.Ops))
	x.preparing = w
	f := &w.frame
	f.Client, f.Seq, f.AckUpTo, f.Deadline = [16]byte(q.Client), q.Seq, q.AckUpTo, fsm.Time(q.DeadlineMs)
	for i, packed := range q.Ops {
		w.ops[i].place = i
		x.prepare(&w.ops[i], packed, q)
		f.Calls[i] = w.ops[i].call
	}
	x.preparing = nil
	x.in.Reset() // they point into the frame, which is not to be kept as long as the stream
	x.check.Reset()
	if q.Query {
		x.work.Go(func() { x.query(q, w, replica, begin) })
		return
	}
	err := replica.ProposeAsync(f, func(out fsm.FrameOutcome, err error) { x.executed(q, w, out, err, begin) })
	if err != nil {
		x.failed(q, err)
	}
}

// admit stamps a frame's deadline, and refuses what would not be executed in time before there is work for it.
func (x *stream) admit(q *pb.PackedFrame, replica Replica) bool {
	now := int64(replica.Now())
	if q.DeadlineMs == 0 {
		timeout := q.TimeoutMs
		if timeout == 0 {
			timeout = defaultFrameTimeout
		}
		q.DeadlineMs = now + int64(timeout)
	}
	switch {
	case q.DeadlineMs > now+fsm.MaxDeadline+maxSkew:
		x.refuse(q, pb.FrameError_REASON_INVALID, "the deadline is too far away")
	case replica.Busy():
		x.failed(q, fsm.ErrOverloaded)
	default:
		return true
	}
	return false
}

func (x *stream) failed(q *pb.PackedFrame, err error) {
	reason := pb.FrameError_REASON_UNKNOWN_OUTCOME
	switch {
	case errors.Is(err, fsm.ErrNotLeader):
		reason = pb.FrameError_REASON_NOT_LEADER
	case errors.Is(err, fsm.ErrOverloaded), errors.Is(err, fsm.ErrDiskFull):
		reason = pb.FrameError_REASON_OVERLOADED
	case errors.Is(err, fsm.ErrClosed):
		reason = pb.FrameError_REASON_UNAVAILABLE
	}
	x.refuse(q, reason, err.Error())
}

var frameReasons = map[fsm.Code]pb.FrameError_Reason{
	fsm.Expired: pb.FrameError_REASON_EXPIRED, fsm.Stale: pb.FrameError_REASON_STALE,
	fsm.WindowFull: pb.FrameError_REASON_WINDOW_FULL, fsm.Exhausted: pb.FrameError_REASON_OVERLOADED,
	fsm.Conflict: pb.FrameError_REASON_INVALID,
}

// executed is called by the group; what takes time goes on elsewhere.
func (x *stream) executed(q *pb.PackedFrame, w *work, out fsm.FrameOutcome, err error, begin time.Time) {
	if err != nil {
		x.failed(q, err)
		return
	}
	if q.Seq%32 == 0 && plant.On(plant.RefuseDone) {
		out.Code = fsm.Expired
	}
	if out.Code != fsm.OK {
		x.refuse(q, frameReasons[out.Code], out.Message)
		return
	}
	ops := w.ops
	r := x.s.replyOf(len(ops), resultBytes)
	r.Id, r.Index, r.ShardTimeMs, r.DeadlineMs = q.Id, out.Index, int64(out.Time), q.DeadlineMs
	var room answerRoom
	var elsewhere []int
	for i := range ops {
		if out.Replayed && ops[i].again != nil {
			ops[i].repeat(out.Results[i], out.Time)
			elsewhere = append(elsewhere, i)
			continue
		}
		if ops[i].goesElsewhere(out.Results[i].Code) {
			elsewhere = append(elsewhere, i)
			continue
		}
		m, err := x.s.finish(&room, &ops[i], q.Shard, out.Results[i], out.Time)
		r.buf = appendResult(r.buf, r.Results[i], m, err)
	}
	if len(elsewhere) == 0 {
		x.s.metrics.frame(ops, begin)
		x.s.end(w)
		x.answer(q, r)
		return
	}
	// It ends by itself, whether the stream is still there or not: what was begun is finished. What has to be settled afterwards
	// may look at the plans even then, so that this frame's memory is not used again.
	go func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(x.ctx), requestTimeout)
		defer cancel()
		x.carry(ctx, q, ops, elsewhere, r.Results)
		x.s.metrics.frame(ops, begin)
		x.answer(q, r)
	}()
}

// carry executes operations that need other groups than the frame's, several at a time, and fills their results in.
func (x *stream) carry(ctx context.Context, q *pb.PackedFrame, ops []op, which []int, results []*pb.OpResult) {
	var running sync.WaitGroup
	slots := make(chan struct{}, maxElsewhere)
	for _, i := range which {
		slots <- struct{}{}
		running.Go(func() {
			defer func() { <-slots }()
			var m proto.Message
			var err error
			if o := &ops[i]; o.check != nil {
				m, err = x.s.checkElsewhere(ctx, q, i, o.check)
			} else {
				m, err = o.elsewhere(ctx, q, i)
			}
			appendResult(nil, results[i], m, err)
		})
	}
	running.Wait()
}

// query answers a frame of queries: what this shard alone knows in one view of it, the others where they find their
// leaders.
func (x *stream) query(q *pb.PackedFrame, w *work, replica Replica, begin time.Time) {
	ops := w.ops
	timeout := requestTimeout
	if q.TimeoutMs != 0 {
		timeout = min(timeout, time.Duration(q.TimeoutMs)*time.Millisecond)
	}
	ctx, cancel := context.WithTimeout(x.ctx, timeout)
	defer cancel()
	var calls []fsm.Call
	var elsewhere []int
	for i := range ops {
		switch {
		case ops[i].elsewhere != nil:
			elsewhere = append(elsewhere, i)
		case ops[i].call.Type != 0:
			calls = append(calls, ops[i].call)
		}
	}
	var results []fsm.Result
	var applied fsm.Applied
	if len(calls) > 0 {
		var err error
		if results, applied, err = replica.Query(ctx, calls); err != nil {
			if !fsm.Safe(err) {
				err = fsm.ErrClosed // a query has no effect
			}
			x.failed(q, err)
			return
		}
	}
	r := x.s.replyOf(len(ops), answerBytes)
	r.Id, r.Index, r.ShardTimeMs = q.Id, applied.Index, int64(applied.Time)
	for i := range ops {
		if ops[i].elsewhere != nil {
			continue
		}
		result := fsm.Result{Code: fsm.Skipped}
		if ops[i].call.Type != 0 {
			result, results = results[0], results[1:]
		}
		m, err := ops[i].finish(result, applied.Time)
		r.buf = appendResult(r.buf, r.Results[i], m, err)
	}
	x.carry(ctx, q, ops, elsewhere, r.Results)
	x.s.metrics.frame(ops, begin)
	x.s.end(w)
	x.answer(q, r)
}

// nodeInfo tells of a node.
func nodeInfo(n Node, c *catalog.Node) *pb.NodeInfo {
	state := "up"
	switch {
	case c.State != catalog.Active:
		state = string(c.State)
	case !n.Alive(c.ID):
		state = "down"
	}
	return &pb.NodeInfo{NodeId: c.ID, Name: c.Name, GrpcAddr: c.GRPC, HttpAddr: c.HTTP, Zone: c.Zone, State: state}
}

func shardInfo(n Node, c *catalog.Shard) *pb.ShardInfo {
	r := &pb.ShardInfo{Shard: c.ID, FirstSlot: uint32(c.First), LastSlot: uint32(c.Last)}
	if id, term, ok := n.Leader(c.ID); ok {
		r.Leader, r.Term = id, term
	}
	for _, x := range c.Replicas {
		r.Replicas = append(r.Replicas, &pb.ReplicaInfo{NodeId: x.Node, ReplicaId: x.ID(), Role: string(x.Role)})
	}
	return r
}
