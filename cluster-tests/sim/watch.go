package sim

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/holdfastdb/holdfast/cluster-tests/check"
	"github.com/holdfastdb/holdfast/fsm"
)

// checksumEvery is how often replicas compare their states by default, and watchEvery how often each node is looked at.
const (
	checksumEvery = 5 * time.Second
	watchEvery    = 4 * time.Second
)

// watched is what the nodes showed while they ran.
type watched struct {
	mu    sync.Mutex
	lives []*watchedLife
	sums  map[sumAt]sumOf
	// compared counts the sums that a replica had at the same entry as another one.
	compared int
}

type watchedLife struct {
	name     string
	server   *server
	follower check.Follower // of one goroutine, until the cluster has stopped
}

type sumAt struct {
	group uint32
	index uint64
}

type sumOf struct {
	hash uint64
	by   string
}

// follow looks at a node's copy of the catalog and at the sums of its replicas, as long as it lives.
func (l *life) follow(ctx context.Context) {
	c := l.s.c
	c.watch.mu.Lock()
	one := &watchedLife{name: fmt.Sprintf("%s, life %d", l.s.name, len(c.watch.lives)+1), server: l.s}
	c.watch.lives = append(c.watch.lives, one)
	c.watch.mu.Unlock()
	compared := make(map[uint32]uint64) // up to which entry, by group
	for sleep(ctx, watchEvery) == nil {
		view := l.process.Node.CatalogView()
		err := errors.Join(one.follower.Read(view), view.Close())
		if err != nil && l.disk.Failures() == 0 && l.alive() {
			c.violate(check.KindWatch, "%s: %v", one.name, err)
		}
		for group := range c.opts.Shards + 1 {
			g, ok := l.process.Node.Group(group)
			if !ok {
				continue
			}
			status := g.Status()
			if status.Diverged != 0 {
				c.violate(check.KindAgreement, "%s found %d times that replicas of group %d differ", one.name, status.Diverged, group)
				return
			}
			if status.Sum.Index > compared[group] {
				compared[group] = status.Sum.Index
				c.compareSum(one.name, group, status.Sum)
			}
		}
	}
}

func (c *Cluster) compareSum(name string, group uint32, sum fsm.Sum) {
	c.watch.mu.Lock()
	defer c.watch.mu.Unlock()
	if c.watch.sums == nil {
		c.watch.sums = make(map[sumAt]sumOf)
	}
	at := sumAt{group, sum.Index}
	first, seen := c.watch.sums[at]
	if !seen {
		c.watch.sums[at] = sumOf{sum.Hash, name}
		return
	}
	c.watch.compared++
	if first.hash != sum.Hash {
		c.violate(check.KindAgreement, "group %d: the states of %s and %s differ at entry %d", group, first.by, name, sum.Index)
	}
}

// judgeWatches compares what the lives of all nodes saw of the catalog, after all have ended: the same, and nothing
// missing; and those that were there to the end, all of it.
func (c *Cluster) judgeWatches(r *Report) {
	seen := make(map[string][]check.Change)
	last := make(map[*server]*watchedLife)
	for _, one := range c.watch.lives {
		seen[one.name] = one.follower.Seen()
		last[one.server] = one
		r.Watched += len(seen[one.name])
	}
	r.Violations = append(r.Violations, check.Watches(seen)...)
	var newest uint64
	for _, one := range last {
		newest = max(newest, one.follower.At())
	}
	for _, one := range last {
		if at := one.follower.At(); at != newest {
			c.violate(check.KindWatch, "%s has seen the catalog up to revision %d in the end, others up to %d", one.name, at, newest)
		}
	}
	r.Sums = c.watch.compared
}
