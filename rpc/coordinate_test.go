package rpc

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/fsm/catalog"
	"github.com/holdfastdb/holdfast/fsm/counter"
	"github.com/holdfastdb/holdfast/fsm/fsmtest"
	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
	"github.com/holdfastdb/holdfast/rpc/policy"
)

// groups are state machines without Raft, for requests that span several of them. As a Node they lead all shards.
type groups struct {
	Node
	t  *testing.T
	mu sync.Mutex
	// now is the time of all groups.
	now      fsm.Time
	machines map[uint32]*fsm.Machine
	stores   map[uint32]*fsmtest.Memory
	calls    int
	// fault says what happens to the n-th call, counted from 0.
	fault func(n int, group uint32) fault
}

// fault is how a call fails.
type fault int

const (
	fine     fault = iota
	refused        // it is not executed, and the caller knows
	lost           // it is not executed, and the caller cannot know
	answered       // it is executed, and the caller cannot know
)

func newGroups(t *testing.T, ids ...uint32) *groups {
	g := &groups{
		t: t, now: 1_700_000_000_000, machines: make(map[uint32]*fsm.Machine), stores: make(map[uint32]*fsmtest.Memory),
		fault: func(int, uint32) fault { return fine },
	}
	for _, id := range ids {
		reg, err := fsm.New(Types()...)
		if err != nil {
			t.Fatal(err)
		}
		g.stores[id] = fsmtest.NewMemory()
		if g.machines[id], err = fsm.Open(reg, g.stores[id]); err != nil {
			t.Fatal(err)
		}
	}
	return g
}

func (g *groups) Topology() *catalog.Topology {
	t := &catalog.Topology{}
	for id := range g.machines {
		t.Shards = append(t.Shards, catalog.Shard{ID: id})
	}
	return t
}

func (g *groups) Do(ctx context.Context, group uint32, calls []fsm.Call) (fsm.FrameOutcome, error) {
	return g.Propose(ctx, group, &fsm.Frame{Calls: calls})
}

func (g *groups) Propose(_ context.Context, group uint32, f *fsm.Frame) (fsm.FrameOutcome, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	what := g.fault(g.calls, group)
	g.calls++
	switch what {
	case refused:
		return fsm.FrameOutcome{}, fmt.Errorf("shard %d: %w", group, fsm.ErrOverloaded)
	case lost:
		return fsm.FrameOutcome{}, fmt.Errorf("shard %d: %w", group, fsm.ErrOutcomeUnknown)
	}
	m := g.machines[group]
	e := fsm.Entry{Time: g.now, Frames: []fsm.Frame{*f}}
	out, err := m.Apply([]fsm.LogEntry{{Index: m.Applied().Index + 1, Term: 1, Data: e.Append(nil)}})
	if err != nil {
		g.t.Errorf("group %d cannot go on: %v", group, err)
		return fsm.FrameOutcome{}, fsm.ErrClosed
	}
	if what == answered {
		return fsm.FrameOutcome{}, fmt.Errorf("shard %d: %w", group, fsm.ErrOutcomeUnknown)
	}
	return out[0].Frames[0], nil
}

// limitIn is a limit of ten tokens in a window without end, and its key is the group's number.
func limitIn(group uint32) counter.Limit {
	return counter.Limit{Key: counter.Key{byte(group)}, Policy: group, Params: counter.Params{
		Algorithm: counter.FixedWindow, Rate: 10, Window: counter.MaxWindow,
	}}
}

func slotsIn(group uint32) counter.Limit {
	l := limitIn(group)
	l.Algorithm = counter.Concurrency
	return l
}

// used is what a limit says is in use.
func (g *groups) used(group uint32, l counter.Limit) uint32 {
	g.t.Helper()
	if err := g.machines[group].Flush(); err != nil {
		g.t.Fatal(err)
	}
	reg, err := fsm.New(Types()...)
	if err != nil {
		g.t.Fatal(err)
	}
	q := counter.TakeRequest{Limits: []counter.Limit{l}}
	results, _, err := reg.Query(g.stores[group].View(), []fsm.Call{{Type: counter.TypeID, Op: counter.OpPeek, Body: q.Append(nil)}})
	if err != nil {
		g.t.Fatal(err)
	}
	r, err := counter.DecodeTakeResult(results[0].Body)
	if err != nil {
		g.t.Fatal(err)
	}
	return r.Limits[0].Used
}

// planOf takes weight from limits, each in the group of its policy's number.
func planOf(weight uint32, limits ...counter.Limit) *plan {
	p := &plan{weight: weight}
	for i, l := range limits {
		p.matches = append(p.matches, policy.Match{Limit: l})
		p.parts = append(p.parts, part{group: l.Policy, weight: weight, limits: []counter.Limit{l}, at: []int{i}})
	}
	return p
}

