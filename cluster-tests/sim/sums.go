package sim

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"strings"
	"time"

	"github.com/holdfastdb/holdfast/client"
	"github.com/holdfastdb/holdfast/cluster-tests/history"
	"github.com/holdfastdb/holdfast/cluster-tests/models"
	"github.com/holdfastdb/holdfast/fsm"
)

// bounds are what a counter may hold: all that was acknowledged, and of what nobody knows, nothing or all.
type bounds struct{ least, most uint64 }

// sums computes the bounds of the counters that never forget, by resource and subject. Reservations that were not settled
// must have ended before the counters are read.
func sums(ops []history.Op) map[string]bounds {
	all := make(map[string]bounds)
	for _, op := range ops {
		q, ok := op.Input.(models.LimitOp)
		if !ok || op.Outcome == history.Failed {
			continue
		}
		var n uint64
		switch {
		case q.Kind == models.KindCheck && q.Request.Resource == resourceSum:
			n = uint64(q.Request.Weight)
		case q.Kind == models.KindCommit:
			n = uint64(q.Actual)
		default:
			continue
		}
		key := q.Request.Resource + "/" + q.Request.Client
		b := all[key]
		b.most += n
		if op.Outcome == history.Definite {
			b.least += n
		}
		all[key] = b
	}
	return all
}

// checkSums compares the counters with what callers were told.
func (l *load) checkSums(ctx context.Context) error {
	var errs []error
	want := sums(l.history.Ops())
	for _, resource := range []string{resourceSum, resourceReserve} {
		for _, subject := range subjects {
			d, err := l.clients[0].Limits().Peek(ctx, client.Request{Client: subject, Resource: resource})
			if err != nil || len(d.Limits) != 1 {
				errs = append(errs, fmt.Errorf("read %s of %s: %d limits, %w", resource, subject, len(d.Limits), err))
				continue
			}
			b, used := want[resource+"/"+subject], uint64(d.Limits[0].Used)
			if used < b.least || used > b.most {
				errs = append(errs, fmt.Errorf("%s of %s counts %d, but callers were told of %d, and of %d more nothing; not done: %s",
					resource, subject, used, b.least, b.most-b.least, l.notDone(resource, subject)))
			}
		}
	}
	return errors.Join(errs...)
}

// notDone lists the operations on a counter that were refused or whose outcome is unknown.
func (l *load) notDone(resource, subject string) string {
	var b strings.Builder
	for _, op := range l.history.Ops() {
		if q, ok := op.Input.(models.LimitOp); ok && op.Outcome != history.Definite && q.Request.Resource == resource && q.Request.Client == subject {
			fmt.Fprintf(&b, "\n%v %v to %v: %s %d, %d: %s (%+v)", op.Outcome, op.Call, op.Return, q.Kind, q.Request.Weight, q.Actual, op.Error, op.Trace)
		}
	}
	return b.String()
}

// checkAgreement waits until all replicas of each group have the same position and compares their states.
func (c *Cluster) checkAgreement(ctx context.Context) error {
	for group := range c.opts.Shards + 1 {
		for {
			again, err := c.compare(group)
			if err == nil {
				break
			}
			if stop := sleep(ctx, time.Second); !again || stop != nil {
				return fmt.Errorf("replicas of group %d: %w", group, errors.Join(err, stop))
			}
		}
	}
	return nil
}

// compare compares the replicas of a group. With again set, they are only not where the others are.
func (c *Cluster) compare(group uint32) (again bool, err error) {
	type copy struct {
		server string
		at     fsm.Applied
		hash   uint64
	}
	var copies []copy
	for _, s := range c.list() {
		p := s.running()
		if p == nil {
			return true, fmt.Errorf("%s does not run", s.name)
		}
		g, ok := p.Node.Group(group)
		if !ok {
			continue
		}
		view, err := g.View()
		if err != nil {
			return true, err
		}
		defer view.Close()
		at, err := fsm.ReadApplied(view)
		if err != nil {
			return false, err
		}
		it, err := view.Iter(nil, nil)
		if err != nil {
			return false, err
		}
		defer it.Close()
		sum := fnv.New64a()
		for it.Next() {
			_, _ = fmt.Fprintf(sum, "%x=%x\n", it.Key(), it.Value())
		}
		if err := it.Err(); err != nil {
			return false, err
		}
		copies = append(copies, copy{s.name, at, sum.Sum64()})
	}
	if len(copies) < 3 {
		return true, fmt.Errorf("%d of them", len(copies))
	}
	for _, x := range copies[1:] {
		switch first := copies[0]; {
		case x.at.Index != first.at.Index:
			return true, fmt.Errorf("%s is at entry %d, %s at %d", first.server, first.at.Index, x.server, x.at.Index)
		case x.hash != first.hash:
			return false, fmt.Errorf("the states of %s and %s differ at entry %d", first.server, x.server, x.at.Index)
		}
	}
	return false, nil
}
