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
	"github.com/holdfastdb/holdfast/node/shard"
	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
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

// checkPolicies looks for every acknowledged change of the policy that changes in what the cluster remembers of it: each is
// there, with its revision, and nothing that nobody asked for.
func (l *load) checkPolicies(ctx context.Context) error {
	h, err := pb.NewPoliciesClient(l.clients[0].Conn()).PolicyHistory(ctx, &pb.PolicyHistoryRequest{PolicyId: l.changed})
	if err != nil {
		return fmt.Errorf("read the history of the policy: %w", err)
	}
	return judgePolicies(l.others.Ops(), h.Changes)
}

func judgePolicies(ops []history.Op, changes []*pb.PolicyChange) error {
	var errs []error
	rates := make(map[uint32]uint32) // by revision
	var updates int
	for _, c := range changes {
		if c.Action == "update" {
			updates++
			rates[c.Revision] = c.Policy.RateLimit
		}
	}
	acknowledged := 0
	for _, op := range ops {
		p, ok := op.Output.(*pb.Policy)
		if !ok || op.Outcome != history.Definite {
			continue
		}
		acknowledged++
		asked := op.Input.(models.LimitOp).Actual
		if rate, found := rates[p.Revision]; !found || rate != asked || p.RateLimit != asked {
			errs = append(errs, fmt.Errorf("revision %d was acknowledged at %v with rate %d, asked for was %d, the cluster remembers %d", p.Revision, op.Return, p.RateLimit, asked, rate))
		}
	}
	if updates < acknowledged || updates > len(ops) {
		errs = append(errs, fmt.Errorf("%d changes of the policy are remembered, %d were acknowledged and %d asked for", updates, acknowledged, len(ops)))
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

// state is what a replica has.
type state struct {
	server string
	index  uint64
	hash   uint64
	rows   map[uint8]int // by data type
}

// checkAgreement waits until all replicas of each group have the same position and compares their states. It returns
// those on which they agree.
func (c *Cluster) checkAgreement(ctx context.Context) (map[uint32]*state, error) {
	agreed := make(map[uint32]*state)
	var errs []error
	for group := range c.opts.Shards + 1 {
		for {
			one, again, err := c.compare(group)
			if err == nil {
				agreed[group] = one
				break
			}
			if stop := sleep(ctx, time.Second); !again || stop != nil {
				errs = append(errs, fmt.Errorf("replicas of group %d: %w", group, errors.Join(err, stop)))
				break
			}
		}
	}
	return agreed, errors.Join(errs...)
}

// compare compares the replicas of a group. With again set, they are only not where the others are.
func (c *Cluster) compare(group uint32) (first *state, again bool, err error) {
	count := 0
	for _, s := range c.list() {
		p := s.running()
		if p == nil {
			return nil, true, fmt.Errorf("%s does not run", s.name)
		}
		g, ok := p.Node.Group(group)
		if !ok {
			continue
		}
		one, err := readState(s.name, g)
		if err != nil {
			return nil, true, err
		}
		count++
		switch {
		case first == nil:
			first = one
		case one.index != first.index:
			return nil, true, fmt.Errorf("%s is at entry %d, %s at %d", first.server, first.index, one.server, one.index)
		case one.hash != first.hash:
			return nil, false, fmt.Errorf("the states of %s and %s differ at entry %d", first.server, one.server, one.index)
		}
	}
	if count < 3 {
		return nil, true, fmt.Errorf("%d of them", count)
	}
	return first, false, nil
}

func readState(server string, g *shard.Group) (_ *state, err error) {
	view, err := g.View()
	if err != nil {
		return nil, err
	}
	defer view.Close()
	at, err := fsm.ReadApplied(view)
	if err != nil {
		return nil, err
	}
	it, err := view.Iter(nil, nil)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	one := &state{server: server, index: at.Index, rows: make(map[uint8]int)}
	sum := fnv.New64a()
	for it.Next() {
		one.rows[it.Key()[0]]++
		_, _ = fmt.Fprintf(sum, "%x=%x\n", it.Key(), it.Value())
	}
	one.hash = sum.Sum64()
	return one, it.Err()
}
