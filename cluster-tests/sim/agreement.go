package sim

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"time"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/node/shard"
)

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
