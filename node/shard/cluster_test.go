package shard

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/hashicorp/raft"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/storage"
	"github.com/holdfastdb/holdfast/storage/kv"
	"github.com/holdfastdb/holdfast/storage/raftlog"
	"github.com/holdfastdb/holdfast/storage/wire"
)

// The tests run real Raft and real Pebble, on file systems in memory, in virtual time: each test is a testing/synctest
// bubble. The data type is one number to which commands add.

const (
	sumType = 9
	opAdd   = 1
	opRead  = 64
)

type number uint64

func (n *number) Append(dst []byte) []byte { return binary.AppendUvarint(dst, uint64(*n)) }

func (n *number) Decode(b []byte) error {
	d := wire.NewDecoder(b)
	*n = number(d.Uvarint())
	return d.End("number")
}

func sumKey() []byte { return []byte("sum") }

func sums() fsm.Type {
	decode := func(b []byte, err error) (*number, error) {
		n := new(number)
		if errors.Is(err, kv.ErrNotFound) {
			return n, nil
		}
		if err == nil {
			err = n.Decode(b)
		}
		return n, err
	}
	return fsm.Type{ID: sumType, Name: "sum", Ops: []fsm.Op{
		fsm.Command(opAdd, "add", func(tx *fsm.Tx, q *number) (*number, error) {
			n, err := decode(tx.Get(sumKey()))
			if err != nil {
				return nil, err
			}
			*n += *q
			tx.Set(sumKey(), n.Append(nil))
			return n, nil
		}),
		fsm.QueryOp(opRead, "read", func(v *fsm.View, _ *number) (*number, error) { return decode(v.Get(sumKey())) }),
	}}
}

func call(op uint8, n number) fsm.Call {
	return fsm.Call{Type: sumType, Op: op, Body: n.Append(nil)}
}

// network connects the replicas of a test and can cut each of them off.
type network struct {
	mu    sync.Mutex
	links map[raft.ServerID]*link
}

// link is one replica's Raft transport.
type link struct {
	*raft.InmemTransport
	net *network
	id  raft.ServerID

	mu   sync.Mutex
	held chan struct{} // if set, answers to appends wait for a receive from it
	seen int           // answers that wait
	cut  bool
	late map[raft.ServerID]chan struct{} // by target: appends with entries are delivered when it is closed
}

var errCut = errors.New("the link is cut")

func (l *link) closed(peer raft.ServerID) bool {
	l.net.mu.Lock()
	other := l.net.links[peer]
	l.net.mu.Unlock()
	if other == nil {
		return true
	}
	for _, x := range []*link{l, other} {
		x.mu.Lock()
		cut := x.cut
		x.mu.Unlock()
		if cut {
			return true
		}
	}
	return false
}

// AppendEntriesPipeline makes Raft send one request at a time, which the tests can hold.
func (l *link) AppendEntriesPipeline(raft.ServerID, raft.ServerAddress) (raft.AppendPipeline, error) {
	return nil, raft.ErrPipelineReplicationNotSupported
}

func (l *link) AppendEntries(id raft.ServerID, a raft.ServerAddress, q *raft.AppendEntriesRequest, r *raft.AppendEntriesResponse) error {
	if l.closed(id) {
		return errCut
	}
	l.mu.Lock()
	late := l.late[id]
	l.mu.Unlock()
	if late != nil && len(q.Entries) > 0 {
		<-late
	}
	if err := l.InmemTransport.AppendEntries(id, a, q, r); err != nil {
		return err
	}
	l.mu.Lock()
	held := l.held
	if held != nil {
		l.seen++
	}
	l.mu.Unlock()
	if held != nil {
		<-held
	}
	return nil
}

func (l *link) RequestVote(id raft.ServerID, a raft.ServerAddress, q *raft.RequestVoteRequest, r *raft.RequestVoteResponse) error {
	if l.closed(id) {
		return errCut
	}
	return l.InmemTransport.RequestVote(id, a, q, r)
}

func (l *link) RequestPreVote(id raft.ServerID, a raft.ServerAddress, q *raft.RequestPreVoteRequest, r *raft.RequestPreVoteResponse) error {
	if l.closed(id) {
		return errCut
	}
	return l.InmemTransport.RequestPreVote(id, a, q, r)
}

