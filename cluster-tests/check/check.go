// Package check judges what a cluster did: the history of its clients against the logs of its shards.
//
// Replay looks at every operation, in linear time: the log says in which order commands were executed, so their answers
// can be compared with a model's one by one, and the order itself with real time. It trusts what answers say about their
// place in the log only as far as the log has the same there. Porcupine trusts none of that, and so can look at samples
// only.
package check

import (
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/hashicorp/raft"

	"github.com/holdfastdb/holdfast/cluster-tests/history"
	"github.com/holdfastdb/holdfast/cluster-tests/models"
	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/rpc"
)

// Entry is a committed entry of a shard's log as one replica holds it.
type Entry struct {
	Index, Term uint64
	// Type is that of Raft; a command by default.
	Type raft.LogType
	Data []byte
	// Told is when it was decided at the latest, on the clock of the history: before any answer. Without it, what was lent
	// cannot be judged; see Stamped.
	Told time.Duration
}

// The kinds of violations, by the promise.
const (
	KindResult    = "result"    // an answer is not what the model says, or absurd in any state
	KindLost      = "lost"      // what was acknowledged is not in the log
	KindEffect    = "effect"    // what failed was executed
	KindOrder     = "order"     // the log's order is not that of time
	KindTime      = "time"      // an answer tells of another time than the log, or shard time is not that of clocks
	KindLog       = "log"       // a log cannot be executed
	KindInvariant = "invariant" // more was admitted than the rules promise, or a frame was executed twice
	KindPromise   = models.BrokenPromise
	KindLease     = models.BrokenLease
	KindAgreement = "agreement" // replicas have different logs or states
	KindWatch     = models.BrokenWatch
	KindPolicy    = models.BrokenPolicy
	KindSession   = models.BrokenSession
	KindSum       = models.BrokenSum
	KindRows      = "rows"            // a shard remembers what the model has forgotten, or the reverse
	KindDurable   = "durability"      // what was synced is not there after a crash
	KindHealth    = "health"          // a cluster without faults does not become whole
	KindService   = "service"         // a majority was there, and operations were not done
	KindNode      = "node"            // a node cannot go on, start or stop
	KindSequence  = "linearizability" // what callers saw has no order that explains it
)

// Violation is a promise that was broken, as models and loads tell of them too.
type Violation = models.Violation

// Report is what Replay found.
type Report struct {
	Violations []Violation
	// Checked counts the operations whose answer was compared with the model's; Definite, Failed and Unknown count all.
	Checked, Definite, Failed, Unknown int
	// Executed counts the operations of unknown outcome that the logs have.
	Executed int
	// Local counts the operations that no shard got to see, Lent those of them that were compared with what was lent,
	// Queries those that asked a shard.
	Local, Lent, Queries int
	// ByType counts those of Checked and Lent, by data type.
	ByType map[string]int
	// Unclear are the queries of which the model could not tell what they meant: those for a subject that was never checked
	// before, or whose policies had changed.
	Unclear    int
	UnclearOps []*history.Op
	// Rows counts what each shard remembers at the end of its log, by data type.
	Rows map[uint32]map[uint8]int
}

func (r *Report) add(kind string, op *history.Op, format string, args ...any) {
	r.Violations = append(r.Violations, Violation{Kind: kind, Detail: fmt.Sprintf(format, args...), Op: op})
}

// replay is the shards as their logs have them, and the operations among them.
type replay struct {
	Report
	types  []models.Type
	shards map[uint32]*models.Shard
	places []place
	alone  *models.Shard // judges answers by themselves
	told   bool          // the entries say when they were decided
}

// place is where in a shard's log an operation is.
type place struct {
	op    *history.Op
	shard uint32
	index uint64
	at    int // in the entry; a query comes after all of it
}

const afterEntry = math.MaxInt

