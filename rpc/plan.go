package rpc

import (
	"strings"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/fsm/catalog"
	"github.com/holdfastdb/holdfast/fsm/counter"
	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
	"github.com/holdfastdb/holdfast/rpc/policy"
)

// plan is a check with its limits found and their shards known.
type plan struct {
	weight  uint32
	matches []policy.Match
	weights []uint32 // of the matches, if they differ
	// parts are the groups that take part, the subject's first. One part is decided in one step.
	parts []part

	// What the usual check needs, which is under one limit.
	room struct {
		matches [1]policy.Match
		parts   [1]part
		limits  [1]counter.Limit
		at      [1]int
		results [1]counter.LimitResult
	}
}

// part is one group's share of a check.
type part struct {
	group  uint32
	weight uint32 // of the request, but for Envoy's, where each limit has its own
	limits []counter.Limit
	at     []int // where its limits are among the plan's matches
}

// maxField bounds each field of a request.
const maxField = 512

func checkText(name, value string) error {
	return checkLongText(name, value, maxField)
}

func checkLongText(name, value string, most int) error {
	switch {
	case len(value) > most:
		return invalidf("%s has %d bytes, at most %d are allowed", name, len(value), most)
	case !utf8.ValidString(value):
		return invalidf("%s is not UTF-8", name)
	case strings.IndexByte(value, 0) >= 0:
		return invalidf("%s contains a NUL character", name)
	}
	return nil
}

// planCheck plans a request that takes tokens. Taking none is a mistake more often than it is meant: it would always be
// allowed.
func (l *limits) planCheck(q *pb.CheckRequest) (*plan, error) {
	p := &plan{}
	return p, l.planCheckIn(p, q)
}

// planCheckIn is planCheck in an empty plan.
func (l *limits) planCheckIn(p *plan, q *pb.CheckRequest) error {
	if q != nil && q.Weight != nil && *q.Weight == 0 {
		return invalidf("weight must be 1 to %d; to take nothing, peek", counter.MaxRate)
	}
	return l.planIn(p, q)
}

// plan checks a request and finds its limits. A request that no policy limits has no parts.
func (l *limits) plan(q *pb.CheckRequest) (*plan, error) {
	p := &plan{}
	return p, l.planIn(p, q)
}

// planIn is plan in an empty plan.
func (l *limits) planIn(p *plan, q *pb.CheckRequest) error {
	if q == nil {
		return invalidf("the check is missing")
	}
	p.weight = 1
	if q.Weight != nil {
		p.weight = q.GetWeight()
	}
	for _, f := range [...]struct{ name, value string }{
		{"client_id", q.ClientId}, {"api_key", q.ApiKey}, {"resource", q.Resource}, {"ip", q.Ip}, {"region", q.Region},
	} {
		if err := checkText(f.name, f.value); err != nil {
			return err
		}
	}
	request := policy.Request{
		Client: q.ClientId, APIKey: q.ApiKey, IP: q.Ip, Region: q.Region, Resource: q.Resource, Policies: q.Policies,
	}
	if q.ClientId == "" && q.ApiKey == "" && q.Resource == "" && q.Ip == "" && q.Region == "" {
		return invalidf("give at least one of client_id, api_key, ip, region and resource")
	}
	if p.weight > counter.MaxRate {
		return invalidf("weight must be at most %d", counter.MaxRate)
	}
	if request.Client == catalog.Everyone {
		return invalidf("client_id %q stands for every client; give a client's own", catalog.Everyone)
	}
	var err error
	if p.matches, err = l.resolver.Resolve(p.room.matches[:0], &request, l.now); err != nil {
		return err
	}
	if len(p.matches) == 0 {
		return nil
	}
	if len(p.matches) > counter.MaxLimits {
		return invalidf("%d limits apply, at most %d can in one check", len(p.matches), counter.MaxLimits)
	}
	return l.route(p, &request)
}

// route assigns the limits to groups.
func (l *limits) route(p *plan, q *policy.Request) error {
	home, ok := l.node.ShardOf(q.SubjectKey())
	if !ok {
		return fsm.ErrNotLeader
	}
	p.parts = append(p.room.parts[:0], part{group: home, weight: p.weight, limits: p.room.limits[:0], at: p.room.at[:0]})
	if err := l.assign(p); err != nil {
		return err
	}
	if len(p.parts[0].limits) == 0 { // nothing counts by the subject
		p.parts = p.parts[1:]
	}
	return nil
}

// assign adds each limit to the part of its group. All that becomes a command goes through here: one that a state machine
// cannot decode would stop it on every replica.
func (l *limits) assign(p *plan) error {
	for i := range p.matches {
		m := &p.matches[i]
		if err := m.Limit.Validate(); err != nil {
			return invalidf("a limit cannot be counted: %v", err)
		}
		weight := p.weight
		if p.weights != nil {
			weight = p.weights[i]
		}
		group, ok := l.node.ShardOf(m.RoutingKey)
		if !ok {
			return fsm.ErrNotLeader
		}
		at := 0
		for at < len(p.parts) && (p.parts[at].group != group || p.parts[at].weight != weight) {
			at++
		}
		if at == len(p.parts) {
			p.parts = append(p.parts, part{group: group, weight: weight})
		}
		p.parts[at].limits = append(p.parts[at].limits, m.Limit)
		p.parts[at].at = append(p.parts[at].at, i)
	}
	return nil
}

