package node

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"github.com/hashicorp/raft"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/storage/raftlog"
)

// A write hangs from the tenth second on. Short hangs are nobody's business, longer ones cost the leadership, and one that
// does not end ends the process.
func TestADiskThatHangs(t *testing.T) {
	for name, tt := range map[string]struct {
		lasts    time.Duration
		handOver int
		fatal    bool
	}{
		"a second":   {time.Second, 0, false},
		"5 seconds":  {5 * time.Second, 1, false},
		"15 seconds": {15 * time.Second, 1, false},
		"for ever":   {time.Hour, 1, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				begin := time.Now()
				handedOver := 0
				var first time.Duration
				var fatal error
				ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
				defer cancel()
				diskWatch{
					pending: func() time.Duration {
						if d := time.Since(begin) - 10*time.Second; d > 0 && d < tt.lasts {
							return d
						}
						return 0
					},
					handOver: func() {
						if handedOver++; handedOver == 1 {
							first = time.Since(begin) - 10*time.Second
						}
					},
					fatal: func(err error) { fatal = err },
					log:   slog.New(slog.DiscardHandler),
				}.run(ctx)
				if handedOver != tt.handOver || first > 4*time.Second || (fatal != nil) != tt.fatal {
					t.Errorf("handed over %d times, first after %v; end: %v", handedOver, first, fatal)
				}
			})
		})
	}
}

// A disk that fills up costs the leadership, and then commands, before it costs the node. What comes and goes in a moment
// does not turn that on and off.
func TestADiskThatFillsUp(t *testing.T) {
	const reserve = diskReserve
	for name, total := range map[string]uint64{"large": 1 << 40, "small": 10 * reserve} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				reserve := min(reserve, total/20)
				handedOver := 0
				var full atomic.Bool
				var free atomic.Uint64
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				go spaceWatch{
					usage:    func() (vfs.DiskUsage, error) { return vfs.DiskUsage{AvailBytes: free.Load(), TotalBytes: total}, nil },
					full:     &full,
					handOver: func() { handedOver++ },
					log:      slog.New(slog.DiscardHandler),
				}.run(ctx)
				for i, step := range []struct {
					free uint64
					full bool
				}{{2 * reserve, false}, {reserve, false}, {reserve - 1, true}, {0, true}, {reserve + 1, true}, {2 * reserve, false}} {
					free.Store(step.free)
					time.Sleep(2 * diskEvery)
					synctest.Wait()
					if full.Load() != step.full {
						t.Errorf("step %d, %d bytes free: full %v", i, step.free, full.Load())
					}
				}
				if handedOver != 1 {
					t.Errorf("handed over %d times", handedOver)
				}
			})
		})
	}
}

// fullDisk is a disk that says that nothing is left.
type fullDisk struct{ vfs.FS }

func (fullDisk) GetDiskUsage(string) (vfs.DiskUsage, error) {
	return vfs.DiskUsage{TotalBytes: 1 << 40}, nil
}

// One node's disk is full: it follows, and nobody gives it the leadership that it has given away, though some groups would
// be led by it if all were well.
func TestANodeWithAFullDiskLeadsNothing(t *testing.T) {
	nodes := []*Node{startTestNode(t, "n1", t.TempDir(), "")}
	defer func() {
		for _, n := range nodes {
			if err := n.Close(); err != nil {
				t.Error(err)
			}
		}
	}()
	nodes = append(nodes, startTestNode(t, "n2", t.TempDir(), nodes[0].gossip.Addr()))
	full := startTestNode(t, "n3", t.TempDir(), nodes[0].gossip.Addr(), func(c *Config) { c.FS = fullDisk{vfs.Default} })
	nodes = append(nodes, full)
	eventually(t, "three voters everywhere", func() bool { return allVoters(nodes...) })
	eventually(t, "the node knows", full.full.Load)
	for end := time.Now().Add(8 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		for group, m := range full.members() {
			if m.IsLeader() {
				t.Fatalf("it leads group %d", group)
			}
		}
	}
	if _, err := full.Do(t.Context(), 1, []fsm.Call{takeCall('k', 10)}); err != nil {
		t.Errorf("a caller of the node: %v", err)
	}
	if err := nodes[0].Transfer(t.Context(), 1, full.identity.NodeID); err == nil {
		t.Error("leadership was moved to a node that can take no commands")
	}
}

// Whatever of a node's data cannot be written, the node ends and says why. It is not closed here: its process would be gone.
func TestADiskThatFailsEndsTheNode(t *testing.T) {
	for part, write := range map[string]func(n *Node) error{
		stateDir:   func(n *Node) error { return n.state.Sync() },
		raftDir:    func(n *Node) error { return storeEntry(n.logs) },
		catalogDir: func(n *Node) error { return storeEntry(n.catLogs) },
	} {
		t.Run(part, func(t *testing.T) {
			breaks := &errorfs.Toggle{Injector: errorfs.InjectorFunc(func(op errorfs.Op) error {
				if op.Kind == errorfs.OpFileSyncData && strings.HasPrefix(op.Path, "data/"+part) {
					return syscall.EIO
				}
				return nil
			})}
			why := make(chan error, 10)
			n := startTestNode(t, "n1", "data", "", func(cfg *Config) {
				cfg.FS = errorfs.Wrap(vfs.NewMem(), breaks)
				cfg.OnFatal = func(err error) {
					why <- err
					select {}
				}
			})
			eventually(t, "ready", func() bool { return n.Ready() == nil })
			breaks.On()
			acknowledged := make(chan error, 1)
			go func() { acknowledged <- write(n) }() // ends with the test's process
			select {
			case err := <-why:
				if !errors.Is(err, syscall.EIO) {
					t.Errorf("the node ends for %v", err)
				}
			case err := <-acknowledged:
				t.Errorf("the node goes on: %v", err)
			}
			select {
			case again := <-why:
				t.Errorf("and once more, for %v", again)
			case <-time.After(100 * time.Millisecond):
			}
		})
	}
}

func storeEntry(p raftlog.Provider) error {
	l, err := p.Open(99)
	if err != nil {
		return err
	}
	return l.StoreLog(&raft.Log{Index: 1, Term: 1})
}
