package chaos

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"

	"github.com/holdfastdb/holdfast/client"
	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
)

// wire is a load without the manners of SDKs: it speaks their protocol, and sends when something is due, whatever the nodes
// say. Its frames are made in advance, so it takes little of the CPUs that the nodes need.
type wire struct {
	ctx    context.Context
	stop   context.CancelFunc
	shards []*wireShard
	work   sync.WaitGroup

	mu      sync.Mutex
	streams map[wireEnd]*wireStream
	broken  error // of a stream that ended
}

// wireEnd is one end of a stream: a node, and one of the services that call it.
type wireEnd struct {
	addr    string
	service int
}

// wireShard is the load on one shard.
type wireShard struct {
	w     *wire
	shard uint32
	free  chan *sender
	mu    sync.Mutex
	addr  string // of the leader
}

// sender is one client to the cluster, with one frame under way at most.
type sender struct {
	service int
	frame   *pb.PackedFrame // its operations are encoded once
}

const (
	frameOps        = 512         // checks in a frame: as many as it holds
	wireSenders     = 1024        // in each shard
	overloadPatient = time.Second // how long each caller waits for its answer
	services        = 32          // processes that call: each has a stream to each node
	checkType       = 1           // as data.proto says
	checkMethod     = 1
)

// newWire prepares a load on a resource. cl finds out in which shards its counters are.
func newWire(ctx context.Context, cl *client.Client, resource string) (*wire, error) {
	w := &wire{streams: make(map[wireEnd]*wireStream)}
	w.ctx, w.stop = context.WithCancel(ctx)
	m, err := pb.NewDataClient(cl.Conn()).ClusterMap(ctx, &pb.ClusterMapRequest{})
	if err != nil {
		return nil, err
	}
	addrs := make(map[string]string)
	for _, n := range m.Nodes {
		addrs[n.NodeId] = n.GrpcAddr
	}
	ops := make(map[uint32][][]byte)
	for key := 0; ; key++ {
		name := fmt.Sprint("client-", key)
		var at client.Trace
		if _, err := cl.Limits().Check(client.WithTrace(ctx, &at), client.Request{Client: name, Resource: resource}); err != nil {
			return nil, err
		}
		request, err := proto.Marshal(&pb.CheckRequest{ClientId: name, Resource: resource})
		if err != nil {
			return nil, err
		}
		op, err := proto.Marshal(&pb.Op{Type: checkType, Method: checkMethod, Request: request})
		if err != nil {
			return nil, err
		}
		ops[at.Shard] = append(ops[at.Shard], op)
		if key >= 1000 && len(ops) == len(m.Shards) {
			break
		}
	}
	for _, s := range m.Shards {
		l := &wireShard{w: w, shard: s.Shard, free: make(chan *sender, wireSenders), addr: addrs[s.Leader]}
		if l.addr == "" {
			return nil, fmt.Errorf("shard %d has no leader", s.Shard)
		}
		for i := range wireSenders {
			var id [16]byte
			_, _ = rand.Read(id[:]) // never fails
			q := &pb.PackedFrame{Client: id[:], Shard: s.Shard, TimeoutMs: uint32(overloadPatient.Milliseconds())}
			for j := range frameOps {
				q.Ops = append(q.Ops, ops[s.Shard][(i*frameOps+j)%len(ops[s.Shard])])
			}
			l.free <- &sender{i % services, q}
		}
		w.shards = append(w.shards, l)
	}
	return w, nil
}

// begin sends a frame if a sender is free, and calls done with the answer, nil if there is none.
func (l *wireShard) begin(done func(r *pb.FrameResponse, took time.Duration)) bool {
	var s *sender
	select {
	case s = <-l.free:
	default:
		return false
	}
	l.mu.Lock()
	addr := l.addr
	l.mu.Unlock()
	old, begin := s.frame, time.Now()
	// What is being sent must not change.
	s.frame = &pb.PackedFrame{Client: old.Client, Shard: old.Shard, TimeoutMs: old.TimeoutMs, Ops: old.Ops, Seq: old.Seq + 1, AckUpTo: old.Seq}
	l.w.to(wireEnd{addr, s.service}).send(s.frame, func(r *pb.FrameResponse) {
		if r.GetError().GetReason() == pb.FrameError_REASON_NOT_LEADER && r.Error.LeaderHint != "" {
			l.mu.Lock()
			l.addr = r.Error.LeaderHint
			l.mu.Unlock()
		}
		l.free <- s
		done(r, time.Since(begin))
	})
	return true
}

// close ends all streams.
func (w *wire) close() {
	w.stop()
	w.work.Wait()
}

