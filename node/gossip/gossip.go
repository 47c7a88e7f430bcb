// Package gossip tells which nodes are alive, where they listen and which shards they lead. It only ever advises: who
// is a member of the cluster, and of each Raft group, the catalog decides.
package gossip

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
)

// Meta is what a node says of itself. Its JSON must stay under memberlist's 512 bytes.
type Meta struct {
	ClusterID string `json:"c,omitempty"` // empty until the node belongs to a cluster
	Name      string `json:"n"`
	GRPC      string `json:"g"`
	HTTP      string `json:"h"`
	Peer      string `json:"p"`
	Zone      string `json:"z,omitempty"`
}

// Member is a node as gossip sees it.
type Member struct {
	NodeID string
	Gossip string // address
	Meta   Meta
	Alive  bool
	Since  time.Time // of the last change of Alive, by this node's clock
}

// Config says how to gossip.
type Config struct {
	NodeID string
	Bind   string // host:port
	// Advertise is the host that others reach this node at, if not the one it listens on.
	Advertise string
	Meta      Meta
	// Key encrypts and authenticates the traffic: 16, 24 or 32 bytes. Without it the traffic is plain, which is
	// refused on an address that is not loopback.
	Key []byte
	// Transport replaces UDP and TCP sockets, for tests.
	Transport memberlist.Transport
	// OnChange is called, from no more than one goroutine at a time and without locks, after a member came or went.
	OnChange func()
	Logger   *slog.Logger
}

// Gossip is a running member. Its methods are safe for concurrent use.
type Gossip struct {
	cfg   Config
	list  *memberlist.Memberlist
	queue memberlist.TransmitLimitedQueue

	mu      sync.Mutex
	meta    Meta
	members map[string]Member
	leads   map[uint32]Lead
	known   []string // gossip addresses of nodes that should be here, see SetKnown

	changed chan struct{}
	learned chan struct{} // wakes rejoin: known has new addresses
	stop    context.CancelFunc
	done    sync.WaitGroup
	close   func() error
}

// Lead says who leads a group in which term.
type Lead struct {
	Group  uint32 `json:"g"`
	Term   uint64 `json:"t"`
	NodeID string `json:"n"`
}

// rejoinInterval is how often a node calls known nodes that it does not see. memberlist forgets dead nodes, so without
// these calls a healed partition would stay split.
const rejoinInterval = 10 * time.Second

// Start begins to gossip.
func Start(cfg Config) (*Gossip, error) {
	host, portText, err := net.SplitHostPort(cfg.Bind)
	if err != nil {
		return nil, fmt.Errorf("gossip address %q: %w", cfg.Bind, err)
	}
	port, err := strconv.Atoi(portText)
	if err != nil {
		return nil, fmt.Errorf("gossip address %q: port: %w", cfg.Bind, err)
	}
	mc := memberlist.DefaultLANConfig()
	if cfg.Transport == nil {
		ip, err := resolve(host)
		if err != nil {
			return nil, fmt.Errorf("gossip address %q: %w", cfg.Bind, err)
		}
		if len(cfg.Key) == 0 && !ip.IsLoopback() {
			return nil, fmt.Errorf("gossip address %q: refusing to gossip in plain text off loopback: set a gossip key", cfg.Bind)
		}
		host = ip.String()
		if cfg.Advertise != "" {
			if ip, err = resolve(cfg.Advertise); err != nil {
				return nil, fmt.Errorf("advertised host %q: %w", cfg.Advertise, err)
			}
			mc.AdvertiseAddr = ip.String()
		}
	}
	g := &Gossip{
		cfg: cfg, meta: cfg.Meta,
		members: make(map[string]Member), leads: make(map[uint32]Lead), changed: make(chan struct{}, 1),
		learned: make(chan struct{}, 1),
	}
	mc.Name, mc.BindAddr, mc.BindPort, mc.AdvertisePort = cfg.NodeID, host, port, port
	mc.Transport = cfg.Transport
	mc.SecretKey = cfg.Key
	mc.EnableCompression = false // the messages are small: it costs idle nodes more than it saves
	mc.SuspicionMaxTimeoutMult = 2
	mc.PushPullInterval = 15 * time.Second
	mc.DeadNodeReclaimTime = 30 * time.Second
	mc.Delegate, mc.Events, mc.Alive = (*delegate)(g), (*events)(g), (*guard)(g)
	mc.LogOutput, mc.Logger = nil, log.New(logWriter{cfg.Logger}, "", 0)
	// The node counts itself from memberlist.Create on, which calls the delegates: the queue must stand before.
	g.queue = memberlist.TransmitLimitedQueue{RetransmitMult: 3, NumNodes: g.aliveCount}
	if g.list, err = memberlist.Create(mc); err != nil {
		return nil, fmt.Errorf("start gossip on %s: %w", cfg.Bind, err)
	}
	ctx, stop := context.WithCancel(context.Background())
	g.stop = stop
	g.close = sync.OnceValue(g.shutdown)
	g.done.Add(2)
	go g.notify(ctx)
	go g.rejoin(ctx)
	return g, nil
}

