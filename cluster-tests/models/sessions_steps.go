package models

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/holdfastdb/holdfast/client"
)

// read is one step of a caller who changes nothing.
func (c *crowd) read(by *Process) (err error) {
	for range c.burst {
		if err = c.question(by); err != nil {
			return err
		}
	}
	return nil
}

func (c *crowd) question(by *Process) error {
	names := c.users()
	user := names[by.Rand.IntN(len(names))]
	p := c.pick(by, user)
	switch n := by.Rand.IntN(20); {
	case p == nil || n < 3:
		return c.list(by, user)
	case n < 5:
		return c.history(by, user)
	case n < 8:
		return c.get(by, p)
	case n < 10:
		if token, ok := forge(p.tokens[0]); ok {
			return c.validate(by, p, token, true)
		}
	}
	return c.validate(by, p, one(by, p.tokens), false)
}

// step is one step of a caller.
func (c *crowd) step(by *Process) error {
	switch by.Rand.IntN(13) {
	case 0, 1, 2:
		names := c.loners()
		return c.alone(by, names[by.Rand.IntN(len(names))])
	case 3, 11:
		return c.framework(by)
	case 4, 5:
		return c.shared(by, evictUser)
	case 6:
		return c.shared(by, refuseUser)
	case 7:
		if by.Rand.IntN(3) == 0 {
			return c.stolen(by)
		}
		return c.shared(by, briefUser)
	case 8:
		if by.Rand.IntN(2) == 0 {
			return c.leave(by)
		}
		return c.shared(by, groupUser)
	case 9:
		return c.shared(by, movingUser)
	case 10:
		return c.shared(by, settled)
	}
	switch by.Rand.IntN(6) {
	case 0:
		return c.erase(by)
	case 1:
		return c.spare(by)
	}
	return c.shared(by, erasedUser)
}

// erase deletes all that is known of a user, and looks for it.
func (c *crowd) erase(by *Process) error {
	user := c.named(erasedUser)
	p := c.pick(by, user)
	err := c.do(by, SessionOp{Kind: KindErase, User: user}, func(ctx context.Context, s *client.Sessions) (SessionAnswer, error) {
		n, err := s.EraseUser(ctx, user)
		return SessionAnswer{N: n}, err
	})
	if err != nil || p == nil {
		return err
	}
	time.Sleep(time.Millisecond)
	if err := c.get(by, p); err != nil {
		return err
	}
	if err := c.validate(by, p, one(by, p.tokens), false); err != nil {
		return err
	}
	return c.history(by, user)
}

// leave begins a login at two services, logs out of it all at the one, and goes on at the other.
func (c *crowd) leave(by *Process) error {
	user, login := c.named(groupUser), fmt.Sprint("login-", by.Rand.IntN(logins))
	var there [2]SessionAnswer
	for i := range there {
		var err error
		if there[i], err = c.beginAt(by, user, login); err != nil {
			return err
		}
	}
	here, other := &pass{user: user, id: there[0].Session, login: login}, &pass{user: user, id: there[1].Session, login: login}
	time.Sleep(time.Millisecond) // the logins were over before, also for those who only see times
	if err := c.logoutOf(by, here, there[0].Token, client.WholeLogin); err != nil {
		return err
	}
	time.Sleep(time.Millisecond)
	if err := c.validate(by, other, there[1].Token, false); err != nil {
		return err
	}
	if err := c.get(by, other); err != nil {
		return err
	}
	for range there {
		c.forget(user)
	}
	return c.list(by, user)
}

// spare ends all sessions of a user but the newest. The user is a new one: of another, nobody could tell that an earlier
// command of unknown outcome did not end this session too.
func (c *crowd) spare(by *Process) error {
	user := c.unique("spared", by)
	c.mu.Lock()
	c.spared = append(c.spared, user)
	c.mu.Unlock()
	if _, err := c.begin(by, user); err != nil {
		return err
	}
	newest, err := c.begin(by, user)
	if err != nil {
		return err
	}
	p := &pass{user: user, id: newest.Session}
	if err := c.revokeUser(by, p, p.id, ""); err != nil {
		return err
	}
	time.Sleep(time.Millisecond)
	return c.validate(by, p, newest.Token, false)
}

