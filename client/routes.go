package client

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/zeebo/xxh3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
	"github.com/holdfastdb/holdfast/rpc/sessiontoken"
)

// routes is what the client knows of the cluster. It does not change; a new one replaces it.
type routes struct {
	cluster sessiontoken.Cluster
	shards  []*pb.ShardInfo // by first slot
	addrs   []string        // of all nodes, those that are up first
	byNode  map[string]string
	leaders map[uint32]string // addresses
}

// shardOf finds the shard of a routing key.
func (r *routes) shardOf(routingKey string) uint32 {
	return r.shardAt(uint16(xxh3.HashString(routingKey) >> 48))
}

// shardAt finds the shard of a slot.
func (r *routes) shardAt(slot uint16) uint32 {
	i, found := slices.BinarySearchFunc(r.shards, slot, func(s *pb.ShardInfo, slot uint16) int { return int(s.FirstSlot) - int(slot) })
	if !found {
		i--
	}
	return r.shards[i].Shard
}

// refreshPause keeps a cluster in trouble from being asked for its map all the time.
const refreshPause = 50 * time.Millisecond

const (
	// mostAsked bounds the nodes that are asked for the map at a time.
	mostAsked  = 5
	mapTimeout = 2 * time.Second
	// mapGrace is how long the others may take to answer after the first has.
	mapGrace = 50 * time.Millisecond
)

// refresh fetches the cluster map. Several callers share one fetch.
func (c *Client) refresh(ctx context.Context) error {
	asked := time.Now()
	select {
	case c.refreshing <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-c.refreshing }()
	c.mu.Lock()
	fresh := c.refreshed.After(asked)
	since := time.Since(c.refreshed)
	c.mu.Unlock()
	if fresh {
		return nil
	}
	if since < refreshPause {
		if err := sleep(ctx, refreshPause-since); err != nil {
			return err
		}
	}
	maps, err := c.askForMap(ctx)
	if len(maps) == 0 {
		return err
	}
	c.learn(maps)
	return nil
}

// mapAge is about how old the cluster map gets. Who calls little, or is served by a node that has all that is asked for, hears
// of no change otherwise: when that node goes, it would know none of those that came since.
const mapAge = 15 * time.Second

// keepMap fetches the cluster map when it is old, until the client is closed.
func (c *Client) keepMap() {
	for {
		c.mu.Lock()
		age := time.Since(c.refreshed)
		c.mu.Unlock()
		if age >= mapAge {
			_ = c.refresh(c.ctx) // or the next time
			age = 0
		}
		if sleep(c.ctx, mapAge-age+rand.N(mapAge/4)) != nil { // not all clients at once
			return
		}
	}
}

// askForMap asks several nodes at a time: one alone may be cut off from all others and not know it, and would be believed as
// long as that lasts.
func (c *Client) askForMap(ctx context.Context) (maps []*pb.ClusterMapResponse, failed error) {
	type answer struct {
		m   *pb.ClusterMapResponse
		err error
	}
	var asking sync.WaitGroup
	defer asking.Wait()
	ctx, cancel := context.WithTimeout(ctx, mapTimeout)
	defer cancel()
	addrs := c.known()
	addrs = addrs[:min(len(addrs), mostAsked)]
	answers := make(chan answer, len(addrs))
	for _, addr := range addrs {
		asking.Go(func() {
			m, err := c.mapOf(ctx, addr)
			if err != nil {
				err = fmt.Errorf("%s: %w", addr, err)
			}
			answers <- answer{m, err}
		})
	}
	failed = errors.New("asked for the cluster map")
	var grace <-chan time.Time
	for range addrs {
		select {
		case a := <-answers:
			if a.err != nil {
				failed = fmt.Errorf("%w; %w", failed, a.err)
				continue
			}
			maps = append(maps, a.m)
			if grace == nil {
				t := time.NewTimer(mapGrace)
				defer t.Stop()
				grace = t.C
			}
		case <-grace:
			return maps, failed
		}
	}
	return maps, failed
}

func (c *Client) mapOf(ctx context.Context, addr string) (*pb.ClusterMapResponse, error) {
	conn, err := c.conn(addr)
	if err != nil {
		return nil, err
	}
	m, err := pb.NewDataClient(conn).ClusterMap(ctx, &pb.ClusterMapRequest{})
	if err == nil && len(m.Shards) == 0 {
		err = errors.New("knows of no shards")
	}
	return m, err
}

