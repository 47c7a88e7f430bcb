package sim

import (
	"context"
	"sync"
	"time"

	"github.com/holdfastdb/holdfast/cluster-tests/sim/disk"
	"github.com/holdfastdb/holdfast/cluster-tests/sim/network"
)

// faults are all kinds of trouble: how often they come, and whether all but one server can go on meanwhile.
var faults = []fault{
	{"kill", 6, true, func(n *nemesis) func(context.Context) bool {
		return crash(n.server(), (*server).kill, n.between(200*time.Millisecond, 20*time.Second))
	}},
	{"power cut, unsynced data lost", 3, true, powerCut(0)},
	{"power cut, unsynced data torn", 3, true, powerCut(50)},
	{"power cut, unsynced data kept", 1, true, powerCut(100)},
	{"kill all", 1, false, crashAll((*server).kill)},
	{"power cut of all", 2, false, crashAll(func(s *server) bool { return s.powerCut(50) })},
	{"long absence", 2, true, func(n *nemesis) func(context.Context) bool {
		return crash(n.server(), (*server).kill, n.between(60*time.Second, 120*time.Second))
	}},
	{"rolling restart", 1, false, rollingRestart},
	{"partition", 4, true, partition(true, true)},
	{"partition, deaf", 2, true, partition(true, false)},
	{"partition, mute", 2, true, partition(false, true)},
	{"partition of two", 3, true, partitionOfTwo},
	{"slow network", 2, false, slowNetwork},
	{"lossy network", 5, false, lossyNetwork},
	{"connections reset", 3, true, resets},
	{"connections reset on a slow network", 3, false, together(slowNetwork, resets)},
	{"slow disk", 3, true, slowDisk},
	{"stalled disk", 3, true, stalledDisk},
	{"disk errors", 2, true, failingDisk(disk.EIO)},
	{"disk full", 2, true, failingDisk(disk.ENOSPC)},
	{"leadership transfers", 3, true, transfers},
	{"leadership transfers on a slow network", 2, false, together(slowNetwork, transfers)},
	{"clock skew", 2, true, clockSkew(400 * time.Millisecond)},
	{"clock jump", 2, true, clockSkew(30 * time.Second)},
	{"power cut at an entry", 2, true, powerCutAt(disk.Entries, 20)},
	{"power cut at a vote", 2, true, powerCutAt(disk.Votes, 4)},
	{"leader deposed unheard", 3, true, deposedUnheard},
	{"clock hours off", 2, true, clockSkew(2 * time.Hour)},
}

func crash(s *server, end func(*server) bool, absence time.Duration) func(context.Context) bool {
	return func(ctx context.Context) bool {
		done := end(s)
		hold(ctx, absence)
		s.start()
		return done
	}
}

func powerCut(survives int) func(*nemesis) func(context.Context) bool {
	return func(n *nemesis) func(context.Context) bool {
		return crash(n.server(), func(s *server) bool { return s.powerCut(survives) }, n.between(time.Second, 20*time.Second))
	}
}

func crashAll(end func(*server) bool) func(*nemesis) func(context.Context) bool {
	return func(n *nemesis) func(context.Context) bool {
		order, absence := n.shuffled(), n.between(time.Second, 5*time.Second)
		return func(ctx context.Context) bool {
			all := true
			for _, s := range order {
				all = end(s) && all
			}
			for _, s := range order {
				hold(ctx, absence)
				s.start()
			}
			return all
		}
	}
}

func rollingRestart(n *nemesis) func(context.Context) bool {
	order, pause := n.shuffled(), n.between(time.Second, 10*time.Second)
	return func(ctx context.Context) bool {
		done := false
		for _, s := range order {
			done = s.up() || done
			if err := s.stop(); err != nil {
				n.c.fail(err)
			}
			s.start()
			hold(ctx, pause)
		}
		return done
	}
}

// cut cuts links and heals them after a while.
func cut(n *nemesis, links []network.Link, d time.Duration) func(context.Context) bool {
	return func(ctx context.Context) bool {
		before := n.stopped(links)
		for _, l := range links {
			n.c.net.Cut(l)
		}
		hold(ctx, d)
		for _, l := range links {
			n.c.net.Heal(l)
		}
		return n.stopped(links) > before
	}
}

func (n *nemesis) stopped(links []network.Link) (sum int) {
	for _, l := range links {
		sum += n.c.net.Stopped(l)
	}
	return sum
}