func (l *link) InstallSnapshot(id raft.ServerID, a raft.ServerAddress, q *raft.InstallSnapshotRequest, r *raft.InstallSnapshotResponse, data io.Reader) error {
	if l.closed(id) {
		return errCut
	}
	return l.InmemTransport.InstallSnapshot(id, a, q, r, data)
}

func (l *link) TimeoutNow(id raft.ServerID, a raft.ServerAddress, q *raft.TimeoutNowRequest, r *raft.TimeoutNowResponse) error {
	if l.closed(id) {
		return errCut
	}
	return l.InmemTransport.TimeoutNow(id, a, q, r)
}

func (l *link) setCut(cut bool) {
	l.mu.Lock()
	l.cut = cut
	l.mu.Unlock()
}

// replica is one group on a node of its own.
type replica struct {
	*Group
	t      *testing.T
	c      *cluster
	id     raft.ServerID
	fs     *vfs.MemFS
	timing Timing
	link   *link
	engine *storage.Engine
	logs   *raftlog.Store
	log    raftlog.Log
	full   atomic.Bool  // its disk
	skew   atomic.Int64 // of its clock, in nanoseconds; the node's verdict is that a skewed clock is wrong

	delay atomic.Int64 // of each write to the log, in nanoseconds

	attached atomic.Int32 // Raft instances so far
}

type cluster struct {
	t        *testing.T
	net      *network
	replicas []*replica
	// confirm replaces the question to the other replicas, if set.
	confirm func(r *replica, ctx context.Context, check TermCheck) error
	// fatal is told when a replica cannot go on, which fails the test if nobody asks.
	fatal func(r *replica, err error)
}

// newCluster starts a group of n replicas that knows all its members; timing may differ by replica.
func newCluster(t *testing.T, timing ...Timing) *cluster {
	c := &cluster{t: t, net: &network{links: make(map[raft.ServerID]*link)}}
	for i, x := range timing {
		r := &replica{t: t, c: c, id: raft.ServerID(fmt.Sprintf("r%d", i+1)), fs: vfs.NewCrashableMem(), timing: x}
		c.replicas = append(c.replicas, r)
		r.start()
	}
	for _, r := range c.replicas[1:] {
		for _, add := range []func(context.Context, string) error{c.replicas[0].AddLearner, c.replicas[0].Promote} {
			c.eventually("add "+string(r.id), func() bool {
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				defer cancel()
				return add(ctx, string(r.id)) == nil
			})
		}
	}
	return c
}

func (r *replica) start() {
	r.t.Helper()
	must := func(err error) {
		r.t.Helper()
		if err != nil {
			r.t.Fatalf("%s: %v", r.id, err)
		}
	}
	registry, err := fsm.New(sums())
	must(err)
	fatal := func(err error) {
		if r.c.fatal != nil {
			r.c.fatal(r, err)
			return
		}
		r.t.Errorf("%s cannot go on: %v", r.id, err)
	}
	r.engine, err = storage.Open(storage.Options{FS: r.fs, Dir: "state", MemTableBytes: 1 << 20, OnFatal: fatal})
	must(err)
	r.logs, err = raftlog.Open(raftlog.Options{FS: r.fs, Dir: "raft", OnFatal: fatal})
	must(err)
	r.log, err = r.logs.Open(1)
	must(err)
	_, transport := raft.NewInmemTransport(raft.ServerAddress(r.id))
	r.link = &link{InmemTransport: transport, net: r.c.net, id: r.id}
	r.c.net.mu.Lock()
	r.c.net.links[r.id] = r.link
	for _, other := range r.c.net.links {
		other.Connect(raft.ServerAddress(r.id), transport)
		transport.Connect(raft.ServerAddress(other.id), other.InmemTransport)
	}
	r.c.net.mu.Unlock()
	r.Group, err = Open(Config{
		Group: 1, ReplicaID: string(r.id), Registry: registry, State: r.engine.Shard(1), Sync: r.engine.Sync, Log: slowLog{r.log, r},
		Transport: r.link, Timing: r.timing, Bootstrap: r.id == "r1", Logger: slog.New(slog.DiscardHandler), OnFatal: fatal,
		Attach:     func(*raft.Raft) { r.attached.Add(1) },
		Clock:      func() time.Time { return time.Now().Add(time.Duration(r.skew.Load())) },
		ClockWrong: func() bool { return r.skew.Load() != 0 },
		DiskFull:   r.full.Load,
		AskSums:    func(_ context.Context, ids []string) map[string]fsm.Sum { return r.c.askSums(ids) },
		Confirm: func(ctx context.Context, check TermCheck) error {
			if r.c.confirm != nil {
				return r.c.confirm(r, ctx, check)
			}
			return r.c.askTerms(check)
		},
	})
	must(err)
}