// Addr is the address that other nodes join.
func (g *Gossip) Addr() string { return g.list.LocalNode().Address() }

// Join calls the nodes at the given addresses; one that answers is enough.
func (g *Gossip) Join(addrs []string) error {
	if _, err := g.list.Join(addrs); err != nil {
		return fmt.Errorf("join %v: %w", addrs, err)
	}
	return nil
}

// SetKnown tells the gossip addresses of all nodes of the cluster, for calling those that are not seen. New addresses are
// called at once: a node that has just started would think for a while that it is alone.
func (g *Gossip) SetKnown(addrs []string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	old := g.known
	g.known = slices.Clone(addrs)
	if slices.ContainsFunc(addrs, func(addr string) bool { return !slices.Contains(old, addr) }) {
		select {
		case g.learned <- struct{}{}:
		default:
		}
	}
}

// SetMeta changes what the node says of itself.
func (g *Gossip) SetMeta(meta Meta) error {
	g.mu.Lock()
	g.meta = meta
	g.mu.Unlock()
	if err := g.list.UpdateNode(5 * time.Second); err != nil {
		return fmt.Errorf("gossip new node data: %w", err)
	}
	return nil
}

// Members returns all nodes seen, this one included, ordered by id.
func (g *Gossip) Members() []Member {
	g.mu.Lock()
	defer g.mu.Unlock()
	all := make([]Member, 0, len(g.members))
	for _, m := range g.members {
		all = append(all, m)
	}
	slices.SortFunc(all, func(a, b Member) int { return cmp.Compare(a.NodeID, b.NodeID) })
	return all
}

// Member returns one node.
func (g *Gossip) Member(nodeID string) (Member, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	m, ok := g.members[nodeID]
	return m, ok
}

// Announce spreads that this node leads a group.
func (g *Gossip) Announce(group uint32, term uint64) {
	lead := Lead{Group: group, Term: term, NodeID: g.cfg.NodeID}
	g.learn(lead)
	msg, err := json.Marshal(lead)
	if err != nil {
		return // three plain fields always encode
	}
	g.queue.QueueBroadcast(&announcement{name: strconv.FormatUint(uint64(group), 10), msg: msg})
}

// Leader returns the newest leader heard of.
func (g *Gossip) Leader(group uint32) (Lead, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	lead, ok := g.leads[group]
	return lead, ok
}

// Close says goodbye, so that the others need not find out, and stops. It may be called again.
func (g *Gossip) Close() error { return g.close() }

func (g *Gossip) shutdown() error {
	g.stop()
	g.done.Wait()
	if err := g.list.Leave(time.Second); err != nil {
		g.cfg.Logger.Warn("could not say goodbye, the others will find out", "error", err)
	}
	return g.list.Shutdown()
}

func (g *Gossip) learn(lead Lead) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if lead.Term >= g.leads[lead.Group].Term {
		g.leads[lead.Group] = lead
	}
}

func (g *Gossip) aliveCount() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	alive := 0
	for _, m := range g.members {
		if m.Alive {
			alive++
		}
	}
	return max(alive, 1)
}

// notify decouples OnChange from memberlist's callbacks, which must not block.
func (g *Gossip) notify(ctx context.Context) {
	defer g.done.Done()
	for {
		select {
		case <-ctx.Done():
			return
		case <-g.changed:
			if g.cfg.OnChange != nil {
				g.cfg.OnChange()
			}
		}
	}
}

func (g *Gossip) rejoin(ctx context.Context) {
	defer g.done.Done()
	ticker := time.NewTicker(rejoinInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-g.learned:
		case <-ticker.C:
		}
		if missing := g.missing(); len(missing) > 0 {
			if err := g.Join(missing); err != nil {
				g.cfg.Logger.DebugContext(ctx, "known nodes do not answer", "error", err)
			}
		}
	}
}

