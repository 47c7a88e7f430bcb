package chaos

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
)

// nemesis is one kind of fault.
type nemesis struct {
	name string
	// hold is how long the fault lasts, at least; up to as much again comes on top.
	hold time.Duration
	// serving: a majority of every shard stays up and connected, so that no operation may fail.
	serving bool
	// disks: nodes need file systems of their own.
	disks bool
	// needs tells what this machine lacks for it, nil if it has all; nothing if it needs nothing.
	needs func() error
	// once: another one would leave no majority. behind: logs must be short. grows: the history begins with one node. None of
	// them is part of a mixed history.
	once, behind, grows bool
	// strike does it and returns what ends it.
	strike func(r *run) (end func() error, err error)
}

// errNothingDone tells that a fault did not come about, and does not count as one.
var errNothingDone = errors.New("nothing was done")

// nemeses are all kinds of faults, by name.
var nemeses = []nemesis{
	{name: "kill-leader", hold: 2500 * time.Millisecond, serving: true, strike: onLeader((*run).killOne)},
	{name: "kill-follower", hold: time.Second, serving: true, strike: onFollower((*run).killOne)},
	{name: "kill-all", hold: time.Millisecond, strike: func(r *run) (func() error, error) { return r.kill(r.c.Nodes...) }},
	{name: "pause-leader", hold: 3 * time.Second, serving: true, strike: onLeader((*run).pause)},
	{name: "pause-follower", hold: 3 * time.Second, serving: true, strike: onFollower((*run).pause)},
	{name: "partition-leader", hold: 4 * time.Second, serving: true, strike: onLeader((*run).isolate)},
	{name: "vanish-leader", hold: 4 * time.Second, serving: true, strike: onLeader((*run).vanish)},
	{name: "partition-minority", hold: 4 * time.Second, serving: true, strike: (*run).splitMinority},
	{name: "partition-one-way", hold: 4 * time.Second, serving: true, strike: onLeader((*run).cutOneWay)},
	{name: "partition-partial", hold: 4 * time.Second, serving: true, strike: onLeader((*run).cutPartially)},
	{name: "bad-network", hold: 4 * time.Second, strike: (*run).impairAll},
	{name: "transfer", hold: 10 * time.Millisecond, serving: true, strike: (*run).transfer},
	{name: "rolling-restart", hold: time.Millisecond, serving: true, strike: (*run).rollingRestart},
	{name: "disk-full", hold: 2 * time.Second, serving: true, disks: true, needs: missingForDisks, strike: onLeader((*run).fillDisk)},
	{name: "disk-hang", hold: 5 * time.Second, serving: true, disks: true, needs: missingForDisks, strike: onLeader((*run).hangDisk)},
	{name: "slow-follower", hold: 4 * time.Second, serving: true, strike: onFollower((*run).slow)},
	{name: "hot-shard", hold: 3 * time.Second, serving: true, strike: (*run).heatShard},
	{name: "fd-limit", hold: 4 * time.Second, serving: true, strike: onLeader((*run).limitFiles)},
	{name: "out-of-memory", hold: 2500 * time.Millisecond, serving: true, needs: missingForMemory, strike: onLeader((*run).starve)},
	{name: "wipe", hold: time.Second, serving: true, once: true, strike: (*run).wipe},
	{name: "bit-rot", hold: time.Millisecond, serving: true, once: true, strike: (*run).rot},
	{name: "fall-behind", hold: time.Millisecond, serving: true, behind: true, strike: onFollower((*run).leaveBehind)},
	{name: "join", hold: time.Millisecond, grows: true, strike: (*run).join},
}

// nemesesOf finds kinds of faults.
func nemesesOf(kinds []string) (list []nemesis, err error) {
	for _, kind := range kinds {
		i := slices.IndexFunc(nemeses, func(n nemesis) bool { return n.name == kind })
		if i < 0 {
			return nil, fmt.Errorf("no fault is named %q", kind)
		}
		list = append(list, nemeses[i])
	}
	return list, nil
}

func names(nodes []*Node) string {
	var list []string
	for _, n := range nodes {
		list = append(list, n.Name)
	}
	return strings.Join(list, " ")
}

