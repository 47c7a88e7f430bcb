package rpc

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/zeebo/xxh3"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/fsm/catalog"
	"github.com/holdfastdb/holdfast/fsm/counter"
	"github.com/holdfastdb/holdfast/rpc/codec"
	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
	"github.com/holdfastdb/holdfast/rpc/policy"
)

// limits implements holdfast.v1.Limits for callers without an SDK.
type limits struct {
	pb.UnimplementedLimitsServer
	node     Node
	resolver *policy.Resolver
	leases   *leaser
}

// now is the cluster's time as this node knows it.
func (l *limits) now() fsm.Time { return l.node.Now(0) }

// headerIdempotency names a request, so that its repetition within a day gets the same answer and has no effect.
const headerIdempotency = "idempotency-key"

const (
	// keyRetain is how long a named request is remembered, in milliseconds.
	keyRetain = fsm.MaxRetain
	// requestTimeout is the deadline of named requests.
	requestTimeout = 10 * time.Second
	maxKeyBytes    = 256
)

// idempotencyKey names the request of a context, empty if it has no name.
func idempotencyKey(ctx context.Context) string {
	md, _ := metadata.FromIncomingContext(ctx)
	if keys := md.Get(headerIdempotency); len(keys) > 0 {
		return keys[0]
	}
	return ""
}

// checkKey refuses a key that gRPC's metadata cannot carry: the gateway would leave it out, and the request be executed
// again when it is repeated.
func checkKey(key string) error {
	if len(key) > maxKeyBytes {
		return invalidf("the idempotency key has %d bytes, at most %d are allowed", len(key), maxKeyBytes)
	}
	for i := range len(key) {
		if key[i] < ' ' || key[i] > '~' {
			return invalidf("the idempotency key %q has characters that are not printable ASCII", key)
		}
	}
	return nil
}

// caller returns how this request's calls are executed: under the number of its operation in an SDK's frame, or under
// its idempotency key if it has one. That costs a step in a shard of its own: a key that comes with another request is
// refused before anything is done.
func (l *limits) caller(ctx context.Context, q proto.Message) (caller, error) {
	if o, ok := ctx.Value(frameKey{}).(frameOp); ok {
		return framed(l.node, o.q, o.i), nil
	}
	key := idempotencyKey(ctx)
	if key == "" {
		return l.nobody(), nil
	}
	if err := checkKey(key); err != nil {
		return caller{}, err
	}
	text, err := proto.MarshalOptions{Deterministic: true}.Marshal(q)
	if err != nil {
		return caller{}, err
	}
	fingerprint := max(xxh3.HashSeed(text, xxh3.HashString(string(q.ProtoReflect().Descriptor().FullName()))), 1)
	// The shards of one request are not those of another: where all requests with the key meet is a shard that the key
	// belongs to. There each puts down what it is, under an id that the request itself does not use.
	home, ok := l.node.ShardOf(key)
	if !ok {
		return caller{}, fsm.ErrNotLeader
	}
	out, err := l.named(xxh3.HashString128Seed(key, 1), fingerprint)(ctx, home, step{number: 1}, fsm.Noop())
	if err == nil {
		err = out.Err()
	}
	if codeOf(err) == fsm.Conflict {
		return caller{}, fsm.Errorf(fsm.Conflict, "the idempotency key %q was used before for another request", key)
	}
	if err != nil {
		return caller{}, fmt.Errorf("remember the idempotency key: %w", err)
	}
	hash := xxh3.HashString128(key)
	return caller{id: hash.Lo, named: true, propose: l.named(hash, fingerprint)}, nil
}

// named proposes calls under a name, for a day.
func (l *limits) named(name xxh3.Uint128, fingerprint uint64) func(context.Context, uint32, step, fsm.Call) (fsm.FrameOutcome, error) {
	id := fsm.OneShot(name.Bytes())
	return func(ctx context.Context, group uint32, s step, call fsm.Call) (fsm.FrameOutcome, error) {
		return l.node.Propose(ctx, group, &fsm.Frame{
			Client: id, Seq: s.number, Deadline: l.node.Now(group) + fsm.Time(requestTimeout.Milliseconds()),
			Retain: keyRetain, Fingerprint: fingerprint + s.choice, Calls: []fsm.Call{call},
		})
	}
}

