package client_test

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfastdb/holdfast/client"
	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
)

func TestWithoutABoundEveryValidationAsksTheCluster(t *testing.T) {
	f := newFake(t, "n1")
	r := newRegister(f)
	token, _ := r.login("alice", nil)
	c := f.client(0)
	for n := range 3 {
		if v := validate(t, c, token); !v.Valid || v.Session.UserID != "alice" || v.Age != 0 {
			t.Fatalf("%+v", v)
		}
		if r.validations() != n+1 {
			t.Fatalf("%d validations reached the cluster, want %d", r.validations(), n+1)
		}
	}
	r.revoke(token)
	if v := validate(t, c, token); v.Valid || v.Reason != client.ReasonEnded || v.Session.Ended != client.EndedRevoked {
		t.Errorf("after the revocation: %+v", v)
	}
}

func TestWithoutAStreamAnAnswerIsServedUntilItIsAsOldAsTheBound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t, "n1")
		r := newRegister(f)
		r.refuses = true
		token, _ := r.login("alice", nil)
		c := f.client(0)
		begun := time.Now()
		for time.Since(begun) <= 500*time.Millisecond {
			v := validate(t, c, token, client.MaxStale(500*time.Millisecond))
			if !v.Valid || v.Age != time.Since(begun) {
				t.Fatalf("after %v: %+v", time.Since(begun), v)
			}
			time.Sleep(time.Millisecond)
		}
		if r.validations() != 1 {
			t.Errorf("%d validations reached the cluster within the bound", r.validations())
		}
		validate(t, c, token, client.MaxStale(500*time.Millisecond))
		if r.validations() != 2 {
			t.Errorf("a millisecond after the bound the cluster was not asked")
		}
		validate(t, c, token, client.MaxStale(10*time.Hour))
		if validate(t, c, token); r.validations() != 3 {
			t.Errorf("each call has its own bound; %d validations", r.validations())
		}
	})
}

func TestPingsKeepAnswersFreshWithoutAskingAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t, "n1")
		r := newRegister(f)
		token, _ := r.login("alice", nil)
		c := f.client(0)
		oldest := time.Duration(0)
		for range 5500 { // not a minute: by then the cluster wants to know of a use
			v := validate(t, c, token, client.MaxStale(400*time.Millisecond))
			oldest = max(oldest, v.Age)
			time.Sleep(10 * time.Millisecond)
		}
		// The first one begins before there is a stream, and is nothing that a stream can keep fresh.
		if n := r.validations(); n > 2 {
			t.Errorf("%d validations reached the cluster in 55 s", n)
		}
		if oldest > 400*time.Millisecond {
			t.Errorf("an answer was %v old", oldest)
		}
	})
}

// A session of a short idle timeout must be seen by the cluster several times in it, or it would end while it is used.
func TestAShortIdleTimeoutIsNotSpentInMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t, "n1")
		r := newRegister(f)
		token, _ := r.login("alice", func(s *pb.HeldSession) { s.IdleTimeoutMs = 1000 })
		c := f.client(0)
		for range 100 {
			validate(t, c, token, client.MaxStale(time.Minute))
			time.Sleep(10 * time.Millisecond)
		}
		if n := r.validations(); n < 4 {
			t.Errorf("%d validations reached the cluster in the idle timeout", n)
		}
	})
}

// fresh returns a client which serves the token from a stream's confirmations.
func fresh(t *testing.T, f *fake, token string, bound time.Duration) *client.Client {
	t.Helper()
	c := f.client(0)
	validate(t, c, token, client.MaxStale(bound))
	for range 2 { // the first is too old by then, whatever the bound is: it began before the stream
		time.Sleep(bound + 50*time.Millisecond)
		validate(t, c, token, client.MaxStale(bound))
	}
	return c
}

