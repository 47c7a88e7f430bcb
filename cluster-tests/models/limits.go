package models

import (
	"fmt"
	"slices"
	"time"

	"github.com/holdfastdb/holdfast/client"
	"github.com/holdfastdb/holdfast/cluster-tests/history"
	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/fsm/catalog"
	"github.com/holdfastdb/holdfast/fsm/counter"
)

// limits is the model of package counter: each meter holds what happened to it lately, and every answer is worked out
// from that. Times in answers are found by looking for the moment at which they come true.
type limits struct {
	meters  map[counter.Key]*meter
	learned map[string][]counter.Limit // which limits a request meant
	admits  map[counter.Key]*admissions
	loans   map[uint64]*loaned
	broken  []string
}

func newLimits() *limits {
	return &limits{
		meters: make(map[counter.Key]*meter), learned: make(map[string][]counter.Limit), admits: make(map[counter.Key]*admissions), loans: make(map[uint64]*loaned),
	}
}

// deal is the limits of one command.
type deal struct {
	*limits
	m     *Moment
	asked []counter.Limit
	on    []*meter
	short []bool
}

func (l *limits) deal(m *Moment, asked []counter.Limit) *deal {
	d := &deal{limits: l, m: m, asked: asked, short: make([]bool, len(asked))}
	for i := range asked {
		one := l.meters[asked[i].Key]
		if one == nil {
			one = &meter{}
		}
		d.on = append(d.on, one)
	}
	return d
}

// enough brings the meters to now and tells whether all but those that only watch have n tokens.
func (d *deal) enough(n int64) bool {
	ok := true
	for i, one := range d.on {
		one.bring(d.asked[i].Params, d.m.Now)
		d.short[i] = one.free(d.m.Now) < n
		ok = ok && (!d.short[i] || d.asked[i].Shadow)
	}
	return ok
}

// keep notes the meters: those that were there, and new ones of which something was taken.
func (d *deal) keep(taken bool) {
	for i, one := range d.on {
		if one.stored || taken && !d.short[i] {
			one.gone = one.whole(d.m.Now)
			d.put(d.m, d.asked[i].Key, one)
		}
	}
}

// looked at again no sooner than this, and no later than times go.
const (
	minLife   = 60_000
	lastTime  = 1<<48 - 1
	mostHolds = 10_000
)

func (l *limits) put(m *Moment, key counter.Key, one *meter) {
	l.meters[key] = one
	if !one.stored {
		one.stored = true
		m.Expire(string(key[:]), min(max(one.gone, m.Now+minLife), lastTime))
	}
}

// Sweep implements Model.
func (l *limits) Sweep(m *Moment, key string) {
	k := counter.Key([]byte(key))
	switch one := l.meters[k]; {
	case one == nil:
	case one.gone > m.Now:
		m.Expire(key, min(max(one.gone, m.Now+minLife), lastTime))
	default:
		delete(l.meters, k)
	}
}

func (d *deal) results(n int64) []counter.LimitResult {
	list := make([]counter.LimitResult, len(d.asked))
	for i, one := range d.on {
		r := counter.LimitResult{
			Policy: d.asked[i].Policy, Shadow: d.asked[i].Shadow, Denied: d.short[i],
			Remaining: tokens(one.free(d.m.Now)), Used: tokens(one.capacity() - one.free(d.m.Now)),
			ResetIn: int64(one.untouched(d.m.Now) - d.m.Now),
		}
		if r.Denied {
			r.RetryIn = -1
			if n <= one.capacity() {
				at := earliest(d.m.Now, func(t fsm.Time) bool { return one.free(t) >= n })
				r.RetryIn = max(int64(at-d.m.Now), 1)
			}
		}
		list[i] = r
	}
	return list
}

func tokens(n int64) uint32 { return uint32(min(max(n, 0), 1<<32-1)) }

// earliest is the first moment at which something becomes true that then stays so for a while.
func earliest(now fsm.Time, ok func(fsm.Time) bool) fsm.Time {
	if ok(now) {
		return now
	}
	step := fsm.Time(1)
	for step < 1<<60 && !ok(now+step) {
		step *= 2
	}
	low, high := now+step/2, now+step // false at low
	for high-low > 1 {
		if middle := low + (high-low)/2; ok(middle) {
			high = middle
		} else {
			low = middle
		}
	}
	return high
}

// Apply implements Model.
func (l *limits) Apply(m *Moment, call fsm.Call) (fsm.Result, error) {
	var body interface{ Append([]byte) []byte }
	var code fsm.Code
	var err error
	switch call.Op {
	case counter.OpTake:
		var q counter.TakeRequest
		if err = q.Decode(call.Body); err == nil {
			body = l.take(m, &q)
		}
	case counter.OpReserve:
		var q counter.ReserveRequest
		if err = q.Decode(call.Body); err == nil {
			body, code = l.reserve(m, &q)
		}
	case counter.OpSettle:
		var q counter.SettleRequest
		if err = q.Decode(call.Body); err == nil {
			body, code = l.settle(m, &q)
		}
	case counter.OpLease:
		var q counter.LeaseRequest
		if err = q.Decode(call.Body); err == nil {
			body, code = l.lease(m, &q)
		}
	case counter.OpReset:
		var q counter.ResetRequest
		if err = q.Decode(call.Body); err == nil {
			body = l.reset(m, &q)
		}
	default:
		err = fmt.Errorf("limits have no command %d", call.Op)
	}
	if err != nil {
		return fsm.Result{}, errUnread("command", err)
	}
	if code != fsm.OK {
		return fsm.Result{Code: code}, nil
	}
	return fsm.Result{Body: body.Append(nil)}, nil
}

