package models

import (
	"context"
	"time"

	"github.com/holdfastdb/holdfast/client"
)

// read is one step of a caller who changes nothing.
func (l *sessionsLoad) read(by *Process) error {
	names := userNames()
	user := names[by.Rand.IntN(len(names))]
	switch p := l.pick(by, user); {
	case p == nil || by.Rand.IntN(5) == 0:
		return l.list(by, user)
	case by.Rand.IntN(10) == 0:
		if token, ok := forge(p.tokens[0]); ok {
			return l.validate(by, p, token, true)
		}
		fallthrough
	default:
		return l.validate(by, p, one(by, p.tokens), false)
	}
}

// step is one step of a caller.
func (l *sessionsLoad) step(by *Process) error {
	switch by.Rand.IntN(8) {
	case 0, 1, 2:
		return l.alone(by, aloneNames()[by.Rand.IntN(aloneUsers)])
	case 3:
		return l.framework(by)
	case 4, 5:
		return l.shared(by, evictUser)
	case 6:
		return l.shared(by, refuseUser)
	}
	if by.Rand.IntN(3) == 0 {
		return l.stolen(by)
	}
	return l.shared(by, briefUser)
}

// stolen has a refresh token used by its owner, who goes on to the next ones, and then by a thief, which ends the session.
func (l *sessionsLoad) stolen(by *Process) error {
	first, err := l.begin(by, stolenUser)
	p, last := &pass{user: stolenUser, id: first.Session}, first
	for range 2 {
		if err != nil || last.Refresh == "" {
			return err
		}
		last, err = l.exchange(by, p, last.Refresh)
	}
	if err != nil {
		return err
	}
	time.Sleep(time.Millisecond) // in virtual time, what takes none is at the same time
	if _, err = l.exchange(by, p, first.Refresh); err != nil {
		return err
	}
	l.forget(stolenUser)
	return nil
}

// alone does what porcupine understands.
func (l *sessionsLoad) alone(by *Process, user string) error {
	p := l.pick(by, user)
	switch n := by.Rand.IntN(10); {
	case p == nil || n < 2:
		return l.login(by, user)
	case n < 8:
		return l.validate(by, p, p.tokens[0], false)
	case n < 9:
		return l.revoke(by, p)
	default:
		return l.logout(by, p, p.tokens[0], false)
	}
}

// shared does anything with the sessions of a user.
func (l *sessionsLoad) shared(by *Process, user string) error {
	p := l.pick(by, user)
	switch n := by.Rand.IntN(100); {
	case p == nil || n < 15:
		return l.login(by, user)
	case n < 55:
		return l.validate(by, p, one(by, p.tokens), false)
	case n < 72 && len(p.refresh) > 0:
		return l.refresh(by, p)
	case n < 76:
		return l.rotate(by, p)
	case n < 80:
		return l.logout(by, p, one(by, p.tokens), by.Rand.IntN(3) == 0)
	case n < 84:
		return l.revoke(by, p)
	case n < 87:
		return l.revokeUser(by, p)
	case n < 92:
		return l.list(by, user)
	default:
		return l.set(by, p)
	}
}

func (l *sessionsLoad) refresh(by *Process, p *pass) error {
	_, err := l.exchange(by, p, one(by, p.refresh))
	return err
}

func (l *sessionsLoad) exchange(by *Process, p *pass, token string) (SessionAnswer, error) {
	return l.ask(by, SessionOp{Kind: KindRefresh, User: p.user, Session: p.id, Token: token}, func(ctx context.Context, s *client.Sessions) (SessionAnswer, error) {
		t, err := s.Refresh(ctx, token)
		return given(t), err
	})
}

func (l *sessionsLoad) rotate(by *Process, p *pass) error {
	token := one(by, p.tokens)
	return l.do(by, SessionOp{Kind: KindRotate, User: p.user, Session: p.id, Token: token}, func(ctx context.Context, s *client.Sessions) (SessionAnswer, error) {
		t, err := s.Rotate(ctx, token)
		return given(t), err
	})
}

func (l *sessionsLoad) logout(by *Process, p *pass, token string, everywhere bool) error {
	in := SessionOp{Kind: KindLogout, User: p.user, Session: p.id, Token: token, Everywhere: everywhere}
	return l.do(by, in, func(ctx context.Context, s *client.Sessions) (SessionAnswer, error) {
		var also []client.LogoutScope
		if everywhere {
			also = append(also, client.Everywhere)
		}
		n, err := s.Logout(ctx, token, also...)
		return SessionAnswer{N: n}, err
	})
}

func (l *sessionsLoad) revoke(by *Process, p *pass) error {
	return l.do(by, SessionOp{Kind: KindRevoke, User: p.user, Session: p.id}, func(ctx context.Context, s *client.Sessions) (SessionAnswer, error) {
		there, err := s.Revoke(ctx, p.id)
		out := SessionAnswer{}
		if there {
			out.N = 1
		}
		return out, err
	})
}

func (l *sessionsLoad) revokeUser(by *Process, p *pass) error {
	in := SessionOp{Kind: KindRevokeUser, User: p.user}
	var options []client.RevokeOption
	if by.Rand.IntN(2) == 0 {
		in.Except = p.id
		options = append(options, client.Except(p.id))
	}
	return l.do(by, in, func(ctx context.Context, s *client.Sessions) (SessionAnswer, error) {
		n, err := s.RevokeUser(ctx, p.user, options...)
		return SessionAnswer{N: n}, err
	})
}

// set changes an attribute, mostly from the version that was last heard of.
func (l *sessionsLoad) set(by *Process, p *pass) error {
	in := SessionOp{Kind: KindSet, User: p.user, Session: p.id, Value: l.unique("value", by)}
	change := client.AttributeChange{Set: map[string]any{attribute: in.Value}}
	if by.Rand.IntN(3) > 0 {
		in.Version = &p.version
		change.IfVersion = &p.version
	}
	return l.do(by, in, func(ctx context.Context, s *client.Sessions) (SessionAnswer, error) {
		a, err := s.SetAttributes(ctx, p.id, change)
		return SessionAnswer{Session: p.id, Version: a.Version, Value: in.Value}, err
	})
}

// framework does what the session store of a framework does: it finds and saves the session of a token, and drops it some
// time; requests that had begun before go on.
func (l *sessionsLoad) framework(by *Process) error {
	l.mu.Lock()
	if len(l.saved) == 0 || by.Rand.IntN(6) == 0 {
		l.next++
		l.saved = append(l.saved, &savedPass{token: by.Name + time.Now().Format(time.RFC3339Nano)})
		l.saved = l.saved[max(0, len(l.saved)-mostKnown):]
	}
	token := l.saved[by.Rand.IntN(len(l.saved))].token
	l.mu.Unlock()
	switch n := by.Rand.IntN(10); {
	case n < 4:
		return l.find(by, token)
	case n < 8:
		value := l.unique("data", by)
		return l.do(by, SessionOp{Kind: KindSave, Token: token, Value: value}, func(ctx context.Context, s *client.Sessions) (SessionAnswer, error) {
			return SessionAnswer{}, s.Saved().Save(ctx, client.KeyOf(token), []byte(value), time.Now().Add(lasting))
		})
	default:
		return l.do(by, SessionOp{Kind: KindDrop, Token: token}, func(ctx context.Context, s *client.Sessions) (SessionAnswer, error) {
			there, err := s.Saved().Drop(ctx, client.KeyOf(token))
			return SessionAnswer{Found: there}, err
		})
	}
}
