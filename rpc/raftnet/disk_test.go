package raftnet

import (
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// disk can be made to hang.
type disk struct {
	mu      sync.Mutex
	hung    chan struct{} // closed when it goes on; nil while it works
	pending time.Time     // since when a write waits
}

func (d *disk) hang() (again func()) {
	hung := make(chan struct{})
	d.mu.Lock()
	defer d.mu.Unlock()
	d.hung = hung
	return func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.hung, d.pending = nil, time.Time{}
		close(hung)
	}
}

func (d *disk) write() {
	d.mu.Lock()
	hung := d.hung
	if hung != nil && d.pending.IsZero() {
		d.pending = time.Now()
	}
	d.mu.Unlock()
	if hung != nil {
		<-hung
	}
}

func (d *disk) stalled() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return !d.pending.IsZero() && time.Since(d.pending) > 500*time.Millisecond
}

type slowLogs struct {
	*raft.InmemStore
	d *disk
}

func (l slowLogs) StoreLogs(logs []*raft.Log) error {
	l.d.write()
	return l.InmemStore.StoreLogs(logs)
}

// The leader's main loop hangs in a write. What it sent before it knew, and what its other goroutines would go on sending,
// must not keep the followers from electing another: here they are sent the commit index 15 times in a heartbeat timeout.
func TestALeaderWhoseDiskHangsIsReplaced(t *testing.T) {
	b := &book{addrs: map[string]string{}}
	var nodes []*node
	for _, id := range []string{"a", "b", "c"} {
		d := &disk{}
		n := startNode(t, b, id, Config{DiskStalled: d.stalled})
		n.disk = d
		nodes = append(nodes, n)
	}
	for _, n := range nodes {
		n.startRaft(t, "a", "b", "c")
	}
	defer func() {
		for _, n := range nodes {
			n.close()
		}
	}()
	old := leader(t, nodes...)
	for range 3 { // until all replicate in pipelines
		if err := old.raft.Apply([]byte("x"), time.Second).Error(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(100 * time.Millisecond)
	}
	goOn := old.disk.hang()
	defer goOn()
	_ = old.raft.Apply([]byte("lost or not"), time.Second)
	var others []*node
	for _, n := range nodes {
		if n != old {
			others = append(others, n)
		}
	}
	begin := time.Now()
	l := leader(t, others...)
	if took := time.Since(begin); took > 10*time.Second {
		t.Errorf("the next leader came after %v", took)
	}
	if err := l.raft.Apply([]byte("y"), 5*time.Second).Error(); err != nil {
		t.Errorf("the next leader: %v", err)
	}
}