func TestARevocationIsSeenAtOnceWhenItsEventComes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t, "n1")
		r := newRegister(f)
		token, _ := r.login("alice", nil)
		other, _ := r.login("alice", nil)
		c := fresh(t, f, token, 300*time.Millisecond)
		validate(t, c, token, client.MaxStale(time.Hour))
		validate(t, c, other, client.MaxStale(time.Hour))
		before := r.validations()
		r.revoke(token)
		synctest.Wait() // no time passes
		if v := validate(t, c, token, client.MaxStale(time.Hour)); v.Valid {
			t.Errorf("the session counts on: %+v", v)
		}
		if v := validate(t, c, other, client.MaxStale(time.Hour)); !v.Valid || r.validations() != before+1 {
			t.Errorf("the user's other session: %+v, %d validations, want %d", v, r.validations(), before+1)
		}
	})
}

// Each fault keeps the event of a revocation from this client in another way, at a time that chance chooses. Whatever
// happens, the session counts no longer than the bound after the revocation was acknowledged.
func TestNoValidationSucceedsLaterThanTheBoundAfterARevocation(t *testing.T) {
	faults := map[string]func(r *register, f *fake){
		"no fault":           func(*register, *fake) {},
		"the stream hangs":   func(r *register, _ *fake) { r.set(func() { r.hangs = true }) },
		"events are delayed": func(r *register, _ *fake) { r.set(func() { r.latency = 350 * time.Millisecond }) },
		"events are late":    func(r *register, _ *fake) { r.set(func() { r.latency = 1500 * time.Millisecond }) },
		"the stream is cut":  func(r *register, _ *fake) { r.cutStreams() },
		"the stream is cut for good": func(r *register, _ *fake) {
			r.set(func() { r.refuses = true })
			r.cutStreams()
		},
		"another node leads, and the old one hangs": func(r *register, f *fake) {
			r.set(func() { r.hangs = true })
			f.lead(1, "n2")
			f.lead(2, "n2")
		},
		"another node leads": func(r *register, f *fake) {
			f.lead(1, "n2")
			f.lead(2, "n2")
			r.cutStreams()
		},
	}
	for name, fault := range faults {
		t.Run(name, func(t *testing.T) {
			for seed := range uint64(10) {
				synctest.Test(t, func(t *testing.T) { checkBound(t, seed, fault) })
			}
		})
	}
}

func checkBound(t *testing.T, seed uint64, fault func(*register, *fake)) {
	const bound = 500 * time.Millisecond
	chance := rand.New(rand.NewPCG(seed, 7))
	f := newFake(t, "n1", "n2")
	r := newRegister(f)
	token, _ := r.login("alice", nil)
	c := fresh(t, f, token, bound)

	begun := time.Now()
	after := func(d time.Duration) <-chan time.Time { return time.After(d) }
	span := func(most time.Duration) time.Duration { return time.Duration(chance.Int64N(int64(most))) }
	at, broken := span(800*time.Millisecond), span(800*time.Millisecond)
	revoke, breaks := after(at), after(broken)
	var revoked time.Time
	last := begun
	for end := after(4 * time.Second); ; {
		select {
		case <-revoke:
			r.revoke(token)
			revoked = time.Now()
		case <-breaks:
			fault(r, f)
		case <-end:
			if revoked.IsZero() || last.Before(begun.Add(at-bound)) {
				t.Fatalf("seed %d: nothing was tested: the last success was %v after the beginning", seed, last.Sub(begun))
			}
			return
		case <-time.After(span(5 * time.Millisecond)):
			asked := time.Now()
			v := validate(t, c, token, client.MaxStale(bound))
			if v.Age > bound {
				t.Fatalf("seed %d: an answer is %v old", seed, v.Age)
			}
			if !v.Valid {
				continue
			}
			if last = asked; !revoked.IsZero() && asked.Sub(revoked) > bound {
				t.Fatalf("seed %d: counts %v after the revocation, which came %v after the beginning, and the fault after %v",
					seed, asked.Sub(revoked), at, broken)
			}
		}
	}
}

