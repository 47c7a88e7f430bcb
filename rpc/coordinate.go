package rpc

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/fsm/counter"
)

// A check whose limits live in several groups takes from all or from none in two steps: every group reserves, and if all
// could, every group confirms; otherwise what was reserved is given back, exactly. A reservation that hears nothing gives
// itself back. The answer comes only after all have confirmed.

// reserveTTL is how long reservations wait for the second step: well beyond the deadline of a frame, so that none is
// given back while its confirmation may still be on the way.
const reserveTTL = 45 * time.Second

// crossHold marks the ids that coordinators make; those that shards make are smaller.
const crossHold = 1 << 63

// proposer executes one call in a group. step tells the calls of one coordination in one group apart, from 1.
type proposer func(ctx context.Context, group uint32, step uint64, call fsm.Call) (fsm.FrameOutcome, error)

// decision is a check's outcome.
type decision struct {
	allowed bool
	results []counter.LimitResult
	holds   []held
	now     fsm.Time
}

// coordinate decides a check of several parts. id names its reservations; the same id again has no further effect. ttl
// is 0 for a check, which confirms, or how long the caller's reservation lasts.
func coordinate(ctx context.Context, p *plan, id uint64, ttl time.Duration, propose proposer) (decision, error) {
	id |= crossHold
	wait := ttl
	if wait == 0 {
		wait = reserveTTL
	}
	takes := make([]counter.TakeResult, len(p.parts))
	times := make([]fsm.Time, len(p.parts))
	err := p.each(func(i int) error {
		q := counter.ReserveRequest{
			ID: id, TTL: wait.Milliseconds(), TakeRequest: counter.TakeRequest{Weight: p.weight, Limits: p.parts[i].limits},
		}
		out, err := propose(ctx, p.parts[i].group, 1, fsm.Call{Type: counter.TypeID, Op: counter.OpReserve, Body: q.Append(nil)})
		if err != nil {
			return err
		}
		body, err := only(out)
		if err != nil {
			return err
		}
		times[i] = out.Time
		takes[i], err = counter.DecodeTakeResult(body)
		return err
	})
	d := decision{allowed: err == nil, results: make([]counter.LimitResult, len(p.matches))}
	for i := range takes {
		d.allowed = d.allowed && takes[i].Allowed
		d.results = p.place(d.results, i, takes[i].Limits)
		d.now = max(d.now, times[i])
	}
	if d.allowed && ttl != 0 {
		for i := range p.parts {
			d.holds = append(d.holds, held{p.parts[i].group, id, keysOf(p.parts[i].limits)})
		}
		return d, nil
	}
	mode := counter.Confirm
	if !d.allowed {
		mode = counter.Charge // with 0: a refund
		for i := range takes {
			if takes[i].Allowed {
				p.giveBack(d.results, i)
			}
		}
	}
	settleErr := p.each(func(i int) error {
		if err == nil && !takes[i].Allowed {
			return nil
		}
		h := held{p.parts[i].group, id, keysOf(p.parts[i].limits)}
		out, err := propose(ctx, h.group, 2, h.settle(mode, 0))
		if err == nil {
			_, err = only(out)
		}
		var refusal *fsm.Error
		if mode == counter.Charge && errors.As(err, &refusal) && refusal.Code == fsm.NotFound {
			return nil // there was nothing to give back
		}
		return err
	})
	switch {
	case err != nil: // the reservations that could not be given back now do it themselves
		return decision{}, fmt.Errorf("reserve: %w", err)
	case settleErr != nil && d.allowed:
		return decision{}, fmt.Errorf("%w: confirm: %w", fsm.ErrOutcomeUnknown, settleErr)
	}
	if d.allowed {
		d.holds = slots(p, func(int) uint64 { return id })
	}
	return d, nil
}

// giveBack makes the results of a part what they are after its reservation was given back.
func (p *plan) giveBack(results []counter.LimitResult, i int) {
	for _, at := range p.parts[i].at {
		if r := &results[at]; !r.Denied {
			r.Remaining += p.weight
			r.Used -= min(p.weight, r.Used)
		}
	}
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

// slots lists the holds that concurrency limits left.
func slots(p *plan, id func(part int) uint64) []held {
	var holds []held
	for i := range p.parts {
		var keys []counter.Key
		for j := range p.parts[i].limits {
			if l := &p.parts[i].limits[j]; l.Algorithm == counter.Concurrency {
				keys = append(keys, l.Key)
			}
		}
		if len(keys) > 0 && id(i) != 0 {
			holds = append(holds, held{p.parts[i].group, id(i), keys})
		}
	}
	return holds
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
