package models

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/holdfastdb/holdfast/client"
	"github.com/holdfastdb/holdfast/cluster-tests/history"
	"github.com/holdfastdb/holdfast/fsm/session"
	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
)

// The users are few, so that callers meet in their sessions.
const (
	evictUser  = "ann" // the oldest session ends for a new one
	refuseUser = "bob" // so many sessions, and no more
	briefUser  = "cid" // sessions end by themselves
	stolenUser = "dot" // refresh tokens are stolen
	groupUser  = "eve" // sessions at two services begin with one login
	movingUser = "fay" // so many devices, the oldest ends for a new one
	settled    = "gus" // so many devices, and no more
	erasedUser = "hal" // all that is known is erased
)

const (
	mostSessions = 3
	mostKnown    = 5 // sessions of a user, and saved sessions, that callers try
	// Those that last outlast a history, whatever clocks do.
	lasting    = 30 * 24 * time.Hour
	briefIdle  = 8 * time.Second
	briefLife  = 20 * time.Second
	attribute  = "value"
	aloneUsers = 4
	// There are more logins and devices than a user has at a time.
	mostDevices = 2
	devices     = 5
	logins      = 3
)

// sessionsLoad is the load of sessions: crowds that do not meet, so that there is little at the same time that porcupine has
// to decide on, however many callers there are.
type sessionsLoad struct {
	crowds []*crowd
	watch  *watch
}

// crowd is some callers with users of their own: they share the tokens that any of them was given, and go on using them
// after the sessions ended.
type crowd struct {
	suffix string        // of the names of its users
	stale  time.Duration // how old some answers may be
	burst  int           // how many questions who only reads asks at a time

	mu     sync.Mutex
	known  map[string][]*pass // by user, the newest last
	saved  []*savedPass
	spared []string // users of whom one session was spared
	next   int
}

// pass is what callers have of a session.
type pass struct {
	user, id string
	login    string   // the name of it
	tokens   []string // access tokens, the newest last
	refresh  []string
	version  uint32 // of the attributes, as last heard
}

type savedPass struct{ token string }

// An SDK that may answer from what it remembers asks the leader four times within that time: in virtual time that costs
// more than all else.
func newSimSessions() Load   { return newSessionsLoad(1, 3*time.Second, 1) }
func newChaosSessions() Load { return newSessionsLoad(4, 500*time.Millisecond, 20) }

func newSessionsLoad(crowds int, stale time.Duration, burst int) Load {
	l := &sessionsLoad{}
	for i := range crowds {
		l.crowds = append(l.crowds, &crowd{suffix: fmt.Sprint("-", i), stale: stale, burst: burst, known: make(map[string][]*pass)})
	}
	return l
}

// Begin implements Load: users begin by logging in, and somebody watches.
func (l *sessionsLoad) Begin(_ context.Context, by *Process) error {
	l.watch = startWatch(by)
	return nil
}

// named is how one of the users is called in this crowd, and role the other way round.
func (c *crowd) named(role string) string { return role + c.suffix }
func (c *crowd) role(user string) string  { return strings.TrimSuffix(user, c.suffix) }

// users are the names of all.
func (c *crowd) users() []string {
	names := c.loners()
	for _, role := range []string{evictUser, refuseUser, briefUser, stolenUser, groupUser, movingUser, settled, erasedUser} {
		names = append(names, c.named(role))
	}
	return names
}

func (c *crowd) loners() (names []string) {
	for i := range aloneUsers {
		names = append(names, c.named(fmt.Sprint(aloneUser, i)))
	}
	return names
}

// Callers implements Load: of each crowd, one of four only reads.
func (l *sessionsLoad) Callers() (all []Caller) {
	for _, c := range l.crowds {
		all = append(all, Caller{Step: c.step}, Caller{Reads: true, Step: c.read}, Caller{Step: c.step}, Caller{Step: c.step})
	}
	return all
}

