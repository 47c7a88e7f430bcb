package rpc

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/fsm/counter"
)

// A check whose limits live in several groups takes from all or from none in two steps: every group reserves, and if all
// could, every group keeps what it reserved; otherwise it is given back, exactly. A reservation that hears nothing gives
// itself back. The answer comes only after all have confirmed.
//
// A request with a number or a key may be carried out again, also by two nodes at a time. Its first step finds the
// reservations that there were. The second one is a decision that groups record: to keep and to give back have the same
// number there, so whichever comes first holds, and the other one is told so. The first group that can deny is asked
// before the others, which follow its decision. A request that finds its reservations given back, because it failed
// before, begins a new round with numbers of its own.
//
// What the two steps come to:
//
//	first step            second step                       answer
//	all have reserved     keep: all have recorded it        allowed
//	                      keep: one was given back before   the next round's
//	                      keep: one cannot be asked         OUTCOME_UNKNOWN
//	one has denied        give back                         denied
//	the only one failed   none                              its failure; a repetition finds the reservation
//	one of several failed give back, and nobody has kept *  its failure, but UNAVAILABLE for OUTCOME_UNKNOWN if it is a
//	                                                        check of tokens: what may still come is given back soon
//	                      give back, and somebody may have  OUTCOME_UNKNOWN
//
// * It is known that nobody has kept if a group that can deny has recorded that it gave back, if the request has no name
// and so was never tried before, or if the failure says that the group did not execute the first step of this attempt.
//
// The policies may have changed since a request was carried out before. What a group recorded then stands: if it is the
// whole decision, made by a group that was asked alone, it is the answer.

const (
	// reserveTTL is how long reservations wait for the second step: beyond the longest deadline of a frame, so that none
	// is given back while its confirmation may still be on the way.
	reserveTTL = fsm.MaxDeadline*time.Millisecond + 15*time.Second
	// maxRounds is how many rounds of two steps fit the window of a client.
	maxRounds = fsm.MaxWindow / 2
)

// crossHold marks the ids that coordinators make; those that shards make are smaller.
const crossHold = 1 << 63

// caller is on whose behalf the calls of one request are executed.
type caller struct {
	// id names the request's holds. It is the same when the request is repeated.
	id uint64
	// named tells that the request may be repeated, and that propose then has no further effect.
	named bool
	// propose executes one call in a group.
	propose func(ctx context.Context, group uint32, s step, call fsm.Call) (fsm.FrameOutcome, error)
}

// step is the place of a call among those of one request in one group. Of calls with one number and different choices
// only the first is executed; the others are conflicts.
type step struct{ number, choice uint64 }

const (
	choiceKeep   = 1
	choiceRefund = 2
)

// decision is a check's outcome.
type decision struct {
	allowed bool
	results []counter.LimitResult
	holds   []held
	now     fsm.Time
	// reserved tells of a first step that waits for the second.
	reserved bool
}

// errGivenBack ends a round whose reservations were given back before.
var errGivenBack = errors.New("the reservations were given back")

// coordinate decides a check of several parts. ttl is 0 for a check, which confirms, or how long the caller's reservation
// lasts.
func coordinate(ctx context.Context, p *plan, ttl time.Duration, c caller) (decision, error) {
	c.id |= crossHold
	for n := range uint64(maxRounds) {
		r := round{plan: p, caller: c, ttl: ttl, number: 2*n + 1, takes: make([]counter.TakeResult, len(p.parts))}
		d, err := r.run(ctx)
		if !errors.Is(err, errGivenBack) {
			return d, err
		}
	}
	return decision{}, fsm.Errorf(fsm.Conflict, "this request failed too often: send it as a new one")
}

// round is one try to take from all parts.
type round struct {
	*plan
	caller
	ttl    time.Duration
	number uint64 // of the first step
	takes  []counter.TakeResult
	again  atomic.Bool // a first step had been executed before
}

