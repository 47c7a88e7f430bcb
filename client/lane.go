package client

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"github.com/holdfastdb/holdfast/rpc/codec"
	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
)

// lane packs the operations for one shard into frames and sees each frame through. Commands and queries have lanes of
// their own.
type lane struct {
	c     *Client
	shard uint32
	query bool

	mu        sync.Mutex
	waiting   []*operation
	open      map[uint64]struct{} // frames that are not answered, by number
	seq       uint64
	took      time.Duration // lately, from packing a frame to its answer
	closed    bool
	launching bool
	wake      chan struct{}
	late      *time.Timer // since the newest frame left
	overdue   bool        // its answer is: what waits need not wait for it
}

// room tells whether what waits may go into a frame now. While one is under way, more are worth their price only if they
// are large: operations that wait for the answer travel together, and a shard's work for a frame is paid once.
func (l *lane) room() bool {
	switch {
	case len(l.waiting) == 0:
		return false
	case len(l.open) == 0:
		return true
	}
	unacked := l.seq - l.acked()
	large := len(l.open) < laneFrames && len(l.waiting) >= largeFrame && unacked < window/2
	return l.overdue && unacked < window-1 || large
}

func (l *lane) run() {
	for {
		select {
		case <-l.c.ctx.Done():
			return
		case <-l.wake:
		}
		runtime.Gosched()
		l.mu.Lock()
		l.launching = false
		if !l.closed {
			l.launch()
		}
		l.mu.Unlock()
	}
}

// operation is one call on its way.
type operation struct {
	typ, method uint32
	request     []byte
	done        chan struct{} // capacity 1: one signal, so that it can be used again
	result      *pb.OpResult
	err         error
	since       time.Time // when it was called
	until       time.Time // the caller's deadline, zero if it has none

	mu    sync.Mutex
	gone  bool // the caller has left before it was sent
	sent  bool
	seq   uint64 // once it is sent: its frame
	place int    // and where it is there
	index uint64 // once it is answered: where it was decided
	at    int64  // and when, by the shard's time
}

const (
	// laneFrames is how many frames of a lane may be under way, those after the first with largeFrame operations or more, not
	// counting those that left because an answer is late. One that is not answered keeps all after it in the shard's memory: half
	// of the window is for the late ones, or large ones would have used it up in milliseconds.
	// Fewer and larger ones are less work for each operation, and leave more of them to wait: in turns, 64 callers do a fifth
	// more checks with 32 than with 96, and 256 callers 8 % more.
	laneFrames = 6
	largeFrame = 32
	// lateAnswer is when the next frame leaves although the one before has no answer: one operation that waits for another
	// shard must not keep all others from a healthy one. It is longer the more of the window is used.
	lateAnswer = 250 * time.Millisecond
	// laneWaiting bounds the operations that wait in a lane.
	laneWaiting = 1 << 16
	maxOps      = 512
	maxBytes    = 192 << 10 // of requests in a frame; what a shard makes of them is smaller than 256 KiB
	window      = 16        // frames that a shard remembers for a client
)

func (c *Client) lane(shard uint32, query bool) (*lane, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, ErrClosed
	}
	key := laneKey{shard, query}
	l := c.lanes[key]
	if l == nil {
		l = &lane{c: c, shard: shard, query: query, open: make(map[uint64]struct{}), wake: make(chan struct{}, 1)}
		c.work.Go(l.run)
		c.lanes[key] = l
	}
	return l, nil
}

// call executes one operation in the shard of a routing key and decodes the answer into r.
func (c *Client) call(ctx context.Context, routingKey string, typ, method uint32, query bool, q, r proto.Message) error {
	return c.callIn(ctx, c.routes.Load().shardOf(routingKey), typ, method, query, q, r)
}

// callIn executes one operation in a shard and decodes the answer into r.
func (c *Client) callIn(ctx context.Context, shard, typ, method uint32, query bool, q, r proto.Message) error {
	a, err := c.exchange(ctx, shard, typ, method, query, q)
	if err != nil {
		return err
	}
	return a.decode(r)
}

// answer is what a shard says to one operation. The bytes are a part of the frame that they came in.
type answer struct {
	response []byte
	at       int64 // the shard's time in milliseconds
}

func (a answer) decode(r proto.Message) error {
	if err := codec.Unmarshal(a.response, r); err != nil {
		return fmt.Errorf("holdfast: unreadable answer: %w", err)
	}
	return nil
}

// exchange executes one operation in a shard.
func (c *Client) exchange(ctx context.Context, shard, typ, method uint32, query bool, q proto.Message) (answer, error) {
	l, err := c.lane(shard, query)
	if err != nil {
		return answer{}, err
	}
	o := c.operations.Get().(*operation)
	o.typ, o.method, o.result, o.err, o.gone, o.sent, o.index = typ, method, nil, nil, false, false, 0
	o.until = time.Time{}
	if until, bounded := ctx.Deadline(); bounded {
		o.since, o.until = time.Now(), until
	}
	if o.request, err = codec.Marshal(q); err != nil {
		return answer{}, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if err := l.enqueue(o); err != nil {
		return answer{}, err
	}
	select {
	case <-o.done:
	case <-ctx.Done():
		gone := o.leave(query)
		l.trace(ctx, o)
		if gone {
			return answer{}, fmt.Errorf("%w: %w", ErrUnavailable, ctx.Err())
		}
		return answer{}, fmt.Errorf("%w: %w", ErrOutcomeUnknown, ctx.Err())
	}
	l.trace(ctx, o)
	result, at, err := o.result, o.at, o.err
	c.operations.Put(o)
	if err != nil {
		return answer{}, err
	}
	if result.Code != 0 {
		return answer{}, resultError(result)
	}
	return answer{result.Response, at}, nil
}

// leave takes the caller away; true if the operation surely has no effect.
func (o *operation) leave(query bool) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.gone = true
	return !o.sent || query
}

