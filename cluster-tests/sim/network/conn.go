package network

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"time"
)

// window is how much may be on its way in one direction of a connection before its sender waits.
const window = 1 << 20

// segment is what one Write sent, or the end of the connection.
type segment struct {
	at    time.Time // of arrival
	data  []byte
	fin   bool
	reset bool
}

// pipe is one direction of a connection. Guarded by the network's mutex.
type pipe struct {
	link     Link
	segments []segment
	size     int
	last     time.Time // arrival of the newest segment
	err      error     // the connection is broken, seen from the reader and its writes
	gone     bool      // nobody sends any more
	wake     chan struct{}
}

// changed wakes who waits for the pipe.
func (p *pipe) changed() {
	close(p.wake)
	p.wake = make(chan struct{})
}

func (p *pipe) fail(err error) {
	if p.err == nil {
		p.err = err
		p.changed()
	}
}

// push sends a segment.
func (p *pipe) push(n *Network, s segment) {
	if p.gone && !s.reset {
		return
	}
	q := n.link(p.link).quality
	s.at = time.Now().Add(n.delay(q))
	if n.chance(q.Loss) {
		n.stats.Lost++
		s.at = s.at.Add(retransmit)
	}
	if s.at.Before(p.last) {
		s.at = p.last
	}
	p.last = s.at
	p.segments = append(p.segments, s)
	p.size += len(s.data)
	p.changed()
}

// conn is one end of a connection.
type conn struct {
	n             *Network
	host          *Host
	peer          *conn
	in, out       *pipe
	local, remote net.Addr

	// Guarded by the network's mutex.
	closed                      bool
	readDeadline, writeDeadline time.Time
}

// connect makes both ends of a connection. Called with mu held.
func (n *Network) connect(from, to *Host, port int) (dialed, accepted *conn) {
	from.nextPort++
	there := &pipe{link: Link{from.ip, to.ip}, wake: make(chan struct{})}
	back := &pipe{link: Link{to.ip, from.ip}, wake: make(chan struct{})}
	a, b := address(from.ip, from.nextPort), address(to.ip, port)
	dialed = &conn{n: n, host: from, in: back, out: there, local: a, remote: b}
	accepted = &conn{n: n, host: to, in: there, out: back, local: b, remote: a}
	dialed.peer, accepted.peer = accepted, dialed
	n.conns[dialed], n.conns[accepted] = struct{}{}, struct{}{}
	return dialed, accepted
}

func address(ip string, port int) net.Addr { return &net.TCPAddr{IP: net.ParseIP(ip), Port: port} }

// pause waits until the pipe changes, a deadline or a moment. Zero times are never.
func pause(wake <-chan struct{}, times ...time.Time) {
	var first time.Time
	for _, t := range times {
		if !t.IsZero() && (first.IsZero() || t.Before(first)) {
			first = t
		}
	}
	if first.IsZero() {
		<-wake
		return
	}
	timer := time.NewTimer(time.Until(first))
	defer timer.Stop()
	select {
	case <-wake:
	case <-timer.C:
	}
}

func passed(deadline time.Time) bool { return !deadline.IsZero() && !time.Now().Before(deadline) }

// Read implements net.Conn.
func (c *conn) Read(b []byte) (int, error) {
	for {
		count, err, wake, next := c.tryRead(b)
		if wake == nil {
			return count, err
		}
		c.n.mu.Lock()
		deadline := c.readDeadline
		c.n.mu.Unlock()
		pause(wake, deadline, next)
	}
}

// tryRead reads what has arrived. If nothing has, it returns what to wait for: the channel and, unless zero, the time.
func (c *conn) tryRead(b []byte) (count int, err error, wake <-chan struct{}, next time.Time) {
	c.n.mu.Lock()
	defer c.n.mu.Unlock()
	p := c.in
	switch {
	case c.closed:
		return 0, net.ErrClosed, nil, next
	case p.err != nil:
		return 0, p.err, nil, next
	case passed(c.readDeadline):
		return 0, os.ErrDeadlineExceeded, nil, next
	case len(p.segments) == 0:
		return 0, nil, p.wake, next
	}
	s := &p.segments[0]
	if l := c.n.link(p.link); s.at.After(l.since) && l.stops() {
		return 0, nil, p.wake, next
	}
	switch {
	case s.at.After(time.Now()):
		return 0, nil, p.wake, s.at
	case s.reset:
		p.fail(errReset)
		return 0, errReset, nil, next
	case s.fin:
		return 0, io.EOF, nil, next
	}
	count = copy(b, s.data)
	s.data = s.data[count:]
	if len(s.data) == 0 {
		p.segments = p.segments[1:]
	}
	if p.size >= window && p.size-count < window {
		p.changed() // the writer may go on
	}
	p.size -= count
	return count, nil, nil, next
}