// nobody is the caller of a request that is never repeated.
func (l *limits) nobody() caller {
	return caller{id: rand.Uint64(), propose: func(ctx context.Context, group uint32, _ step, call fsm.Call) (fsm.FrameOutcome, error) {
		return l.node.Do(ctx, group, []fsm.Call{call})
	}}
}

// Check implements the service.
func (l *limits) Check(ctx context.Context, q *pb.CheckRequest) (*pb.CheckResponse, error) {
	p, err := l.planCheck(q)
	if err != nil {
		return nil, statusOf(err)
	}
	if q.Async && idempotencyKey(ctx) == "" { // a lease keeps no answers
		if r := l.leases.check(q, p); r != nil {
			return r, nil
		}
	}
	c, err := l.caller(ctx, q)
	if err != nil {
		return nil, statusOf(err)
	}
	d, err := decide(ctx, p, c)
	if err != nil {
		return nil, statusOf(err)
	}
	r := l.answer(p, d.allowed, d.results, d.now)
	r.ReleaseToken = encodeToken(slots, d.holds)
	return r, nil
}

// decide carries a check out.
func decide(ctx context.Context, p *plan, c caller) (decision, error) {
	switch len(p.parts) {
	case 0:
		return decision{allowed: true}, nil
	case 1:
		out, err := c.propose(ctx, p.parts[0].group, step{number: 1}, p.take())
		if err != nil {
			return decision{}, err
		}
		body, err := only(out)
		if err != nil {
			return decision{}, err
		}
		d, err := decided(p, p.parts[0].group, body, out.Time)
		if !d.reserved {
			return d, err
		}
		// There were more parts when the request came first: what is reserved is still to be confirmed.
	}
	return coordinate(ctx, p, 0, c)
}

// decided reads the result of a take in a group.
func decided(p *plan, group uint32, body []byte, now fsm.Time) (decision, error) {
	t, err := counter.DecodeTakeResultInto(body, p.room.results[:])
	if err != nil {
		return decision{}, err
	}
	return taken(p, group, &t, now), nil
}

func taken(p *plan, group uint32, t *counter.TakeResult, now fsm.Time) decision {
	d := decision{allowed: t.Allowed, results: t.Limits, now: now, reserved: t.Hold >= crossHold}
	for i := range p.parts {
		if t.Hold != 0 && p.parts[i].group == group {
			d.holds = append(d.holds, p.parts[i].slots(t.Hold)...)
		}
	}
	return d
}

// decideAll takes tokens, a number of its own from each, from limits that another protocol has found.
func (l *limits) decideAll(ctx context.Context, weights []uint32, matches []policy.Match) ([]counter.LimitResult, error) {
	p := &plan{matches: matches, weights: weights}
	if err := l.assign(p); err != nil {
		return nil, statusOf(err)
	}
	d, err := decide(ctx, p, l.nobody())
	if err == nil && len(d.results) != len(matches) {
		err = fmt.Errorf("%d results for %d limits", len(d.results), len(matches))
	}
	return d.results, statusOf(err)
}

// Peek implements the service.
func (l *limits) Peek(ctx context.Context, q *pb.CheckRequest) (*pb.CheckResponse, error) {
	p, err := l.plan(q)
	if err != nil {
		return nil, statusOf(err)
	}
	d, err := l.peek(ctx, p)
	if err != nil {
		return nil, statusOf(err)
	}
	return l.answer(p, d.allowed, d.results, d.now), nil
}

func (l *limits) peek(ctx context.Context, p *plan) (decision, error) {
	takes := make([]counter.TakeResult, len(p.parts))
	times := make([]fsm.Time, len(p.parts))
	err := p.each(func(i int) error {
		q := counter.TakeRequest{Weight: p.parts[i].weight, Limits: p.parts[i].limits}
		results, applied, err := l.node.Query(ctx, p.parts[i].group, []fsm.Call{{Type: counter.TypeID, Op: counter.OpPeek, Body: q.Append(nil)}})
		if err != nil {
			return err
		}
		if err := results[0].Err(); err != nil {
			return err
		}
		times[i] = applied.Time
		takes[i], err = counter.DecodeTakeResult(results[0].Body)
		return err
	})
	d := decision{allowed: true, results: make([]counter.LimitResult, len(p.matches))}
	for i := range takes {
		d.allowed = d.allowed && takes[i].Allowed
		d.results = p.place(d.results, i, takes[i].Limits)
		d.now = max(d.now, times[i])
	}
	return d, err
}

