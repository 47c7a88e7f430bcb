package node

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/holdfastdb/holdfast/fsm"
)

// replica is what the router needs of a Raft group on this node.
type replica interface {
	// Propose has the group execute the frame. shard.Safe tells of an error without effect.
	Propose(ctx context.Context, f *fsm.Frame) (fsm.FrameOutcome, error)
	// Query answers from the group's state as of now, linearizably.
	Query(ctx context.Context, calls []fsm.Call) ([]fsm.Result, fsm.Applied, error)
	// Leader names the leading replica, empty if unknown.
	Leader() (replicaID string, term uint64)
	IsLeader() bool
}

// router carries a request to the leader of its group, wherever that is.
type router struct {
	nodeID string
	local  func(group uint32) (replica, bool)
	// hint names the node that gossip believes to lead a group.
	hint func(group uint32) (nodeID string, ok bool)
	// call asks another node; the answer is that node's servePropose or serveQuery.
	call func(ctx context.Context, nodeID, method string, request []byte) ([]byte, error)
	log  *slog.Logger

	mu    sync.Mutex
	times map[uint32]fsm.Time // by group: the time that another node's answer told
}

// Names of the calls between nodes.
const (
	callPropose = "propose"
	callQuery   = "query"
)

// These tell of no effect, as shard.Safe does.
var (
	errNoLeader  = fmt.Errorf("%w: no leader is known at the moment", fsm.ErrNotLeader)
	errNoAnswer  = fmt.Errorf("%w: the one that does cannot be asked", fsm.ErrNotLeader) // of what does no harm twice: queries, transfers of leadership
	errMalformed = fmt.Errorf("%w: malformed request between nodes", fsm.ErrNotLeader)
)

const (
	retryMin = 10 * time.Millisecond
	retryMax = 500 * time.Millisecond
	// handOverTime is in which a leader with a full disk has handed over to one with room, if there is one.
	handOverTime = 2 * time.Second
	// leaderCheck is how often a call that waits looks who leads.
	leaderCheck = 500 * time.Millisecond
)

// propose has the frame executed by the group's leader. It tries again until ctx ends: after a refusal always, after an
// unknown outcome only if the frame has a client, whose window makes another try harmless.
func (r *router) propose(ctx context.Context, group uint32, f *fsm.Frame) (fsm.FrameOutcome, error) {
	request := f.Append(binary.AppendUvarint(nil, uint64(group)))
	unknown, begun := false, time.Now()
	for pause := retryMin; ; pause = min(2*pause, retryMax) {
		out, err := r.proposeOnce(ctx, group, f, request)
		if err == nil {
			return out, nil
		}
		switch {
		case fsm.Safe(err):
		case f.Client == [16]byte{}:
			return fsm.FrameOutcome{}, err
		default:
			unknown = true
		}
		var stop error
		full := errors.Is(err, fsm.ErrDiskFull) && time.Since(begun) > handOverTime
		if !full && !errors.Is(err, fsm.ErrOverloaded) { // that the caller is told at once, or queues grow everywhere
			if stop = wait(ctx, pause); stop == nil {
				continue
			}
		}
		if unknown { // what the last attempt said is no more true of the frame
			return fsm.FrameOutcome{}, fmt.Errorf("shard %d: %w: %v", group, fsm.ErrOutcomeUnknown, errors.Join(err, stop)) //nolint:errorlint // it must not count as what it says
		}
		return fsm.FrameOutcome{}, fmt.Errorf("shard %d: %w", group, errors.Join(err, stop))
	}
}

func (r *router) proposeOnce(ctx context.Context, group uint32, f *fsm.Frame, request []byte) (fsm.FrameOutcome, error) {
	g, here := r.local(group)
	if here && g.IsLeader() {
		return g.Propose(ctx, f)
	}
	leader, ok := r.leader(group)
	if !ok {
		return fsm.FrameOutcome{}, errNoLeader
	}
	answer, err := r.ask(ctx, group, leader, callPropose, request)
	if err != nil {
		return fsm.FrameOutcome{}, fmt.Errorf("%w: node %s: %v", fsm.ErrOutcomeUnknown, leader, err) //nolint:errorlint // the same
	}
	body, err := readAnswer(answer)
	if err != nil {
		return fsm.FrameOutcome{}, err
	}
	out, _, err := fsm.DecodeFrameOutcome(body)
	if err == nil {
		r.heard(group, out.Time)
	}
	return out, err
}

func (r *router) heard(group uint32, at fsm.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.times == nil {
		r.times = make(map[uint32]fsm.Time)
	}
	r.times[group] = max(r.times[group], at)
}

// timeOf is the latest time of a group that another node's answer told, 0 if none did.
func (r *router) timeOf(group uint32) fsm.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.times[group]
}

// query answers read-only calls at the group's leader. It tries again until ctx ends.
func (r *router) query(ctx context.Context, group uint32, calls []fsm.Call) ([]fsm.Result, fsm.Applied, error) {
	for pause := retryMin; ; pause = min(2*pause, retryMax) {
		results, applied, err := r.queryOnce(ctx, group, calls)
		if err == nil {
			return results, applied, nil
		}
		if stop := wait(ctx, pause); stop != nil {
			return nil, fsm.Applied{}, fmt.Errorf("shard %d: %w", group, errors.Join(err, stop))
		}
	}
}