// Replay judges all operations of a history by the complete logs of the shards, each from its first entry on. The
// catalog's, 0, is not looked at: see Merge and Watches. Operations of types that have no model are passed over.
func Replay(types []models.Type, logs map[uint32][]Entry, ops []history.Op) *Report {
	r := &replay{types: types, shards: make(map[uint32]*models.Shard), alone: models.NewShard(types, 0)}
	r.Rows, r.ByType = make(map[uint32]map[uint8]int), make(map[string]int)
	type spot struct {
		shard uint32
		index uint64
	}
	spots := make(map[spot][]*history.Op)
	for i := range ops {
		if t := &ops[i].Trace; t.Index != 0 && ops[i].Outcome == history.Definite && r.alone.Of(&ops[i]) != nil {
			at := spot{t.Shard, t.Index}
			spots[at] = append(spots[at], &ops[i])
		}
	}
	for _, id := range sortedKeys(logs) {
		if id == 0 {
			continue
		}
		s := models.NewShard(types, id)
		r.shards[id] = s
		for _, e := range logs[id] {
			data := e.Data
			if e.Type != raft.LogCommand {
				data = nil
			}
			s.Told, r.told = e.Told, r.told || e.Told != 0
			if err := s.Apply(e.Index, data); err != nil {
				r.add(KindLog, nil, "shard %d: %v", id, err)
				break
			}
			r.answered(s, spots[spot{id, e.Index}])
		}
		r.Rows[id] = s.Rows()
		for _, broken := range s.Broken() {
			r.add(KindInvariant, nil, "shard %d: %s", id, broken)
		}
	}
	for i := range ops {
		r.judge(&ops[i])
	}
	r.judgeLocal(ops)
	r.checkRealTime()
	return &r.Report
}

