package client

import (
	"context"
	"errors"
	"fmt"
	"slices"
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

// refresh fetches the cluster map from any node that answers. Several callers share one fetch.
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
	failed := errors.New("asked for the cluster map")
	for _, addr := range c.known() {
		conn, err := c.conn(addr)
		if err != nil {
			failed = fmt.Errorf("%w; %w", failed, err)
			continue
		}
		try, cancel := context.WithTimeout(ctx, 2*time.Second)
		m, err := pb.NewDataClient(conn).ClusterMap(try, &pb.ClusterMapRequest{})
		cancel()
		if err == nil && len(m.Shards) > 0 {
			c.learn(m)
			return nil
		}
		if err == nil {
			err = errors.New("knows of no shards")
		}
		failed = fmt.Errorf("%w; %s: %w", failed, addr, err)
	}
	return failed
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

func (c *Client) learn(m *pb.ClusterMapResponse) {
	r := &routes{cluster: sessiontoken.ClusterOf(m.ClusterId), shards: m.Shards, byNode: make(map[string]string), leaders: make(map[uint32]string)}
	slices.SortFunc(r.shards, func(a, b *pb.ShardInfo) int { return int(a.FirstSlot) - int(b.FirstSlot) })
	var down []string
	for _, n := range m.Nodes {
		r.byNode[n.NodeId] = n.GrpcAddr
		if n.State == "up" {
			r.addrs = append(r.addrs, n.GrpcAddr)
		} else {
			down = append(down, n.GrpcAddr)
		}
	}
	r.addrs = append(r.addrs, down...)
	for _, s := range m.Shards {
		if addr := r.byNode[s.Leader]; addr != "" {
			r.leaders[s.Shard] = addr
		}
	}
	c.routes.Store(r)
	c.mu.Lock()
	c.refreshed = time.Now()
	c.mu.Unlock()
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