// partition separates a server from the others, and sometimes from the clients.
func partition(incoming, outgoing bool) func(*nemesis) func(context.Context) bool {
	return func(n *nemesis) func(context.Context) bool {
		s := n.server()
		var others []string
		for _, o := range n.c.list() {
			if o != s {
				others = append(others, o.ip)
			}
		}
		if n.rng.IntN(2) == 0 {
			others = append(others, clientIPs...)
		}
		var links []network.Link
		for _, ip := range others {
			if incoming {
				links = append(links, network.Link{From: ip, To: s.ip})
			}
			if outgoing {
				links = append(links, network.Link{From: s.ip, To: ip})
			}
		}
		return cut(n, links, n.between(time.Second, 25*time.Second))
	}
}

func partitionOfTwo(n *nemesis) func(context.Context) bool {
	a, b := n.two()
	return cut(n, []network.Link{{From: a.ip, To: b.ip}, {From: b.ip, To: a.ip}}, n.between(time.Second, 25*time.Second))
}

// every sets the quality of all links between servers, and returns how to set it back.
func every(c *Cluster, q network.Quality) (back func()) {
	var links []network.Link
	for _, a := range c.list() {
		for _, b := range c.list() {
			if a != b {
				links = append(links, network.Link{From: a.ip, To: b.ip})
			}
		}
	}
	set := func(q network.Quality) {
		for _, l := range links {
			c.net.SetQuality(l, q)
		}
	}
	set(q)
	return func() { set(network.Default) }
}

func slowNetwork(n *nemesis) func(context.Context) bool {
	q := network.Quality{Latency: n.between(5*time.Millisecond, 150*time.Millisecond), Jitter: n.between(time.Millisecond, 300*time.Millisecond)}
	d := n.between(5*time.Second, 30*time.Second)
	return func(ctx context.Context) bool {
		back := every(n.c, q)
		held := hold(ctx, d)
		back()
		return held
	}
}

func lossyNetwork(n *nemesis) func(context.Context) bool {
	loss, repeat, late := n.rng.IntN(20), n.rng.IntN(20), n.rng.IntN(40)
	longest := n.between(10*time.Millisecond, 500*time.Millisecond)
	d := n.between(5*time.Second, 30*time.Second)
	return func(ctx context.Context) bool {
		back := every(n.c, network.Quality{Latency: time.Millisecond, Jitter: 20 * time.Millisecond, Loss: loss, Repeat: repeat})
		before := n.c.frame.lost.Load() + n.c.frame.repeated.Load() + n.c.frame.late.Load()
		n.c.frames.Store(&Frames{Loss: loss, Repeat: repeat, Late: late, MaxDelay: longest})
		hold(ctx, d)
		n.c.frames.Store(nil)
		back()
		return n.c.frame.lost.Load()+n.c.frame.repeated.Load()+n.c.frame.late.Load() > before
	}
}

func resets(n *nemesis) func(context.Context) bool {
	s, times, pause := n.server(), 1+n.rng.IntN(5), n.between(10*time.Millisecond, 2*time.Second)
	return func(ctx context.Context) bool {
		count := 0
		for range times {
			for _, o := range n.c.list() {
				count += n.c.net.Reset(s.ip, o.ip)
			}
			for _, ip := range clientIPs {
				count += n.c.net.Reset(s.ip, ip)
			}
			hold(ctx, pause)
		}
		return count > 0
	}
}

// together applies two faults at once: where everything takes its time, more is under way when the second one comes.
func together(first, second func(*nemesis) func(context.Context) bool) func(*nemesis) func(context.Context) bool {
	return func(n *nemesis) func(context.Context) bool {
		long, short := first(n), second(n)
		return func(ctx context.Context) bool {
			var both sync.WaitGroup
			var done bool
			both.Go(func() { done = long(ctx) })
			hold(ctx, time.Second)
			done2 := short(ctx)
			both.Wait()
			return done && done2
		}
	}
}

func (s *server) currentDisk() *disk.Disk {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.disk
}

func slowDisk(n *nemesis) func(context.Context) bool {
	s, latency, d := n.server(), n.between(5*time.Millisecond, 400*time.Millisecond), n.between(5*time.Second, 30*time.Second)
	return func(ctx context.Context) bool {
		k := s.currentDisk()
		before := k.Delayed()
		k.Slow(latency)
		hold(ctx, d)
		k.Slow(0)
		return k.Delayed() > before
	}
}

func stalledDisk(n *nemesis) func(context.Context) bool {
	s, d := n.server(), n.between(500*time.Millisecond, 12*time.Second)
	return func(ctx context.Context) bool {
		k := s.currentDisk()
		before := k.Delayed()
		end := k.Stall()
		hold(ctx, d)
		end()
		return k.Delayed() > before
	}
}

