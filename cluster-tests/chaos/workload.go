package chaos

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/zeebo/xxh3"

	"github.com/holdfastdb/holdfast/client"
	"github.com/holdfastdb/holdfast/cluster-tests/history"
	"github.com/holdfastdb/holdfast/cluster-tests/models"
	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
)

// The clients of a shard: writers and a reader share keys, so that they compete; limited ones run into limits of every
// algorithm, and a leased one decides from tokens taken in bulk.
const (
	keysPerShard  = 2 // at the same time
	writersPerKey = 2
	think         = 8 * time.Millisecond // between two operations of a client, on average
	// epoch is how long a key is used: so that what happened to it is little enough for checks that take their time, which
	// look at 1,000 operations of a key. Three clients make about 700.
	epoch  = 2 * time.Second
	epochs = 90 // then the first keys come again
)

// counted is the resource whose limit is never reached, so that its counters count what was done.
const counted = "counted"

// crossed is the resource with two policies, one of which counts by address: a check of a client takes from counters of two
// shards, from both or from none. That by address never denies, that by client does.
const crossed = "crossed"

// crossing are the policies of crossed.
var crossing = []*pb.CreatePolicyRequest{
	{Name: "crossed-by-client", Resource: crossed, Algorithm: "token_bucket", RateLimit: 10, TimeWindow: 1, BurstCapacity: 10},
	{Name: "crossed-by-address", Resource: crossed, Scope: "ip", Algorithm: "fixed_window", RateLimit: 10_000_000, TimeWindow: neverEnds},
}

// endless are the policies that never deny.
var endless = []*pb.CreatePolicyRequest{
	{Name: counted, Algorithm: "fixed_window", RateLimit: 10_000_000, TimeWindow: neverEnds},
	{Name: benched, Algorithm: "fixed_window", RateLimit: 10_000_000, TimeWindow: neverEnds},
}

// limited are the other resources, each under a policy of its own.
var limited = []*pb.CreatePolicyRequest{
	{Name: "token_bucket", Algorithm: "token_bucket", RateLimit: 20, TimeWindow: 1, BurstCapacity: 10},
	{Name: "sliding_window", Algorithm: "sliding_window", RateLimit: 20, TimeWindow: 2},
	{Name: "sliding_log", Algorithm: "sliding_log", RateLimit: 20, TimeWindow: 2},
	{Name: "leaky_bucket", Algorithm: "leaky_bucket", RateLimit: 20, TimeWindow: 1, BurstCapacity: 5},
	{Name: "concurrency", Algorithm: "concurrency", RateLimit: 3, TimeWindow: 60},
	{Name: "few", Algorithm: "fixed_window", RateLimit: 50, TimeWindow: neverEnds},
}

// kindLease is an operation that a lease decides.
const kindLease = models.KindLease

// leased is the resource for decisions from leases.
var leased = &pb.CreatePolicyRequest{Name: "leased", Algorithm: "token_bucket", RateLimit: 200, TimeWindow: 1, BurstCapacity: 100, OnUnavailable: "deny"}

// neverEnds is a fixed window so long that none ends during a test, in seconds.
const neverEnds = 360 * 24 * 3600

// makePolicy makes a policy for one resource, which has the policy's name if none is named, and for every client.
func makePolicy(cl *client.Client, q *pb.CreatePolicyRequest) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	q.Resource = cmp.Or(q.Resource, q.Name)
	policies := pb.NewPoliciesClient(cl.Conn())
	p, err := policies.CreatePolicy(ctx, q)
	if err != nil {
		return fmt.Errorf("make policy %s: %w", q.Name, err)
	}
	if _, err = policies.AssignClients(ctx, &pb.AssignClientsRequest{PolicyId: p.PolicyId, ClientIds: []string{"*"}}); err != nil {
		return fmt.Errorf("assign policy %s: %w", q.Name, err)
	}
	return nil
}

// workload is what clients do during a history, and what they were told.
type workload struct {
	begin   time.Time
	history *history.History
	clients []*client.Client
	keys    map[uint32][]string // by shard: those of the first epoch, then of the second, and so on
	// addresses have their counters in one shard each.
	addresses map[uint32]string
}

// hasty begins the name of a process whose client gives up sooner than leaders are elected. So there are operations of
// unknown outcome, of which nobody may complain.
const (
	hasty        = "hasty-"
	hastyTimeout = 700 * time.Millisecond
)