// kill ends processes without a word; the end of the fault starts them again.
func (r *run) kill(nodes ...*Node) (func() error, error) {
	r.describe("kill -9 "+names(nodes), nodes...)
	var ended []<-chan struct{}
	for _, n := range nodes {
		ended = append(ended, n.killNow())
	}
	for _, e := range ended {
		<-e
	}
	return func() error {
		var errs []error
		for _, n := range nodes {
			errs = append(errs, n.Start())
		}
		return errors.Join(errs...)
	}, nil
}

func (r *run) killOne(n *Node) (func() error, error) { return r.kill(n) }

func (r *run) pause(n *Node) (func() error, error) {
	r.describe("SIGSTOP "+n.Name, n)
	n.Pause()
	return func() error { n.Resume(); return nil }, nil
}

// separate cuts all ways between two sides, in both directions.
func (r *run) separate(a, b []int) error {
	var errs []error
	for _, i := range a {
		for _, j := range b {
			errs = append(errs, r.c.net.cut(i, j), r.c.net.cut(j, i))
		}
	}
	return errors.Join(errs...)
}

// others are the numbers of all nodes but one.
func (r *run) others(n int) (list []int) {
	for i := range r.c.Nodes {
		if i != n {
			list = append(list, i)
		}
	}
	return list
}

func (r *run) isolate(n *Node) (func() error, error) {
	r.describe(n.Name+" is cut off from all others", n)
	return r.c.net.heal, r.separate([]int{r.number(n)}, r.others(r.number(n)))
}

// vanish is what a machine without power looks like from outside: unlike with a killed process, nobody says that its
// connections are gone.
func (r *run) vanish(n *Node) (func() error, error) {
	r.describe(n.Name+" reaches nobody, clients included", n)
	return r.c.net.heal, r.separate([]int{r.number(n)}, append(r.others(r.number(n)), clients))
}

func (r *run) splitMinority() (func() error, error) {
	order := r.rng.Perm(len(r.c.Nodes))
	few := order[:(len(order)-1)/2]
	var cut []*Node
	for _, i := range few {
		cut = append(cut, r.c.Nodes[i])
	}
	r.describe("a majority is cut off from "+names(cut), cut...)
	return r.c.net.heal, r.separate(few, order[len(few):])
}

// cutOneWay makes a leader that nobody hears, or that hears nobody.
func (r *run) cutOneWay(n *Node) (func() error, error) {
	me, mute := r.number(n), r.rng.IntN(2) == 0
	text := " hears nobody"
	if mute {
		text = " is not heard"
	}
	r.describe(n.Name+text, n)
	var errs []error
	for _, i := range r.others(me) {
		if mute {
			errs = append(errs, r.c.net.cut(me, i))
		} else {
			errs = append(errs, r.c.net.cut(i, me))
		}
	}
	return r.c.net.heal, errors.Join(errs...)
}

// cutPartially separates a leader from one follower; both reach all others.
func (r *run) cutPartially(n *Node) (func() error, error) {
	others := r.others(r.number(n))
	other := others[r.rng.IntN(len(others))]
	r.describe(n.Name+" and "+r.c.Nodes[other].Name+" cannot reach each other", n)
	return r.c.net.heal, r.separate([]int{r.number(n)}, []int{other})
}

func (r *run) impairAll() (func() error, error) {
	r.describe("all links are bad")
	var errs []error
	for i := range r.c.Nodes {
		for _, j := range r.others(i) {
			errs = append(errs, r.c.net.impair(i, j))
		}
	}
	return r.c.net.heal, errors.Join(errs...)
}

// transfer moves the leadership of one shard in peace.
func (r *run) transfer() (func() error, error) {
	leads, err := r.leads()
	if err != nil {
		return nil, err
	}
	shard := uint32(1 + r.rng.IntN(r.c.opts.Shards))
	var to []*Node
	for _, n := range r.c.Nodes {
		if !slices.Contains(leads[n], shard) && n.Running() {
			to = append(to, n)
		}
	}
	target := to[r.rng.IntN(len(to))]
	r.describe(fmt.Sprintf("shard %d goes to %s", shard, target.Name))
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	begun := r.w.now()
	_, err = pb.NewClusterClient(r.w.clients[0].Conn()).TransferLeader(ctx, &pb.TransferLeaderRequest{Shard: shard, Node: target.Name})
	if err != nil { // such as while the target is behind: it may be refused
		return nil, fmt.Errorf("%w: a transfer was refused: %w", errNothingDone, err)
	}
	r.planned(begun, shard)
	return func() error { return nil }, nil
}

