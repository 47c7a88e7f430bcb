package chaos

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/raft"

	"github.com/holdfastdb/holdfast/cluster-tests/check"
	"github.com/holdfastdb/holdfast/cluster-tests/history"
	"github.com/holdfastdb/holdfast/fsm"
)

// metrics are a node's figures that have a shard, by name and shard.
func (n *Node) metrics() (map[string]map[uint32]float64, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	q, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+n.place.http+"/metrics", nil)
	if err != nil {
		return nil, err
	}
	r, err := http.DefaultClient.Do(q)
	if err != nil {
		return nil, err
	}
	defer r.Body.Close()
	text, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	all := make(map[string]map[uint32]float64)
	for l := range strings.Lines(string(text)) {
		name, rest, ok := strings.Cut(strings.TrimSpace(l), `{shard="`)
		number, value, ok2 := strings.Cut(rest, `"} `)
		shard, err := strconv.ParseUint(number, 10, 32)
		v, err2 := strconv.ParseFloat(value, 64)
		if !ok || !ok2 || err != nil || err2 != nil {
			continue
		}
		if all[name] == nil {
			all[name] = make(map[uint32]float64)
		}
		all[name][uint32(shard)] = v
	}
	return all, nil
}

// compareStates waits until the replicas of every shard have compared the states in which the history ended, and notes if
// somebody found a difference. A comparison takes two entries, the second of which tells what came of the first; then
// there are no more of them until something changes.
func (r *run) compareStates() {
	last := make(map[uint32]uint64) // the last entry of the history, by shard
	for _, o := range r.w.history.Ops() {
		if o.Outcome == history.Definite && !o.Trace.Query {
			last[o.Trace.Shard] = max(last[o.Trace.Shard], o.Trace.Index)
		}
	}
	delete(last, 0)
	err := r.c.wait(6*checksumEvery, "comparison of the last states", func() error {
		for _, n := range r.c.Nodes {
			m, err := n.metrics()
			if err != nil {
				return fmt.Errorf("metrics of %s: %w", n.Name, err)
			}
			at := m["holdfast_shard_checksum_index"]
			for shard, index := range last {
				if have, ok := at[shard]; !ok && !r.isWiped(n) || ok && uint64(have) < index+2 {
					return fmt.Errorf("shard %d: %s has last compared its state at entry %.0f, and an operation was executed at %d", shard, n.Name, have, index)
				}
			}
		}
		return nil
	})
	if err != nil {
		r.violate("%v", err)
	}
	for _, n := range r.c.Nodes {
		m, err := n.metrics()
		if err != nil {
			r.violate("metrics of %s: %v", n.Name, err)
			continue
		}
		for shard, times := range m["holdfast_shard_diverged_total"] {
			if times != 0 {
				r.violate("shard %d: %s found %.0f times that states of replicas differ", shard, n.Name, times)
			}
		}
	}
}

// comparisons counts the entries of a log that tell what the states of most replicas were.
func comparisons(log []check.Entry) (n int) {
	for _, e := range log {
		if e.Type != raft.LogCommand || len(e.Data) == 0 {
			continue
		}
		if entry, err := fsm.DecodeEntry(e.Data); err == nil && entry.Kind == fsm.Checksum && entry.Agreed.Index != 0 {
			n++
		}
	}
	return n
}
