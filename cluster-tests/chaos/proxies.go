package chaos

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"time"
)

// impairDelay is what an impaired way between proxied nodes adds, one way.
const impairDelay = 60 * time.Millisecond

// proxyHost is where the proxies listen, and so the address that nodes advertise. The nodes themselves listen at the same
// ports of 127.0.0.1, as the whole of 127.0.0.0/8 is loopback.
const proxyHost = "127.0.0.2"

// proxies puts nodes on loopback, each behind a proxy to which the other nodes connect. What a cut loses, TCP would send
// again: so the proxies hold it until the cut has healed.
type proxies struct {
	pid    func(node int) int
	places []place

	ctx  context.Context
	stop context.CancelFunc
	work sync.WaitGroup

	mu      sync.Mutex
	open    []net.Listener
	conns   map[net.Conn]bool
	ways    map[way]condition
	changed chan struct{} // closed, and replaced, when ways change
}

type way struct{ from, to int }

type condition struct {
	cut   bool
	delay time.Duration
}

func newProxies(nodes int, pid func(node int) int) (_ *proxies, err error) {
	p := &proxies{pid: pid, conns: make(map[net.Conn]bool), ways: make(map[way]condition), changed: make(chan struct{})}
	p.ctx, p.stop = context.WithCancel(context.Background())
	defer func() {
		if err != nil {
			err = errors.Join(err, p.close())
		}
	}()
	for i := range nodes {
		var at place
		if at.grpc, at.grpcAt, err = p.serve(i, false); err != nil {
			return nil, err
		}
		if at.peer, _, err = p.serve(i, true); err != nil {
			return nil, err
		}
		if at.http, err = freeAddr(); err != nil {
			return nil, err
		}
		if at.gossip, err = freeAddr(); err != nil {
			return nil, err
		}
		at.gossipAt, at.flags = at.gossip, []string{"--advertise", proxyHost}
		p.places = append(p.places, at)
	}
	return p, nil
}

func freeAddr() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

// serve listens for a node. It returns where the node shall listen and where the proxy does.
func (p *proxies) serve(node int, peers bool) (behind, front string, err error) {
	l, err := net.Listen("tcp", net.JoinHostPort(proxyHost, "0"))
	if err != nil {
		return "", "", err
	}
	p.mu.Lock()
	p.open = append(p.open, l)
	p.mu.Unlock()
	front = l.Addr().String()
	behind = strings.Replace(front, proxyHost, "127.0.0.1", 1)
	p.work.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return // closed
			}
			p.work.Go(func() { p.carry(c, node, behind, peers) })
		}
	})
	return behind, front, nil
}

// carry connects a caller with a node until one of them has enough.
func (p *proxies) carry(caller net.Conn, to int, addr string, peers bool) {
	from := clients
	if peers {
		from = p.owner(caller.RemoteAddr().(*net.TCPAddr).Port)
	}
	if !p.keep(caller) {
		return
	}
	defer p.drop(caller)
	if p.pass(way{from, to}, 0) != nil {
		return
	}
	node, err := net.DialTimeout("tcp", addr, time.Second)
	if err != nil || !p.keep(node) {
		return
	}
	defer p.drop(node)
	var both sync.WaitGroup
	both.Go(func() { p.copy(node, caller, way{from, to}) })
	both.Go(func() { p.copy(caller, node, way{to, from}) })
	both.Wait()
}

// chunk is what was read at once, and when.
type chunk struct {
	data []byte
	at   time.Time
}

// copy carries bytes one way. Reading goes on while what was read before is delayed.
func (p *proxies) copy(dst, src net.Conn, w way) {
	chunks := make(chan chunk, 64)
	p.work.Go(func() {
		defer close(chunks)
		for {
			b := make([]byte, 32<<10)
			n, err := src.Read(b)
			if n > 0 {
				select {
				case chunks <- chunk{b[:n], time.Now()}:
				case <-p.ctx.Done():
					return
				}
			}
			if err != nil {
				return
			}
		}
	})
	for c := range chunks {
		if p.pass(w, time.Since(c.at)) != nil {
			break
		}
		if _, err := dst.Write(c.data); err != nil {
			break
		}
	}
	_ = src.Close() // which ends the other direction and the reader
	_ = dst.Close()
	for range chunks { // until the reader has seen it
	}
}

// pass waits until the way is open and what was read so long ago has been delayed enough.
func (p *proxies) pass(w way, age time.Duration) error {
	for {
		p.mu.Lock()
		c, changed := p.ways[w], p.changed
		p.mu.Unlock()
		if !c.cut && c.delay <= age {
			return nil
		}
		var late <-chan time.Time
		if !c.cut {
			late = time.After(c.delay - age)
			age = c.delay
		}
		select {
		case <-late:
		case <-changed:
		case <-p.ctx.Done():
			return p.ctx.Err()
		}
	}
}

// owner finds the node whose process holds the connection with a local port.
func (p *proxies) owner(port int) int {
	inode := socketOf(port)
	if inode == "" {
		return clients
	}
	for node := range p.places {
		fds := fmt.Sprintf("/proc/%d/fd", p.pid(node))
		entries, err := os.ReadDir(fds)
		if err != nil {
			continue
		}
		for _, e := range entries {
			if target, _ := os.Readlink(fds + "/" + e.Name()); target == "socket:["+inode+"]" {
				return node
			}
		}
	}
	return clients
}

// socketOf finds the inode of the TCP socket with a local port. Listeners at the same port have no peer.
func socketOf(port int) string {
	f, err := os.Open("/proc/net/tcp")
	if err != nil {
		return ""
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) > 9 && strings.HasSuffix(fields[1], fmt.Sprintf(":%04X", port)) && !strings.HasSuffix(fields[2], ":0000") {
			return fields[9]
		}
	}
	return ""
}

func (p *proxies) keep(c net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ctx.Err() != nil {
		_ = c.Close()
		return false
	}
	p.conns[c] = true
	return true
}

func (p *proxies) drop(c net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, c)
	_ = c.Close()
}

func (p *proxies) String() string {
	return fmt.Sprintf("loopback through proxies, bad links delay by %v", impairDelay)
}

func (p *proxies) place(node int) place { return p.places[node] }

func (p *proxies) set(change func()) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	change()
	close(p.changed)
	p.changed = make(chan struct{})
	return nil
}

func (p *proxies) cut(from, to int) error {
	return p.set(func() { p.ways[way{from, to}] = condition{cut: true} })
}

func (p *proxies) impair(from, to int) error {
	return p.set(func() { p.ways[way{from, to}] = condition{delay: impairDelay} })
}

func (p *proxies) heal() error { return p.set(func() { clear(p.ways) }) }

func (p *proxies) close() error {
	p.stop()
	p.mu.Lock()
	for _, l := range p.open {
		_ = l.Close()
	}
	for c := range p.conns {
		_ = c.Close()
	}
	p.mu.Unlock()
	p.work.Wait()
	return nil
}
