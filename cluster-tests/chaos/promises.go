package chaos

import (
	"time"

	"github.com/holdfastdb/holdfast/cluster-tests/check"
	"github.com/holdfastdb/holdfast/cluster-tests/history"
	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/fsm/counter"
	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
)

// stampDelay is how far a shard's time may be from that of the callers, who have the same clock: a leader's begins at its
// election, and is counted in milliseconds from there.
const stampDelay = 100 * time.Millisecond

// checkPromises judges what callers were allowed by the rules alone, and tells how much that was.
func (r *run) checkPromises(ops []history.Op, violate func([]check.Violation)) int {
	rules := make(map[string]counter.Params)
	for _, q := range append([]*pb.CreatePolicyRequest{leased}, limited...) {
		a, _ := counter.ParseAlgorithm(q.Algorithm)
		rules[q.Name] = counter.Params{Algorithm: a, Rate: q.RateLimit, Window: fsm.Millis(q.TimeWindow * 1000), Burst: q.BurstCapacity}
	}
	judged, violations := check.Promises(ops, rules, func(d time.Duration) (earliest, latest fsm.Time) {
		at := r.w.history.Start().Add(d)
		return fsm.Time(at.Add(-stampDelay).UnixMilli()), fsm.Time(at.Add(stampDelay).UnixMilli())
	})
	violate(violations)
	return judged
}
