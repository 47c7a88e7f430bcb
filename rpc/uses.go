package rpc

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/fsm/session"
)

// uses gathers the uses of sessions, so that a session that is validated all the time is not written all the time: a use
// goes to the shard if the one that is stored is older than a part of the idle timeout. A session so ends up to that
// part before its idle timeout has passed since its last use, and never after.
type uses struct {
	do       func(ctx context.Context, slot uint16, call fsm.Call) ([]byte, error)
	log      *slog.Logger
	policies *sessionPolicies

	mu      sync.Mutex
	waiting map[session.Key]fsm.Time
	marks   map[session.Key]session.MarkRequest
	hits    map[session.Key]int // since burstBegin, of sessions with many
	begin   fsm.Time
	closed  bool
	wake    chan struct{}
	stop    context.CancelFunc
	work    sync.WaitGroup
}

const (
	// useEvery is the part of an idle timeout that may pass unseen, between the two others in milliseconds.
	useEvery    = 16
	useEveryMin = 1000
	useEveryMax = 60_000
	// usePause is for how long uses gather.
	usePause = 250 * time.Millisecond
	// maxUses bounds what waits; what is more than that is noted when it is seen again.
	maxUses = 256 << 10
	// burstWindow is over which validations of a session are counted, in milliseconds, and maxHits of how many sessions.
	burstWindow = 10_000
	maxHits     = 64 << 10
)

func newUses(do func(context.Context, uint16, fsm.Call) ([]byte, error), policies *sessionPolicies, log *slog.Logger) *uses {
	ctx, stop := context.WithCancel(context.Background())
	u := &uses{
		do: do, log: log, policies: policies, waiting: make(map[session.Key]fsm.Time), marks: make(map[session.Key]session.MarkRequest),
		hits: make(map[session.Key]int), wake: make(chan struct{}, 1), stop: stop,
	}
	u.work.Go(func() { u.run(ctx) })
	return u
}

// useDue is how old a stored use may be.
func useDue(idle fsm.Millis) fsm.Millis { return min(max(idle/useEvery, useEveryMin), useEveryMax) }

// note tells of a use at a time.
func (u *uses) note(i *session.Info, now fsm.Time) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.closed {
		return
	}
	u.count(i, now)
	if i.Idle == 0 || now < i.Seen+fsm.Time(useDue(i.Idle)) || len(u.waiting) >= maxUses {
		return
	}
	if u.waiting[i.Session] < now {
		u.waiting[i.Session] = now
	}
	u.poke()
}

// count looks for sessions that are validated too often.
func (u *uses) count(i *session.Info, now fsm.Time) {
	policy := u.policies.of(i.Kind)
	if policy.onBurst == 0 || i.Flagged && policy.onBurst == session.Flag {
		return
	}
	if now >= u.begin+burstWindow || now < u.begin {
		u.begin = now
		clear(u.hits)
	}
	n, known := u.hits[i.Session]
	if !known && len(u.hits) >= maxHits {
		return
	}
	u.hits[i.Session] = n + 1
	if n == int(policy.Burst) {
		u.marks[i.Session] = session.MarkRequest{Session: i.Session, Sign: session.Burst, Act: policy.onBurst}
		u.poke()
	}
}

// mark has a sign noted.
func (u *uses) mark(q session.MarkRequest) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if !u.closed && len(u.marks) < maxUses {
		u.marks[q.Session] = q
		u.poke()
	}
}

func (u *uses) poke() {
	select {
	case u.wake <- struct{}{}:
	default:
	}
}

// run brings what gathered to the shards until close.
func (u *uses) run(ctx context.Context) {
	for {
		select {
		case <-u.wake:
		case <-ctx.Done():
			return
		}
		u.mu.Lock()
		marks := u.marks
		u.marks = make(map[session.Key]session.MarkRequest)
		u.mu.Unlock()
		for _, q := range marks {
			u.send(ctx, q.Session.User.Slot(), sessionCall(session.OpMark, &q))
		}
		select {
		case <-time.After(usePause):
		case <-ctx.Done():
		}
		u.flush(ctx)
	}
}

// flush sends the uses that gathered, those of each slot's shard in one command.
func (u *uses) flush(ctx context.Context) {
	u.mu.Lock()
	waiting := u.waiting
	u.waiting = make(map[session.Key]fsm.Time)
	u.mu.Unlock()
	bySlot := make(map[uint16]*session.TouchRequest)
	for k, at := range waiting {
		q := bySlot[k.User.Slot()]
		if q == nil {
			q = &session.TouchRequest{}
			bySlot[k.User.Slot()] = q
		}
		q.Uses = append(q.Uses, session.Use{Session: k, At: at})
	}
	var sending sync.WaitGroup
	slots := make(chan struct{}, maxElsewhere)
	for slot, q := range bySlot {
		for len(q.Uses) > 0 {
			part := session.TouchRequest{Uses: q.Uses[:min(len(q.Uses), session.MaxTouch)]}
			q.Uses = q.Uses[len(part.Uses):]
			slots <- struct{}{}
			sending.Go(func() {
				defer func() { <-slots }()
				u.send(ctx, slot, sessionCall(session.OpTouch, &part))
			})
		}
	}
	sending.Wait()
}

// send brings one command to its shard. One that is lost is noted again when its session is used again.
func (u *uses) send(ctx context.Context, slot uint16, call fsm.Call) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	if _, err := u.do(ctx, slot, call); err != nil && ctx.Err() == nil {
		u.log.Debug("a use of sessions was not noted", "error", err)
	}
}

func (u *uses) close() {
	u.mu.Lock()
	u.closed = true
	u.mu.Unlock()
	u.stop()
	u.work.Wait()
}
