package client

import (
	"context"
	"time"
)

// Trace tells where in the cluster an operation was executed. It is zero for an operation that no shard got to see, such
// as one that was decided from a lease.
type Trace struct {
	// Shard is where the operation was sent.
	Shard uint32
	// Client and Seq name the frame that it travelled in, Op its place there. They are also known of an operation whose
	// outcome is not: the shard's log tells whether it was executed. A query has no Seq.
	Client [16]byte
	Seq    uint64
	Op     int
	Query  bool
	// Index is the position of the decision in the shard's log and Time its shard time; zero without an answer.
	Index uint64
	Time  time.Time
}

type traceKey struct{}

// WithTrace returns a context whose next operation fills t in before it returns. Use it for one operation at a time.
func WithTrace(ctx context.Context, t *Trace) context.Context {
	*t = Trace{}
	return context.WithValue(ctx, traceKey{}, t)
}

// trace tells the context's trace where the operation is, or was.
func (l *lane) trace(ctx context.Context, o *operation) {
	t, ok := ctx.Value(traceKey{}).(*Trace)
	if !ok {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.sent {
		return
	}
	*t = Trace{Shard: l.shard, Client: l.c.id, Op: o.place, Query: l.query}
	if !l.query {
		t.Seq = o.seq
	}
	if o.index != 0 {
		t.Index, t.Time = o.index, time.UnixMilli(o.at)
	}
}
