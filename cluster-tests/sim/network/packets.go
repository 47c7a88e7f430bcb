package network

import (
	"context"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
)

// Packets is a port for packets beside one for connections: a memberlist.Transport.
type Packets struct {
	h        *Host
	port     int
	listener net.Listener
	packets  chan *memberlist.Packet
	streams  chan net.Conn
	done     chan struct{}
	work     sync.WaitGroup
	once     sync.Once
}

var _ memberlist.Transport = (*Packets)(nil)

// Packets opens a port.
func (h *Host) Packets(port int) (*Packets, error) {
	l, err := h.Listen(port)
	if err != nil {
		return nil, err
	}
	p := &Packets{
		h: h, port: port, listener: l, packets: make(chan *memberlist.Packet, 256), streams: make(chan net.Conn), done: make(chan struct{}),
	}
	h.n.mu.Lock()
	h.packets[port] = p
	h.n.mu.Unlock()
	p.work.Go(p.accept)
	return p, nil
}

func (p *Packets) accept() {
	for {
		c, err := p.listener.Accept()
		if err != nil {
			return
		}
		select {
		case p.streams <- c:
		case <-p.done:
			_ = c.Close()
			return
		}
	}
}

// FinalAdvertiseAddr implements memberlist.Transport.
func (p *Packets) FinalAdvertiseAddr(string, int) (net.IP, int, error) {
	return net.ParseIP(p.h.ip), p.port, nil
}

// WriteTo implements memberlist.Transport. A packet may get lost, arrive twice, or after a later one.
func (p *Packets) WriteTo(b []byte, addr string) (time.Time, error) {
	to, err := net.ResolveUDPAddr("udp", addr)
	if err != nil {
		return time.Time{}, fmt.Errorf("send to %s: %w", addr, err)
	}
	now := time.Now()
	n := p.h.n
	n.mu.Lock()
	defer n.mu.Unlock()
	s := n.link(Link{p.h.ip, to.IP.String()})
	if p.h.down || s.stops() {
		return now, nil
	}
	if n.chance(s.quality.Loss) {
		n.stats.Lost++
		return now, nil
	}
	copies := 1
	if n.chance(s.quality.Repeat) {
		n.stats.Repeated++
		copies = 2
	}
	b = append([]byte(nil), b...)
	for range copies {
		time.AfterFunc(n.delay(s.quality), func() { n.deliver(p.h.ip, p.port, to, b) })
	}
	return now, nil
}

func (n *Network) deliver(from string, port int, to *net.UDPAddr, b []byte) {
	n.mu.Lock()
	defer n.mu.Unlock()
	h := n.hosts[to.IP.String()]
	if h == nil || h.down || h.packets[to.Port] == nil || n.link(Link{from, h.ip}).stops() {
		return
	}
	packet := &memberlist.Packet{Buf: append([]byte(nil), b...), From: address(from, port), Timestamp: time.Now()}
	select {
	case h.packets[to.Port].packets <- packet:
	default: // as when a socket's buffer is full
		n.stats.Lost++
	}
}

// PacketCh implements memberlist.Transport.
func (p *Packets) PacketCh() <-chan *memberlist.Packet { return p.packets }

// DialTimeout implements memberlist.Transport.
func (p *Packets) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	return p.h.Dial(ctx, addr)
}

// StreamCh implements memberlist.Transport.
func (p *Packets) StreamCh() <-chan net.Conn { return p.streams }

// Shutdown implements memberlist.Transport.
func (p *Packets) Shutdown() error {
	p.once.Do(func() {
		close(p.done)
		_ = p.listener.Close()
		p.h.n.mu.Lock()
		delete(p.h.packets, p.port)
		p.h.n.mu.Unlock()
		p.work.Wait()
	})
	return nil
}
