package models

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/zeebo/xxh3"

	"github.com/holdfastdb/holdfast/client"
	"github.com/holdfastdb/holdfast/cluster-tests/history"
	"github.com/holdfastdb/holdfast/fsm/counter"
	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
)

// The callers of a shard: writers and a reader share keys, so that they compete; limited ones run into limits of every
// algorithm, and a leased one decides from tokens taken in bulk.
const (
	keysPerShard  = 2 // at the same time
	writersPerKey = 2
	usersPerShard = 2 // of the limits that deny
	// epoch is how long a key is used: so that what happened to it is little enough for checks that take their time, which
	// look at 1,000 operations of a key. Three clients make about 700.
	epoch  = 2 * time.Second
	epochs = 90 // then the first keys come again
)

// counted is the resource whose limit is never reached, so that its counters count what was done.
const counted = "counted"

// crowded is the resource for those who press. It never denies, and nobody looks at its counters.
const crowded = "crowded"

// crossed is the resource with two policies, one of which counts by address: a check of a client takes from counters of two
// shards, from both or from none. That by address never denies, that by client does.
const crossed = "crossed"

// endless are the policies that never deny.
var endless = []*pb.CreatePolicyRequest{
	{Name: counted, Algorithm: "fixed_window", RateLimit: 10_000_000, TimeWindow: neverEnds},
	{Name: crowded, Algorithm: "fixed_window", RateLimit: 10_000_000, TimeWindow: neverEnds},
}

// crossing are the policies of crossed.
var crossing = []*pb.CreatePolicyRequest{
	{Name: "crossed-by-client", Resource: crossed, Algorithm: "token_bucket", RateLimit: 10, TimeWindow: 1, BurstCapacity: 10},
	{Name: "crossed-by-address", Resource: crossed, Scope: "ip", Algorithm: "fixed_window", RateLimit: 10_000_000, TimeWindow: neverEnds},
}

// leased is the resource for decisions from leases.
var leased = &pb.CreatePolicyRequest{Name: "leased", Algorithm: "token_bucket", RateLimit: 200, TimeWindow: 1, BurstCapacity: 100, OnUnavailable: "deny"}

// limited are the other resources, each under a policy of its own.
var limited = []*pb.CreatePolicyRequest{
	{Name: "token_bucket", Algorithm: "token_bucket", RateLimit: 20, TimeWindow: 1, BurstCapacity: 10},
	{Name: "sliding_window", Algorithm: "sliding_window", RateLimit: 20, TimeWindow: 2},
	{Name: "sliding_log", Algorithm: "sliding_log", RateLimit: 20, TimeWindow: 2},
	{Name: "leaky_bucket", Algorithm: "leaky_bucket", RateLimit: 20, TimeWindow: 1, BurstCapacity: 5},
	{Name: "concurrency", Algorithm: "concurrency", RateLimit: 3, TimeWindow: 60},
	{Name: "few", Algorithm: "fixed_window", RateLimit: 50, TimeWindow: neverEnds},
}

// chaosLimits is the load of a cluster of processes.
type chaosLimits struct {
	begin  time.Time
	shards []uint32
	keys   map[uint32][]string // by shard: those of the first epoch, then of the second, and so on
	// addresses have their counters in one shard each.
	addresses map[uint32]string
}

func newChaosLimits() Load {
	return &chaosLimits{keys: make(map[uint32][]string), addresses: make(map[uint32]string)}
}

// Begin implements Load: it makes the policies and finds keys for each shard.
func (l *chaosLimits) Begin(ctx context.Context, by *Process) error {
	for _, q := range slices.Concat(endless, crossing, []*pb.CreatePolicyRequest{leased}, limited) {
		if _, err := MakePolicy(ctx, by.Client, q); err != nil {
			return err
		}
	}
	s, err := pb.NewClusterClient(by.Client.Conn()).Status(ctx, &pb.ClusterStatusRequest{})
	if err != nil {
		return fmt.Errorf("ask which shards there are: %w", err)
	}
	for _, shard := range s.Shards {
		if shard.Info.Shard != 0 {
			l.shards = append(l.shards, shard.Info.Shard)
		}
	}
	missing := len(l.shards) * (keysPerShard*epochs + 1)
	for i := 0; missing > 0; i++ {
		key, address := fmt.Sprintf("key-%d", i), fmt.Sprintf("10.1.%d.%d", i/250%250, i%250)
		if shard := shardOf(s.Shards, "client:"+key); len(l.keys[shard]) < keysPerShard*epochs {
			l.keys[shard] = append(l.keys[shard], key)
			missing--
		}
		if shard := shardOf(s.Shards, "ip:"+address); l.addresses[shard] == "" {
			l.addresses[shard] = address
			missing--
		}
	}
	l.begin = time.Now()
	return nil
}

// shardOf finds the shard of a routing key.
func shardOf(shards []*pb.ShardStatus, key string) uint32 {
	slot := uint32(xxh3.HashString(key) >> 48)
	i := slices.IndexFunc(shards, func(s *pb.ShardStatus) bool {
		return s.Info.Shard != 0 && slot >= s.Info.FirstSlot && slot <= s.Info.LastSlot
	})
	return shards[i].Info.Shard
}

