// Package lease decides on rate limits from tokens that were taken in bulk, without a round trip for each request. It is
// used by the SDK and, for callers without one, by nodes.
//
// The shard deducts the tokens of a lease when it grants it, so however many holders there are, together they never let
// more pass than the limit. A lease counts from the moment the request for it was sent, which is before the shard's own
// reckoning began: a holder stops first.
package lease

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/holdfastdb/holdfast/storage/plant"
)

// Request asks for tokens.
type Request struct {
	Want    uint32
	TTL     time.Duration
	Returns []Return
}

// Return gives back a lease of which Unused tokens were not used.
type Return struct {
	ID     uint64
	Unused uint32
}

// Grant answers a Request.
type Grant struct {
	ID      uint64
	Granted uint32
	// Valid counts from when the request was sent.
	Valid time.Duration
	// Leasable is false for limits that must be asked each time.
	Leasable bool
	// Retry is when asking again makes sense, if nothing was granted.
	Retry time.Duration
	// Fallback says what to do while the cluster cannot be reached.
	Fallback Fallback
}

// Mode is what to do while the cluster cannot be reached.
type Mode uint8

// The modes. Unknown is returned as an error to the caller.
const (
	Unknown Mode = iota
	Allow
	Deny
	Local // decide by a bucket of one's own, of the last known rate
)

// Fallback is a Mode and, for Local, the rate.
type Fallback struct {
	Mode   Mode
	Rate   uint32
	Window time.Duration
	Burst  uint32
}

// Asker sends a request for a key's tokens.
type Asker[K comparable] func(ctx context.Context, key K, q Request) (Grant, error)

// ErrNotLeasable is returned for keys that must be asked each time.
var ErrNotLeasable = errors.New("lease: these limits cannot be leased")

// Decision is the answer to a Take.
type Decision struct {
	Allowed bool
	// Left is how many tokens are left of the leases here; the limit itself may have more.
	Left uint32
	// Retry is when it makes sense to try again, if denied.
	Retry time.Duration
	// Fallback tells that the cluster could not be asked.
	Fallback bool
}

const (
	// DefaultTTL is short, so that what an idle holder keeps is soon of use to others.
	DefaultTTL = time.Second
	// margin is how much earlier than Valid a lease ends here, for clocks that do not run alike.
	margin = 10 * time.Millisecond
	// minWant is asked for at first.
	minWant = 16
	maxWant = 1 << 20
	// maxDenied bounds how long a denial is repeated without asking: others may return tokens.
	maxDenied = 100 * time.Millisecond
	// notLeasableFor is how long a key that cannot be leased is not tried again.
	notLeasableFor = 30 * time.Second
	// retryUnreachable is the pause after a request that failed.
	retryUnreachable = 250 * time.Millisecond
	askTimeout       = 2 * time.Second
	// rememberFor is how long it is known what a key's policy says for a cluster that cannot be reached, and that a key
	// cannot be leased; with more than maxKeys, only while they are in use.
	rememberFor = 10 * time.Minute
	maxKeys     = 1 << 14 // all are looked at in each tick
	shards      = 64
)

// Table holds the leases of many keys. Its methods are safe for concurrent use.
type Table[K comparable] struct {
	ask  Asker[K]
	hash func(K) uint64
	ttl  time.Duration

	shards [shards]shard[K]
	inUse  chan struct{} // a key came into use
	ctx    context.Context
	stop   context.CancelFunc
	work   sync.WaitGroup
}

type shard[K comparable] struct {
	mu      sync.Mutex
	buckets map[K]*bucket
}

// bucket is one key's leases. Guarded by its shard's mutex.
type bucket struct {
	grants     []grant // ascending by until
	deniedTill time.Time
	retryAt    time.Time // what the shard said
	barredTill time.Time // not leasable
	failedTill time.Time // the cluster did not answer
	fallback   Fallback
	local      localBucket
	err        error

	used   time.Time     // when something was asked for
	asking chan struct{} // closed when the request under way is answered; nil if none is
	idle   bool          // nothing was taken since the last tick
	taken  uint64        // since the last request
	since  time.Time
	want   uint32
}

type grant struct {
	id    uint64
	left  uint32
	until time.Time
}

// New starts a table. hash spreads keys.
func New[K comparable](ask Asker[K], hash func(K) uint64) *Table[K] {
	t := &Table[K]{ask: ask, hash: hash, ttl: DefaultTTL, inUse: make(chan struct{}, 1)}
	for i := range t.shards {
		t.shards[i].buckets = make(map[K]*bucket)
	}
	t.ctx, t.stop = context.WithCancel(context.Background())
	t.work.Go(t.tick)
	return t
}

