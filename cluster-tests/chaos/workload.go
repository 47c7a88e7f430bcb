package chaos

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
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
	// epoch is how long a key is used: so that what happened to it is little enough for checks that take their time.
	epoch  = 5 * time.Second
	epochs = 24 // then the first keys come again
)

// counted is the resource whose limit is never reached, so that its counters count what was done.
const counted = "counted"

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

// makePolicy makes a policy for one resource, which has the policy's name, and for every client.
func makePolicy(t testing.TB, cl *client.Client, q *pb.CreatePolicyRequest) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	q.Resource = q.Name
	policies := pb.NewPoliciesClient(cl.Conn())
	p, err := policies.CreatePolicy(ctx, q)
	if err != nil {
		t.Fatal(err)
	}
	_, err = policies.AssignClients(ctx, &pb.AssignClientsRequest{PolicyId: p.PolicyId, ClientIds: []string{"*"}})
	if err != nil {
		t.Fatal(err)
	}
}

// workload is what clients do during a history, and what they were told.
type workload struct {
	begin   time.Time
	history *history.History
	clients []*client.Client
	keys    map[uint32][]string // by shard: those of the first epoch, then of the second, and so on
}

// hasty begins the name of a process whose client gives up sooner than leaders are elected. So there are operations of
// unknown outcome, of which nobody may complain.
const (
	hasty        = "hasty-"
	hastyTimeout = 700 * time.Millisecond
)

// newWorkload makes the policies and finds keys for each shard.
func newWorkload(t testing.TB, c *Cluster) *workload {
	w := &workload{keys: make(map[uint32][]string)}
	w.clients = []*client.Client{c.Dial(0), c.Dial(0), c.Dial(hastyTimeout)}
	makePolicy(t, w.clients[0], &pb.CreatePolicyRequest{Name: counted, Algorithm: "fixed_window", RateLimit: 10_000_000, TimeWindow: neverEnds})
	makePolicy(t, w.clients[0], &pb.CreatePolicyRequest{Name: benched, Algorithm: "fixed_window", RateLimit: 10_000_000, TimeWindow: neverEnds})
	for _, q := range append([]*pb.CreatePolicyRequest{leased}, limited...) {
		makePolicy(t, w.clients[0], q)
	}
	s, err := c.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	missing := c.opts.Shards * keysPerShard * epochs
	for i := 0; missing > 0; i++ {
		key := fmt.Sprintf("key-%d", i)
		slot := uint32(xxh3.HashString("client:"+key) >> 48)
		for _, shard := range s.Shards {
			if n := shard.Info.Shard; slot >= shard.Info.FirstSlot && slot <= shard.Info.LastSlot && n != 0 && len(w.keys[n]) < keysPerShard*epochs {
				w.keys[n] = append(w.keys[n], key)
				missing--
			}
		}
	}
	w.begin, w.history = time.Now(), history.New()
	return w
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
