package rpc

import (
	"context"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/fsm/session"
)

// sessionCollector asks the shards that this node leads for their counts. Each shard is led by one node, so the sum over all
// nodes is that of the cluster.
type sessionCollector struct {
	node                   Node
	active, created, ended *prometheus.Desc
}

func newSessionCollector(n Node) *sessionCollector {
	return &sessionCollector{
		node:    n,
		active:  prometheus.NewDesc("holdfast_sessions_active", "Sessions that did not end, in the shards that this node leads.", []string{"shard", "type"}, nil),
		created: prometheus.NewDesc("holdfast_sessions_created_total", "Sessions that began, in the shards that this node leads.", []string{"shard", "type"}, nil),
		ended:   prometheus.NewDesc("holdfast_sessions_ended_total", "Sessions that ended, by reason, in the shards that this node leads.", []string{"shard", "reason"}, nil),
	}
}

// countTimeout bounds how long a shard is asked.
const countTimeout = time.Second

// Describe implements prometheus.Collector.
func (c *sessionCollector) Describe(ch chan<- *prometheus.Desc) {
	ch <- c.active
	ch <- c.created
	ch <- c.ended
}

// Collect implements prometheus.Collector. A shard that does not answer in time is missing.
func (c *sessionCollector) Collect(ch chan<- prometheus.Metric) {
	t := c.node.Topology()
	if t == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), countTimeout)
	defer cancel()
	var asked sync.WaitGroup // all at once: one that does not answer takes no time from the others
	for i := range t.Shards {
		asked.Go(func() { c.collect(ctx, ch, t.Shards[i].ID) })
	}
	asked.Wait()
}

func (c *sessionCollector) collect(ctx context.Context, ch chan<- prometheus.Metric, id uint32) {
	replica, here := c.node.Replica(id)
	if !here || !replica.IsLeader() {
		return
	}
	r, _, err := replica.Query(ctx, []fsm.Call{sessionCall(session.OpCounts, &session.CountsRequest{})})
	var n session.Counts
	if err != nil || r[0].Err() != nil || n.Decode(r[0].Body) != nil {
		return
	}
	shard := strconv.Itoa(int(id))
	for k := session.Web; int(k) < len(sessionKinds); k++ {
		ch <- prometheus.MustNewConstMetric(c.active, prometheus.GaugeValue, float64(n.Active[k]), shard, sessionKinds[k].name)
		ch <- prometheus.MustNewConstMetric(c.created, prometheus.CounterValue, float64(n.Created[k]), shard, sessionKinds[k].name)
	}
	for reason, ended := range n.Ended {
		ch <- prometheus.MustNewConstMetric(c.ended, prometheus.CounterValue, float64(ended), shard, reason.String())
	}
}