func (r *round) run(ctx context.Context) (decision, error) {
	times := make([]fsm.Time, len(r.parts))
	err := r.each(func(i int) (err error) {
		times[i], err = r.take(ctx, i)
		return err
	})
	for i := range r.takes {
		if t := &r.takes[i]; t.Allowed && t.Hold != r.id { // no reservation: the group took, when it was asked alone
			r.refund(ctx, false)
			return taken(r.plan, r.parts[i].group, t, times[i]), nil
		}
	}
	if err != nil {
		return decision{}, r.failed(ctx, err)
	}
	d := decision{allowed: true, results: make([]counter.LimitResult, len(r.matches))}
	for i := range r.takes {
		d.allowed = d.allowed && r.takes[i].Allowed
		d.results = r.place(d.results, i, r.takes[i].Limits)
		d.now = max(d.now, times[i])
	}
	if !d.allowed {
		r.refund(ctx, false) // a group has recorded its denial: nobody can keep anything
		for i := range r.takes {
			if r.takes[i].Allowed {
				r.giveBack(d.results, i)
			}
		}
		return d, nil
	}
	if err := r.keep(ctx); err != nil {
		return decision{}, err
	}
	for i := range r.parts {
		if keys := r.held(i, r.ttl == 0); len(keys) > 0 {
			d.holds = append(d.holds, held{r.parts[i].group, r.id, keys})
		}
	}
	return d, nil
}

// take is the first step of a part.
func (r *round) take(ctx context.Context, i int) (fsm.Time, error) {
	wait := r.ttl
	if wait == 0 {
		wait = reserveTTL
	}
	part := &r.parts[i]
	q := counter.ReserveRequest{
		ID: r.id, TTL: wait.Milliseconds(), TakeRequest: counter.TakeRequest{Weight: part.weight, Limits: part.limits},
	}
	out, err := r.propose(ctx, part.group, step{number: r.number}, fsm.Call{Type: counter.TypeID, Op: counter.OpReserve, Body: q.Append(nil)})
	if err != nil {
		return 0, err
	}
	body, err := only(out)
	if err != nil {
		return 0, err
	}
	if out.Replayed {
		r.again.Store(true)
	}
	r.takes[i], err = counter.DecodeTakeResult(body)
	return out.Time, err
}

// held are the keys under which a part holds something: not those of shadow limits that had not enough. slots asks for
// those of concurrency limits alone, which a check goes on holding.
func (r *round) held(i int, slots bool) []counter.Key {
	limits, results := r.parts[i].limits, r.takes[i].Limits
	var keys []counter.Key
	for j := range limits {
		if slots && limits[j].Algorithm != counter.Concurrency ||
			len(results) == len(limits) && results[j].Denied { // or they are of other policies, those of the first time
			continue
		}
		keys = append(keys, limits[j].Key)
	}
	return keys
}

// ordered runs f for the part that decides first, if other nodes may be at work on this request, and then for the others.
func (r *round) ordered(contested bool, f func(i int) error) error {
	first := -1
	if contested {
		first = slices.IndexFunc(r.parts, func(p part) bool { return p.denies() })
	}
	if first >= 0 {
		if err := f(first); err != nil {
			return err
		}
	}
	return r.each(func(i int) error {
		if i == first {
			return nil
		}
		return f(i)
	})
}

// keep is the second step if all could reserve: a check confirms, a reservation stays as it is, but nobody may give it
// back any more because the first step failed elsewhere.
func (r *round) keep(ctx context.Context) error {
	if r.ttl != 0 && (!r.named || len(r.parts) == 1 && !r.again.Load()) { // when it came first there may have been more parts
		return nil
	}
	err := r.ordered(r.named, func(i int) error {
		keys := r.held(i, false)
		if len(keys) == 0 {
			return nil
		}
		h := held{r.parts[i].group, r.id, keys}
		call := h.settle(counter.Confirm, 0)
		if r.ttl != 0 {
			call = fsm.Noop()
		}
		_, err := r.second(ctx, h.group, choiceKeep, call)
		switch codeOf(err) {
		case fsm.Skipped:
			return nil
		case fsm.NotFound, fsm.Conflict:
			return errGivenBack
		}
		return err
	})
	switch {
	case errors.Is(err, errGivenBack):
		r.refund(ctx, false)
		return errGivenBack
	case err != nil:
		return fmt.Errorf("%w: confirm: %w", fsm.ErrOutcomeUnknown, err)
	}
	return nil
}

func (r *round) second(ctx context.Context, group uint32, choice uint64, call fsm.Call) ([]byte, error) {
	out, err := r.propose(ctx, group, step{r.number + 1, choice}, call)
	if err != nil {
		return nil, err
	}
	return only(out)
}

// errNothingTaken tells of a first step that failed and left nothing.
var errNothingTaken = errors.New("not all shards could reserve in time; nothing was taken")

