package client

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
)

// frame is sent again, unchanged, until a node answers it or its time is over.
//
//	       +------------------- retry: turn+1, sent = false <------------------+
//	       v                                                                   |
//	attempt: turn+1, sent = true --> waits --> refused, or not sent at all ----+
//	                                 |  ^  --> no answer: maybe = true --------+
//	                      patience:  v  |                                      |
//	                                 look  --> another leads: maybe = true ----+
//	                                 |
//	                                 +-------> answered, or out of time: ended = true
//
// Of an attempt's ends, the answer, the lost connection and the look, the one counts that comes while turn is still the
// attempt's. maybe stays: once a node may have had the frame, running out of time means that its outcome is unknown. It
// does too while sent is set, for that attempt has not ended. lookup runs between the attempt and its end.
type frame struct {
	l       *lane
	seq     uint64
	ops     []*operation
	request *pb.FrameRequest
	packed  time.Time
	until   time.Time   // it is not tried again after: nobody waits for it, or its time is over
	end     *time.Timer // when its time is over
	tries   int

	mu     sync.Mutex
	ended  bool
	turn   int         // counts attempts and their ends, so that what comes late is known as such
	lookup *time.Timer // of the attempt under way
	sent   bool        // a node has it and did not answer yet
	maybe  bool        // it may have reached a leader
	astray bool        // it had to look for the leader
	last   error
}

// patience is how long a frame waits for its answer before it is asked whether somebody else leads by now. A machine that
// is gone without a word, a process that was stopped or a disk that hangs ends no connection.
const patience = 500 * time.Millisecond

// errSilent tells that a node does not answer, while another one leads.
var errSilent = errors.New("the node does not answer")

// over claims the end of an attempt; false if it is over already.
func (f *frame) over(turn int) bool {
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
	if f.turn == turn && !f.ended {
		f.lookup = time.AfterFunc(patience, func() {
			f.l.c.spawn(func() { f.look(addr, turn) })
		})
	}
}

// look gives up on a node that has not answered, if somebody else leads.
func (f *frame) look(addr string, turn int) {
	c := f.l.c
	c.silent.Store(&addr)
	f.refresh()
	leader := c.routes.Load().leaders[f.l.shard]
	if leader == addr {
		f.watch(addr, turn)
		return
	}
	if !f.over(turn) {
		return
	}
	f.unsure()
	if leader == "" {
		f.retry(errSilent, 0)
	} else {
		f.retry(errSilent, atOnce)
	}
}

// refresh fetches the cluster map, or what is known stays. It takes its time even if this frame's callers are about to leave:
// those of the next frames need to know as well.
func (f *frame) refresh() {
	ctx, cancel := context.WithDeadline(f.l.c.ctx, f.packed.Add(f.l.c.cfg.Timeout))
	defer cancel()
	_ = f.l.c.refresh(ctx)
}

// attempt sends the frame to the leader as far as it is known.
func (f *frame) attempt() {
	c := f.l.c
	addr := c.routes.Load().leaders[f.l.shard]
	if addr == "" {
		f.retry(errors.New("the shard has no leader"), 0)
		return
	}
	f.mu.Lock()
	f.turn++
	ended, turn := f.ended, f.turn
	f.sent = true
	f.mu.Unlock()
	if ended {
		return
	}
	// A request that is being sent must not change: each attempt has a copy of its own.
	q := &pb.FrameRequest{
		Client: f.request.Client, Shard: f.request.Shard, Seq: f.request.Seq, AckUpTo: f.request.AckUpTo,
		DeadlineMs: f.request.DeadlineMs, Ops: f.request.Ops, Query: f.request.Query, TimeoutMs: f.request.TimeoutMs,
	}
	err := c.send(addr, q, func(r *pb.FrameResponse, err error) {
		if f.over(turn) {
			f.answered(r, err)
		}
	})
	if err == nil {
		f.watch(addr, turn)
	} else if f.over(turn) {
		f.retry(err, 0)
	}
}