func sortedKeys[V any](m map[uint32]V) []uint32 {
	keys := make([]uint32, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// answered looks at the answers that were given at the entry that was just executed.
func (r *replay) answered(s *models.Shard, ops []*history.Op) {
	for _, op := range ops {
		if done := s.Done(models.FrameID{Client: op.Trace.Client, Seq: op.Trace.Seq}); !op.Trace.Query && op.Trace.Op < len(done) {
			s.Of(op).Learn(op, done[op.Trace.Op:op.Trace.Op+1])
		}
	}
	for _, op := range ops {
		if !op.Trace.Query {
			continue
		}
		r.places = append(r.places, place{op, s.ID, s.Index, afterEntry})
		r.checkTime(op, s.Now)
		r.Queries++
		m := s.Of(op)
		result, ok := m.Query(s.Now, op)
		if !ok {
			r.Unclear++
			r.UnclearOps = append(r.UnclearOps, op)
			continue
		}
		r.checked(op)
		if err := m.Compare(op, []models.Execution{{Shard: s.ID, Index: s.Index, Time: s.Now, Result: result}}); err != nil {
			r.add(KindResult, op, "query at entry %d: %v", s.Index, err)
		}
	}
}

func (r *replay) checked(op *history.Op) {
	r.Checked++
	r.ByType[op.Input.DataType()]++
}

func (r *replay) checkTime(op *history.Op, now fsm.Time) {
	if got := op.Trace.Time.UnixMilli(); got != int64(now) {
		r.add(KindTime, op, "the answer tells of shard time %d, the log of %d", got, now)
	}
}

// judge compares what the caller knows of an operation with what the logs have.
func (r *replay) judge(op *history.Op) {
	switch op.Outcome {
	case history.Definite:
		r.Definite++
	case history.Failed:
		r.Failed++
	case history.Unknown:
		r.Unknown++
	}
	m := r.alone.Of(op)
	if m == nil {
		if !slices.ContainsFunc(r.types, func(t models.Type) bool { return t.Name == op.Input.DataType() }) {
			r.add(KindLog, op, "there is no data type %q", op.Input.DataType())
		}
		return
	}
	err := m.Alone(op)
	if err != nil {
		r.add(KindResult, op, "%v", err)
	}
	if op.Trace.Shard == 0 {
		r.Local++
		if op.Outcome == history.Definite && err == nil && !m.Unasked(op) {
			r.add(KindLost, op, "a shard must have answered it, and it does not tell which")
		}
		return
	}
	s := r.shards[op.Trace.Shard]
	if s == nil {
		r.add(KindLog, op, "there is no log of shard %d", op.Trace.Shard)
		return
	}
	if op.Trace.Query {
		if op.Outcome == history.Definite && (op.Trace.Index == 0 || op.Trace.Index > s.Index) {
			r.add(KindLost, op, "a query was answered at entry %d, the log ends at %d", op.Trace.Index, s.Index)
		}
		return
	}
	frame := s.Done(models.FrameID{Client: op.Trace.Client, Seq: op.Trace.Seq})
	if frame == nil {
		if op.Outcome == history.Definite {
			r.add(KindLost, op, "it was acknowledged, and the log does not have it")
		}
		return
	}
	if op.Trace.Op >= len(frame) {
		r.add(KindLog, op, "its frame has %d operations", len(frame))
		return
	}
	own := frame[op.Trace.Op]
	done := r.carriedOut(op, own)
	for _, x := range done {
		r.places = append(r.places, place{op, x.Shard, x.Index, x.Place})
	}
	switch op.Outcome {
	case history.Unknown:
		r.Executed++
	case history.Failed:
		if len(done) == 1 && done[0].Result.Code == fsm.OK {
			r.add(KindEffect, op, "it failed, and was executed at entry %d: %s", done[0].Index, op.Error)
		}
	case history.Definite:
		if op.Trace.Index != own.Index {
			r.add(KindOrder, op, "the answer tells of entry %d, the log has it at %d", op.Trace.Index, own.Index)
		}
		r.checkTime(op, own.Time)
		r.checked(op)
		if len(done) == 1 && done[0].Result.Code != fsm.OK {
			r.add(KindResult, op, "it succeeded, the model refuses it: %s", done[0].Result.Code)
			return
		}
		if err := s.Of(op).Compare(op, done); err != nil {
			r.add(KindResult, op, "at entry %d: %v", own.Index, err)
		}
	}
}

// judgeLocal judges what was decided from what shards lent, and what they told unasked.
func (r *replay) judgeLocal(ops []history.Op) {
	if !r.told {
		return
	}
	local := make(map[string][]*history.Op) // by data type
	clients := make(map[string][16]byte)    // each process has one
	for i := range ops {
		if ops[i].Trace.Shard == 0 {
			name := ops[i].Input.DataType()
			local[name] = append(local[name], &ops[i])
		} else {
			clients[ops[i].Process] = ops[i].Trace.Client
		}
	}
	holder := func(op *history.Op) (client [16]byte, ok bool) {
		client, ok = clients[op.Process]
		return client, ok
	}
	for _, id := range sortedKeys(r.shards) {
		for _, t := range r.types {
			m := r.shards[id].Models[t.ID]
			if m == nil {
				continue
			}
			judged, broken := m.Local(id, local[t.Name], holder)
			r.Lent += judged
			r.ByType[t.Name] += judged
			for _, b := range broken {
				r.add(b.Kind, nil, "shard %d: %s", id, b.Detail)
			}
		}
	}
}

// carriedOut lists the commands of an operation: its own in the frame, or, if that only holds its place, those that were
// executed for it elsewhere.
func (r *replay) carriedOut(op *history.Op, own models.Execution) []models.Execution {
	if own.Result.Code != fsm.Skipped {
		return []models.Execution{own}
	}
	client := rpc.OperationClient(op.Trace.Client, op.Trace.Shard, op.Trace.Seq, op.Trace.Op)
	var done []models.Execution
	for _, id := range sortedKeys(r.shards) {
		for step := uint64(1); step <= 2; step++ {
			for _, x := range r.shards[id].Done(models.FrameID{Client: client, Seq: step}) {
				if x.Result.Code != fsm.Skipped { // or it only notes that a reservation is to be kept
					done = append(done, x)
				}
			}
		}
	}
	return done
}

// checkRealTime: an operation that was called after another had returned comes after it in the log.
func (r *replay) checkRealTime() {
	byShard := make(map[uint32][]place)
	for _, p := range r.places {
		byShard[p.shard] = append(byShard[p.shard], p)
	}
	for _, id := range sortedKeys(byShard) {
		called := byShard[id]
		returned := slices.Clone(called)
		slices.SortFunc(called, func(a, b place) int { return int(a.op.Call - b.op.Call) })
		slices.SortFunc(returned, func(a, b place) int { return int(a.op.Return - b.op.Return) })
		var last *place // of those that had returned, the last one in the log
		next := 0
		for i := range called {
			p := &called[i]
			for ; next < len(returned) && returned[next].op.Return < p.op.Call; next++ {
				if q := &returned[next]; q.op.Outcome == history.Definite && (last == nil || last.before(q)) {
					last = q
				}
			}
			if last != nil && p.before(last) {
				r.add(KindOrder, p.op, "it was called after the operation of %s at entry %d had returned at %s, and comes before it, at entry %d",
					last.op.Process, last.index, last.op.Return, p.index)
			}
		}
	}
}

func (p *place) before(q *place) bool {
	return p.index < q.index || p.index == q.index && p.at < q.at
}
