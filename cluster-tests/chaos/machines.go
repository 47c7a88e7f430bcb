package chaos

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/holdfastdb/holdfast/client"
	"github.com/holdfastdb/holdfast/cluster-tests/history"
)

// The faults of this file are those of machines that are slow, short of something or worn out.

// A slow node works for a moment, and then stands still for another.
const (
	slowPause = 180 * time.Millisecond
	slowWork  = 20 * time.Millisecond
)

// slow gives a node a tenth of a CPU.
func (r *run) slow(n *Node) (func() error, error) {
	r.describe(fmt.Sprintf("%s works %v, then stands still for %v, and so on", n.Name, slowWork, slowPause), n)
	ctx, cancel := context.WithCancel(context.Background())
	var pulsing sync.WaitGroup
	pulsing.Go(func() {
		for ctx.Err() == nil {
			n.Pause()
			time.Sleep(slowPause)
			n.Resume()
			time.Sleep(slowWork)
		}
	})
	return func() error { cancel(); pulsing.Wait(); return nil }, nil
}

// hotCallers are the callers that do nothing but ask for the same key.
const hotCallers = 256

// heatShard lets very many callers want the same key. The other shards must serve theirs meanwhile.
func (r *run) heatShard() (func() error, error) {
	hot := uint32(1 + r.rng.IntN(r.c.opts.Shards))
	r.describe(fmt.Sprintf("%d callers want one key of shard %d", hotCallers, hot))
	ctx, cancel := context.WithCancel(context.Background())
	begun := r.w.now()
	var calling sync.WaitGroup
	for i := range hotCallers {
		part := r.w.parts[i%len(r.w.parts)]
		calling.Go(func() {
			for ctx.Err() == nil {
				part.Press(ctx, r.w.clients[0], hot) // too many of them: any may be refused
			}
		})
	}
	return func() error {
		cancel()
		calling.Wait()
		served, seconds := make(map[uint32]int), (r.w.now() - begun).Seconds()
		for _, o := range r.w.history.Ops() {
			if o.Outcome == history.Definite && o.Return > begun {
				served[o.Trace.Shard]++
			}
		}
		for shard := uint32(1); shard <= uint32(r.c.opts.Shards); shard++ {
			if float64(served[shard]) < minPerSecond/4*seconds {
				r.violate("while shard %d was hot, shard %d served %d operations in %.1f s", hot, shard, served[shard], seconds)
			}
		}
		return nil
	}, nil
}

// limitFiles leaves a node no more file descriptors than it has, and takes what connections it would need. It may end its
// process rather than go on with less than it needs.
func (r *run) limitFiles(n *Node) (func() error, error) {
	open, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", n.pid()))
	if err != nil {
		return nil, err
	}
	r.describe(fmt.Sprintf("%s has %d file descriptors and gets no more", n.Name, len(open)), n)
	n.doom()
	// Only the soft limit changes: anybody may lower that, and raise it again.
	limit := func(files string) error {
		return shell("prlimit", "--pid", strconv.Itoa(n.pid()), "--nofile="+files+":")
	}
	if err := limit(strconv.Itoa(len(open))); err != nil {
		return nil, err
	}
	var conns []net.Conn
	for range 20 {
		d := net.Dialer{Timeout: time.Second}
		if c, err := d.Dial("tcp", n.GRPC); err == nil {
			conns = append(conns, c)
		}
	}
	return func() error {
		for _, c := range conns {
			_ = c.Close()
		}
		if n.Running() {
			if err := limit(strconv.Itoa(10 * len(open))); err != nil && n.Running() {
				return err
			}
		}
		return n.revive()
	}, nil
}

// rotEvery is how many bytes of a file have one among them that changes.
const rotEvery = 4096

// rot changes what a node has stored of its state while it is stopped. It must notice, at the latest when the replicas
// compare their states, say so and end; never serve from that. Then its data go, and it comes back as another node.
func (r *run) rot() (func() error, error) {
	n := r.c.Nodes[r.rng.IntN(len(r.c.Nodes))]
	r.describe("bits rot on "+n.Name, n)
	// A start moves what is in the log of the state into tables.
	if err := errors.Join(n.Stop(stopTime), n.Start(), n.WaitReady(recovery), n.Stop(stopTime)); err != nil {
		return nil, err
	}
	files, err := filepath.Glob(filepath.Join(n.data, "state", "*.sst"))
	if err != nil || len(files) == 0 {
		return nil, fmt.Errorf("%s has no tables: %w", n.Name, err)
	}
	for _, path := range files {
		text, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		for i := rotEvery / 8; i < len(text); i += rotEvery {
			text[i] ^= 0x10
		}
		if err := os.WriteFile(path, text, 0o600); err != nil {
			return nil, err
		}
	}
	said, err := os.ReadFile(n.log)
	if err != nil {
		return nil, err
	}
	return func() error {
		if err := n.Start(); err != nil {
			return err
		}
		select {
		case <-n.doom():
		case <-time.After(4 * checksumEvery):
			return fmt.Errorf("%s runs on %d tables with rotten bits", n.Name, len(files))
		}
		all, err := os.ReadFile(n.log)
		if err != nil {
			return err
		}
		last := tail(string(all[len(said):]), 1)
		if !strings.Contains(strings.ToLower(last), "corrupt") {
			return fmt.Errorf("%s ended, but did not say that its data are corrupt: %s", n.Name, last)
		}
		r.note(fmt.Sprintf("%s refuses its data: %.300s", n.Name, last))
		return r.replace(n)
	}, nil
}

