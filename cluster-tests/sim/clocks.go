package sim

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/holdfastdb/holdfast/cluster-tests/check"
	"github.com/holdfastdb/holdfast/cluster-tests/history"
	"github.com/holdfastdb/holdfast/cluster-tests/models"
	"github.com/holdfastdb/holdfast/fsm"
)

// clockTolerance is how far shard time may be from the true one: as far as the nodes' clocks may be from each other.
const clockTolerance = 500 * time.Millisecond

// wrongClocks are the times at which a node said that it leads with a wrong clock, because nobody else could. Then, and
// only then, shard time may jump with it.
type wrongClocks struct {
	mu    sync.Mutex
	leads []wrongLead
}

type wrongLead struct {
	at            time.Time
	ahead, behind time.Duration // the furthest of all nodes
}

// clockHandler is a log's handler that hears a node say so.
type clockHandler struct {
	slog.Handler
	c *Cluster
}

func (h *clockHandler) Enabled(ctx context.Context, level slog.Level) bool {
	return level >= slog.LevelError || h.Handler.Enabled(ctx, level)
}

func (h *clockHandler) Handle(ctx context.Context, r slog.Record) error {
	if strings.HasPrefix(r.Message, "leading with a wrong clock") {
		lead := wrongLead{at: time.Now()}
		for _, s := range h.c.list() {
			skew := time.Duration(s.skew.Load())
			lead.ahead, lead.behind = max(lead.ahead, skew), max(lead.behind, -skew)
		}
		h.c.wrong.mu.Lock()
		h.c.wrong.leads = append(h.c.wrong.leads, lead)
		h.c.wrong.mu.Unlock()
	}
	if !h.Handler.Enabled(ctx, r.Level) {
		return nil
	}
	return h.Handler.Handle(ctx, r)
}

func (h *clockHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &clockHandler{h.Handler.WithAttrs(attrs), h.c}
}

func (h *clockHandler) WithGroup(name string) slog.Handler {
	return &clockHandler{h.Handler.WithGroup(name), h.c}
}

// judgeClocks compares the shard time of each answer with the true one: a command got its time between its call and its
// answer; a query tells of the last one before it. It returns how many it looked at and how many were excused by a wrong lead.
func judgeClocks(ops []history.Op, begin time.Time, leads []wrongLead) (judged, excused int, violations []check.Violation) {
	for i := range ops {
		op := &ops[i]
		if op.Outcome != history.Definite || op.Trace.Index == 0 {
			continue
		}
		judged++
		told := op.Trace.Time
		late, early := begin.Add(op.Return+clockTolerance), begin.Add(op.Call-clockTolerance)
		ahead, behind := told.Sub(late), early.Sub(told)
		if op.Trace.Query {
			behind = 0
		}
		if ahead <= 0 && behind <= 0 {
			continue
		}
		why := false
		for _, lead := range leads {
			// Time that is ahead stands still until the true one has caught up; none is further behind than the clock.
			wrong := ahead <= lead.ahead && behind <= lead.behind
			why = why || !lead.at.After(late) && wrong
		}
		if why {
			excused++
			continue
		}
		violations = append(violations, check.Violation{Kind: check.KindTime, Op: op, Detail: "shard time is " + told.Sub(begin).String() + " after the history began, by no right clock"})
	}
	return judged, excused, violations
}

// shardTimes says between which shard times a moment of the history was; nil if a wrong clock led.
func (c *Cluster) shardTimes(begin time.Time) models.ShardTimes {
	c.wrong.mu.Lock()
	defer c.wrong.mu.Unlock()
	if len(c.wrong.leads) > 0 {
		return nil
	}
	return func(d time.Duration) (earliest, latest fsm.Time) {
		at := begin.Add(d)
		return fsm.Time(at.Add(-clockTolerance).UnixMilli()), fsm.Time(at.Add(clockTolerance).UnixMilli())
	}
}