// place puts the results of one part among those of the plan. A repeated request may have been decided under other
// policies; then there are fewer places or more.
func (p *plan) place(results []counter.LimitResult, i int, of []counter.LimitResult) []counter.LimitResult {
	if len(of) != len(p.parts[i].at) {
		return append(results, of...)
	}
	for j, at := range p.parts[i].at {
		if at < len(results) {
			results[at] = of[j]
		}
	}
	return results
}

// take is the call of a check that one group decides.
func (p *plan) take() fsm.Call {
	call, _ := p.appendTake(nil)
	return call
}

// appendTake is take with a buffer to build the call in.
func (p *plan) appendTake(buf []byte) (fsm.Call, []byte) {
	q := counter.TakeRequest{Weight: p.parts[0].weight, Limits: p.parts[0].limits}
	begin := len(buf)
	buf = q.Append(buf)
	return fsm.Call{Type: counter.TypeID, Op: counter.OpTake, Body: buf[begin:len(buf):len(buf)]}, buf
}

// unlimited is what remains when no policy applies.
const unlimited = 1<<32 - 1

// answerRoom is memory for an answer with one row, the usual one.
type answerRoom struct {
	response pb.CheckResponse
	states   [1]pb.LimitState
	resets   [1]timestamppb.Timestamp
	rows     [1]*pb.LimitState
}

// answer builds the response. results are those of all parts; now is the shard time of the decision.
func (l *limits) answer(p *plan, allowed bool, results []counter.LimitResult, now fsm.Time) *pb.CheckResponse {
	return l.answerIn(new(answerRoom), p, allowed, results, now)
}

// answerIn is answer in memory that the caller may use again when it is done with the response.
func (l *limits) answerIn(room *answerRoom, p *plan, allowed bool, results []counter.LimitResult, now fsm.Time) *pb.CheckResponse {
	room.response.Reset()
	room.states[0].Reset()
	r := &room.response
	r.Allowed, r.RemainingQuota = allowed, unlimited
	if len(results) == 0 {
		return r
	}
	states, resets := room.states[:], room.resets[:]
	r.Limits = room.rows[:]
	if n := len(results); n > 1 {
		states, resets, r.Limits = make([]pb.LimitState, n), make([]timestamppb.Timestamp, n), make([]*pb.LimitState, n)
	}
	var decided *pb.LimitState
	for i := range results {
		s := &states[i]
		l.fill(s, &resets[i], p, &results[i], now)
		r.Limits[i] = s
		if s.Shadow {
			continue
		}
		r.RemainingQuota = min(r.RemainingQuota, s.RemainingQuota)
		if decided == nil || s.Denied && (!decided.Denied || s.RetryAfter > decided.RetryAfter) ||
			!s.Denied && !decided.Denied && s.RemainingQuota < decided.RemainingQuota {
			decided = s
		}
	}
	if decided == nil { // only shadow limits
		return r
	}
	r.ResetTime, r.PolicyApplied = decided.ResetTime, decided.PolicyId
	if !allowed {
		r.RetryAfter = decided.RetryAfter
	}
	return r
}

// fill describes one limit. The policy may have changed or gone since a repeated request was decided.
func (l *limits) fill(s *pb.LimitState, reset *timestamppb.Timestamp, p *plan, r *counter.LimitResult, now fsm.Time) {
	at := min(int64(now+fsm.Time(r.ResetIn)), lastMoment)
	*reset = timestamppb.Timestamp{Seconds: at / 1000, Nanos: int32(at%1000) * 1e6}
	s.PolicyId = catalog.PolicyID(r.Policy)
	s.RemainingQuota, s.CurrentUsage, s.Denied, s.Shadow, s.ResetTime = r.Remaining, r.Used, r.Denied, r.Shadow, reset
	if r.Denied {
		s.RetryAfter = seconds(r.RetryIn)
	}
	var found *catalog.Policy
	for i := range p.matches {
		if m := &p.matches[i]; m.Limit.Policy == r.Policy {
			found = m.Policy
			s.Limit, s.Window = m.Limit.Rate, seconds(m.Limit.Window)
		}
	}
	if found == nil {
		if found = l.resolver.Policy(r.Policy); found == nil {
			return
		}
		s.Limit, s.Window = found.Rate, seconds(found.WindowMS)
	}
	s.PolicyName, s.Scope = found.Name, found.Scope
}

// lastMoment is the last millisecond of the year 9999, beyond which there are no timestamps.
const lastMoment = 253_402_300_799_999

// never stands for a request that no waiting helps: it asks for more than the limit ever gives.
const never = -1

func seconds(ms fsm.Millis) float64 {
	if ms < 0 {
		return never
	}
	return float64(ms) / 1000
}

func timestamp(t fsm.Time) *timestamppb.Timestamp {
	if t == 0 {
		return nil
	}
	return timestamppb.New(time.UnixMilli(int64(t)))
}