// known lists addresses to try, the configured ones after those of the map, and at the end one that has been silent.
func (c *Client) known() []string {
	var addrs []string
	if r := c.routes.Load(); r != nil {
		addrs = append(addrs, r.addrs...)
	}
	for _, a := range c.cfg.Addrs {
		if !slices.Contains(addrs, a) {
			addrs = append(addrs, a)
		}
	}
	if silent := c.silent.Load(); silent != nil {
		if i := slices.Index(addrs, *silent); i >= 0 {
			addrs = append(slices.Delete(addrs, i, i+1), *silent)
		}
	}
	return addrs
}

// learn takes over what nodes say. Shards and nodes are as in the newest map, or in that of who reaches most nodes; the leader
// of a shard is the one with the highest term.
func (c *Client) learn(maps []*pb.ClusterMapResponse) {
	m := slices.MaxFunc(maps, func(a, b *pb.ClusterMapResponse) int {
		return cmp.Or(cmp.Compare(a.Epoch, b.Epoch), cmp.Compare(nodesUp(a), nodesUp(b)))
	})
	r := &routes{cluster: sessiontoken.ClusterOf(m.ClusterId), shards: m.Shards, byNode: make(map[string]string), leaders: make(map[uint32]string)}
	slices.SortFunc(r.shards, func(a, b *pb.ShardInfo) int { return int(a.FirstSlot) - int(b.FirstSlot) })
	var down []string
	for _, n := range m.Nodes {
		r.byNode[n.NodeId] = n.GrpcAddr
		if n.State == stateUp {
			r.addrs = append(r.addrs, n.GrpcAddr)
		} else {
			down = append(down, n.GrpcAddr)
		}
	}
	r.addrs = append(r.addrs, down...)
	terms := make(map[uint32]uint64)
	for _, one := range maps {
		for _, s := range one.Shards {
			if addr := r.byNode[s.Leader]; addr != "" && s.Term >= terms[s.Shard] && one.ClusterId == m.ClusterId {
				r.leaders[s.Shard], terms[s.Shard] = addr, s.Term
			}
		}
	}
	c.routes.Store(r)
	c.mu.Lock()
	c.refreshed = time.Now()
	c.mu.Unlock()
}

const stateUp = "up"

func nodesUp(m *pb.ClusterMapResponse) (n int) {
	for _, node := range m.Nodes {
		if node.State == stateUp {
			n++
		}
	}
	return n
}

// hint notes the leader of a shard that a node named.
func (c *Client) hint(shard uint32, addr string) {
	for {
		old := c.routes.Load()
		if old.leaders[shard] == addr {
			return
		}
		r := *old
		r.leaders = make(map[uint32]string, len(old.leaders))
		for s, a := range old.leaders {
			r.leaders[s] = a
		}
		r.leaders[shard] = addr
		if c.routes.CompareAndSwap(old, &r) {
			return
		}
	}
}

// Conn is the connection for calls that are not part of the SDK, such as those of the generated clients in package
// holdfastpb. A call goes to the first node that can be reached.
func (c *Client) Conn() grpc.ClientConnInterface { return failover{c} }

type failover struct{ c *Client }

// Invoke implements grpc.ClientConnInterface. A call is tried elsewhere only if there was no connection to send it on. Who
// loses the connection afterwards cannot know whether the call was served, and an ErrOutcomeUnknown says so.
func (f failover) Invoke(ctx context.Context, method string, q, r any, opts ...grpc.CallOption) error {
	var err error
	for _, addr := range f.c.known() {
		var conn *grpc.ClientConn
		if conn, err = f.c.conn(addr); err != nil {
			return err
		}
		var sentTo peer.Peer // set when there is a connection
		err = conn.Invoke(ctx, method, q, r, append(slices.Clip(opts), grpc.Peer(&sentTo))...)
		s := status.Convert(err)
		if s.Code() == codes.Unavailable {
			f.c.silent.Store(&addr) // who tries again asks another one first
		}
		switch {
		case s.Code() != codes.Unavailable || len(s.Details()) > 0: // a node that refuses gives its reason
			return err
		case sentTo.Addr != nil:
			return fmt.Errorf("%w: %w", ErrOutcomeUnknown, err)
		}
	}
	return err
}

// NewStream implements grpc.ClientConnInterface.
func (f failover) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	conn, err := f.c.conn(f.c.known()[0])
	if err != nil {
		return nil, err
	}
	return conn.NewStream(ctx, desc, method, opts...)
}
