package sim

import (
	"context"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// underLoad plays a scene in virtual time, on a cluster of three nodes and one shard that is in use.
func underLoad(t *testing.T, scene func(ctx context.Context, c *Cluster)) {
	synctest.Test(t, func(t *testing.T) {
		c := New(Options{Seed: 1, Nodes: 3, Shards: 1, Think: 100 * time.Millisecond, TrailingEntries: 4096, Logger: slog.New(slog.DiscardHandler)})
		ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
		defer cancel()
		if err := c.Start(ctx); err != nil {
			t.Fatal(err)
		}
		l, err := startLoad(ctx, c)
		if err != nil {
			t.Fatal(err)
		}
		loaded, end := context.WithCancel(ctx)
		var working sync.WaitGroup
		working.Go(func() { l.run(loaded) })
		scene(ctx, c)
		end()
		working.Wait()
		if err := l.close(); err != nil {
			t.Error(err)
		}
		if err := c.Stop(); err != nil {
			t.Error(err)
		}
		for _, v := range c.damage() {
			t.Error(v)
		}
	})
}

// leader is the server that serves as a group's leader, nil if there is none or more than one says so.
func (c *Cluster) leader(group uint32) (found *server) {
	for _, s := range c.list() {
		if p := s.running(); p != nil {
			if g, ok := p.Node.Group(group); ok && g.IsLeader() {
				if found != nil {
					return nil
				}
				found = s
			}
		}
	}
	return found
}
