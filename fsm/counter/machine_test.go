package counter

import (
	"bytes"
	"testing"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/fsm/fsmtest"
)

// failer is what tests, benchmarks and rapid have in common.
type failer interface {
	Helper()
	Fatalf(format string, args ...any)
}

// shard drives two machines with the same log. One keeps its rows in memory, the other is opened again before each
// entry: whatever one of them remembers beyond what it stored makes them differ.
type shard struct {
	t             failer
	reg           *fsm.Registry
	kept, stored  *fsmtest.Memory
	machine       *fsm.Machine
	index         uint64
	now           fsm.Time
	withoutReopen bool // for tests whose subject is something else and that take many steps
}

// epoch is a time at which no window of the tests begins or ends.
const epoch fsm.Time = 1_700_000_000_123

func newShard(t failer) *shard {
	t.Helper()
	reg, err := fsm.New(Type())
	if err != nil {
		t.Fatalf("registry: %v", err)
	}
	s := &shard{t: t, reg: reg, kept: fsmtest.NewMemory(), stored: fsmtest.NewMemory(), now: epoch}
	s.machine = s.open(s.kept)
	return s
}

func (s *shard) open(store *fsmtest.Memory) *fsm.Machine {
	m, err := fsm.Open(s.reg, store)
	if err != nil {
		s.t.Fatalf("open: %v", err)
	}
	return m
}

func (s *shard) apply(m *fsm.Machine, log []fsm.LogEntry) []fsm.Outcome {
	s.t.Helper()
	outs, err := m.Apply(log)
	if err == nil {
		err = m.Flush()
	}
	if err != nil {
		s.t.Fatalf("apply: %v", err)
	}
	return outs
}

func (s *shard) entry(e fsm.Entry) fsm.Outcome {
	s.t.Helper()
	s.index++
	e.Time = s.now
	log := []fsm.LogEntry{{Index: s.index, Term: 1, Data: e.Append(nil)}}
	outs := s.apply(s.machine, log)
	if s.withoutReopen {
		return outs[0]
	}
	again := s.apply(s.open(s.stored), log)
	if !s.kept.Equal(s.stored) {
		s.t.Fatalf("entry %d at %d: the stores differ\n%x\n%x", s.index, s.now, s.kept.Keys, s.stored.Keys)
	}
	for i := range outs[0].Frames {
		a, b := &outs[0].Frames[i], &again[0].Frames[i]
		if !bytes.Equal(fsm.AppendFrameOutcome(nil, a), fsm.AppendFrameOutcome(nil, b)) {
			s.t.Fatalf("entry %d at %d: the results differ\n%+v\n%+v", s.index, s.now, a, b)
		}
	}
	return outs[0]
}

type encoder interface{ Append(dst []byte) []byte }

func call(op uint8, q encoder) fsm.Call { return fsm.Call{Type: TypeID, Op: op, Body: q.Append(nil)} }

func (s *shard) do(op uint8, q encoder) fsm.Result {
	s.t.Helper()
	out := s.entry(fsm.Entry{Frames: []fsm.Frame{{Calls: []fsm.Call{call(op, q)}}}})
	return out.Frames[0].Results[0]
}

// decoded unwraps a result that must be a success.
func decoded[T any](s *shard, r fsm.Result, decode func([]byte) (T, error)) T {
	s.t.Helper()
	if r.Code != fsm.OK {
		s.t.Fatalf("refused: %v %s", r.Code, r.Body)
	}
	v, err := decode(r.Body)
	if err != nil {
		s.t.Fatalf("decode result: %v", err)
	}
	return v
}

func (s *shard) take(weight uint32, limits ...Limit) TakeResult {
	s.t.Helper()
	return decoded(s, s.do(OpTake, &TakeRequest{weight, limits}), DecodeTakeResult)
}

func (s *shard) reserve(id uint64, ttl fsm.Millis, weight uint32, limits ...Limit) TakeResult {
	s.t.Helper()
	q := &ReserveRequest{ID: id, TTL: ttl, TakeRequest: TakeRequest{weight, limits}}
	return decoded(s, s.do(OpReserve, q), DecodeTakeResult)
}

func (s *shard) settle(q SettleRequest) SettleResult {
	s.t.Helper()
	return decoded(s, s.do(OpSettle, &q), DecodeSettleResult)
}

func (s *shard) lease(want uint32, ttl fsm.Millis, returns []LeaseReturn, limits ...Limit) LeaseResult {
	s.t.Helper()
	return decoded(s, s.do(OpLease, &LeaseRequest{want, ttl, returns, limits}), DecodeLeaseResult)
}

func (s *shard) reset(keys ...Key) uint32 {
	s.t.Helper()
	return decoded(s, s.do(OpReset, &ResetRequest{keys}), DecodeResetResult).Reset
}

// peek asks at the moment s.now, which the machine has to be told about first.
func (s *shard) peek(weight uint32, limits ...Limit) TakeResult {
	s.t.Helper()
	s.entry(fsm.Entry{Kind: fsm.Nudge})
	results, _, err := s.reg.Query(s.kept.View(), []fsm.Call{call(OpPeek, &TakeRequest{weight, limits})})
	if err != nil {
		s.t.Fatalf("peek: %v", err)
	}
	return decoded(s, results[0], DecodeTakeResult)
}

func (s *shard) sweep() { s.t.Helper(); s.entry(fsm.Entry{Kind: fsm.Sweep}) }

func (s *shard) check() {
	s.t.Helper()
	if err := Type().Check(s.kept.View(), s.now); err != nil {
		s.t.Fatalf("check: %v", err)
	}
}

// rows is how many keys there are beside the machine's position: counters and places in the expiry index.
func (s *shard) rows() int {
	n := 0
	for k := range s.kept.Keys {
		if k != "\x00a" {
			n++
		}
	}
	return n
}

// drain lets time pass, sweeping, until nothing is left to expire, and fails if something remains.
func (s *shard) drain() {
	s.t.Helper()
	for i := 0; s.machine.NextExpiry() != 0; i++ {
		if i > 100 {
			s.t.Fatalf("still something to expire at %d", s.machine.NextExpiry())
		}
		s.now = max(s.now, s.machine.NextExpiry())
		s.sweep()
	}
	if s.rows() != 0 {
		s.t.Fatalf("left after the sweep: %x", s.kept.Keys)
	}
}

func key(n byte) Key { return Key{n} }

func limit(n byte, p Params) Limit { return Limit{Key: key(n), Policy: uint32(n), Params: p} }

func bucket(rate, burst uint32, window fsm.Millis) Params {
	return Params{Algorithm: TokenBucket, Rate: rate, Burst: burst, Window: window}
}

func params(a Algorithm, rate uint32, window fsm.Millis) Params {
	p := Params{Algorithm: a, Rate: rate, Window: window}
	if a == TokenBucket || a == LeakyBucket {
		p.Burst = rate
	}
	return p
}

var everyAlgorithm = []Algorithm{TokenBucket, SlidingWindow, SlidingLog, FixedWindow, LeakyBucket, Concurrency}

func eachAlgorithm(t *testing.T, algorithms []Algorithm, run func(t *testing.T, a Algorithm)) {
	for _, a := range algorithms {
		t.Run(a.String(), func(t *testing.T) { run(t, a) })
	}
}