// key is one of the keys of a shard that are in use now.
func (l *chaosLimits) key(shard uint32, slot int) string {
	return l.keys[shard][slot+keysPerShard*int(time.Since(l.begin)/epoch%epochs)]
}

// Callers implements Load.
func (l *chaosLimits) Callers() (all []Caller) {
	for _, shard := range l.shards {
		for slot := range keysPerShard {
			ask := func(kind string) func(by *Process) error {
				return func(by *Process) error {
					_, err := decide(by, kind, client.Request{Client: l.key(shard, slot), Resource: counted})
					return err
				}
			}
			all = append(all, slices.Repeat([]Caller{{Step: ask(KindCheck)}}, writersPerKey)...)
			all = append(all, Caller{Reads: true, Step: ask(KindPeek)})
		}
		use := Caller{Step: func(by *Process) error {
			q := client.Request{Client: l.key(shard, by.Rand.IntN(keysPerShard)), Resource: limited[by.Rand.IntN(len(limited))].Name}
			d, err := decide(by, KindCheck, q)
			if err == nil && d.ReleaseToken != "" {
				err = release(by, q, d.ReleaseToken)
			}
			return err
		}}
		all = append(all, slices.Repeat([]Caller{use}, usersPerShard)...)
		all = append(all, Caller{Step: func(by *Process) error {
			q := client.Request{Client: l.key(shard, by.Rand.IntN(keysPerShard)), IP: l.addresses[l.another(shard, by)], Resource: crossed}
			_, err := decide(by, KindCheck, q)
			return err
		}}, Caller{Step: func(by *Process) error {
			kind := KindLease
			if by.Rand.IntN(8) == 0 {
				kind = KindCheck // beside the leases, and it tells which limit they are of
			}
			_, err := decide(by, kind, client.Request{Client: l.key(shard, 0), Resource: leased.Name})
			return err
		}})
	}
	return all
}

// another is a shard beside one.
func (l *chaosLimits) another(shard uint32, by *Process) uint32 {
	others := slices.DeleteFunc(slices.Clone(l.shards), func(s uint32) bool { return s == shard })
	return others[by.Rand.IntN(len(others))]
}

// Press implements Load.
func (l *chaosLimits) Press(ctx context.Context, cl *client.Client, shard uint32) {
	_, _ = cl.Limits().Check(ctx, client.Request{Client: l.keys[shard][0], Resource: crowded})
}

// MayFail implements Load: a lease is asked for two seconds only, and who had none before has no fallback.
func (l *chaosLimits) MayFail(op *history.Op) bool {
	in, ok := op.Input.(LimitOp)
	return ok && in.Kind == KindLease
}

// Judge implements Load.
func (l *chaosLimits) Judge(ops []history.Op, at ShardTimes) Judged {
	j := judgePromises(ops, rulesOf(append([]*pb.CreatePolicyRequest{leased}, limited...)...), at)
	j.Add(checkCounters(ops))
	return j
}

// Unclear implements Load: questions about counters that nobody is known to have taken from before are excused.
func (l *chaosLimits) Unclear(ops []history.Op, unclear []*history.Op) (n int) {
	for _, op := range unclear {
		if _, ok := op.Input.(LimitOp); ok {
			n++
		}
	}
	return n - early(ops)
}

// early counts the questions about counters that nobody is known to have taken from before: the replay does not know their
// limits. What they are told is only compared with what clients did.
func early(ops []history.Op) (n int) {
	first := make(map[string]uint64) // the entry of the first known check, by client
	for _, o := range ops {
		in, ok := o.Input.(LimitOp)
		if !ok || in.Kind != KindCheck || in.Request.Resource != counted || o.Outcome != history.Definite {
			continue
		}
		if at, ok := first[in.Request.Client]; !ok || o.Trace.Index < at {
			first[in.Request.Client] = o.Trace.Index
		}
	}
	for _, o := range ops {
		if in, ok := o.Input.(LimitOp); ok && in.Kind == KindPeek && o.Outcome == history.Definite {
			if at, ok := first[in.Request.Client]; !ok || o.Trace.Index < at {
				n++
			}
		}
	}
	return n
}

// Sequences implements Load: of all limits but leases, slots, and those that are taken together. As in a simulation, what
// follows an operation of unknown outcome is only looked at if the limit never denies.
func (l *chaosLimits) Sequences() Sequences {
	rules := rulesOf(slices.Concat(endless, limited)...)
	delete(rules, crowded)
	resource := func(op *history.Op) string { return op.Input.(LimitOp).Request.Resource }
	return Sequences{
		Key: func(op *history.Op) (string, bool) {
			in, ok := op.Input.(LimitOp)
			p, judged := rules[in.Request.Resource]
			return in.Request.Resource + "/" + in.Request.Client, ok && judged && p.Algorithm != counter.Concurrency
		},
		Model: func(_ string, ops []*history.Op) (porcupine.Model, bool) {
			p := rules[resource(ops[0])]
			return LimitSequence(p), CanJudge(p, ops)
		},
		Until: func(op *history.Op) bool { return op.Outcome == history.Unknown && resource(op) != counted },
	}
}