// Take decides on weight tokens of key: at once if a lease has them, else after asking for one.
func (t *Table[K]) Take(ctx context.Context, key K, weight uint32) (Decision, error) {
	s := &t.shards[t.hash(key)%shards]
	for {
		now := time.Now()
		s.mu.Lock()
		b := t.bucket(s, key, now)
		d, err, done := b.take(now, weight)
		if b.asking == nil && b.needs(now, weight, done && err == nil && d.Allowed) {
			t.refill(s, b, key, weight, now)
		}
		asking := b.asking
		s.mu.Unlock()
		if done {
			return d, err
		}
		if asking == nil {
			return Decision{}, ErrNotLeasable
		}
		select {
		case <-asking:
		case <-ctx.Done():
			return Decision{}, ctx.Err()
		case <-t.ctx.Done():
			return Decision{}, context.Canceled
		}
	}
}

// Now decides like Take if that needs no waiting; ok tells whether it could.
func (t *Table[K]) Now(key K, weight uint32) (d Decision, ok bool) {
	s := &t.shards[t.hash(key)%shards]
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	b := t.bucket(s, key, now)
	d, err, done := b.take(now, weight)
	if b.asking == nil && b.needs(now, weight, done && err == nil && d.Allowed) {
		t.refill(s, b, key, weight, now)
	}
	return d, done && err == nil
}

// Unreachable decides for a key that cannot be leased while the cluster cannot be reached, as its policy said when it was
// asked last; false if that is not known.
func (t *Table[K]) Unreachable(key K, weight uint32) (Decision, bool) {
	s := &t.shards[t.hash(key)%shards]
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.buckets[key]
	if b == nil || b.fallback.Mode == Unknown {
		return Decision{}, false
	}
	d, _ := b.unreachable(time.Now(), weight)
	return d, true
}

// bucket is a key's. Called with the shard's mutex held.
func (t *Table[K]) bucket(s *shard[K], key K, now time.Time) *bucket {
	b := s.buckets[key]
	if b == nil {
		b = &bucket{since: now, want: minWant}
		s.buckets[key] = b
		select {
		case t.inUse <- struct{}{}:
		default:
		}
	}
	return b
}

// take decides from what is here; done is false if the shard must be asked first.
func (b *bucket) take(now time.Time, weight uint32) (d Decision, err error, done bool) {
	b.idle, b.used = false, now
	left := b.left(now)
	if left >= weight {
		b.taken += uint64(weight)
		b.use(weight)
		return Decision{Allowed: true, Left: left - weight}, nil, true
	}
	switch {
	case now.Before(b.barredTill):
		return Decision{}, ErrNotLeasable, true
	case now.Before(b.deniedTill):
		return Decision{Left: left, Retry: max(b.retryAt.Sub(now), time.Millisecond)}, nil, true
	case now.Before(b.failedTill):
		d, err := b.unreachable(now, weight)
		return d, err, true
	}
	return Decision{}, nil, false
}

// left drops leases that have ended and counts the tokens of the others.
func (b *bucket) left(now time.Time) uint32 {
	gone := 0
	for gone < len(b.grants) && !plant.On(plant.SpendLate) && !now.Before(b.grants[gone].until) {
		gone++
	}
	if gone > 0 {
		b.grants = append(b.grants[:0], b.grants[gone:]...)
	}
	var left uint32
	for i := range b.grants {
		left += b.grants[i].left
	}
	return left
}

// use takes tokens from the leases that end first. An empty lease stays until it ends: the shard still reckons with it.
func (b *bucket) use(n uint32) {
	if plant.On(plant.OverSpend) {
		return
	}
	for i := range b.grants {
		g := &b.grants[i]
		part := min(n, g.left)
		g.left -= part
		if n -= part; n == 0 {
			return
		}
	}
}

// needs tells whether to ask for more: when a request could not be served, or when less than half of the usual lease is
// left, so that the next one is here before this one is used up.
func (b *bucket) needs(now time.Time, weight uint32, served bool) bool {
	if now.Before(b.barredTill) || now.Before(b.deniedTill) || now.Before(b.failedTill) {
		return false
	}
	return !served || b.left(now) < b.want/2
}

// refill asks for tokens in the background. Called with the shard's mutex held.
func (t *Table[K]) refill(s *shard[K], b *bucket, key K, weight uint32, now time.Time) {
	if t.ctx.Err() != nil {
		return
	}
	b.asking = make(chan struct{})
	// As much as was used lately, for the time that a lease lasts, and half as much again.
	if passed := now.Sub(b.since); passed > 0 {
		rate := float64(b.taken) * float64(t.ttl) / float64(max(passed, t.ttl/20))
		b.want = uint32(min(max(rate*1.5, float64(b.want)/2, minWant), maxWant))
	}
	b.taken, b.since = 0, now
	want := max(b.want, weight)
	t.work.Go(func() {
		ctx, cancel := context.WithTimeout(t.ctx, askTimeout)
		defer cancel()
		sent := time.Now()
		g, err := t.ask(ctx, key, Request{Want: want, TTL: t.ttl})
		s.mu.Lock()
		defer s.mu.Unlock()
		b.answered(g, err, sent, weight)
		close(b.asking)
		b.asking = nil
	})
}