// newWorkload makes the policies and finds keys for each shard.
func newWorkload(c *Cluster) (*workload, error) {
	w := &workload{keys: make(map[uint32][]string), addresses: make(map[uint32]string)}
	for _, patience := range []time.Duration{0, 0, hastyTimeout} {
		cl, err := c.Dial(patience)
		if err != nil {
			return nil, err
		}
		w.clients = append(w.clients, cl)
	}
	for _, q := range slices.Concat(endless, crossing, []*pb.CreatePolicyRequest{leased}, limited) {
		if err := makePolicy(w.clients[0], q); err != nil {
			return nil, err
		}
	}
	s, err := c.Status(context.Background())
	if err != nil {
		return nil, err
	}
	missing := c.opts.Shards * (keysPerShard*epochs + 1)
	for i := 0; missing > 0; i++ {
		key, address := fmt.Sprintf("key-%d", i), fmt.Sprintf("10.1.%d.%d", i/250%250, i%250)
		if shard := at(s.Shards, "client:"+key); len(w.keys[shard]) < keysPerShard*epochs {
			w.keys[shard] = append(w.keys[shard], key)
			missing--
		}
		if shard := at(s.Shards, "ip:"+address); w.addresses[shard] == "" {
			w.addresses[shard] = address
			missing--
		}
	}
	w.begin, w.history = time.Now(), history.New()
	return w, nil
}

// at finds the shard of a routing key.
func at(shards []*pb.ShardStatus, key string) uint32 {
	slot := uint32(xxh3.HashString(key) >> 48)
	i := slices.IndexFunc(shards, func(s *pb.ShardStatus) bool {
		return s.Info.Shard != 0 && slot >= s.Info.FirstSlot && slot <= s.Info.LastSlot
	})
	return shards[i].Info.Shard
}

// now is the time since the begin.
func (w *workload) now() time.Duration { return time.Since(w.begin) }

// run lets all clients work until ctx ends, and what has begun be seen through.
func (w *workload) run(ctx context.Context, seed uint64) {
	var working sync.WaitGroup
	n := uint64(0)
	start := func(step func(cl *client.Client, process string, rng *rand.Rand)) {
		n++
		rng, cl, process := rand.New(rand.NewPCG(seed, n)), w.clients[n%uint64(len(w.clients))], fmt.Sprint("p", n)
		if cl == w.clients[2] {
			process = hasty + process
		}
		working.Go(func() {
			for ctx.Err() == nil {
				step(cl, process, rng)
				time.Sleep(time.Duration(rng.ExpFloat64() * float64(think)))
			}
		})
	}
	for shard := range w.keys {
		for slot := range keysPerShard {
			ask := func(kind string) func(*client.Client, string, *rand.Rand) {
				return func(cl *client.Client, process string, _ *rand.Rand) {
					w.do(cl, process, models.LimitOp{Kind: kind, Request: client.Request{Client: w.key(shard, slot), Resource: counted}})
				}
			}
			for range writersPerKey {
				start(ask(models.KindCheck))
			}
			start(ask(models.KindPeek))
		}
		start(func(cl *client.Client, process string, rng *rand.Rand) {
			q := client.Request{Client: w.key(shard, rng.IntN(keysPerShard)), Resource: limited[rng.IntN(len(limited))].Name}
			if d, err := w.do(cl, process, models.LimitOp{Kind: models.KindCheck, Request: q}); err == nil && d.ReleaseToken != "" {
				p := w.history.Begin(process, models.LimitOp{Kind: models.KindRelease, Request: q})
				var trace client.Trace
				err := cl.Limits().Release(client.WithTrace(context.Background(), &trace), q, d.ReleaseToken)
				p.End(nil, trace, err)
			}
		})
		start(func(cl *client.Client, process string, rng *rand.Rand) {
			q := client.Request{Client: w.key(shard, rng.IntN(keysPerShard)), IP: w.addresses[w.another(shard, rng)], Resource: crossed}
			w.do(cl, process, models.LimitOp{Kind: models.KindCheck, Request: q})
		})
		start(func(cl *client.Client, process string, _ *rand.Rand) {
			q := client.Request{Client: w.key(shard, 0), Resource: leased.Name}
			kind := kindLease
			if rand.IntN(8) == 0 {
				kind = models.KindCheck // beside the leases, and it tells which limit they are of
			}
			w.do(cl, process, models.LimitOp{Kind: kind, Request: q})
		})
	}
	working.Wait()
}

// another is a shard beside one.
func (w *workload) another(shard uint32, rng *rand.Rand) uint32 {
	other := uint32(1 + rng.IntN(len(w.keys)-1))
	if other >= shard {
		other++
	}
	return other
}

// key is one of the keys of a shard that are in use now.
func (w *workload) key(shard uint32, slot int) string {
	return w.keys[shard][slot+keysPerShard*int(w.now()/epoch%epochs)]
}

// do makes one decision and records it. Its deadline is the SDK's.
func (w *workload) do(cl *client.Client, process string, in models.LimitOp) (d client.Decision, err error) {
	in.Limited = true
	p := w.history.Begin(process, in)
	var trace client.Trace
	ctx := client.WithTrace(context.Background(), &trace)
	switch in.Kind {
	case models.KindPeek:
		d, err = cl.Limits().Peek(ctx, in.Request)
	case kindLease:
		d, err = cl.Limits().Async(ctx, in.Request)
	default:
		d, err = cl.Limits().Check(ctx, in.Request)
	}
	p.End(d, trace, err)
	return d, err
}