// rollingRestart stops one node after the other in peace and starts it again when the others are whole.
func (r *run) rollingRestart() (func() error, error) {
	r.describe("SIGTERM and start of every node, one after the other")
	for _, i := range r.rng.Perm(len(r.c.Nodes)) {
		n := r.c.Nodes[i]
		leads, err := r.leads()
		if err != nil {
			return nil, err
		}
		begun := r.w.now()
		if err := n.Stop(20 * time.Second); err != nil {
			return nil, err
		}
		r.planned(begun, leads[n]...)
		if err := n.Start(); err != nil {
			return nil, err
		}
		if err := n.WaitReady(30 * time.Second); err != nil {
			return nil, err
		}
		if err := r.c.WaitHealthy(30 * time.Second); err != nil {
			return nil, err
		}
	}
	return func() error { return nil }, nil
}

// fillDisk leaves a leader without room. It may end its process, which no operator would call a surprise.
func (r *run) fillDisk(n *Node) (func() error, error) {
	r.describe("the disk of "+n.Name+" is full", n)
	n.doom()
	return func() error {
		if err := n.disk.free(); err != nil {
			return err
		}
		return n.revive()
	}, n.disk.fill()
}

// hangDisk lets no write of a leader end. The node may give up.
func (r *run) hangDisk(n *Node) (func() error, error) {
	r.describe("the disk of "+n.Name+" hangs", n)
	n.doom()
	return func() error {
		if err := n.disk.thaw(); err != nil {
			return err
		}
		return n.revive()
	}, n.disk.freeze()
}

// revive starts the process of a node again if it has ended, and expects it to live from now on.
func (n *Node) revive() error {
	select {
	case <-n.doom():
	case <-time.After(2 * time.Second): // it may be about to
	}
	if !n.Running() {
		return n.Start()
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.doomed = false
	return nil
}

// onLeader is a fault of a node that leads at least one shard, onFollower of one that leads as few as possible.
func onLeader(strike func(*run, *Node) (func() error, error)) func(*run) (func() error, error) {
	return func(r *run) (func() error, error) {
		leads, err := r.leads()
		if err != nil {
			return nil, err
		}
		var list []*Node
		for _, n := range r.c.Nodes {
			if len(leads[n]) > 0 && n.Running() {
				list = append(list, n)
			}
		}
		if len(list) == 0 {
			return nil, errors.New("no process runs that leads")
		}
		return strike(r, list[r.rng.IntN(len(list))])
	}
}

func onFollower(strike func(*run, *Node) (func() error, error)) func(*run) (func() error, error) {
	return func(r *run) (func() error, error) {
		leads, err := r.leads()
		if err != nil {
			return nil, err
		}
		return strike(r, slices.MinFunc(r.c.Nodes, func(a, b *Node) int { return len(leads[a]) - len(leads[b]) }))
	}
}

// leads tells who leads what, as soon as every shard has a leader: a fault of a leader hits one.
func (r *run) leads() (leads map[*Node][]uint32, err error) {
	err = r.c.wait(recovery, "leader of every shard", func() error {
		if leads, err = r.c.Leaders(context.Background()); err != nil {
			return err
		}
		n := 0
		for _, shards := range leads {
			n += len(shards)
		}
		if n != r.c.opts.Shards {
			return fmt.Errorf("%d of %d shards have a leader", n, r.c.opts.Shards)
		}
		return nil
	})
	return leads, err
}

func (r *run) number(n *Node) int { return slices.Index(r.c.Nodes, n) }

// between is a random time from d to twice d.
func between(rng *rand.Rand, d time.Duration) time.Duration {
	return d + time.Duration(rng.Int64N(int64(d)+1))
}