func (b *bucket) answered(g Grant, err error, sent time.Time, weight uint32) {
	now := time.Now()
	if err != nil {
		b.err, b.failedTill = err, now.Add(retryUnreachable)
		return
	}
	b.fallback = g.Fallback
	b.local.reset()
	if !g.Leasable {
		b.barredTill = now.Add(notLeasableFor)
		return
	}
	if g.Granted > 0 {
		b.add(grant{id: g.ID, left: g.Granted, until: sent.Add(g.Valid - margin)})
	}
	// The shard grants half of what is free: about as much is left there as it granted. If that helps, ask again.
	if uint64(b.left(now))+uint64(g.Granted) < uint64(weight) {
		b.retryAt = now.Add(g.Retry)
		b.deniedTill = now.Add(min(max(g.Retry, time.Millisecond), maxDenied))
	}
}

func (b *bucket) add(g grant) {
	i := len(b.grants)
	for i > 0 && b.grants[i-1].until.After(g.until) {
		i--
	}
	b.grants = append(b.grants, grant{})
	copy(b.grants[i+1:], b.grants[i:])
	b.grants[i] = g
}

// unreachable decides as the policy says for a cluster that does not answer.
func (b *bucket) unreachable(now time.Time, weight uint32) (Decision, error) {
	switch b.fallback.Mode {
	case Allow:
		return Decision{Allowed: true, Fallback: true}, nil
	case Deny:
		return Decision{Retry: retryUnreachable, Fallback: true}, nil
	case Local:
		allowed, retry := b.local.take(now, weight, b.fallback)
		return Decision{Allowed: allowed, Retry: retry, Fallback: true}, nil
	}
	return Decision{}, b.err
}

// tick gives back what idle keys hold, and forgets keys that hold nothing. It rests while there are no keys.
func (t *Table[K]) tick() {
	for {
		select {
		case <-t.ctx.Done():
			return
		case <-t.inUse:
		}
		for every := time.NewTimer(t.ttl / 4); ; every.Reset(t.ttl / 4) {
			select {
			case <-t.ctx.Done():
				every.Stop()
				return
			case <-every.C:
			}
			if t.sweep(t.ctx, false) == 0 {
				break
			}
		}
	}
}

// sweep returns the leases of idle keys, or of all, and tells how many keys there are.
func (t *Table[K]) sweep(ctx context.Context, all bool) (keys int) {
	type back struct {
		key     K
		returns []Return
	}
	var list []back
	now := time.Now()
	for i := range t.shards {
		s := &t.shards[i]
		s.mu.Lock()
		for key, b := range s.buckets {
			if !all && !b.idle {
				b.idle = true
				continue
			}
			if b.asking != nil {
				continue
			}
			if b.left(now) > 0 {
				list = append(list, back{key, b.giveBack()})
			} else if len(b.grants) == 0 && (now.Sub(b.used) > rememberFor || len(s.buckets) > maxKeys/shards) {
				delete(s.buckets, key)
			}
		}
		keys += len(s.buckets)
		s.mu.Unlock()
	}
	for _, r := range list {
		if _, err := t.ask(ctx, r.key, Request{TTL: t.ttl, Returns: r.returns}); err != nil && ctx.Err() != nil {
			return keys // the leases end by themselves
		}
	}
	return keys
}

func (b *bucket) giveBack() []Return {
	var returns []Return
	for _, g := range b.grants {
		if g.left > 0 {
			returns = append(returns, Return{ID: g.id, Unused: g.left})
		}
	}
	b.grants = nil
	return returns
}

// Close returns all leases, as far as that succeeds before ctx ends, and stops.
func (t *Table[K]) Close(ctx context.Context) {
	t.stop()
	t.work.Wait()
	t.sweep(ctx, true)
}

// localBucket is a token bucket for the time that the cluster cannot be reached.
type localBucket struct {
	level float64
	at    time.Time
}

func (l *localBucket) reset() { *l = localBucket{} }

func (l *localBucket) take(now time.Time, weight uint32, f Fallback) (bool, time.Duration) {
	if f.Window <= 0 {
		return false, retryUnreachable
	}
	perSecond := float64(f.Rate) / f.Window.Seconds()
	burst := float64(max(f.Burst, 1))
	if l.at.IsZero() {
		l.at = now // starts empty: what the cluster admitted before is not known here
	}
	l.level = min(l.level+now.Sub(l.at).Seconds()*perSecond, burst)
	l.at = now
	if l.level < float64(weight) {
		return false, max(time.Duration((float64(weight)-l.level)/perSecond*float64(time.Second)), time.Millisecond)
	}
	l.level -= float64(weight)
	return true, 0
}