// The answer to a validation may come after the event of a revocation that came after it.
func TestAnAnswerThatAnEventOvertookIsNotRemembered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t, "n1")
		r := newRegister(f)
		warm, _ := r.login("alice", nil)
		token, _ := r.login("alice", nil)
		c := fresh(t, f, warm, 300*time.Millisecond)
		hold := make(chan struct{})
		r.set(func() { r.hold = hold })
		answered := make(chan client.Validation)
		go func() { answered <- validate(t, c, token, client.MaxStale(time.Hour)) }()
		synctest.Wait()
		r.set(func() { r.hold = nil })
		r.revoke(token)
		synctest.Wait()
		close(hold)
		if v := <-answered; !v.Valid {
			t.Errorf("at some moment of the call the session was there, yet %+v", v)
		}
		if v := validate(t, c, token, client.MaxStale(time.Hour)); v.Valid {
			t.Errorf("it was revoked, and counts as of %v ago", v.Age)
		}
	})
}

func TestWhatThisClientEndsIsForgottenHereWithoutAnyEvent(t *testing.T) {
	ends := map[string]func(c *client.Client, token, id string) error{
		"logout": func(c *client.Client, token, _ string) error {
			_, err := c.Sessions().Logout(t.Context(), token)
			return err
		},
		"revoke": func(c *client.Client, _, id string) error {
			_, err := c.Sessions().Revoke(t.Context(), id)
			return err
		},
		"revoke user": func(c *client.Client, _, _ string) error {
			_, err := c.Sessions().RevokeUser(t.Context(), "alice")
			return err
		},
		"rotate": func(c *client.Client, token, _ string) error {
			_, err := c.Sessions().Rotate(t.Context(), token)
			return err
		},
	}
	for name, end := range ends {
		t.Run(name, func(t *testing.T) {
			f := newFake(t, "n1")
			r := newRegister(f)
			r.refuses = true
			token, id := r.login("alice", nil)
			c := f.client(0)
			validate(t, c, token, client.MaxStale(time.Hour))
			if validate(t, c, token, client.MaxStale(time.Hour)); r.validations() != 1 {
				t.Fatalf("%d validations", r.validations())
			}
			if err := end(c, token, id); err != nil {
				t.Fatal(err)
			}
			if validate(t, c, token, client.MaxStale(time.Hour)); r.validations() != 2 {
				t.Error("the answer of before was served")
			}
		})
	}
}

func TestASessionThatIsServedFromMemoryIsStillUsed(t *testing.T) {
	for _, tc := range []struct{ idle, every time.Duration }{
		{time.Hour, time.Minute}, {8 * time.Minute, 30 * time.Second}, {4 * time.Second, time.Second},
	} {
		t.Run(tc.idle.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFake(t, "n1")
				r := newRegister(f)
				token, _ := r.login("alice", func(s *pb.HeldSession) { s.IdleTimeoutMs = tc.idle.Milliseconds() })
				c := f.client(0)
				for n := 1; n <= 3; n++ {
					validate(t, c, token, client.MaxStale(10*time.Hour))
					time.Sleep(tc.every - time.Millisecond)
					validate(t, c, token, client.MaxStale(10*time.Hour))
					if r.validations() != n {
						t.Fatalf("%d validations, want %d", r.validations(), n)
					}
					time.Sleep(time.Millisecond)
					r.set(func() { r.seen(token) })
				}
			})
		})
	}
}

// seen notes a use. Called with mu held.
func (r *register) seen(token string) {
	r.answers[token].Session.LastSeenAtMs = time.Now().UnixMilli()
}

func TestMemoryAnswersNothingAfterTheSessionExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t, "n1")
		r := newRegister(f)
		token, _ := r.login("alice", func(s *pb.HeldSession) {
			s.ExpiresAtMs = time.Now().Add(90 * time.Second).UnixMilli()
		})
		c := f.client(0)
		validate(t, c, token, client.MaxStale(time.Hour))
		time.Sleep(88 * time.Second)
		if validate(t, c, token, client.MaxStale(time.Hour)); r.validations() != 1 {
			t.Fatalf("%d validations before the end", r.validations())
		}
		time.Sleep(2 * time.Second)
		if validate(t, c, token, client.MaxStale(time.Hour)); r.validations() != 2 {
			t.Error("the cluster was not asked after the end")
		}
	})
}