// slowLog is a replica's log on a disk that takes its time.
type slowLog struct {
	raftlog.Log
	r *replica
}

func (l slowLog) StoreLogs(logs []*raft.Log) error {
	time.Sleep(time.Duration(l.r.delay.Load()))
	return l.Log.StoreLogs(logs)
}

func (l slowLog) StoreLog(entry *raft.Log) error { return l.StoreLogs([]*raft.Log{entry}) }

// askTerms asks the other replicas for their terms. It goes where the Raft messages of a cut replica do not: the tests
// are about what is answered, not about whether.
func (c *cluster) askTerms(check TermCheck) error {
	same := 0
	for _, r := range c.replicas {
		if _, term := r.Leader(); term == check.Term {
			same++
		}
	}
	if same <= len(check.Voters)/2 {
		return errors.New("a newer term is known")
	}
	return nil
}

// askSums asks the replicas that can be reached.
func (c *cluster) askSums(ids []string) map[string]fsm.Sum {
	sums := make(map[string]fsm.Sum)
	for _, r := range c.replicas {
		if slices.Contains(ids, string(r.id)) && !r.link.closed(r.id) {
			sums[string(r.id)] = r.Sum()
		}
	}
	return sums
}

func (r *replica) stop() {
	r.t.Helper()
	err := errors.Join(r.Group.Close(), r.log.Close(), r.logs.Close(), r.engine.Close(), r.link.Close())
	if err != nil {
		r.t.Errorf("stop %s: %v", r.id, err)
	}
}

// powerCut ends the replica as a failing power supply does: what was not synced may be lost. It starts again from what
// the disk has.
func (c *cluster) powerCut(seed uint64) {
	disks := make([]*vfs.MemFS, len(c.replicas))
	for i, r := range c.replicas {
		disks[i] = r.fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 50, RNG: random(seed + uint64(i))})
	}
	c.stop()
	for i, r := range c.replicas {
		r.fs = disks[i]
		r.start()
	}
}

func (c *cluster) stop() {
	for _, r := range c.replicas {
		r.stop()
	}
	time.Sleep(time.Minute) // what Raft started for a transfer ends with a time-out of its own
}

// eventually waits, in virtual time, for something to come true.
func (c *cluster) eventually(what string, ok func() bool) {
	c.t.Helper()
	for range 600 {
		if ok() {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	c.t.Fatalf("not in a minute: %s", what)
}

// leader waits for a leader among those.
func (c *cluster) leader(among ...*replica) (found *replica) {
	c.t.Helper()
	c.eventually("a leader", func() bool {
		for _, r := range among {
			if r.IsLeader() {
				found = r
				return true
			}
		}
		return false
	})
	return found
}

func (c *cluster) others(not *replica) (list []*replica) {
	for _, r := range c.replicas {
		if r != not {
			list = append(list, r)
		}
	}
	return list
}

// frame makes a frame of a client with one command.
func frame(client byte, seq uint64, n number) *fsm.Frame {
	return &fsm.Frame{
		Client: [16]byte{client}, Seq: seq, AckUpTo: seq - 1, Deadline: fsm.Time(time.Now().Add(30 * time.Second).UnixMilli()),
		Calls: []fsm.Call{call(opAdd, n)},
	}
}

// add proposes and returns the sum after it.
func (r *replica) add(f *fsm.Frame) (number, bool, error) {
	ctx, cancel := context.WithTimeout(r.t.Context(), 5*time.Second)
	defer cancel()
	out, err := r.Propose(ctx, f)
	if err != nil {
		return 0, false, err
	}
	if err := out.Err(); err != nil {
		return 0, false, err
	}
	var n number
	err = errors.Join(out.Results[0].Err(), n.Decode(out.Results[0].Body))
	return n, out.Replayed, err
}

func (r *replica) read() (number, error) {
	ctx, cancel := context.WithTimeout(r.t.Context(), 5*time.Second)
	defer cancel()
	results, _, err := r.Query(ctx, []fsm.Call{call(opRead, 0)})
	if err != nil {
		return 0, err
	}
	var n number
	err = errors.Join(results[0].Err(), n.Decode(results[0].Body))
	return n, err
}