// requestOf is the caller of an operation of an SDK's frame.
func (g *groups) requestOf(seq uint64) caller {
	return framed(g, &pb.PackedFrame{Client: []byte("0123456789abcdef"), Shard: 1, Seq: seq, DeadlineMs: int64(g.now) + 10_000}, 0)
}

const (
	weight = 3
	most   = 6 // calls of a round: two in each of two groups, and a refund
)

// Whatever fails on the way, a request that is repeated until it has an answer takes from all limits exactly once or from
// none, as the answer says; and who is told that nothing was taken, or that it failed for now, is told the truth.
func TestARepeatedRequestTakesFromAllLimitsOnceWhateverFails(t *testing.T) {
	for _, ttl := range []time.Duration{0, time.Minute} {
		for _, slots := range []bool{false, true} {
			for first := range most {
				for second := range most {
					for _, one := range []fault{refused, lost, answered} {
						for _, two := range []fault{fine, refused, lost, answered} {
							repeated(t, ttl, slots, map[int]fault{first: one, second: two})
						}
					}
				}
			}
		}
	}
}

func repeated(t *testing.T, ttl time.Duration, slots bool, faults map[int]fault) {
	t.Helper()
	g := newGroups(t, 1, 2)
	limits := []counter.Limit{limitIn(1), limitIn(2)}
	if slots {
		limits[1] = slotsIn(2)
	}
	g.fault = func(n int, _ uint32) fault { return faults[n] }
	what := fmt.Sprintf("ttl %v, slots %v, faults %v", ttl, slots, faults)
	inUse := func() [2]uint32 { return [2]uint32{g.used(1, limits[0]), g.used(2, limits[1])} }
	for try := 1; ; try++ {
		d, err := coordinate(t.Context(), planOf(weight, limits...), ttl, g.requestOf(1))
		if err != nil {
			if try > 3 {
				t.Fatalf("%s: still fails: %v", what, err)
			}
			continue
		}
		if !d.allowed || inUse() != [2]uint32{weight, weight} {
			t.Fatalf("%s: allowed %v after %d tries, in use %v", what, d.allowed, try, inUse())
		}
		if ttl == 0 {
			break
		}
		// What a reservation is given for is really held.
		g.fault = func(int, uint32) fault { return fine }
		for i := range d.holds {
			if _, err := g.settled(&d.holds[i], 0); err != nil {
				t.Fatalf("%s: settle after %d tries: %v", what, try, err)
			}
		}
		if inUse() != [2]uint32{} {
			t.Fatalf("%s: after the refund %v are in use", what, inUse())
		}
		return
	}
	// A repetition that comes late, and finds one group out of reach, undoes nothing.
	for n := range most {
		begin := g.calls
		g.fault = func(i int, _ uint32) fault { return map[bool]fault{true: lost}[i == begin+n] }
		_, _ = coordinate(t.Context(), planOf(weight, limits...), ttl, g.requestOf(1))
		if inUse() != [2]uint32{weight, weight} {
			t.Fatalf("%s: after a repetition whose call %d was lost %v are in use", what, n, inUse())
		}
	}
}

func TestARepeatedRequestThatIsDeniedTakesNothingWhateverFails(t *testing.T) {
	for first := range most {
		for second := range most {
			for _, one := range []fault{refused, lost, answered} {
				for _, two := range []fault{fine, refused, lost, answered} {
					g := newGroups(t, 1, 2)
					faults := map[int]fault{first: one, second: two}
					g.fault = func(n int, _ uint32) fault { return faults[n] }
					small := limitIn(2)
					small.Rate = weight - 1
					for try := 1; ; try++ {
						d, err := coordinate(t.Context(), planOf(weight, limitIn(1), small), 0, g.requestOf(1))
						if err != nil && try < 4 {
							continue
						}
						if err != nil || d.allowed {
							t.Fatalf("faults %v: %+v, %v", faults, d, err)
						}
						break
					}
					g.fault = func(int, uint32) fault { return fine }
					g.now += fsm.Time(reserveTTL.Milliseconds()) // what could not be given back gives itself back
					for id, l := range map[uint32]counter.Limit{1: limitIn(1), 2: small} {
						if _, err := g.Do(t.Context(), id, []fsm.Call{{Type: counter.TypeID, Op: counter.OpTake, Body: (&counter.TakeRequest{Limits: []counter.Limit{l}}).Append(nil)}}); err != nil {
							t.Fatal(err)
						}
						if used := g.used(id, l); used != 0 {
							t.Fatalf("faults %v: %d in use in group %d", faults, used, id)
						}
					}
				}
			}
		}
	}
}