func (m *Moment) id() uint64 { return m.Index*fsm.MaxOps + uint64(m.Op) }

func (l *limits) take(m *Moment, q *counter.TakeRequest) *counter.TakeResult {
	d, n := l.deal(m, q.Limits), int64(q.Weight)
	t := &counter.TakeResult{Allowed: d.enough(n)}
	for i, one := range d.on {
		if !t.Allowed || d.short[i] {
			continue
		}
		one.use(m.Now, n)
		if one.rules.Algorithm == counter.Concurrency && n > 0 {
			t.Hold = m.id()
			one.hold(hold{slot, t.Hold, n, m.Now, m.Now + fsm.Time(one.rules.Window)})
		}
		l.admit(&d.asked[i]).add(m.id(), n, m.Now, m.Now)
	}
	t.Limits = d.results(n)
	d.keep(t.Allowed)
	return t
}

func (d *deal) crowded() bool {
	return slices.ContainsFunc(d.on, func(one *meter) bool {
		living := 0
		for _, h := range one.holds {
			if h.until > d.m.Now {
				living++
			}
		}
		return living >= mostHolds
	})
}

func (l *limits) reserve(m *Moment, q *counter.ReserveRequest) (*counter.TakeResult, fsm.Code) {
	d, n, id := l.deal(m, q.Limits), int64(q.Weight), q.ID
	if id == 0 {
		id = m.id()
	}
	for i, one := range d.on {
		if at := one.find(id, false); at >= 0 && one.holds[at].until > m.Now && one.rules.Algorithm == q.Limits[i].Algorithm {
			d.enough(0)
			d.keep(false)
			return &counter.TakeResult{Allowed: true, Hold: id, Limits: d.results(0)}, fsm.OK
		}
	}
	if d.crowded() {
		return nil, fsm.Exhausted
	}
	t := &counter.TakeResult{Allowed: d.enough(n)}
	for i, one := range d.on {
		if !t.Allowed || d.short[i] {
			continue
		}
		one.use(m.Now, n)
		h := hold{reservation, id, n, m.Now, m.Now + fsm.Time(q.TTL)}
		if one.rules.Algorithm == counter.Concurrency {
			h.kind, h.until = slot, m.Now+fsm.Time(one.rules.Window)
		}
		one.hold(h)
		l.admit(&d.asked[i]).reserve(id, n, m.Now)
	}
	if t.Allowed {
		t.Hold = id
	}
	t.Limits = d.results(n)
	d.keep(t.Allowed)
	return t, fsm.OK
}

func (l *limits) settle(m *Moment, q *counter.SettleRequest) (*counter.SettleResult, fsm.Code) {
	held := func(key counter.Key) bool {
		one := l.meters[key]
		if one == nil {
			return false
		}
		at := one.find(q.ID, false)
		return at >= 0 && one.holds[at].until > m.Now
	}
	if !slices.ContainsFunc(q.Keys, held) {
		return nil, fsm.NotFound
	}
	s := &counter.SettleResult{}
	for _, key := range q.Keys {
		one := l.meters[key]
		if one == nil || one.rules.Algorithm == 0 {
			continue
		}
		one.endReservations(m.Now)
		at := one.find(q.ID, false)
		if at < 0 {
			continue
		}
		h := one.holds[at]
		if q.Mode == counter.Confirm {
			if h.kind == reservation {
				one.drop(at)
				l.admits[key].settle(q.ID, h.n, m.Now)
			}
			continue
		}
		one.drop(at)
		actual := int64(q.Actual)
		if h.kind == slot {
			actual = 0
		}
		switch more := actual - h.n; {
		case more < 0:
			one.back(h.at, -more)
			s.Refunded = max(s.Refunded, uint32(-more))
		case more > 0:
			one.use(h.at, more)
			one.gone = one.later(one.gone, more)
			s.Charged = max(s.Charged, uint32(more))
		}
		l.admits[key].settle(q.ID, min(actual, h.n), m.Now)
	}
	return s, fsm.OK
}