// failed gives back what was reserved after the first step failed, and says what that means: the request had no effect,
// unless it may have been carried out before.
func (r *round) failed(ctx context.Context, err error) error {
	err = fmt.Errorf("reserve: %w", err)
	if len(r.parts) == 1 { // who repeats it finds the reservation, if there is one
		return err
	}
	// A group has never executed a step that it refuses: because it is too late, for the window is asked before the
	// deadline, or because the key was used for another request. Another attempt under the same name may have a later
	// deadline: who gives back and who keeps must meet in the same order.
	code := codeOf(err)
	never := code == fsm.Expired || code == fsm.Conflict
	if decided := r.refund(ctx, r.named); r.named && !never && !decided {
		return fmt.Errorf("%w: %w", fsm.ErrOutcomeUnknown, err)
	}
	if errors.Is(err, fsm.ErrOutcomeUnknown) && !r.lasts() {
		return fmt.Errorf("%w: %s", errNothingTaken, err.Error()) // not wrapped: this outcome is known
	}
	return err
}

// lasts tells whether a first step that is executed after all, behind the refund that found nothing, takes something for
// longer than a request lasts.
func (r *round) lasts() bool {
	return r.ttl != 0 || slices.ContainsFunc(r.parts, func(p part) bool { return len(p.slots(r.id)) > 0 })
}

// refund is the second step if not all could reserve. decided tells that a group recorded it without which nothing can be
// kept. What cannot be given back now gives itself back.
func (r *round) refund(ctx context.Context, contested bool) (decided bool) {
	recorded := make([]bool, len(r.parts))
	_ = r.ordered(contested, func(i int) error {
		t := &r.takes[i]
		if len(t.Limits) > 0 && (!t.Allowed || len(r.held(i, false)) == 0) {
			recorded[i] = !t.Allowed
			return nil
		}
		h := held{r.parts[i].group, r.id, keysOf(r.parts[i].limits)}
		_, err := r.second(ctx, h.group, choiceRefund, h.settle(counter.Charge, 0))
		if codeOf(err) == fsm.NotFound {
			err = nil // there was nothing to give back
		}
		recorded[i] = err == nil && r.parts[i].denies()
		return err
	})
	return slices.Contains(recorded, true)
}

// codeOf is the code with which a state machine refused, OK for another error or none.
func codeOf(err error) fsm.Code {
	var refusal *fsm.Error
	if errors.As(err, &refusal) {
		return refusal.Code
	}
	return fsm.OK
}

// giveBack makes the results of a part what they are after its reservation was given back.
func (p *plan) giveBack(results []counter.LimitResult, i int) {
	for _, at := range p.parts[i].at {
		if r := &results[at]; !r.Denied {
			r.Remaining += p.parts[i].weight
			r.Used -= min(p.parts[i].weight, r.Used)
		}
	}
}

// denies tells whether the part can deny: a shadow limit cannot.
func (p *part) denies() bool {
	return slices.ContainsFunc(p.limits, func(l counter.Limit) bool { return !l.Shadow })
}

// each runs f for all parts at the same time.
func (p *plan) each(f func(i int) error) error {
	errs := make([]error, len(p.parts))
	var running sync.WaitGroup
	for i := range p.parts {
		running.Go(func() { errs[i] = f(i) })
	}
	running.Wait()
	return errors.Join(errs...)
}

// slots lists the slots of concurrency limits that one part holds under an id.
func (p *part) slots(id uint64) []held {
	var keys []counter.Key
	for i := range p.limits {
		if l := &p.limits[i]; l.Algorithm == counter.Concurrency {
			keys = append(keys, l.Key)
		}
	}
	if len(keys) == 0 {
		return nil
	}
	return []held{{p.group, id, keys}}
}

func keysOf(limits []counter.Limit) []counter.Key {
	keys := make([]counter.Key, len(limits))
	for i := range limits {
		keys[i] = limits[i].Key
	}
	return keys
}

// only returns the body of a frame with one call.
func only(out fsm.FrameOutcome) ([]byte, error) {
	if err := out.Err(); err != nil {
		return nil, err
	}
	if len(out.Results) != 1 {
		return nil, fmt.Errorf("%d results for one call", len(out.Results))
	}
	if err := out.Results[0].Err(); err != nil {
		return nil, err
	}
	return out.Results[0].Body, nil
}