func TestMemoryAnswersOnlyTheSameQuestion(t *testing.T) {
	phone := func(extra any) client.ValidateOption {
		return client.OnDevice(map[string]any{"id": "phone", "screen": 6, "n": extra})
	}
	for name, tc := range map[string]struct {
		first, second []client.ValidateOption
		asks          int
	}{
		"the same address":      {[]client.ValidateOption{client.FromIP("10.0.0.1")}, []client.ValidateOption{client.FromIP("10.0.0.1")}, 1},
		"another address":       {[]client.ValidateOption{client.FromIP("10.0.0.1")}, []client.ValidateOption{client.FromIP("10.0.0.2")}, 2},
		"no address":            {[]client.ValidateOption{client.FromIP("10.0.0.1")}, nil, 2},
		"the same device":       {[]client.ValidateOption{phone("x")}, []client.ValidateOption{phone("x")}, 1},
		"the same, nested":      {[]client.ValidateOption{phone([]any{"x"})}, []client.ValidateOption{phone([]any{"x"})}, 1},
		"another device":        {[]client.ValidateOption{phone("x")}, []client.ValidateOption{phone("y")}, 2},
		"another, nested":       {[]client.ValidateOption{phone([]any{"x"})}, []client.ValidateOption{phone([]any{"y"})}, 2},
		"attributes are needed": {[]client.ValidateOption{client.WithoutAttributes()}, nil, 2},
		"or not":                {nil, []client.ValidateOption{client.WithoutAttributes()}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t, "n1")
			r := newRegister(f)
			token, _ := r.login("alice", nil)
			c := f.client(0)
			validate(t, c, token, append(tc.first, client.MaxStale(time.Hour))...)
			validate(t, c, token, append(tc.second, client.MaxStale(time.Hour))...)
			if r.validations() != tc.asks {
				t.Errorf("%d validations, want %d", r.validations(), tc.asks)
			}
		})
	}
}

func TestNobodyIsFollowedForNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t, "n1")
		r := newRegister(f)
		token, _ := r.login("alice", nil)
		c := f.client(0)
		open := func() int {
			synctest.Wait()
			r.mu.Lock()
			defer r.mu.Unlock()
			return len(r.streams)
		}
		if validate(t, c, token); open() != 0 {
			t.Error("a client that wants the newest only follows a shard")
		}
		for range 50 {
			validate(t, c, token, client.MaxStale(time.Second))
			time.Sleep(10 * time.Second)
		}
		if open() != 1 || r.followed != 1 {
			t.Errorf("%d streams of %d are open", open(), r.followed)
		}
		time.Sleep(2 * time.Minute)
		if open() != 0 {
			t.Error("two minutes after the last use the shard is followed")
		}
		if validate(t, c, token, client.MaxStale(time.Second)); open() != 1 {
			t.Error("it is not followed again")
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		if open() != 0 {
			t.Error("a closed client follows")
		}
	})
}

func TestATokenThatCannotBeOfThisClusterIsAnsweredHere(t *testing.T) {
	f := newFake(t, "n1")
	r := newRegister(f)
	token, _ := r.login("alice", nil)
	c := f.client(0)
	foreign := foreignToken(t, token)
	for text, want := range map[string]client.Reason{
		"": client.ReasonMalformed, "hfs_": client.ReasonMalformed, token[:len(token)-1]: client.ReasonMalformed,
		"hfr_" + token[4:]: client.ReasonMalformed, foreign: client.ReasonForeign,
		fmt.Sprintf("%0200d", 1): client.ReasonMalformed,
	} {
		for _, options := range [][]client.ValidateOption{nil, {client.MaxStale(time.Hour)}} {
			if v := validate(t, c, text, options...); v.Valid || v.Reason != want {
				t.Errorf("%q: %+v, want %s", text, v, want)
			}
		}
	}
	if len(f.log()) != 0 {
		t.Errorf("the cluster was asked:\n%s", f.describe())
	}
}