// pick draws a session that a caller was given; nil if there is none.
func (c *crowd) pick(by *Process, user string) *pass {
	c.mu.Lock()
	defer c.mu.Unlock()
	if list := c.known[user]; len(list) > 0 {
		p := *list[by.Rand.IntN(len(list))]
		return &p
	}
	return nil
}

// learn notes what an answer says of a session.
func (c *crowd) learn(in SessionOp, out SessionAnswer) {
	if out.Session == "" {
		return
	}
	user := in.User
	c.mu.Lock()
	defer c.mu.Unlock()
	list := c.known[user]
	var p *pass
	for _, other := range list {
		if other.id == out.Session {
			p = other
		}
	}
	if p == nil {
		if out.Token == "" {
			return
		}
		p = &pass{user: user, id: out.Session, login: in.Login}
		c.known[user] = append(list, p)
	}
	p.version = max(p.version, out.Version)
	if out.Token != "" {
		p.tokens = append(p.tokens, out.Token)
	}
	if out.Refresh != "" {
		p.refresh = append(p.refresh, out.Refresh)
	}
}

// one draws a token: mostly the newest.
func one(by *Process, tokens []string) string {
	switch {
	case len(tokens) == 0:
		return ""
	case by.Rand.IntN(4) > 0:
		return tokens[len(tokens)-1]
	}
	return tokens[by.Rand.IntN(len(tokens))]
}

// unique makes a text that is used once.
func (c *crowd) unique(what string, by *Process) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.next++
	return fmt.Sprintf("%s-%s-%d", what, by.Name, c.next)
}

// answered turns the refusal of a token into an answer.
func answered(out SessionAnswer, err error) (SessionAnswer, error) {
	for _, reason := range verdicts {
		if reason != "" && err != nil && errors.Is(err, client.ErrToken) && strings.HasSuffix(err.Error(), reason) {
			return SessionAnswer{Reason: reason}, nil
		}
	}
	if errors.Is(err, client.ErrExhausted) && strings.Contains(err.Error(), "too many times at once") {
		return SessionAnswer{Reason: verdicts[session.TooManyAtOnce]}, nil
	}
	return out, err
}

// do has a process do one operation, and learns from the answer.
func (c *crowd) do(by *Process, in SessionOp, call func(ctx context.Context, s *client.Sessions) (SessionAnswer, error)) error {
	_, err := c.ask(by, in, call)
	return err
}

// ask does the same, and returns the answer.
func (c *crowd) ask(by *Process, in SessionOp, call func(ctx context.Context, s *client.Sessions) (SessionAnswer, error)) (out SessionAnswer, err error) {
	err = by.Do(in, func(ctx context.Context) (any, error) {
		var err error
		out, err = answered(call(ctx, by.Client.Sessions()))
		return out, err
	})
	if err == nil {
		c.learn(in, out)
	}
	return out, err
}

func given(t client.Tokens) SessionAnswer {
	return SessionAnswer{Session: t.SessionID, Token: t.Token, Refresh: t.RefreshToken, Until: t.ExpiresAt.UnixMilli(), N: t.Evicted}
}

// login begins a session. What callers then forget ends, so that users do not come to have more and more.
func (c *crowd) login(by *Process, user string) error {
	if _, err := c.begin(by, user); err != nil {
		return err
	}
	if old := c.forget(user); old != nil {
		return c.revoke(by, old)
	}
	return nil
}

// forget takes the oldest session from those that callers know, if they know enough.
func (c *crowd) forget(user string) *pass {
	c.mu.Lock()
	defer c.mu.Unlock()
	list := c.known[user]
	if len(list) <= mostKnown {
		return nil
	}
	c.known[user] = list[1:]
	return list[0]
}

func (c *crowd) begin(by *Process, user string) (SessionAnswer, error) {
	return c.beginAt(by, user, fmt.Sprint("login-", by.Rand.IntN(logins)))
}