func (r *router) queryOnce(ctx context.Context, group uint32, calls []fsm.Call) ([]fsm.Result, fsm.Applied, error) {
	g, here := r.local(group)
	if here && g.IsLeader() {
		return g.Query(ctx, calls)
	}
	leader, ok := r.leader(group)
	if !ok {
		return nil, fsm.Applied{}, errNoLeader
	}
	f := fsm.Frame{Calls: calls}
	answer, err := r.ask(ctx, group, leader, callQuery, f.Append(binary.AppendUvarint(nil, uint64(group))))
	if err != nil {
		return nil, fsm.Applied{}, fmt.Errorf("%w: node %s: %v", errNoAnswer, leader, err) //nolint:errorlint // it had no effect, whatever it says
	}
	body, err := readAnswer(answer)
	if err != nil {
		return nil, fsm.Applied{}, err
	}
	out, _, err := fsm.DecodeFrameOutcome(body)
	return out.Results, fsm.Applied{Index: out.Index, Time: out.Time}, err
}

// ask calls the leader, until another node leads: one that is frozen keeps its connections and answers nothing.
func (r *router) ask(ctx context.Context, group uint32, leader, method string, request []byte) ([]byte, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		tick := time.NewTicker(leaderCheck)
		defer tick.Stop()
		for now := leader; now == leader || now == ""; now = r.leads(group) {
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
		}
		cancel()
	}()
	return r.call(ctx, leader, method, request)
}

// leader finds the node that leads a group, never this one: a group that leads here is asked directly.
func (r *router) leader(group uint32) (string, bool) {
	node := r.leads(group)
	return node, node != "" && node != r.nodeID
}

// leads names the node that leads a group as far as this one knows, empty if it does not.
func (r *router) leads(group uint32) string {
	if g, here := r.local(group); here {
		if id, _ := g.Leader(); id != "" {
			node, _, _ := strings.Cut(id, "/")
			return node
		}
	}
	node, _ := r.hint(group)
	return node
}

// The answer to a call between nodes starts with one of these.
const (
	answerOutcome    byte = 0 // a frame outcome follows
	answerRefused    byte = 1 // no effect; the message follows
	answerOverloaded byte = 2 // no effect; the message follows
	answerUnknown    byte = 3 // the message follows; what else is not known counts as this
	answerDiskFull   byte = 4 // no effect; nothing follows
)

func readAnswer(b []byte) ([]byte, error) {
	if len(b) == 0 {
		return nil, fmt.Errorf("%w: empty answer", fsm.ErrOutcomeUnknown)
	}
	switch message := string(b[1:]); b[0] {
	case answerOutcome:
		return b[1:], nil
	case answerRefused:
		return nil, fmt.Errorf("%w: %s", fsm.ErrNotLeader, message)
	case answerDiskFull:
		return nil, fsm.ErrDiskFull
	case answerOverloaded:
		return nil, fmt.Errorf("%w: %s", fsm.ErrOverloaded, message)
	default:
		return nil, fmt.Errorf("%w: %s", fsm.ErrOutcomeUnknown, message)
	}
}

func writeAnswer(out *fsm.FrameOutcome, err error) []byte {
	switch {
	case err == nil:
		return fsm.AppendFrameOutcome([]byte{answerOutcome}, out)
	case fsm.Safe(err) && errors.Is(err, fsm.ErrOverloaded):
		return append([]byte{answerOverloaded}, err.Error()...)
	case fsm.Safe(err) && errors.Is(err, fsm.ErrDiskFull):
		return []byte{answerDiskFull}
	case fsm.Safe(err):
		return append([]byte{answerRefused}, err.Error()...)
	default:
		return append([]byte{answerUnknown}, err.Error()...)
	}
}

// servePropose answers another node's propose. It does not pass the request on: the asker looks for the leader.
func (r *router) servePropose(ctx context.Context, request []byte) ([]byte, error) {
	g, f, err := r.target(request)
	if err != nil {
		return writeAnswer(nil, err), nil
	}
	out, err := g.Propose(ctx, f)
	return writeAnswer(&out, err), nil
}

func (r *router) serveQuery(ctx context.Context, request []byte) ([]byte, error) {
	g, f, err := r.target(request)
	if err != nil {
		return writeAnswer(nil, err), nil
	}
	results, applied, err := g.Query(ctx, f.Calls)
	return writeAnswer(&fsm.FrameOutcome{Index: applied.Index, Time: applied.Time, Results: results}, err), nil
}

func (r *router) target(request []byte) (replica, *fsm.Frame, error) {
	group, n := binary.Uvarint(request)
	if n <= 0 || group > 1<<32-1 {
		return nil, nil, errMalformed
	}
	f, rest, err := fsm.DecodeFrame(request[n:])
	if err != nil || len(rest) != 0 {
		return nil, nil, errMalformed
	}
	g, ok := r.local(uint32(group))
	if !ok || !g.IsLeader() {
		return nil, nil, errNoLeader
	}
	return g, &f, nil
}

// wait pauses for about d, less if ctx ends, and then returns its error.
func wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d/2 + rand.N(d/2))
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