// to is a service's stream to a node.
func (w *wire) to(end wireEnd) *wireStream {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.streams[end]
	if s == nil {
		s = &wireStream{queue: make(chan *pb.PackedFrame, 8*wireSenders), waiting: make(map[uint64]func(*pb.FrameResponse))}
		w.streams[end] = s
		w.work.Go(func() {
			err := s.run(w.ctx, end.addr)
			w.mu.Lock()
			defer w.mu.Unlock()
			if w.ctx.Err() == nil { // what is due on it is not sent any more
				w.broken = fmt.Errorf("a stream to %s has ended: %w", end.addr, err)
			}
		})
	}
	return s
}

// wireStream is a stream to a node.
type wireStream struct {
	queue chan *pb.PackedFrame

	mu      sync.Mutex
	last    uint64
	waiting map[uint64]func(*pb.FrameResponse) // nil when the stream has ended
}

func (s *wireStream) send(q *pb.PackedFrame, done func(*pb.FrameResponse)) {
	s.mu.Lock()
	ended := s.waiting == nil
	if !ended {
		s.last++
		q.Id = s.last
		s.waiting[q.Id] = done
	}
	s.mu.Unlock()
	if ended {
		done(nil)
		return
	}
	s.queue <- q // there are not more senders than that
}

func (s *wireStream) run(ctx context.Context, addr string) error {
	defer func() {
		s.mu.Lock()
		waiting := s.waiting
		s.waiting = nil
		s.mu.Unlock()
		for _, done := range waiting {
			done(nil)
		}
	}()
	conn, err := grpc.NewClient("passthrough:"+addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithCancel(ctx)
	var writing sync.WaitGroup
	defer writing.Wait()
	defer cancel()
	st, err := pb.NewDataClient(conn).Frames(ctx)
	if err != nil {
		return err
	}
	writing.Go(func() {
		for {
			select {
			case q := <-s.queue:
				if st.SendMsg(q) != nil {
					return // the reader has the reason
				}
			case <-ctx.Done():
				return
			}
		}
	})
	for {
		r, err := st.Recv()
		if err != nil {
			return err
		}
		s.mu.Lock()
		done := s.waiting[r.Id]
		delete(s.waiting, r.Id)
		s.mu.Unlock()
		if done != nil {
			done(r)
		}
	}
}

// served is what came of frames. Rates and sums are of checks.
type served struct {
	mu                            sync.Mutex
	due, unbegun                  int
	good, refused, late, answered int
	took                          []time.Duration // of the good ones
	length                        time.Duration   // until all had an answer
}

func (o *served) note(r *pb.FrameResponse, took time.Duration) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.answered += frameOps
	switch {
	case r.GetError().GetReason() == pb.FrameError_REASON_OVERLOADED:
		o.refused += frameOps
	case r == nil || r.Error != nil || len(r.Results) != frameOps || took > overloadPatient:
		o.late += frameOps
	default:
		for _, one := range r.Results {
			if one.Code == 0 {
				o.good++
			} else {
				o.late++
			}
		}
		o.took = append(o.took, took)
	}
}

// begun is how many checks were sent on their way.
func (o *served) begun() int { return o.due - o.unbegun }

// closed keeps so many frames under way in each shard, and returns the checks served in a second.
func (w *wire) closed(depth int, length time.Duration) float64 {
	var o served
	var running sync.WaitGroup
	begin := time.Now()
	for _, l := range w.shards {
		for range depth {
			running.Go(func() {
				for answered := make(chan struct{}, 1); time.Since(begin) < length && w.ctx.Err() == nil; <-answered {
					if !l.begin(func(r *pb.FrameResponse, took time.Duration) {
						o.note(r, took)
						answered <- struct{}{}
					}) {
						return // depth is less than wireSenders
					}
				}
			})
		}
	}
	running.Wait()
	return float64(o.good) / time.Since(begin).Seconds()
}

// offer begins checks at a rate for some time, whatever becomes of those before, and returns when all have an answer.
func (w *wire) offer(perSecond float64, length time.Duration) (*served, error) {
	o := &served{}
	begin := time.Now()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for now := begin; now.Sub(begin) < length && w.ctx.Err() == nil; now = <-tick.C {
		for due := int(now.Sub(begin).Seconds() * perSecond); o.due+frameOps <= due; o.due += frameOps {
			if l := w.shards[o.due/frameOps%len(w.shards)]; !l.begin(o.note) {
				o.unbegun += frameOps
			}
		}
	}
	for end := time.Now(); time.Since(end) < 30*time.Second; time.Sleep(10 * time.Millisecond) {
		o.mu.Lock()
		all := o.answered == o.begun()
		o.mu.Unlock()
		if all {
			o.length = time.Since(begin)
			w.mu.Lock()
			defer w.mu.Unlock()
			return o, w.broken
		}
	}
	return o, errors.New("frames have no answer, not even that they were refused")
}
