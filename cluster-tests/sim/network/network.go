// Package network is a network in memory whose time is that of package time: inside a testing/synctest bubble, virtual.
// Bytes and packets need time to arrive, links are cut in one direction or both, packets are lost, repeated and overtake
// each other, connections stall and are reset, machines lose their power. Everything waits on channels, never on a
// socket.
package network

import (
	"errors"
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
	"time"
)

// Network connects hosts. Its methods are safe for concurrent use.
type Network struct {
	mu    sync.Mutex
	rng   *rand.Rand
	hosts map[string]*Host // by IP address, the newest life of each
	links map[Link]*state
	conns map[*conn]struct{}
	stats Stats
}

// Link is one direction between two hosts, by IP address.
type Link struct{ From, To string }

// Quality is how a link treats what it carries. Bytes of connections are never lost, repeated or out of order: what
// happens to their packets shows as delay.
type Quality struct {
	// Latency is the least time on the way, Jitter what may come on top of it.
	Latency, Jitter time.Duration
	// Loss and Repeat are how many of 100 packets get lost, and arrive twice.
	Loss, Repeat int
}

// Stats counts what the network did to its load.
type Stats struct {
	Lost, Repeated, Refused, Resets uint64
}

type state struct {
	quality Quality
	cuts    int       // by so many faults at a time
	since   time.Time // of the first
	stopped int       // what the cuts have stopped
}

// Default is a local network.
var Default = Quality{Latency: 200 * time.Microsecond, Jitter: 300 * time.Microsecond}

// retransmit is how long the sender of a connection takes to notice that a packet was lost.
const retransmit = 200 * time.Millisecond

// New makes a network without hosts.
func New(seed uint64) *Network {
	return &Network{
		rng: rand.New(rand.NewPCG(seed, 1)), hosts: make(map[string]*Host), links: make(map[Link]*state), conns: make(map[*conn]struct{}),
	}
}

// Host is one life of a machine, from when it is switched on to when it is not any more.
type Host struct {
	n         *Network
	ip        string
	down      bool
	silent    bool // the power failed: nobody is told
	listeners map[int]*listener
	packets   map[int]*Packets
	nextPort  int
}

var (
	errDown    = errors.New("this host is down")
	errRefused = errors.New("connection refused")
	errReset   = errors.New("connection reset by peer")
)

// Host switches a machine on, under an address that no other live host has. Connections to its former life are reset.
func (n *Network) Host(ip string) *Host {
	n.mu.Lock()
	defer n.mu.Unlock()
	h := &Host{n: n, ip: ip, listeners: make(map[int]*listener), packets: make(map[int]*Packets), nextPort: 40000}
	old := n.hosts[ip]
	n.hosts[ip] = h
	for c := range n.conns {
		if old != nil && c.peer.host == old {
			c.in.push(n, segment{reset: true})
		}
	}
	return h
}

// Down ends the host's life. If it is silent, as when the power fails, the others do not hear of it; else their
// connections to it are reset, as when its process is killed.
func (h *Host) Down(silent bool) {
	n := h.n
	n.mu.Lock()
	defer n.mu.Unlock()
	h.down, h.silent = true, silent
	for _, l := range h.listeners {
		l.closeLocked()
	}
	for c := range n.conns {
		switch {
		case c.host == h:
			c.in.fail(errDown)
			c.out.gone = true
		case c.peer.host == h && !silent:
			c.in.push(n, segment{reset: true})
		}
	}
}

// IP is the host's address.
func (h *Host) IP() string { return h.ip }

// Addr is an address of the host.
func (h *Host) Addr(port int) string { return net.JoinHostPort(h.ip, strconv.Itoa(port)) }

func (n *Network) link(l Link) *state {
	s := n.links[l]
	if s == nil {
		s = &state{quality: Default}
		n.links[l] = s
	}
	return s
}

// SetQuality changes how a link treats what is sent from now on.
func (n *Network) SetQuality(l Link, q Quality) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.link(l).quality = q
}

// Cut lets nothing through a link: packets are lost, connections stall. What is cut twice is healed by the second Heal.
func (n *Network) Cut(l Link) {
	n.mu.Lock()
	defer n.mu.Unlock()
	s := n.link(l)
	if s.cuts++; s.cuts == 1 {
		s.since = time.Now()
	}
}

// Heal ends a cut. What connections were sent in the meantime arrives.
func (n *Network) Heal(l Link) {
	n.mu.Lock()
	defer n.mu.Unlock()
	s := n.link(l)
	if s.cuts == 0 {
		return
	}
	if s.cuts--; s.cuts > 0 {
		return
	}
	for c := range n.conns {
		if c.in.link != l {
			continue
		}
		at := time.Now().Add(n.delay(s.quality))
		for i := range c.in.segments {
			if seg := &c.in.segments[i]; seg.at.After(s.since) && seg.at.Before(at) {
				seg.at = at
			}
		}
		c.in.changed()
	}
}

// Stopped counts what the cuts of a link have stopped so far: packets, connections, and bytes, as often as they were waited for.
func (n *Network) Stopped(l Link) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.link(l).stopped
}

// stops tells whether a link is cut, and counts what it stops. Called with mu held.
func (s *state) stops() bool {
	if s.cuts > 0 {
		s.stopped++
	}
	return s.cuts > 0
}

// HealAll ends all cuts and gives all links the default quality.
func (n *Network) HealAll() {
	n.mu.Lock()
	links := make([]Link, 0, len(n.links))
	for l, s := range n.links {
		s.quality, s.cuts = Default, min(s.cuts, 1)
		links = append(links, l)
	}
	n.mu.Unlock()
	for _, l := range links {
		n.Heal(l)
	}
}

// Reset resets all connections between two hosts and returns how many there were.
func (n *Network) Reset(a, b string) (count int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for c := range n.conns {
		if l := c.in.link; l == (Link{a, b}) || l == (Link{b, a}) {
			c.in.fail(errReset)
			count++
		}
	}
	n.stats.Resets += uint64(count)
	return count
}

// Stats counts what happened so far.
func (n *Network) Stats() Stats {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.stats
}

// delay is how long something takes. Called with mu held.
func (n *Network) delay(q Quality) time.Duration {
	d := q.Latency
	if q.Jitter > 0 {
		d += time.Duration(n.rng.Int64N(int64(q.Jitter)))
	}
	return d
}

// chance is true so many times of 100. Called with mu held.
func (n *Network) chance(percent int) bool { return percent > 0 && n.rng.IntN(100) < percent }

// Chance is true so many times of 100.
func (n *Network) Chance(percent int) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.chance(percent)
}

// Within is a random time up to the longest.
func (n *Network) Within(longest time.Duration) time.Duration {
	n.mu.Lock()
	defer n.mu.Unlock()
	return time.Duration(n.rng.Int64N(int64(longest) + 1))
}
