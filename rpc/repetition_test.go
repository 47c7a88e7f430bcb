package rpc

import (
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/fsm/catalog"
	"github.com/holdfastdb/holdfast/fsm/counter"
	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
	"github.com/holdfastdb/holdfast/rpc/policy"
)

// Policies change between a request and its repetition, and with them the groups that have a say. What was taken for the
// request stays all that is taken for it, and the answer says so.
func TestARepetitionUnderOtherPoliciesTakesNothingMore(t *testing.T) {
	tests := map[string]struct {
		first, again []uint32 // the groups of the limits
		fault        fault    // of group 2 the first time
		used         [2]uint32
	}{
		"a limit more":                            {[]uint32{1}, []uint32{1, 2}, fine, [2]uint32{weight, 0}},
		"a limit less":                            {[]uint32{1, 2}, []uint32{1}, fine, [2]uint32{weight, weight}},
		"a limit less after nothing was taken":    {[]uint32{1, 2}, []uint32{1}, refused, [2]uint32{weight, 0}},
		"a limit less after an outcome not known": {[]uint32{1, 2}, []uint32{1}, lost, [2]uint32{weight, 0}},
	}
	planFor := func(groups []uint32) *plan {
		limits := make([]counter.Limit, len(groups))
		for i, id := range groups {
			limits[i] = limitIn(id)
		}
		return planOf(weight, limits...)
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			g := newGroups(t, 1, 2)
			g.fault = func(_ int, group uint32) fault {
				if group == 2 {
					return tt.fault
				}
				return fine
			}
			first, err := decide(t.Context(), planFor(tt.first), g.requestOf(1))
			if (err == nil) != (tt.fault == fine) {
				t.Fatalf("first: %v", err)
			}
			for range 3 {
				d, err := decide(t.Context(), planFor(tt.again), g.requestOf(1))
				if err != nil || !d.allowed || len(d.holds) != 0 {
					t.Fatalf("%+v, %v", d, err)
				}
				if tt.fault == fine && len(first.results) < len(tt.again) && !slices.Equal(d.results, first.results) {
					t.Errorf("the answer was %+v, now %+v", first.results, d.results)
				}
				if used := [2]uint32{g.used(1, limitIn(1)), g.used(2, limitIn(2))}; used != tt.used {
					t.Fatalf("in use %v, want %v", used, tt.used)
				}
			}
		})
		t.Run(name+", reservation", func(t *testing.T) {
			g := newGroups(t, 1, 2)
			g.fault = func(_ int, group uint32) fault {
				if group == 2 {
					return tt.fault
				}
				return fine
			}
			_, _ = coordinate(t.Context(), planFor(tt.first), time.Minute, g.requestOf(1))
			g.fault = func(int, uint32) fault { return fine }
			d, err := coordinate(t.Context(), planFor(tt.again), time.Minute, g.requestOf(1))
			if err != nil || len(d.holds) == 0 {
				t.Fatalf("%+v, %v", d, err)
			}
			for i := range d.holds {
				if _, err := g.settled(&d.holds[i], 0); err != nil {
					t.Errorf("what is said to be reserved in group %d: %v", d.holds[i].group, err)
				}
			}
		})
	}
}

// The same for operations of frames: the shard's window has the first execution, which the policies of now say nothing of.
func TestAFrameSentAgainUnderOtherPoliciesTakesNothingMore(t *testing.T) {
	g := newGroups(t, 1, 2)
	_, empty := newPolicies(t)
	resolver, err := policy.New(empty)
	if err != nil {
		t.Fatal(err)
	}
	service := &data{node: g, limits: &limits{node: g, resolver: resolver}, metrics: NewMetrics()}
	planned := func(limits ...counter.Limit) op {
		o := op{method: methodCheck, call: fsm.Noop(), check: planOf(weight, limits...)}
		for i := range o.check.matches {
			o.check.matches[i].Policy = &catalog.Policy{}
		}
		switch len(limits) {
		case 0:
			o.fail(invalidf("there is no such policy any more"))
		case 1:
			o.call = o.check.take()
		}
		return o
	}
	// What becomes of the request, in shard 1, with each of the plans in turn.
	send := func(seq uint64, plans ...op) (rows []int) {
		for _, o := range plans {
			q := &pb.PackedFrame{Client: []byte("0123456789abcdef"), Shard: 1, Seq: seq, DeadlineMs: int64(g.now) + 10_000, Ops: packed(&pb.Op{})}
			out, err := g.Propose(t.Context(), 1, &fsm.Frame{Client: [16]byte(q.Client), Seq: seq, Deadline: fsm.Time(q.DeadlineMs), Calls: []fsm.Call{o.call}})
			x := newStream(t.Context(), service)
			x.executed(q, &work{ops: []op{o}}, out, err, time.Now())
			<-x.wake
			var answer pb.CheckResponse
			if result := x.queue[0].Results[0]; result.Code != 0 {
				t.Fatalf("request %d: %v", seq, result)
			} else if err := proto.Unmarshal(result.Response, &answer); err != nil || !answer.Allowed {
				t.Fatalf("request %d: %v, %v", seq, &answer, err)
			}
			rows = append(rows, len(answer.Limits))
		}
		return rows
	}
	if rows := send(1, planned(limitIn(1)), planned(limitIn(1), limitIn(2)), planned()); !slices.Equal(rows, []int{1, 1, 1}) {
		t.Errorf("alone first: answers of %v rows", rows)
	}
	if a, b := g.used(1, limitIn(1)), g.used(2, limitIn(2)); a != weight || b != 0 {
		t.Errorf("alone first: %d and %d in use", a, b)
	}
	if rows := send(2, planned(limitIn(1), limitIn(2)), planned(limitIn(1))); !slices.Equal(rows, []int{2, 1}) {
		t.Errorf("both first: answers of %v rows", rows)
	}
	if a, b := g.used(1, limitIn(1)), g.used(2, limitIn(2)); a != 2*weight || b != weight {
		t.Errorf("both first: %d and %d in use", a, b)
	}
}
