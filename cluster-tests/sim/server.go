package sim

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/holdfastdb/holdfast/cluster-tests/sim/disk"
	"github.com/holdfastdb/holdfast/cluster-tests/sim/network"
	"github.com/holdfastdb/holdfast/node"
	"github.com/holdfastdb/holdfast/node/shard"
	"github.com/holdfastdb/holdfast/rpc/process"
)

// The ports of every server.
const (
	grpcPort   = 7400
	httpPort   = 7401
	peerPort   = 7402
	gossipPort = 7403
)

// replicas is how many each shard has, once there are as many servers.
const replicas = 3

// logBytes makes write-ahead logs so small that they are cut, and used again, all the time.
const logBytes = 256 << 10

// server is a machine with a disk on which a node runs, most of the time.
type server struct {
	c    *Cluster
	name string
	ip   string
	log  *slog.Logger
	skew atomic.Int64 // by how much its clock is ahead, in nanoseconds

	mu   sync.Mutex
	disk *disk.Disk
	life *life // nil while it does not run
}

// life is one run of a server's process.
type life struct {
	s       *server
	host    *network.Host
	disk    *disk.Disk
	end     context.CancelFunc
	started chan struct{} // closed when Start has returned
	process *process.Process
}

// start runs the process. It returns before the node serves.
func (s *server) start() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.life != nil {
		return
	}
	l := &life{s: s, host: s.c.net.Host(s.ip), started: make(chan struct{})}
	s.disk = s.disk.Reopen(l.broken)
	l.disk = s.disk
	ctx, end := context.WithCancel(context.Background())
	l.end = end
	s.life = l
	s.c.work.Go(func() { l.run(ctx) })
}

func (l *life) run(ctx context.Context) {
	defer close(l.started)
	s := l.s
	packets, err := l.host.Packets(gossipPort)
	if err != nil {
		return // killed already
	}
	cfg := process.Config{
		GRPC: l.host.Addr(grpcPort), HTTP: l.host.Addr(httpPort), Peer: l.host.Addr(peerPort),
		Listen: func(_ context.Context, addr string) (net.Listener, error) {
			_, port, err := net.SplitHostPort(addr)
			if err != nil {
				return nil, err
			}
			number, err := strconv.Atoi(port)
			if err != nil {
				return nil, err
			}
			return l.host.Listen(number)
		},
		Node: node.Config{
			Name: s.name, Dir: "data", FS: l.disk, Gossip: l.host.Addr(gossipPort), GossipTransport: packets, Dial: l.host.Dial,
			Shards: s.c.opts.Shards, Replicas: replicas, Timing: shard.Timing{Heartbeat: time.Second, Checksum: s.c.opts.Checksum},
			Logger: s.log, Bootstrap: s.name == "n1",
			Clock:   func() time.Time { return time.Now().Add(time.Duration(s.skew.Load())) },
			OnFatal: l.fatal, WrapLog: l.disk.Logs, BeforeSync: l.disk.Wait, Tamper: s.c.tamper, TrailingEntries: s.c.opts.TrailingEntries, LogBytes: logBytes,
			OnCommit: func(group uint32, entries []*raft.Log) {
				l.disk.Applied(group, entries[len(entries)-1].Index)
				if l.alive() { // what is left of a killed process may still commit by itself, if there is no other
					s.c.record.committed(l, group, entries)
				}
			},
		},
	}
	for _, other := range s.c.list() {
		if other != s {
			cfg.Node.Join = append(cfg.Node.Join, net.JoinHostPort(other.ip, strconv.Itoa(gossipPort)))
		}
	}
	p, err := process.Start(ctx, cfg)
	if err != nil {
		switch {
		case ctx.Err() != nil: // killed
		case l.excuses(err):
			s.c.work.Go(func() { l.die() })
		default:
			s.c.fail(fmt.Errorf("start %s: %w", s.name, err))
		}
		return
	}
	l.process = p
	s.c.work.Go(func() { l.follow(ctx) })
}

// broken is told by the disk of a write that the process does not survive.
func (l *life) broken(err error) {
	l.s.log.Info("the process ends for its disk", "error", err)
	l.s.c.work.Go(l.die)
}

// fatal is told by a node that cannot go on. Its process would end itself. Nobody may do so without a reason.
func (l *life) fatal(err error) {
	if !l.excuses(err) && l.alive() {
		l.s.c.fail(fmt.Errorf("%s cannot go on: %w", l.s.name, err))
	}
	l.s.c.work.Go(l.die)
}

// excuses tells that a node ends for a write that its disk has refused, or that waits because others were: storage that
// cannot write its tables lets nobody write.
func (l *life) excuses(err error) bool {
	return l.disk.Failures() > 0 && (errors.Is(err, disk.EIO) || errors.Is(err, disk.ENOSPC) || errors.Is(err, node.ErrDiskHangs))
}

func (l *life) alive() bool {
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	return l.s.life == l
}

// die kills the process, unless somebody else has.
func (l *life) die() {
	if l.alive() {
		l.s.kill()
	}
}

// running is the process, nil while there is none.
func (s *server) running() *process.Process {
	s.mu.Lock()
	l := s.life
	s.mu.Unlock()
	if l == nil {
		return nil
	}
	select {
	case <-l.started:
		return l.process
	default:
		return nil
	}
}

func (s *server) up() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.life != nil
}

// kill ends the process as kill -9 does: what it wrote is there when it starts again.
func (s *server) kill() bool { return s.crash(100, false) }

// powerCut ends it as a failing power supply does: of what was not synced, only so much survives.
func (s *server) powerCut(survives int) bool { return s.crash(survives, true) }

func (s *server) crash(survives int, silent bool) bool {
	s.mu.Lock()
	l := s.life
	if l == nil {
		s.mu.Unlock()
		return false
	}
	s.life = nil
	l.host.Down(silent)
	s.disk = l.disk.Crash(survives, s.c.random())
	s.mu.Unlock()
	s.c.work.Go(l.bury)
	return true
}

// bury ends what is left of a killed process. It reaches nobody, and nobody reads what it still writes.
func (l *life) bury() {
	l.end()
	l.disk.Release()
	<-l.started
	if l.process == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if err := l.process.Close(ctx); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		l.s.log.Warn("ending a killed process", "error", err)
	}
}

// stop ends the process as an operator does.
func (s *server) stop() error {
	s.mu.Lock()
	l := s.life
	s.life = nil
	s.mu.Unlock()
	if l == nil {
		return nil
	}
	<-l.started
	l.end()
	if l.process == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	err := l.process.Close(ctx)
	l.host.Down(false)
	s.mu.Lock()
	s.disk = l.disk
	s.mu.Unlock()
	if err != nil {
		return fmt.Errorf("stop %s: %w", s.name, err)
	}
	return nil
}