// answered is called by the stream, once for an attempt.
func (f *frame) answered(r *pb.FrameResponse, err error) {
	switch {
	case errors.Is(err, errNotSent):
		f.retry(err, 0)
	case err != nil:
		f.unsure()
		f.retry(err, 0)
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
			f.retry(err, atOnce)
			return
		}
		f.retry(err, 0)
	case pb.FrameError_REASON_UNKNOWN_OUTCOME:
		f.unsure()
		f.retry(err, 0)
	case pb.FrameError_REASON_EXPIRED:
		// Whatever was executed answers from its record, so nothing was.
		f.fail(fmt.Errorf("%w: not executed in time", ErrUnavailable))
	case pb.FrameError_REASON_INVALID:
		f.fail(fmt.Errorf("%w: %w", ErrInvalid, err))
	case pb.FrameError_REASON_STALE:
		f.fail(fmt.Errorf("%w: %w", ErrOutcomeUnknown, err))
	default: // overloaded, window full, unavailable
		f.retry(err, time.Duration(r.Error.RetryAfterMs)*time.Millisecond)
	}
}

func (f *frame) unsure() {
	f.mu.Lock()
	f.maybe = true
	f.mu.Unlock()
}

const (
	retryMin = 10 * time.Millisecond
	retryMax = 250 * time.Millisecond
	atOnce   = -1
)

// retry sends the frame again after a pause of at least so long, in which the cluster map is fetched if need be.
func (f *frame) retry(err error, pause time.Duration) {
	f.mu.Lock()
	f.last, f.sent = err, false
	f.astray = f.astray || pause <= 0
	f.mu.Unlock()
	f.tries++
	c := f.l.c
	if time.Now().After(f.until) || c.ctx.Err() != nil {
		c.work.Go(f.giveUp) // not here: the caller may hold the lane
		return
	}
	c.work.Go(func() {
		if pause != atOnce {
			d := min(retryMin<<min(f.tries-1, 10), retryMax)
			if sleep(c.ctx, max(d/2+rand.N(d/2), pause)) != nil {
				f.giveUp()
				return
			}
			f.refresh()
		}
		if time.Now().After(f.until) {
			f.giveUp()
			return
		}
		f.attempt()
	})
}

// giveUp ends the frame without an answer, if it has none yet.
func (f *frame) giveUp() {
	f.mu.Lock()
	ended, maybe, err := f.ended, f.maybe || f.sent, f.last
	f.ended = true // in the same moment, so that no attempt begins of which nothing is told
	f.mu.Unlock()
	if ended {
		return
	}
	if err == nil {
		err = errors.New("no answer in time")
	}
	switch {
	case f.l.c.ctx.Err() != nil && !maybe:
		err = ErrClosed
	case maybe && !f.l.query:
		err = fmt.Errorf("%w: %w", ErrOutcomeUnknown, err)
	default:
		err = fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	f.release()
	f.tell(err)
}

func (f *frame) succeed(r *pb.FrameResponse) {
	if !f.close() {
		return
	}
	for i, o := range f.ops {
		o.mu.Lock()
		o.index, o.at = r.Index, r.ShardTimeMs
		o.mu.Unlock()
		o.finish(r.Results[i], nil)
	}
}

func (f *frame) fail(err error) {
	if f.close() {
		f.tell(err)
	}
}

func (f *frame) tell(err error) {
	for _, o := range f.ops {
		o.finish(nil, err)
	}
}

// close ends the frame; false if it had ended.
func (f *frame) close() bool {
	f.mu.Lock()
	ended := f.ended
	f.ended = true
	f.mu.Unlock()
	if !ended {
		f.release()
	}
	return !ended
}

// release makes room for the lane's next frame.
func (f *frame) release() {
	f.mu.Lock()
	if f.lookup != nil {
		f.lookup.Stop()
	}
	astray := f.astray
	f.mu.Unlock()
	l := f.l
	l.mu.Lock()
	defer l.mu.Unlock()
	f.end.Stop()
	delete(l.open, f.seq)
	if !astray { // that tells nothing of how long the next ones take
		l.took += (time.Since(f.packed) - l.took) / 8
	}
	l.signal()
}