// Write implements net.Conn.
func (c *conn) Write(b []byte) (int, error) {
	for {
		c.n.mu.Lock()
		var err error
		switch {
		case c.closed:
			err = net.ErrClosed
		case c.in.err != nil:
			err = c.in.err
		case passed(c.writeDeadline):
			err = os.ErrDeadlineExceeded
		case c.out.size < window || c.out.gone:
			c.out.push(c.n, segment{data: append([]byte(nil), b...)})
			c.n.mu.Unlock()
			return len(b), nil
		}
		room, broken, deadline := c.out.wake, c.in.wake, c.writeDeadline
		c.n.mu.Unlock()
		if err != nil {
			return 0, err
		}
		var late <-chan time.Time
		if !deadline.IsZero() {
			late = time.After(time.Until(deadline))
		}
		select {
		case <-room:
		case <-broken:
		case <-late:
		}
	}
}

// Close implements net.Conn. What was written before still arrives.
func (c *conn) Close() error {
	c.n.mu.Lock()
	defer c.n.mu.Unlock()
	if !c.closed {
		c.closeLocked(segment{fin: true})
	}
	return nil
}

func (c *conn) closeLocked(last segment) {
	c.closed = true
	c.out.push(c.n, last)
	c.out.gone = true
	c.in.changed()
	if c.peer.closed {
		delete(c.n.conns, c)
		delete(c.n.conns, c.peer)
	}
}

func (c *conn) LocalAddr() net.Addr  { return c.local }
func (c *conn) RemoteAddr() net.Addr { return c.remote }

func (c *conn) setDeadlines(set func()) error {
	c.n.mu.Lock()
	defer c.n.mu.Unlock()
	set()
	c.in.changed()
	c.out.changed()
	return nil
}

// SetDeadline implements net.Conn.
func (c *conn) SetDeadline(t time.Time) error {
	return c.setDeadlines(func() { c.readDeadline, c.writeDeadline = t, t })
}

// SetReadDeadline implements net.Conn.
func (c *conn) SetReadDeadline(t time.Time) error {
	return c.setDeadlines(func() { c.readDeadline = t })
}

// SetWriteDeadline implements net.Conn.
func (c *conn) SetWriteDeadline(t time.Time) error {
	return c.setDeadlines(func() { c.writeDeadline = t })
}

type listener struct {
	host   *Host
	port   int
	queue  chan *conn
	closed bool // guarded by the network's mutex
	done   chan struct{}
}

// backlog is how many connections may wait to be accepted.
const backlog = 64

// Listen takes connections at a port.
func (h *Host) Listen(port int) (net.Listener, error) {
	h.n.mu.Lock()
	defer h.n.mu.Unlock()
	if h.down {
		return nil, errDown
	}
	if h.listeners[port] != nil {
		return nil, fmt.Errorf("port %d is in use", port)
	}
	l := &listener{host: h, port: port, queue: make(chan *conn, backlog), done: make(chan struct{})}
	h.listeners[port] = l
	return l, nil
}

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.queue:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (l *listener) Close() error {
	l.host.n.mu.Lock()
	defer l.host.n.mu.Unlock()
	l.closeLocked()
	return nil
}

func (l *listener) closeLocked() {
	if !l.closed {
		l.closed = true
		close(l.done)
		delete(l.host.listeners, l.port)
		for len(l.queue) > 0 { // nobody else sends to it or, now, receives from it for long
			select {
			case c := <-l.queue:
				c.closeLocked(segment{reset: true})
			default:
			}
		}
	}
}

// Addr implements net.Listener.
func (l *listener) Addr() net.Addr { return address(l.host.ip, l.port) }

// Dial connects to a host's listener. While the way is cut, or the other machine without power, it waits.
func (h *Host) Dial(ctx context.Context, addr string) (net.Conn, error) {
	to, err := net.ResolveTCPAddr("tcp", addr) // a number, not a name: nothing is looked up
	if err != nil {
		return nil, err
	}
	ip := to.IP.String()
	for {
		c, wait, err := h.tryDial(ip, to.Port)
		if err != nil {
			return nil, fmt.Errorf("dial %s: %w", addr, err)
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			if c != nil {
				_ = c.Close()
			}
			return nil, fmt.Errorf("dial %s: %w", addr, ctx.Err())
		case <-timer.C:
			if c != nil {
				return c, nil
			}
		}
	}
}

// tryDial connects, which takes until wait is over, or returns no connection and when to try again.
func (h *Host) tryDial(ip string, port int) (*conn, time.Duration, error) {
	n := h.n
	n.mu.Lock()
	defer n.mu.Unlock()
	target := n.hosts[ip]
	there, back := n.link(Link{h.ip, ip}), n.link(Link{ip, h.ip})
	switch {
	case h.down:
		return nil, 0, errDown
	case there.stops() || back.stops() || target == nil || target.down && target.silent:
		return nil, retransmit, nil
	}
	l := target.listeners[port]
	if target.down || l == nil || len(l.queue) == cap(l.queue) {
		n.stats.Refused++
		return nil, 0, errRefused
	}
	dialed, accepted := n.connect(h, target, port)
	l.queue <- accepted
	return dialed, n.delay(there.quality) + n.delay(back.quality), nil
}
