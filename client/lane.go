package client

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
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
	return len(l.open) < laneFrames && len(l.waiting) >= largeFrame && l.seq-l.acked() < window-1
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
	// laneFrames is how many frames of a lane may be under way, those after the first with largeFrame operations or more.
	laneFrames = 4
	largeFrame = 96
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

var operations = sync.Pool{New: func() any { return &operation{done: make(chan struct{}, 1)} }}

// call executes one operation in the shard of a routing key and decodes the answer into r.
func (c *Client) call(ctx context.Context, routingKey string, typ, method uint32, query bool, q, r proto.Message) error {
	l, err := c.lane(c.routes.Load().shardOf(routingKey), query)
	if err != nil {
		return err
	}
	o := operations.Get().(*operation)
	o.typ, o.method, o.result, o.err, o.gone, o.sent, o.index = typ, method, nil, nil, false, false, 0
	o.until = time.Time{}
	if until, bounded := ctx.Deadline(); bounded {
		o.since, o.until = time.Now(), until
	}
	if o.request, err = codec.Marshal(q); err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if err := l.enqueue(o); err != nil {
		return err
	}
	select {
	case <-o.done:
	case <-ctx.Done():
		gone := o.leave(query)
		l.trace(ctx, o)
		if gone {
			return fmt.Errorf("%w: %w", ErrUnavailable, ctx.Err())
		}
		return fmt.Errorf("%w: %w", ErrOutcomeUnknown, ctx.Err())
	}
	l.trace(ctx, o)
	result, err := o.result, o.err
	operations.Put(o)
	if err != nil {
		return err
	}
	if result.Code != 0 {
		return resultError(result)
	}
	if err := codec.Unmarshal(result.Response, r); err != nil {
		return fmt.Errorf("holdfast: unreadable answer: %w", err)
	}
	return nil
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
	codes.ResourceExhausted: ErrExhausted, codes.Unavailable: ErrUnavailable, codes.DeadlineExceeded: ErrOutcomeUnknown,
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
	if !l.launching && l.room() {
		l.launching = true
		select {
		case l.wake <- struct{}{}:
		default:
		}
	}
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

// hopeless tells that an operation has waited long for its turn and its caller will hardly wait for the answer. When there
// is more to do than can be done, those at the head of the queue are all about to leave: without this, what is done would
// be done for nobody. An operation that did not have to wait is always tried. Called with mu held.
func (l *lane) hopeless(o *operation, now time.Time) bool {
	return !o.until.IsZero() && now.Sub(o.since) > l.took && o.until.Sub(now) < 2*l.took
}

// pack takes the operations of a frame off the queue; nil if there is none worth sending.
func (l *lane) pack() *frame {
	var ops []*operation
	size, n, now := 0, 0, time.Now()
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
	q := &pb.FrameRequest{
		Client: l.c.id[:], Shard: l.shard, Query: l.query, TimeoutMs: uint32(l.c.cfg.Timeout.Milliseconds()),
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
	return &frame{l: l, seq: l.seq, ops: ops, request: q, packed: now, until: now.Add(l.c.cfg.Timeout)}
}

// close fails what waits.
func (l *lane) close() {
	l.mu.Lock()
	l.closed = true
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

// frame is sent again, unchanged, until a node answers it or its time is over.
type frame struct {
	l       *lane
	seq     uint64
	ops     []*operation
	request *pb.FrameRequest
	packed  time.Time
	until   time.Time
	tries   int
	maybe   bool // it may have reached a leader
	last    error

	mu     sync.Mutex
	turn   int         // counts attempts and their ends, so that what comes late is known as such
	lookup *time.Timer // of the attempt under way
}

// patience is how long a frame waits for its answer before it is asked whether somebody else leads by now. A machine that
// is gone without a word, a process that was stopped or a disk that hangs ends no connection.
const patience = 500 * time.Millisecond

// errSilent tells that a node does not answer, while another one leads.
var errSilent = errors.New("the node does not answer")

// end claims the end of an attempt; false if it is over already.
func (f *frame) end(turn int) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.turn != turn {
		return false
	}
	f.turn++
	if f.lookup != nil {
		f.lookup.Stop()
	}
	return true
}

// watch has the attempt looked at after a while.
func (f *frame) watch(addr string, turn int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.turn == turn {
		f.lookup = time.AfterFunc(patience, func() {
			f.l.c.spawn(func() { f.look(addr, turn) })
		})
	}
}

// look gives up on a node that has not answered, if somebody else leads or the time is over.
func (f *frame) look(addr string, turn int) {
	c := f.l.c
	c.silent.Store(&addr)
	ctx, cancel := context.WithDeadline(c.ctx, f.until)
	_ = c.refresh(ctx) // or what is known stays
	cancel()
	leader := c.routes.Load().leaders[f.l.shard]
	if leader == addr && time.Now().Before(f.until) {
		f.watch(addr, turn)
		return
	}
	if f.end(turn) {
		f.maybe = true
		f.retry(errSilent, leader == "")
	}
}

// attempt sends the frame to the leader as far as it is known.
func (f *frame) attempt() {
	c := f.l.c
	addr := c.routes.Load().leaders[f.l.shard]
	if addr == "" {
		f.retry(errors.New("the shard has no leader"), true)
		return
	}
	// A request that is being sent must not change: each attempt has a copy of its own.
	q := &pb.FrameRequest{
		Client: f.request.Client, Shard: f.request.Shard, Seq: f.request.Seq, AckUpTo: f.request.AckUpTo,
		DeadlineMs: f.request.DeadlineMs, Ops: f.request.Ops, Query: f.request.Query, TimeoutMs: f.request.TimeoutMs,
	}
	f.mu.Lock()
	f.turn++
	turn := f.turn
	f.mu.Unlock()
	err := c.send(addr, q, func(r *pb.FrameResponse, err error) {
		if f.end(turn) {
			f.answered(r, err)
		}
	})
	if err != nil {
		f.end(turn)
		f.retry(err, true)
		return
	}
	f.watch(addr, turn)
}

// answered is called by the stream, once for an attempt.
func (f *frame) answered(r *pb.FrameResponse, err error) {
	switch {
	case errors.Is(err, errNotSent):
		f.retry(err, true)
	case err != nil:
		f.maybe = true
		f.retry(err, true)
	case r.Error != nil:
		f.refused(r)
	case len(r.Results) != len(f.ops):
		f.fail(fmt.Errorf("holdfast: %d results for %d operations", len(r.Results), len(f.ops)))
	default:
		f.succeed(r)
	}
}

// refused handles a frame that was refused as a whole.
func (f *frame) refused(r *pb.FrameResponse) {
	if r.DeadlineMs != 0 {
		f.request.DeadlineMs = r.DeadlineMs
	}
	err := errors.New(r.Error.Message)
	switch r.Error.Reason {
	case pb.FrameError_REASON_NOT_LEADER:
		if hint := r.Error.LeaderHint; hint != "" && hint != f.l.c.routes.Load().leaders[f.l.shard] {
			f.l.c.hint(f.l.shard, hint)
			f.retry(err, false)
			return
		}
		f.retry(err, true)
	case pb.FrameError_REASON_UNKNOWN_OUTCOME:
		f.maybe = true
		f.retry(err, true)
	case pb.FrameError_REASON_EXPIRED:
		// Whatever was executed answers from its record, so nothing was.
		f.fail(fmt.Errorf("%w: not executed in time", ErrUnavailable))
	case pb.FrameError_REASON_INVALID:
		f.fail(fmt.Errorf("%w: %w", ErrInvalid, err))
	case pb.FrameError_REASON_STALE:
		f.fail(fmt.Errorf("%w: %w", ErrOutcomeUnknown, err))
	default: // overloaded, window full, unavailable, wrong shard
		f.retry(err, true)
	}
}

const (
	retryMin = 10 * time.Millisecond
	retryMax = 250 * time.Millisecond
)

// retry sends the frame again after a pause, in which the cluster map is fetched if need be.
func (f *frame) retry(err error, pause bool) {
	f.last = err
	f.tries++
	c := f.l.c
	if time.Now().After(f.until) || c.ctx.Err() != nil {
		c.work.Go(f.giveUp) // not here: the caller may hold the lane
		return
	}
	c.work.Go(func() {
		if pause {
			d := min(retryMin<<min(f.tries-1, 10), retryMax)
			if sleep(c.ctx, d/2+rand.N(d/2)) != nil {
				f.giveUp()
				return
			}
			ctx, cancel := context.WithDeadline(c.ctx, f.until)
			_ = c.refresh(ctx) // or the next attempt tries what is known
			cancel()
		}
		f.attempt()
	})
}

func (f *frame) giveUp() {
	switch {
	case f.l.c.ctx.Err() != nil && !f.maybe:
		f.fail(ErrClosed)
	case f.maybe && !f.l.query:
		f.fail(fmt.Errorf("%w: %w", ErrOutcomeUnknown, f.last))
	default:
		f.fail(fmt.Errorf("%w: %w", ErrUnavailable, f.last))
	}
}

func (f *frame) succeed(r *pb.FrameResponse) {
	f.close()
	for i, o := range f.ops {
		o.mu.Lock()
		o.index, o.at = r.Index, r.ShardTimeMs
		o.mu.Unlock()
		o.finish(r.Results[i], nil)
	}
}

func (f *frame) fail(err error) {
	f.close()
	for _, o := range f.ops {
		o.finish(nil, err)
	}
}

// close makes room for the lane's next frame.
func (f *frame) close() {
	l := f.l
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.open, f.seq)
	l.took += (time.Since(f.packed) - l.took) / 8
	if !l.closed && !l.launching && len(l.waiting) > 0 {
		l.launching = true
		select {
		case l.wake <- struct{}{}:
		default:
		}
	}
}