func (l *limits) lease(m *Moment, q *counter.LeaseRequest) (*counter.LeaseResult, fsm.Code) {
	d := l.deal(m, q.Limits)
	if d.crowded() {
		return nil, fsm.Exhausted
	}
	d.enough(0)
	for i, one := range d.on {
		for _, r := range q.Returns {
			if at := one.find(r.ID, true); at >= 0 {
				h := one.holds[at]
				one.drop(at)
				one.back(h.at, min(int64(r.Unused), h.n))
				l.admit(&d.asked[i]).giveBack(r.ID, int64(r.Unused), m.Now)
				l.loans[r.ID].back(d.asked[i].Key, min(int64(r.Unused), h.n))
			}
		}
		one.fill(one.rules, m.Now, one.out())
	}
	g := &counter.LeaseResult{Leasable: true}
	end := m.Now + fsm.Time(q.TTL)
	for _, one := range d.on {
		if one.rules.Algorithm == counter.Concurrency {
			g.Leasable = false
			break
		}
		end, _ = one.lend(m.Now, end)
	}
	granted := int64(q.Want)
	if g.Leasable && end > m.Now {
		for i, one := range d.on {
			free := one.free(m.Now)
			if d.short[i] = free < 1; !d.asked[i].Shadow {
				granted = min(granted, (free+1)/2)
			}
		}
		g.Granted = tokens(granted)
	}
	if g.Granted > 0 {
		g.ID, g.TTL = m.id(), int64(end-m.Now)
		lent := newLoaned(m, end-m.Now)
		l.loans[g.ID] = lent
		for i, one := range d.on {
			if d.short[i] = one.free(m.Now) < granted; d.short[i] {
				continue
			}
			_, at := one.lend(m.Now, end)
			one.use(at, granted)
			one.hold(hold{loan, g.ID, granted, at, end})
			l.admit(&d.asked[i]).add(g.ID, granted, m.Now, end-1)
			lent.left[d.asked[i].Key] = granted
		}
	}
	g.State = counter.TakeResult{Allowed: g.Granted > 0, Limits: d.results(1)}
	d.keep(g.Granted > 0)
	return g, fsm.OK
}

func (l *limits) reset(m *Moment, q *counter.ResetRequest) *counter.ResetResult {
	r := &counter.ResetResult{}
	for _, key := range q.Keys {
		one := l.meters[key]
		if one == nil {
			continue
		}
		r.Reset++
		one.restart(0)
		if len(one.holds) == 0 {
			one.gone = m.Now
		}
		if a := l.admits[key]; a != nil {
			l.close(key, a)
		}
	}
	return r
}

// Learn implements Model: a command tells which limits apply to a request.
func (l *limits) Learn(op *history.Op, done []Execution) {
	if len(done) != 1 || done[0].Call.Op != counter.OpTake {
		return
	}
	var q counter.TakeRequest
	if q.Decode(done[0].Call.Body) == nil {
		l.learned[subject(op.Input.(LimitOp).Request)] = q.Limits
	}
}

func subject(r client.Request) string {
	return fmt.Sprintf("%q", append([]string{r.Client, r.APIKey, r.Resource, r.IP, r.Region}, r.Policies...))
}

// Query implements Model.
func (l *limits) Query(now fsm.Time, op *history.Op) (fsm.Result, bool) {
	in := op.Input.(LimitOp)
	asked := l.learned[subject(in.Request)]
	if len(asked) == 0 || !sameLimits(rowsOf(op.Output), asked) {
		return fsm.Result{}, false
	}
	n := int64(max(in.Request.Weight, 1))
	if in.Kind == KindStatus {
		n = 0
	}
	d := l.deal(&Moment{Now: now}, asked)
	for i, one := range d.on {
		d.on[i] = one.clone()
	}
	t := counter.TakeResult{Allowed: d.enough(n), Limits: d.results(n)}
	return fsm.Result{Body: t.Append(nil)}, true
}

// sameLimits tells whether the rules are still those that were learned.
func sameLimits(rows []client.LimitState, limits []counter.Limit) bool {
	return slices.EqualFunc(rows, limits, func(r client.LimitState, l counter.Limit) bool {
		return r.PolicyID == catalog.PolicyID(l.Policy) && r.Limit == l.Rate && r.Window == time.Duration(l.Window)*time.Millisecond
	})
}

// Rows implements Model.
func (l *limits) Rows() (n int) {
	for _, one := range l.meters {
		if one.stored {
			n++
		}
	}
	return n
}

// Broken implements Model.
func (l *limits) Broken() []string {
	all := slices.Clone(l.broken)
	for key, a := range l.admits {
		if err := a.check(); err != nil {
			all = append(all, fmt.Sprintf("counter %x: %v", key, err))
		}
	}
	slices.Sort(all)
	return all
}

// admit finds the record of a limit's admissions; other rules begin another one.
func (l *limits) admit(limit *counter.Limit) *admissions {
	a := l.admits[limit.Key]
	if a != nil && a.rules != limit.Params {
		l.close(limit.Key, a)
		a = nil
	}
	if a == nil {
		a = newAdmissions(limit.Params)
		l.admits[limit.Key] = a
	}
	return a
}

// close judges admissions that later ones have nothing to do with.
func (l *limits) close(key counter.Key, a *admissions) {
	if err := a.check(); err != nil {
		l.broken = append(l.broken, fmt.Sprintf("counter %x: %v", key, err))
	}
	delete(l.admits, key)
}