func (g *groups) settled(h *held, actual uint32) ([]byte, error) {
	out, err := g.Do(context.Background(), h.group, []fsm.Call{h.settle(counter.Charge, actual)})
	if err != nil {
		return nil, err
	}
	return only(out)
}

// What is said of a try that failed is true: nothing is taken, once what could not be given back has ended.
func TestAFailedRequestThatHadNoEffectIsNotOfUnknownOutcome(t *testing.T) {
	for _, what := range []fault{refused, lost, answered} {
		g := newGroups(t, 1, 2)
		g.fault = func(_ int, group uint32) fault {
			if group == 2 {
				return what
			}
			return fine
		}
		_, err := coordinate(t.Context(), planOf(weight, limitIn(1), limitIn(2)), 0, g.requestOf(1))
		if k := kindOf(err); err == nil || !k.retryable || k == outcomeUnknown {
			t.Errorf("fault %d: %v is %v", what, err, kindOf(err))
		}
		if used := g.used(1, limitIn(1)); used != 0 {
			t.Errorf("fault %d: %d in use where it could be given back", what, used)
		}
		g.now += fsm.Time(2 * reserveTTL.Milliseconds())
		g.fault = func(int, uint32) fault { return fine }
		if _, err := g.Do(t.Context(), 2, []fsm.Call{{Type: counter.TypeID, Op: counter.OpTake, Body: (&counter.TakeRequest{Limits: []counter.Limit{limitIn(2)}}).Append(nil)}}); err != nil {
			t.Fatal(err)
		}
		if used := g.used(2, limitIn(2)); used != 0 {
			t.Errorf("fault %d: %d in use after the reservation's end", what, used)
		}
	}
}

// A first step that is executed after all, when the refund has found nothing, gives itself back: a check's after seconds,
// but a reservation's after its own time, and a slot's after its window. Of those nobody can say that nothing was taken.
func TestAReservationThatMayStillComeIsOfUnknownOutcome(t *testing.T) {
	for name, tt := range map[string]struct {
		ttl     time.Duration
		limit   counter.Limit
		unknown bool
	}{
		"a check":          {0, limitIn(2), false},
		"a reservation":    {time.Hour, limitIn(2), true},
		"a check of slots": {0, slotsIn(2), true},
	} {
		g := newGroups(t, 1, 2)
		g.fault = func(n int, group uint32) fault { return map[bool]fault{true: lost}[n < 2 && group == 2] }
		for _, c := range []caller{(&limits{node: g}).nobody(), g.requestOf(1)} {
			g.calls = 0
			_, err := coordinate(t.Context(), planOf(weight, limitIn(1), tt.limit), tt.ttl, c)
			if k := kindOf(err); (k == outcomeUnknown) != tt.unknown || k != outcomeUnknown && k != unavailable {
				t.Errorf("%s, named %v: %v is %v", name, c.named, err, k)
			}
		}
	}
}

// Two nodes may carry out the same operation at the same time, when an SDK follows a leader.
func TestTwoNodesCarryOutOneOperation(t *testing.T) {
	for range 50 {
		g := newGroups(t, 1, 2)
		var both sync.WaitGroup
		allowed := make([]bool, 2)
		for i := range allowed {
			both.Go(func() {
				d, err := coordinate(t.Context(), planOf(weight, limitIn(1), limitIn(2)), 0, g.requestOf(1))
				if err != nil {
					t.Error(err)
				}
				allowed[i] = d.allowed
			})
		}
		both.Wait()
		if a, b := g.used(1, limitIn(1)), g.used(2, limitIn(2)); a != weight || b != weight || slices.Contains(allowed, false) {
			t.Fatalf("allowed %v, in use %d and %d", allowed, a, b)
		}
	}
}

func shadow(l counter.Limit) counter.Limit {
	l.Shadow = true
	return l
}

// A shadow limit that is used up watches the others being taken from, wherever it is.
func TestAShadowLimitElsewhereDeniesNothing(t *testing.T) {
	for name, ttl := range map[string]time.Duration{"check": 0, "reservation": time.Minute} {
		t.Run(name, func(t *testing.T) {
			g := newGroups(t, 1, 2)
			for i := range uint64(3) { // of four, four and four there are ten: the third is beyond
				for _, c := range []caller{g.requestOf(2*i + 1), (&limits{node: g}).nobody()} {
					d, err := coordinate(t.Context(), planOf(4, limitIn(1), shadow(limitIn(2))), ttl, c)
					if err != nil {
						t.Fatalf("request %d: %v", i, err)
					}
					over := g.used(2, limitIn(2)) > 6 && d.results[1].Denied
					if !d.allowed && g.used(1, limitIn(1)) <= 6 || d.results[0].Denied == d.allowed {
						t.Fatalf("request %d: %+v", i, d)
					}
					if over && len(d.holds) > 1 {
						t.Errorf("holds %v where nothing is held", d.holds)
					}
					if ttl == 0 {
						continue
					}
					for j := range d.holds {
						if _, err := g.settled(&d.holds[j], 1); err != nil {
							t.Errorf("commit of request %d: %v", i, err)
						}
					}
				}
			}
		})
	}
	// All are beyond their limits: allowed, and nothing is held.
	g := newGroups(t, 1, 2)
	d, err := coordinate(t.Context(), planOf(11, shadow(limitIn(1)), shadow(limitIn(2))), time.Minute, g.requestOf(1))
	if err != nil || !d.allowed || len(d.holds) != 0 {
		t.Errorf("%+v, %v", d, err)
	}
}