// beginAt begins a session of a login, if its user has logins at several services.
func (c *crowd) beginAt(by *Process, user, login string) (SessionAnswer, error) {
	role := c.role(user)
	in := SessionOp{Kind: KindLogin, User: user, Brief: role == briefUser}
	q := client.Login{UserID: user, RememberMe: true, IdleTimeout: client.NoIdleTimeout, AbsoluteTimeout: lasting, RefreshTimeout: lasting}
	switch role {
	case evictUser:
		in.Most, in.Evict = mostSessions, true
		q.MaxSessions, q.OnLimit = mostSessions, client.EvictOldest
	case refuseUser:
		in.Most, q.MaxSessions, q.OnLimit = mostSessions, mostSessions, client.RefuseLogin
	case briefUser:
		q.IdleTimeout, q.AbsoluteTimeout, q.RefreshTimeout, q.RememberMe = briefIdle, briefLife, 2*briefLife, by.Rand.IntN(2) == 0
		if !q.RememberMe {
			q.RefreshTimeout = 0
		}
	case stolenUser, erasedUser:
	case groupUser:
		in.Login = login
		q.Login, q.Service = in.Login, fmt.Sprint("service-", by.Rand.IntN(2))
	case movingUser, settled:
		in.Device, in.MostDevices, in.Evict = fmt.Sprint("device-", by.Rand.IntN(devices)), mostDevices, role == movingUser
		q.Device, q.MaxDevices, q.OnLimit = map[string]any{"id": in.Device}, mostDevices, client.RefuseLogin
		if in.Evict {
			q.OnLimit = client.EvictOldest
		}
	default:
		q.RememberMe, q.RefreshTimeout = false, 0
	}
	return c.ask(by, in, func(ctx context.Context, s *client.Sessions) (SessionAnswer, error) {
		t, err := s.Create(ctx, q)
		return given(t), err
	})
}

func (c *crowd) validate(by *Process, p *pass, token string, forged bool) error {
	in := SessionOp{Kind: KindValidate, User: p.user, Session: p.id, Token: token, Forged: forged}
	var options []client.ValidateOption
	if by.Rand.IntN(3) == 0 && !forged {
		in.Stale = c.stale
		options = append(options, client.MaxStale(c.stale))
	}
	return c.do(by, in, func(ctx context.Context, s *client.Sessions) (SessionAnswer, error) {
		v, err := s.Validate(ctx, token, options...)
		out := SessionAnswer{Valid: v.Valid, Reason: string(v.Reason), Age: v.Age}
		if v.Session != nil {
			out.Ended = string(v.Session.Ended)
		}
		if v.Valid {
			out.Session, out.Until, out.Version = v.Session.ID, v.Session.ExpiresAt.UnixMilli(), v.Session.AttributesVersion
			out.Value, _ = v.Session.Attributes[attribute].(string)
		}
		return out, err
	})
}

func (c *crowd) list(by *Process, user string) error {
	return c.do(by, SessionOp{Kind: KindList, User: user}, func(ctx context.Context, s *client.Sessions) (out SessionAnswer, err error) {
		list, err := s.List(ctx, user)
		for _, one := range list {
			out.List, out.Devices = append(out.List, one.ID), append(out.Devices, deviceOf(one))
		}
		return out, err
	})
}

func (c *crowd) history(by *Process, user string) error {
	return c.do(by, SessionOp{Kind: KindHistory, User: user}, func(ctx context.Context, s *client.Sessions) (out SessionAnswer, err error) {
		list, err := s.History(ctx, user)
		for _, one := range list {
			out.List, out.Devices, out.Ends = append(out.List, one.ID), append(out.Devices, deviceOf(one)), append(out.Ends, string(one.Ended))
		}
		return out, err
	})
}