// stolen has a refresh token used by its owner, who goes on to the next ones, and then by a thief, which ends the session.
func (c *crowd) stolen(by *Process) error {
	user := c.named(stolenUser)
	first, err := c.begin(by, user)
	p, last := &pass{user: user, id: first.Session}, first
	for range 2 {
		if err != nil || last.Refresh == "" {
			return err
		}
		last, err = c.exchange(by, p, last.Refresh)
	}
	if err != nil {
		return err
	}
	time.Sleep(time.Millisecond) // in virtual time, what takes none is at the same time
	if _, err = c.exchange(by, p, first.Refresh); err != nil {
		return err
	}
	c.forget(user)
	return nil
}

// alone does what porcupine understands.
func (c *crowd) alone(by *Process, user string) error {
	p := c.pick(by, user)
	switch n := by.Rand.IntN(10); {
	case p == nil || n < 2:
		return c.login(by, user)
	case n < 7:
		return c.validate(by, p, p.tokens[0], false)
	case n < 8:
		return c.get(by, p)
	case n < 9:
		return c.revoke(by, p)
	default:
		return c.logout(by, p, p.tokens[0], false)
	}
}

// shared does anything with the sessions of a user.
func (c *crowd) shared(by *Process, role string) error {
	user := c.named(role)
	p := c.pick(by, user)
	switch n := by.Rand.IntN(100); {
	case p == nil || n < 15:
		err := c.login(by, user)
		if role == movingUser || role == settled { // a limit is reached now, or was
			return c.list(by, user)
		}
		return err
	case n < 22 && role != briefUser: // they may have no more than so many
		return c.list(by, user)
	case n < 55:
		return c.validate(by, p, one(by, p.tokens), false)
	case n < 72 && len(p.refresh) > 0:
		return c.refresh(by, p)
	case n < 76:
		return c.rotate(by, p)
	case n < 80 || role == groupUser && n < 85:
		return c.logout(by, p, one(by, p.tokens), by.Rand.IntN(3) == 0)
	case n < 84:
		return c.revoke(by, p)
	case n < 87:
		switch by.Rand.IntN(3) {
		case 0:
			return c.revokeUser(by, p, p.id, "")
		case 1:
			return c.revokeUser(by, p, "", p.login)
		}
		return c.revokeUser(by, p, "", "")
	case n < 89:
		return c.history(by, user)
	case n < 92:
		return c.get(by, p)
	default:
		return c.set(by, p)
	}
}

func (c *crowd) refresh(by *Process, p *pass) error {
	_, err := c.exchange(by, p, one(by, p.refresh))
	return err
}

func (c *crowd) exchange(by *Process, p *pass, token string) (SessionAnswer, error) {
	return c.ask(by, SessionOp{Kind: KindRefresh, User: p.user, Session: p.id, Token: token}, func(ctx context.Context, s *client.Sessions) (SessionAnswer, error) {
		t, err := s.Refresh(ctx, token)
		return given(t), err
	})
}

func (c *crowd) rotate(by *Process, p *pass) error {
	token := one(by, p.tokens)
	return c.do(by, SessionOp{Kind: KindRotate, User: p.user, Session: p.id, Token: token}, func(ctx context.Context, s *client.Sessions) (SessionAnswer, error) {
		t, err := s.Rotate(ctx, token)
		return given(t), err
	})
}

func (c *crowd) logout(by *Process, p *pass, token string, everywhere bool) error {
	switch {
	case everywhere:
		return c.logoutOf(by, p, token, client.Everywhere)
	case p.login != "" && by.Rand.IntN(3) > 0:
		return c.logoutOf(by, p, token, client.WholeLogin)
	}
	return c.logoutOf(by, p, token)
}