// A failure that may have had an effect is told as such, whatever else it was.
func TestAnUnknownOutcomeIsNeverToldAsAnother(t *testing.T) {
	for _, inner := range []error{fsm.Errorf(fsm.NotFound, "no"), fsm.Errorf(fsm.Expired, "late"), fsm.ErrOverloaded, fsm.ErrNotLeader} {
		if k := kindOf(fmt.Errorf("%w: confirm: %w", fsm.ErrOutcomeUnknown, inner)); k != outcomeUnknown {
			t.Errorf("%v: %v", inner, k)
		}
	}
	g := newGroups(t, 1, 2)
	g.fault = func(n int, group uint32) fault { return map[bool]fault{true: refused}[n >= 2 && group == 2] }
	_, err := coordinate(t.Context(), planOf(weight, limitIn(1), limitIn(2)), 0, (&limits{node: g}).nobody())
	if kindOf(err) != outcomeUnknown {
		t.Errorf("one of two confirmed: %v is %v", err, kindOf(err))
	}
}

// The limits of one group may have different weights, which Envoy gives.
func TestDifferentWeightsAreTakenTogetherOrNotAtAll(t *testing.T) {
	g := newGroups(t, 1)
	other := limitIn(1)
	other.Key = counter.Key{9}
	ask := func(a, b uint32) bool {
		p := &plan{matches: []policy.Match{{Limit: limitIn(1)}, {Limit: other}}}
		p.parts = []part{
			{group: 1, weight: a, limits: []counter.Limit{limitIn(1)}, at: []int{0}},
			{group: 1, weight: b, limits: []counter.Limit{other}, at: []int{1}},
		}
		d, err := decide(t.Context(), p, (&limits{node: g}).nobody())
		if err != nil {
			t.Fatal(err)
		}
		return d.allowed
	}
	if !ask(2, 9) || ask(2, 9) || ask(9, 1) {
		t.Error("decided otherwise")
	}
	if a, b := g.used(1, limitIn(1)), g.used(1, other); a != 2 || b != 9 {
		t.Errorf("in use %d and %d, want 2 and 9", a, b)
	}
}

// Nothing that no counter can hold becomes a command: a state machine that cannot decode one stops on every replica.
func TestALimitThatCannotBeCountedIsNotProposed(t *testing.T) {
	g := newGroups(t, 1)
	bad := limitIn(1)
	bad.Rate = counter.MaxRate + 1
	_, err := (&limits{node: g}).decideAll(t.Context(), []uint32{1}, []policy.Match{{Limit: bad}})
	if kindOf(err) != invalid || g.calls != 0 {
		t.Errorf("%v after %d calls", err, g.calls)
	}
}

// An operation's error reaches the SDK as what it is, also through the services, whose errors are gRPC's.
func TestAnOperationsErrorHasItsCode(t *testing.T) {
	for name, tt := range map[string]struct {
		err  error
		code codes.Code
	}{
		"invalid":         {invalidf("bad weight"), codes.InvalidArgument},
		"not found":       {fsm.Errorf(fsm.NotFound, "no such thing"), codes.NotFound},
		"unknown outcome": {fsm.ErrOutcomeUnknown, codes.DeadlineExceeded},
		"expired":         {fsm.Errorf(fsm.Expired, "late"), codes.Unavailable},
		"overloaded":      {fsm.ErrOverloaded, codes.Unavailable},
		"exhausted":       {fsm.Errorf(fsm.Exhausted, "full"), codes.ResourceExhausted},
		"a bug":           {errors.New("oh"), codes.Internal},
	} {
		for _, err := range []error{tt.err, statusOf(tt.err)} {
			var r pb.OpResult
			appendResult(nil, &r, proto.Message(nil), err)
			if codes.Code(r.Code) != tt.code || r.Message != tt.err.Error() || strings.Contains(r.Message, "rpc error") {
				t.Errorf("%s: %v %q", name, codes.Code(r.Code), r.Message)
			}
		}
	}
}
