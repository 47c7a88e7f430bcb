package rpc

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/fsm/session"
)

// uses gathers the uses of sessions, so that a session that is validated all the time is not written all the time: a use
// goes to the shard if the one that is stored is older than a part of the idle timeout. A session so ends up to that
// part before its idle timeout has passed since its last use, and never after. What is suspicious about sessions goes the
// same way. Each shard is told by a sender of its own, so that one without a leader holds up no other.
type uses struct {
	group    func(slot uint16) (uint32, error)
	do       func(ctx context.Context, group uint32, calls []fsm.Call) (fsm.FrameOutcome, error)
	log      *slog.Logger
	policies *sessionPolicies

	ctx  context.Context
	stop context.CancelFunc
	work sync.WaitGroup

	mu     sync.Mutex
	shards map[uint32]*shardUses
	closed bool

	burst  bursts
	places places
	signs  *prometheus.CounterVec
}

// shardUses is what waits for one shard.
type shardUses struct {
	uses    map[session.Key]fsm.Time
	marks   map[session.Key]session.MarkRequest
	sending bool
}

const (
	// useParts is the part of an idle timeout that may pass unseen, between the others in milliseconds; a short timeout has at
	// least useLeast parts.
	useParts  = 16
	useLeast  = 4
	useDueMin = 1000
	useDueMax = 60_000
	// usePause is for how long uses gather.
	usePause = 250 * time.Millisecond
	// maxUses bounds what waits for a shard; what is more is noted when it is seen again.
	maxUses = 64 << 10
)

func newUses(n Node, group func(uint16) (uint32, error), policies *sessionPolicies, log *slog.Logger) *uses {
	u := &uses{group: group, do: n.Do, log: log, policies: policies, shards: make(map[uint32]*shardUses)}
	u.signs = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "holdfast_sessions_suspicious_total", Help: "Signs that something about a session is suspicious, as this node saw them.",
	}, []string{"sign"})
	u.burst.hits, u.places.away = make(map[session.Key]*uint32), make(map[session.Key]place)
	u.ctx, u.stop = context.WithCancel(context.Background())
	return u
}

// useDue is how old a stored use may be.
func useDue(idle fsm.Millis) fsm.Millis {
	return min(max(idle/useParts, useDueMin), useDueMax, idle/useLeast)
}

// note tells of a use at a time.
func (u *uses) note(i *session.Info, now fsm.Time) {
	policy := u.policies.of(i.Kind)
	if u.burst.count(i.Session, policy, now) && !(i.Flagged && policy.onBurst == session.Flag) {
		u.mark(session.MarkRequest{Session: i.Session, Sign: session.Burst, Act: policy.onBurst})
	}
	if i.Idle == 0 || now < i.Seen+fsm.Time(useDue(i.Idle)) {
		return
	}
	u.wait(i.Session, func(w *shardUses) {
		if len(w.uses) < maxUses && w.uses[i.Session] < now {
			w.uses[i.Session] = now
		}
	})
}

// mark has a sign noted. Of several for one session the one counts that leads to most, and of two networks before the change
// that led there.
func (u *uses) mark(q session.MarkRequest) {
	u.signs.WithLabelValues(signNames[q.Sign]).Inc()
	u.wait(q.Session, func(w *shardUses) {
		if old, waits := w.marks[q.Session]; len(w.marks) < maxUses &&
			(!waits || q.Act > old.Act || q.Act == old.Act && q.Sign == session.TwoNetworks && old.Sign == session.NetworkChanged) {
			w.marks[q.Session] = q
		}
	})
}

// wait puts something down for a session's shard, and has it sent.
func (u *uses) wait(k session.Key, put func(*shardUses)) {
	group, err := u.group(k.User.Slot())
	if err != nil {
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.closed {
		return
	}
	w := u.shards[group]
	if w == nil {
		w = &shardUses{}
		w.clear()
		u.shards[group] = w
	}
	put(w)
	if !w.sending {
		w.sending = true
		u.work.Go(func() { u.send(group, w) })
	}
}

func (w *shardUses) clear() {
	w.uses, w.marks = make(map[session.Key]fsm.Time), make(map[session.Key]session.MarkRequest)
}

// send brings what gathers for a shard to it until nothing is left. What is lost is noted again when its session is used
// again.
func (u *uses) send(group uint32, w *shardUses) {
	for {
		if sleep(u.ctx, usePause) != nil {
			return
		}
		u.mu.Lock()
		noted, marks := w.uses, w.marks
		w.clear()
		if w.sending = len(noted)+len(marks) > 0; !w.sending {
			u.mu.Unlock()
			return
		}
		u.mu.Unlock()
		for calls := useCalls(noted, marks); len(calls) > 0; {
			n := min(len(calls), maxUseCalls)
			ctx, cancel := context.WithTimeout(u.ctx, requestTimeout)
			_, err := u.do(ctx, group, calls[:n])
			cancel()
			if err != nil {
				u.log.Debug("uses of sessions were not noted", "group", group, "error", err)
				break
			}
			calls = calls[n:]
		}
	}
}

// maxUseCalls bounds the calls of one step, so that they are no more than a frame may have.
const maxUseCalls = 2

// useCalls makes the commands, marks first.
func useCalls(noted map[session.Key]fsm.Time, marks map[session.Key]session.MarkRequest) []fsm.Call {
	var calls []fsm.Call
	for _, q := range marks {
		calls = append(calls, sessionCall(session.OpMark, &q))
	}
	var q session.TouchRequest
	for k, at := range noted {
		if q.Uses = append(q.Uses, session.Use{Session: k, At: at}); len(q.Uses) == session.MaxTouch {
			calls = append(calls, sessionCall(session.OpTouch, &q))
			q.Uses = nil
		}
	}
	if len(q.Uses) > 0 {
		calls = append(calls, sessionCall(session.OpTouch, &q))
	}
	return calls
}

func (u *uses) close() {
	u.mu.Lock()
	u.closed = true
	u.mu.Unlock()
	u.stop()
	u.work.Wait()
}

// bursts counts the validations of sessions.
type bursts struct {
	mu    sync.Mutex
	begin fsm.Time
	hits  map[session.Key]*uint32 // since begin; found once for each validation, and counted without a second search
}

const (
	// burstWindow is over which validations are counted, in milliseconds, and maxHits of how many sessions.
	burstWindow = 10_000
	maxHits     = 64 << 10
)

// count tells that a session was validated, and whether that is more often than its policy expects, once in a window.
func (b *bursts) count(k session.Key, policy *sessionPolicy, now fsm.Time) bool {
	if policy.onBurst == 0 || policy.Burst == 0 {
		return false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if now >= b.begin+burstWindow || now+burstWindow < b.begin {
		b.begin = now
		clear(b.hits)
	}
	n := b.hits[k]
	if n == nil {
		if len(b.hits) >= maxHits {
			return false
		}
		n = new(uint32)
		b.hits[k] = n
	}
	before := *n
	*n = before + 1
	return before == policy.Burst
}

// sleep waits for d or until ctx ends.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