// failingDisk makes writes fail until one of them has ended the process, which is started again on the disk made whole.
func failingDisk(err error) func(*nemesis) func(context.Context) bool {
	return func(n *nemesis) func(context.Context) bool {
		s, d, absence := n.server(), n.between(time.Second, 15*time.Second), n.between(time.Second, 10*time.Second)
		return func(ctx context.Context) bool {
			k := s.currentDisk()
			k.Fail(err)
			hold(ctx, d)
			k.Fail(nil)
			if k.Failures() > 0 {
				hold(ctx, absence)
			}
			s.start()
			return k.Failures() > 0
		}
	}
}

// transfers moves leaderships around faster than they settle.
func transfers(n *nemesis) func(context.Context) bool {
	type move struct {
		group uint32
		to    *server
	}
	var moves []move
	for range 3 + n.rng.IntN(20) {
		moves = append(moves, move{uint32(n.rng.IntN(int(n.c.opts.Shards) + 1)), n.server()})
	}
	pause := n.between(10*time.Millisecond, 2*time.Second)
	return func(ctx context.Context) bool {
		done := false
		for _, m := range moves {
			p := m.to.running()
			if p == nil {
				continue
			}
			try, cancel := context.WithTimeout(ctx, 5*time.Second)
			done = p.Node.Transfer(try, m.group, p.Node.ID()) == nil || done
			cancel()
			hold(ctx, pause)
		}
		return done
	}
}

// clockSkew sets a server's clock wrong for a while, by up to most in either direction.
func clockSkew(most time.Duration) func(*nemesis) func(context.Context) bool {
	return func(n *nemesis) func(context.Context) bool {
		s, skew, d := n.server(), n.between(-most, most), n.between(5*time.Second, 60*time.Second)
		return func(ctx context.Context) bool {
			if len(n.c.list()) < 3 {
				return false // two clocks cannot tell which of them is wrong
			}
			up := s.running() != nil
			s.skew.Store(int64(skew))
			held := hold(ctx, d)
			s.skew.Store(0)
			return up && held
		}
	}
}

// powerCutAt takes the power away in the moment in which the Raft log of a server says that it has stored something, and
// sees to it that there are elections meanwhile.
func powerCutAt(what disk.Write, most int) func(*nemesis) func(context.Context) bool {
	return func(n *nemesis) func(context.Context) bool {
		s, other := n.two()
		at, survives, absence := 1+n.rng.IntN(most), 50*n.rng.IntN(2), n.between(time.Second, 5*time.Second)
		return func(ctx context.Context) bool {
			done := make(chan struct{})
			k := s.currentDisk()
			k.CutAt(what, at, func() {
				s.powerCut(survives)
				close(done)
			})
			defer k.CutAt(what, 0, nil)
			for group := range n.c.opts.Shards + 1 {
				if p := other.running(); p != nil {
					try, cancel := context.WithTimeout(ctx, 2*time.Second)
					_ = p.Node.Transfer(try, group, p.Node.ID()) // there may be no leader
					cancel()
				}
			}
			t := time.NewTimer(10 * time.Second)
			defer t.Stop()
			select {
			case <-done:
			case <-t.C:
				return false
			case <-ctx.Done():
				return false
			}
			hold(ctx, absence)
			s.start()
			return true
		}
	}
}

// deposedUnheard has leaders hear everything late, but speak at once, when they hand their leadership over: the next one
// is at work when they still believe that they lead.
func deposedUnheard(n *nemesis) func(context.Context) bool {
	s, late := n.server(), n.between(400*time.Millisecond, 800*time.Millisecond)
	return func(ctx context.Context) bool {
		p := s.running()
		if p == nil || len(n.c.list()) == 1 {
			return false
		}
		var next *server
		for _, o := range n.c.list() {
			if o != s {
				next = o
				n.c.net.SetQuality(network.Link{From: o.ip, To: s.ip}, network.Quality{Latency: late})
			}
		}
		hold(ctx, time.Second)
		done := false
		for group := range n.c.opts.Shards + 1 {
			if g, ok := p.Node.Group(group); ok && g.IsLeader() && next.running() != nil {
				try, cancel := context.WithTimeout(ctx, 5*time.Second)
				done = p.Node.Transfer(try, group, next.running().Node.ID()) == nil || done
				cancel()
			}
		}
		hold(ctx, time.Second)
		for _, o := range n.c.list() {
			if o != s {
				n.c.net.SetQuality(network.Link{From: o.ip, To: s.ip}, network.Default)
			}
		}
		return done
	}
}