func (g *Gossip) missing() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	var missing []string
	for _, addr := range g.known {
		seen := false
		for _, m := range g.members {
			seen = seen || (m.Alive && m.Gossip == addr)
		}
		if !seen {
			missing = append(missing, addr)
		}
	}
	return missing
}

func (g *Gossip) update(n *memberlist.Node, alive bool) {
	var meta Meta
	if err := json.Unmarshal(n.Meta, &meta); err != nil {
		g.cfg.Logger.Warn("node sends unreadable data", "node", n.Name, "error", err)
		return
	}
	g.mu.Lock()
	old, ok := g.members[n.Name]
	m := Member{NodeID: n.Name, Gossip: n.Address(), Meta: meta, Alive: alive, Since: old.Since}
	if !ok || old.Alive != alive {
		m.Since = time.Now()
	}
	g.members[n.Name] = m
	g.mu.Unlock()
	select {
	case g.changed <- struct{}{}:
	default: // one is waiting already
	}
}

// events receives memberlist's view of the nodes.
type events Gossip

func (e *events) NotifyJoin(n *memberlist.Node)   { (*Gossip)(e).update(n, true) }
func (e *events) NotifyUpdate(n *memberlist.Node) { (*Gossip)(e).update(n, true) }
func (e *events) NotifyLeave(n *memberlist.Node)  { (*Gossip)(e).update(n, false) }

// guard keeps nodes of other clusters out.
type guard Gossip

func (a *guard) NotifyAlive(n *memberlist.Node) error {
	var meta Meta
	if err := json.Unmarshal(n.Meta, &meta); err != nil {
		return fmt.Errorf("node %s: unreadable data: %w", n.Name, err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if mine := a.meta.ClusterID; mine != "" && meta.ClusterID != "" && meta.ClusterID != mine {
		return fmt.Errorf("node %s belongs to cluster %s, this one to %s", n.Name, meta.ClusterID, mine)
	}
	return nil
}

// delegate carries this node's data and the announcements of leaders.
type delegate Gossip

func (d *delegate) NodeMeta(limit int) []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	b, err := json.Marshal(d.meta)
	if err != nil || len(b) > limit {
		d.cfg.Logger.Error("node data is too long for gossip: shorten the name, zone or addresses", "bytes", len(b), "limit", limit)
		return nil
	}
	return b
}

func (d *delegate) NotifyMsg(b []byte) {
	var lead Lead
	if err := json.Unmarshal(b, &lead); err == nil {
		(*Gossip)(d).learn(lead)
	}
}

func (d *delegate) GetBroadcasts(overhead, limit int) [][]byte {
	return d.queue.GetBroadcasts(overhead, limit)
}

func (d *delegate) LocalState(bool) []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	leads := make([]Lead, 0, len(d.leads))
	for _, lead := range d.leads {
		leads = append(leads, lead)
	}
	b, err := json.Marshal(leads)
	if err != nil {
		return nil
	}
	return b
}

func (d *delegate) MergeRemoteState(b []byte, _ bool) {
	var leads []Lead
	if err := json.Unmarshal(b, &leads); err != nil {
		return
	}
	for _, lead := range leads {
		(*Gossip)(d).learn(lead)
	}
}

// announcement is a queued message; a newer one for the same group replaces it.
type announcement struct {
	name string
	msg  []byte
}

func (a *announcement) Invalidates(other memberlist.Broadcast) bool {
	o, ok := other.(*announcement)
	return ok && o.name == a.name
}
func (a *announcement) Name() string    { return a.name }
func (a *announcement) Message() []byte { return a.msg }
func (a *announcement) Finished()       {}

// logWriter passes memberlist's own log lines on at debug level: what matters of them is told by Member.
type logWriter struct{ logger *slog.Logger }

func (w logWriter) Write(b []byte) (int, error) {
	w.logger.Debug("memberlist", "line", string(b))
	return len(b), nil
}

var _ io.Writer = logWriter{}

// resolve finds the IP of a host, all interfaces for an empty one. memberlist takes only an IP as such: at a name it
// listens on every interface.
func resolve(host string) (net.IP, error) {
	if host == "" {
		return net.IPv4zero, nil
	}
	addr, err := net.ResolveIPAddr("ip", host)
	if err != nil {
		return nil, err
	}
	return addr.IP, nil
}