var resultErrors = map[codes.Code]error{
	codes.InvalidArgument: ErrInvalid, codes.NotFound: ErrNotFound, codes.Aborted: ErrConflict,
	codes.Unauthenticated: ErrToken, codes.ResourceExhausted: ErrExhausted, codes.Unavailable: ErrUnavailable, codes.DeadlineExceeded: ErrOutcomeUnknown,
}

func resultError(r *pb.OpResult) error {
	if err := resultErrors[codes.Code(r.Code)]; err != nil {
		return fmt.Errorf("%w: %s", err, r.Message)
	}
	return errors.New("holdfast: " + r.Message)
}

func (l *lane) enqueue(o *operation) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return ErrClosed
	}
	if len(l.waiting) >= laneWaiting {
		return fmt.Errorf("%w: %d operations wait for one shard", ErrExhausted, laneWaiting)
	}
	l.waiting = append(l.waiting, o)
	l.signal()
	return nil
}

// launch starts frames while there is work and room. Called with mu held.
func (l *lane) launch() {
	for l.room() {
		f := l.pack()
		if f == nil {
			return
		}
		f.attempt()
	}
}

// acked is the frame up to which all were answered. Called with mu held.
func (l *lane) acked() uint64 {
	acked := l.seq
	for seq := range l.open {
		acked = min(acked, seq-1)
	}
	return acked
}

// hopeless tells that an operation had to wait for its turn and its caller will hardly wait for the answer: that takes as
// long as it took lately, and the longer the queue the less is certain. When there is more to do than can be done, those at
// the head of the queue are all about to leave: without this, what is done would be done for nobody. An operation that
// hardly had to wait is always tried. Called with mu held.
func (l *lane) hopeless(o *operation, now time.Time) bool {
	if o.until.IsZero() {
		return false
	}
	waited := now.Sub(o.since)
	return waited > l.took/4 && o.until.Sub(now) < l.took+min(waited, l.took)
}

// pack takes the operations of a frame off the queue; nil if there is none worth sending.
func (l *lane) pack() *frame {
	var ops []*operation
	size, n, now := 0, 0, time.Now()
	var until time.Time // the latest deadline of a caller
	bounded := true     // all have one
	for ; n < len(l.waiting) && len(ops) < maxOps; n++ {
		o := l.waiting[n]
		if l.hopeless(o, now) {
			o.finish(nil, fmt.Errorf("%w: too many operations wait for the shard", ErrUnavailable))
			continue
		}
		if size += len(o.request) + 16; size > maxBytes && len(ops) > 0 {
			break
		}
		o.mu.Lock()
		gone := o.gone
		o.sent, o.seq, o.place = !gone, l.seq+1, len(ops)
		o.mu.Unlock()
		if !gone {
			ops = append(ops, o)
			bounded = bounded && !o.until.IsZero()
			if o.until.After(until) {
				until = o.until
			}
		}
	}
	left := copy(l.waiting, l.waiting[n:])
	clear(l.waiting[left:])
	l.waiting = l.waiting[:left]
	if len(ops) == 0 {
		return nil
	}
	l.seq++
	l.open[l.seq] = struct{}{}
	l.overdue = false
	if gap := lateAnswer * time.Duration(l.seq-l.acked()); l.late == nil {
		l.late = time.AfterFunc(gap, l.hurry)
	} else {
		l.late.Reset(gap)
	}
	if last := now.Add(l.c.cfg.Timeout); !bounded || until.After(last) {
		until = last
	}
	q := &pb.FrameRequest{
		Client: l.c.id[:], Shard: l.shard, Query: l.query, TimeoutMs: uint32(max(until.Sub(now).Milliseconds(), 1)),
		Ops: make([]*pb.Op, len(ops)),
	}
	if !l.query {
		q.Seq, q.AckUpTo = l.seq, min(l.acked(), l.seq-1)
	}
	rows := make([]pb.Op, len(ops))
	for i, o := range ops {
		rows[i].Type, rows[i].Method, rows[i].Request = o.typ, o.method, o.request
		q.Ops[i] = &rows[i]
	}
	f := &frame{l: l, seq: l.seq, ops: ops, request: q, packed: now, until: until}
	f.end = time.AfterFunc(l.c.cfg.Timeout, f.giveUp)
	return f
}

// hurry lets what waits go.
func (l *lane) hurry() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.overdue = true
	l.signal()
}

// signal has the lane look for work. Called with mu held.
func (l *lane) signal() {
	if l.closed || l.launching || !l.room() {
		return
	}
	l.launching = true
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// close fails what waits.
func (l *lane) close() {
	l.mu.Lock()
	l.closed = true
	if l.late != nil {
		l.late.Stop()
	}
	waiting := l.waiting
	l.waiting = nil
	l.mu.Unlock()
	for _, o := range waiting {
		o.finish(nil, ErrClosed)
	}
}

func (o *operation) finish(r *pb.OpResult, err error) {
	o.result, o.err = r, err
	o.done <- struct{}{}
}
