// Package counter is the state machine of rate limits: counters that are checked and taken from in one step.
//
// A counter is named by a Key and holds one algorithm's state plus the holds on its tokens: reservations, leases and
// slots in use. The rules (rate, window, burst) are not kept here. They travel in each command, from the policies in
// the catalog, so that a shard decides from what is in its log alone.
//
// # Files
//
// counter.go has the table of operations, limit.go what a command says about a limit, row.go a stored counter with its
// holds, state.go what an algorithm is; each algorithm has a file of its own. take.go, settle.go, lease.go and reset.go
// hold the commands; simulate.go runs the same decisions on a log of the past.
//
// # Invariants
//
//   - Over any interval of length t, token_bucket and leaky_bucket admit at most burst + rate·t tokens, sliding_log at
//     most rate tokens in any window, fixed_window at most twice its rate over any window's length, and sliding_window
//     at most rate + rate·t/window. Leased tokens count from the grant and until the lease ends.
//   - A take of several limits takes from all or from none.
//   - All arithmetic is on integers: token·milliseconds for buckets, so that nothing is lost to rounding.
package counter

import (
	"github.com/holdfastdb/holdfast/fsm"
)

// TypeID is the number of the data type.
const TypeID = 1

// The numbers of the operations, as in the log.
const (
	OpTake    = 1
	OpReserve = 2
	OpSettle  = 3
	OpLease   = 4
	OpReset   = 5
	OpPeek    = 64
)

// Type returns the table of the data type.
func Type() fsm.Type {
	return fsm.Type{
		ID:   TypeID,
		Name: "counter",
		Ops: []fsm.Op{
			fsm.Command(OpTake, "take", take),
			fsm.Command(OpReserve, "reserve", reserve),
			fsm.Command(OpSettle, "settle", settle),
			fsm.Command(OpLease, "lease", grantLease),
			fsm.Command(OpReset, "reset", reset),
			fsm.QueryOp(OpPeek, "peek", peek),
		},
		Sweep: sweep,
		Check: check,
	}
}