// get reads a session by its id. That there is none is an answer, too.
func (c *crowd) get(by *Process, p *pass) error {
	return c.do(by, SessionOp{Kind: KindGet, User: p.user, Session: p.id}, func(ctx context.Context, s *client.Sessions) (SessionAnswer, error) {
		one, err := s.Get(ctx, p.id)
		if errors.Is(err, client.ErrNotFound) {
			return SessionAnswer{}, nil
		}
		if err != nil {
			return SessionAnswer{}, err
		}
		out := SessionAnswer{Session: one.ID, Found: true, Device: deviceOf(one), Version: one.AttributesVersion, Until: one.ExpiresAt.UnixMilli()}
		if out.Ended = string(one.Ended); out.Ended != "" {
			out.Until = one.EndedAt.UnixMilli()
		}
		out.Value, _ = one.Attributes[attribute].(string)
		return out, nil
	})
}

func deviceOf(s *client.Session) string {
	id, _ := s.Device["id"].(string)
	return id
}

// forge makes a token that nobody gave out, of a session that is there.
func forge(token string) (string, bool) {
	t, err := parseAccess(token)
	if err != nil {
		return "", false
	}
	t.Secret[7] ^= 1
	return t.String(), true
}

func (c *crowd) find(by *Process, token string) error {
	return c.do(by, SessionOp{Kind: KindFind, Token: token}, func(ctx context.Context, s *client.Sessions) (out SessionAnswer, err error) {
		data, found, err := s.Saved().Find(ctx, token)
		return SessionAnswer{Found: found, Value: string(data)}, err
	})
}

// Press implements Load: those of the limits press enough. To return at once would keep the CPUs busy with calling it.
func (l *sessionsLoad) Press(ctx context.Context, _ *client.Client, _ uint32) { <-ctx.Done() }

func (l *sessionsLoad) users() (names []string) {
	for _, c := range l.crowds {
		names = append(append(names, c.users()...), c.spared...)
	}
	return names
}

// MayFail implements Load: there are sessions enough, somebody was faster, or it was dropped.
func (l *sessionsLoad) MayFail(op *history.Op) bool {
	in, ok := op.Input.(SessionOp)
	return ok && (in.Kind == KindLogin && in.Most+in.MostDevices > 0 && !in.Evict || in.Kind == KindSet || in.Kind == KindSave)
}

// End implements Load: it compares what is listed and counted with what callers were told.
func (l *sessionsLoad) End(ctx context.Context, by *Process) (j Judged) {
	l.watch.end(by)
	ops := by.History.Ops()
	f := fatesOf(ops)
	listed := make(map[string]bool)
	for _, user := range l.users() {
		list, err := by.Client.Sessions().List(ctx, user)
		if err != nil {
			j.Violations = append(j.Violations, violation(BrokenSum, "list the sessions of %s: %v", user, err))
		}
		for _, one := range list {
			listed[one.ID] = true
		}
	}
	stats, err := pb.NewSessionsClient(by.Client.Conn()).Stats(ctx, &pb.SessionStatsRequest{})
	if err != nil {
		j.Violations = append(j.Violations, violation(BrokenSum, "count the sessions: %v", err))
		return j
	}
	j.Add(f.sums(listed, sumOf(stats.Active), sumOf(stats.Created), sumOf(stats.Ended)))
	j.Add(judgeCreated(ops, sumOf(stats.Created)))
	return j
}

func sumOf(counts map[string]float64) (n int) {
	for _, part := range counts {
		n += int(part)
	}
	return n
}

// Judge implements Load.
func (l *sessionsLoad) Judge(ops []history.Op, _ ShardTimes) Judged { return judgeSessions(ops) }

// Unclear implements Load: a model of sessions understands all questions.
func (l *sessionsLoad) Unclear(_ []history.Op, unclear []*history.Op) (n int) {
	for _, op := range unclear {
		if _, ok := op.Input.(SessionOp); ok {
			n++
		}
	}
	return n
}

// Sequences implements Load.
func (l *sessionsLoad) Sequences() Sequences { return sessionSequences() }