// wipe takes a node's data away. It comes back as a new node: the old one's id is never used again.
func (r *run) wipe() (func() error, error) {
	n := r.c.Nodes[r.rng.IntN(len(r.c.Nodes))]
	r.describe("kill -9 "+n.Name+" and remove its data", n)
	n.Kill()
	return func() error { return r.replace(n) }, nil
}

// replace starts a node without its data. It joins through another node: the first one, too, may not make a cluster of its
// own. It has a new id, the cluster has one node more, of which one is away, and clients that know no other are served.
func (r *run) replace(n *Node) error {
	r.wiped = append(r.wiped, n)
	identity := filepath.Join(n.data, "node.json")
	before, err := os.ReadFile(identity)
	if err != nil {
		return err
	}
	if err := os.RemoveAll(n.data); err != nil {
		return err
	}
	n.join = []string{"--join", r.c.net.place((r.number(n) + 1) % len(r.c.Nodes)).gossipAt}
	if err := n.Start(); err != nil {
		return err
	}
	if err := n.WaitReady(30 * time.Second); err != nil {
		return err
	}
	after, err := os.ReadFile(identity)
	if err != nil {
		return err
	}
	if bytes.Equal(before, after) {
		return fmt.Errorf("%s came back under its old id, without what that has promised", n.Name)
	}
	s, err := r.c.Status(context.Background())
	if err != nil {
		return err
	}
	if len(s.Nodes) != len(r.c.Nodes)+1 {
		return fmt.Errorf("%s came back as a new node, and there are %d nodes", n.Name, len(s.Nodes))
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	cl, err := client.Dial(ctx, client.Config{Addrs: []string{n.GRPC}})
	if err != nil {
		return fmt.Errorf("reach the cluster through the new %s: %w", n.Name, err)
	}
	for _, part := range r.w.parts {
		by := r.w.process("through "+n.Name, cl, rand.New(rand.NewPCG(r.plan.Seed, uint64(len(r.wiped)))))
		err = errors.Join(err, part.Callers()[0].Step(by))
	}
	return errors.Join(err, cl.Close())
}

// mostJoining is how long a node may join before it is killed: time enough to be known, to get replicas, or to have voted.
const mostJoining = 3 * time.Second

// join lets one more node join, which is killed meanwhile and starts again.
func (r *run) join() (func() error, error) {
	n := r.c.later[0]
	r.describe(n.Name + " joins, and is killed meanwhile")
	if err := n.Start(); err != nil {
		return nil, err
	}
	r.c.Nodes, r.c.later = append(r.c.Nodes, n), r.c.later[1:]
	time.Sleep(time.Duration(r.rng.Int64N(int64(mostJoining))))
	n.Kill()
	return n.Start, nil
}

// The short logs of histories in which nodes fall behind.
const shortLog = 64

// leaveBehind stops a node until all shards' logs begin behind what it has, so that it needs the whole state.
func (r *run) leaveBehind(n *Node) (func() error, error) {
	before, received := r.cuts(r.others(r.number(n))), r.said("raft: Installed remote snapshot", r.number(n))
	r.describe("kill -9 "+n.Name+" until the logs are cut", n)
	n.Kill()
	return func() error {
		if err := r.c.wait(90*time.Second, "cut of all logs", func() error {
			for log, count := range r.cuts(r.others(r.number(n))) {
				if count == before[log] {
					return fmt.Errorf("%s's log of shard %d is not", r.c.Nodes[log.node].Name, log.shard)
				}
			}
			return nil
		}); err != nil {
			return err
		}
		if err := n.Start(); err != nil {
			return err
		}
		return r.c.wait(recovery, "state that is received", func() error {
			got := r.said("raft: Installed remote snapshot", r.number(n)) - received
			if got < r.c.opts.Shards {
				return fmt.Errorf("%s has received %d states of %d shards", n.Name, got, r.c.opts.Shards)
			}
			r.received += got
			return nil
		})
	}, nil
}

// raftLog is one node's log of one shard.
type raftLog struct{ node, shard int }

// cuts counts how often each log of some nodes was cut. A busy one is cut twice before another one is for the first time.
func (r *run) cuts(nodes []int) map[raftLog]int {
	all := make(map[raftLog]int)
	for _, i := range nodes {
		for shard := 1; shard <= r.c.opts.Shards; shard++ {
			text := fmt.Sprintf(`"raft: compacting logs","node":%q,"group":%d,`, r.c.Nodes[i].Name, shard)
			all[raftLog{i, shard}] = r.said(text, i)
		}
	}
	return all
}

// said counts the lines of nodes' logs that have a text.
func (r *run) said(text string, nodes ...int) (n int) {
	for i, node := range r.c.Nodes {
		if !slices.Contains(nodes, i) {
			continue
		}
		log, err := os.ReadFile(node.log)
		if err != nil {
			r.violate("%v", err)
		}
		n += strings.Count(string(log), text)
	}
	return n
}