// logoutOf ends the session of a token, and others that belong to it.
func (c *crowd) logoutOf(by *Process, p *pass, token string, also ...client.LogoutScope) error {
	in := SessionOp{Kind: KindLogout, User: p.user, Session: p.id, Token: token, Everywhere: slices.Contains(also, client.Everywhere)}
	if slices.Contains(also, client.WholeLogin) {
		in.WholeLogin, in.Login = true, p.login
	}
	return c.do(by, in, func(ctx context.Context, s *client.Sessions) (SessionAnswer, error) {
		n, err := s.Logout(ctx, token, also...)
		return SessionAnswer{N: n}, err
	})
}

func (c *crowd) revoke(by *Process, p *pass) error {
	return c.do(by, SessionOp{Kind: KindRevoke, User: p.user, Session: p.id}, func(ctx context.Context, s *client.Sessions) (SessionAnswer, error) {
		there, err := s.Revoke(ctx, p.id)
		out := SessionAnswer{}
		if there {
			out.N = 1
		}
		return out, err
	})
}

// revokeUser ends the sessions of a user: all but one, if one is named, or those of one login.
func (c *crowd) revokeUser(by *Process, p *pass, except, login string) error {
	in := SessionOp{Kind: KindRevokeUser, User: p.user, Except: except, Login: login}
	options := []client.RevokeOption{client.Except(except), client.OfLogin(login)}
	return c.do(by, in, func(ctx context.Context, s *client.Sessions) (SessionAnswer, error) {
		n, err := s.RevokeUser(ctx, p.user, options...)
		return SessionAnswer{N: n}, err
	})
}

// set changes an attribute, mostly from the version that was last heard of.
func (c *crowd) set(by *Process, p *pass) error {
	in := SessionOp{Kind: KindSet, User: p.user, Session: p.id, Value: c.unique("value", by)}
	change := client.AttributeChange{Set: map[string]any{attribute: in.Value}}
	if by.Rand.IntN(3) > 0 {
		in.Version = &p.version
		change.IfVersion = &p.version
	}
	return c.do(by, in, func(ctx context.Context, s *client.Sessions) (SessionAnswer, error) {
		a, err := s.SetAttributes(ctx, p.id, change)
		return SessionAnswer{Session: p.id, Version: a.Version, Value: in.Value}, err
	})
}

func (c *crowd) save(by *Process, token string) error {
	value := c.unique("data", by)
	return c.do(by, SessionOp{Kind: KindSave, Token: token, Value: value}, func(ctx context.Context, s *client.Sessions) (SessionAnswer, error) {
		return SessionAnswer{}, s.Saved().Save(ctx, client.KeyOf(token), []byte(value), time.Now().Add(lasting))
	})
}

// framework does what the session store of a framework does: it finds and saves the session of a token, and drops it some
// time; requests that had begun before go on.
func (c *crowd) framework(by *Process) error {
	c.mu.Lock()
	if len(c.saved) == 0 || by.Rand.IntN(6) == 0 {
		c.next++
		c.saved = append(c.saved, &savedPass{token: by.Name + time.Now().Format(time.RFC3339Nano)})
		c.saved = c.saved[max(0, len(c.saved)-mostKnown):]
	}
	token := c.saved[by.Rand.IntN(len(c.saved))].token
	c.mu.Unlock()
	switch n := by.Rand.IntN(10); {
	case n < 3:
		return c.find(by, token)
	case n < 4: // one that nobody else knows: nobody can have dropped it
		own := c.unique("own", by)
		if err := c.save(by, own); err != nil {
			return err
		}
		time.Sleep(time.Millisecond)
		return c.find(by, own)
	case n < 8:
		return c.save(by, token)
	default:
		return c.do(by, SessionOp{Kind: KindDrop, Token: token}, func(ctx context.Context, s *client.Sessions) (SessionAnswer, error) {
			there, err := s.Saved().Drop(ctx, client.KeyOf(token))
			return SessionAnswer{Found: there}, err
		})
	}
}