func checkOf(client, apiKey, resource, ip, region, policyID string) *pb.CheckRequest {
	none := uint32(0)
	q := &pb.CheckRequest{ClientId: client, ApiKey: apiKey, Resource: resource, Ip: ip, Region: region, Weight: &none}
	if policyID != "" {
		q.Policies = []string{policyID}
	}
	return q
}

// planQuery plans a question of a frame, and tells how it is answered.
func (l *limits) planQuery(in *pb.Op) (*plan, func(decision) proto.Message, error) {
	if in.Method == methodPeek {
		var q pb.CheckRequest
		if err := codec.Unmarshal(in.Request, &q); err != nil {
			return nil, nil, invalidf("malformed peek: %v", err)
		}
		p, err := l.plan(&q)
		return p, func(d decision) proto.Message { return l.answer(p, d.allowed, d.results, d.now) }, err
	}
	var q pb.LimitStatusRequest
	if err := codec.Unmarshal(in.Request, &q); err != nil {
		return nil, nil, invalidf("malformed status: %v", err)
	}
	p, err := l.plan(checkOf(q.ClientId, q.ApiKey, q.Resource, q.Ip, q.Region, q.PolicyId))
	return p, func(d decision) proto.Message {
		return &pb.LimitStatusResponse{Policies: l.answer(p, true, d.results, d.now).Limits}
	}, err
}

// Status implements the service.
func (l *limits) Status(ctx context.Context, q *pb.LimitStatusRequest) (*pb.LimitStatusResponse, error) {
	p, err := l.plan(checkOf(q.ClientId, q.ApiKey, q.Resource, q.Ip, q.Region, q.PolicyId))
	if err != nil {
		return nil, statusOf(err)
	}
	d, err := l.peek(ctx, p)
	if err != nil {
		return nil, statusOf(err)
	}
	return &pb.LimitStatusResponse{Policies: l.answer(p, true, d.results, d.now).Limits}, nil
}

// Reset implements the service.
func (l *limits) Reset(ctx context.Context, q *pb.LimitResetRequest) (*pb.LimitResetResponse, error) {
	p, err := l.plan(checkOf(q.ClientId, q.ApiKey, q.Resource, q.Ip, q.Region, q.PolicyId))
	if err != nil {
		return nil, statusOf(err)
	}
	c, err := l.caller(ctx, q)
	if err != nil {
		return nil, statusOf(err)
	}
	counts := make([]uint32, len(p.parts))
	err = p.each(func(i int) error {
		out, err := c.propose(ctx, p.parts[i].group, step{number: 1}, resetCall(p.parts[i].limits))
		if err != nil {
			return err
		}
		body, err := only(out)
		if err != nil {
			return err
		}
		r, err := counter.DecodeResetResult(body)
		counts[i] = r.Reset
		return err
	})
	if err != nil {
		return nil, statusOf(err)
	}
	r := &pb.LimitResetResponse{}
	for _, n := range counts {
		r.Reset_ += n
	}
	return r, nil
}

func resetCall(limits []counter.Limit) fsm.Call {
	q := counter.ResetRequest{Keys: keysOf(limits)}
	return fsm.Call{Type: counter.TypeID, Op: counter.OpReset, Body: q.Append(nil)}
}

const (
	defaultReserve = 60
	maxReserve     = counter.MaxReserve / 1000
)

// lasting checks how long a reservation shall last.
func lasting(ttlSeconds uint32) (time.Duration, error) {
	if ttlSeconds == 0 {
		ttlSeconds = defaultReserve
	}
	if ttlSeconds > maxReserve {
		return 0, invalidf("ttl_seconds must be 1 to %d", maxReserve)
	}
	return time.Duration(ttlSeconds) * time.Second, nil
}

// Reserve implements the service.
func (l *limits) Reserve(ctx context.Context, q *pb.ReserveRequest) (*pb.ReserveResponse, error) {
	p, err := l.planCheck(q.Check)
	if err != nil {
		return nil, statusOf(err)
	}
	ttl, err := lasting(q.TtlSeconds)
	if err != nil {
		return nil, statusOf(err)
	}
	if len(p.parts) == 0 {
		return &pb.ReserveResponse{Check: l.answer(p, true, nil, 0)}, nil
	}
	c, err := l.caller(ctx, q)
	if err != nil {
		return nil, statusOf(err)
	}
	d, err := coordinate(ctx, p, ttl, c)
	if err != nil {
		return nil, statusOf(err)
	}
	r := &pb.ReserveResponse{Check: l.answer(p, d.allowed, d.results, d.now), ReservationId: encodeToken(reservation, d.holds)}
	if len(d.holds) > 0 {
		r.ExpiresAt = timestamp(d.now + fsm.Time(p.holdsFor(ttl)))
	}
	return r, nil
}

// holdsFor is how long a reservation holds all that it took: slots last as long as their policy says.
func (p *plan) holdsFor(ttl time.Duration) fsm.Millis {
	first := fsm.Millis(counter.MaxWindow)
	for i := range p.matches {
		l, lasts := &p.matches[i].Limit, ttl.Milliseconds()
		if l.Algorithm == counter.Concurrency {
			lasts = l.Window
		}
		first = min(first, lasts)
	}
	return first
}

// settle ends what a token names, in every group, also if one cannot be reached or has nothing: what the caller repeats
// must not stop at a group that is done.
func (l *limits) settle(ctx context.Context, q proto.Message, kind tokenKind, token string, actual uint32) (counter.SettleResult, error) {
	var all counter.SettleResult
	holds, err := decodeToken(kind, token)
	if err != nil {
		return all, err
	}
	t := l.node.Topology()
	for i := range holds {
		if t != nil && !hasShard(t, holds[i].group) {
			return all, errToken
		}
	}
	c, err := l.caller(ctx, q)
	if err != nil {
		return all, err
	}
	var failed, missing error // missing is told in the words of reservations
	found := false
	for i := range holds {
		out, err := c.propose(ctx, holds[i].group, step{number: uint64(i + 1)}, holds[i].settle(counter.Charge, actual))
		var body []byte
		if err == nil {
			body, err = only(out)
		}
		switch {
		case codeOf(err) == fsm.NotFound:
			missing = err
			continue
		case err != nil:
			failed = errors.Join(failed, err)
			continue
		}
		r, err := counter.DecodeSettleResult(body)
		if err != nil {
			return all, err
		}
		found = true
		all.Refunded, all.Charged = max(all.Refunded, r.Refunded), max(all.Charged, r.Charged)
	}
	switch {
	case failed != nil:
		return all, failed
	case !found && kind == slots:
		return all, errReleased
	case !found:
		return all, missing
	}
	return all, nil
}

// hasShard tells whether there is such a shard.
func hasShard(t *catalog.Topology, group uint32) bool {
	return slices.ContainsFunc(t.Shards, func(s catalog.Shard) bool { return s.ID == group })
}

// Commit implements the service.
func (l *limits) Commit(ctx context.Context, q *pb.CommitRequest) (*pb.CommitResponse, error) {
	switch {
	case q.Actual == nil:
		return nil, statusOf(invalidf("actual is missing: say what the work did cost; to give everything back, refund"))
	case *q.Actual > counter.MaxRate:
		return nil, statusOf(invalidf("actual must be at most %d", counter.MaxRate))
	}
	r, err := l.settle(ctx, q, reservation, q.ReservationId, *q.Actual)
	if err != nil {
		return nil, statusOf(err)
	}
	return &pb.CommitResponse{Refunded: r.Refunded, Charged: r.Charged}, nil
}

// Refund implements the service.
func (l *limits) Refund(ctx context.Context, q *pb.RefundRequest) (*pb.RefundResponse, error) {
	r, err := l.settle(ctx, q, reservation, q.ReservationId, 0)
	if err != nil {
		return nil, statusOf(err)
	}
	return &pb.RefundResponse{Refunded: r.Refunded}, nil
}

// Release implements the service.
func (l *limits) Release(ctx context.Context, q *pb.ReleaseRequest) (*pb.ReleaseResponse, error) {
	if _, err := l.settle(ctx, q, slots, q.ReleaseToken, 0); err != nil {
		return nil, statusOf(err)
	}
	return &pb.ReleaseResponse{Released: true}, nil
}
