package lease

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/zeebo/xxh3"
)

// window is a shard with one fixed-window limit for each key. It deducts what it grants; a lease ends with the window at
// the latest, as the real one has it. Its network is slow and loses things.
type window struct {
	limit    uint32
	length   time.Duration
	up, down func() time.Duration // delays
	lose     func() bool          // an answer on its way back

	mu       sync.Mutex
	fail     error // no request gets through
	keys     map[string]*windowKey
	requests []Request
	next     uint64
}

type windowKey struct {
	number int64 // of the window
	used   uint32
	leases map[uint64]uint32 // granted in this window
}

func newWindow(limit uint32, length time.Duration) *window {
	none := func() time.Duration { return 0 }
	return &window{limit: limit, length: length, up: none, down: none, lose: func() bool { return false }, keys: make(map[string]*windowKey)}
}

// set changes the shard while it is in use.
func (w *window) set(change func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	change()
}

// used is what the shard thinks is gone of the key k.
func (w *window) used() uint32 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.keys["k"].used
}

// remembered is how many keys a table knows.
func remembered(table *Table[string]) int {
	n := 0
	for i := range table.shards {
		s := &table.shards[i]
		s.mu.Lock()
		n += len(s.buckets)
		s.mu.Unlock()
	}
	return n
}

func (w *window) number() int64 { return time.Now().UnixNano() / int64(w.length) }

func (w *window) ask(ctx context.Context, key string, q Request) (Grant, error) {
	w.mu.Lock()
	fail := w.fail
	w.mu.Unlock()
	if fail != nil {
		return Grant{}, fail
	}
	time.Sleep(w.up())
	g := w.decide(key, q)
	if w.lose() {
		<-ctx.Done()
		return Grant{}, ctx.Err()
	}
	time.Sleep(w.down())
	return g, nil
}

func (w *window) decide(key string, q Request) Grant {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.requests = append(w.requests, q)
	k := w.keys[key]
	if k == nil {
		k = &windowKey{}
		w.keys[key] = k
	}
	if n := w.number(); n != k.number {
		*k = windowKey{number: n, leases: make(map[uint64]uint32)}
	}
	for _, r := range q.Returns {
		if granted, ok := k.leases[r.ID]; ok && r.Unused <= granted {
			k.used -= r.Unused
			delete(k.leases, r.ID)
		}
	}
	left := w.length - time.Duration(time.Now().UnixNano()%int64(w.length))
	g := Grant{Leasable: true, Valid: min(q.TTL, left), Retry: left, Fallback: Fallback{Mode: Deny}}
	if g.Granted = min(q.Want, w.limit-k.used); g.Granted > 0 {
		w.next++
		g.ID = w.next
		k.used += g.Granted
		k.leases[g.ID] = g.Granted
	}
	return g
}

// The promise of the package: whatever the network does, the holders together never let more pass than the limit, in any
// window, and they do let pass about as much when there is demand.
func TestHoldersTogetherNeverPassTheLimit(t *testing.T) {
	for seed := range uint64(20) {
		synctest.Test(t, func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, 7))
			var mu sync.Mutex // of random
			delay := func() time.Duration {
				mu.Lock()
				defer mu.Unlock()
				return time.Duration(random.IntN(40)) * time.Millisecond
			}
			const limit = 500
			w := newWindow(limit, time.Second)
			w.up, w.down = delay, delay
			w.lose = func() bool { mu.Lock(); defer mu.Unlock(); return random.IntN(50) == 0 }
			passed := make(map[int64]int) // by window
			var count sync.Mutex
			var running sync.WaitGroup
			const seconds = 20
			end := time.Now().Add(seconds * time.Second)
			for holder := range 3 {
				table := New(w.ask, xxh3.HashString)
				for caller := range 4 {
					running.Go(func() {
						own := rand.New(rand.NewPCG(seed, uint64(holder*4+caller)))
						for time.Now().Before(end) {
							weight := uint32(1 + own.IntN(3))
							d, err := table.Take(t.Context(), "k", weight)
							if err == nil && d.Allowed { // an error is a lost answer before anything was known
								count.Lock()
								passed[w.number()] += int(weight)
								count.Unlock()
							}
							time.Sleep(time.Duration(own.IntN(int(4 * time.Millisecond))))
						}
					})
				}
				defer func() {
					ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
					defer cancel()
					table.Close(ctx)
				}()
			}
			running.Wait()
			busy := 0
			for number, n := range passed {
				if n > limit {
					t.Errorf("seed %d: %d passed in window %d, the limit is %d", seed, n, number, limit)
				}
				if n > limit/10 {
					busy++
				}
			}
			if busy < seconds/2 {
				t.Errorf("seed %d: only %d windows of %d let anything pass to speak of: %v", seed, busy, seconds, passed)
			}
		})
	}
}

// take decides on one token and fails the test on an error.
func take(t *testing.T, table *Table[string]) Decision {
	t.Helper()
	d, err := table.Take(t.Context(), "k", 1)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestALeaseEndsBeforeTheShardThinksSo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWindow(1000, time.Hour)
		w.up, w.down = func() time.Duration { return 100 * time.Millisecond }, func() time.Duration { return 200 * time.Millisecond }
		table := New(w.ask, xxh3.HashString)
		defer table.Close(t.Context())
		sent := time.Now()
		take(t, table)
		shardEnd := sent.Add(100*time.Millisecond + DefaultTTL)
		b := table.shards[xxh3.HashString("k")%shards].buckets["k"]
		if until := b.grants[0].until; !until.Before(shardEnd) || until != sent.Add(DefaultTTL-margin) {
			t.Errorf("it ends %v after it was asked for, at the shard after %v", until.Sub(sent), shardEnd.Sub(sent))
		}
	})
}

func TestTheNextLeaseIsThereBeforeThisOneIsUsedUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWindow(1_000_000, time.Hour)
		w.up = func() time.Duration { return 5 * time.Millisecond }
		table := New(w.ask, xxh3.HashString)
		defer table.Close(t.Context())
		take(t, table) // the first one waits for the shard
		slow := 0
		for range 5000 {
			begin := time.Now()
			if d := take(t, table); !d.Allowed {
				t.Fatalf("denied: %+v", d)
			}
			if time.Since(begin) > 0 {
				slow++
			}
			time.Sleep(500 * time.Microsecond)
		}
		if slow > 3 { // while it learns how much is used
			t.Errorf("%d takes of 5000 waited", slow)
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		// 2,000 tokens a second and leases of a second: a few requests a second, not one for each take.
		if n := len(w.requests); n > 30 {
			t.Errorf("%d requests in 2.5 seconds", n)
		}
	})
}

func TestADenialIsRepeatedForAMomentOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWindow(3, time.Hour)
		table := New(w.ask, xxh3.HashString)
		defer table.Close(t.Context())
		for range 3 {
			if !take(t, table).Allowed {
				t.Fatal("denied within the limit")
			}
		}
		if d := take(t, table); d.Allowed || d.Retry <= 0 {
			t.Fatalf("beyond the limit: %+v", d)
		}
		var asked, again int
		w.set(func() { asked = len(w.requests) })
		for range 99 {
			time.Sleep(time.Millisecond)
			if take(t, table).Allowed {
				t.Fatal("allowed beyond the limit")
			}
		}
		if w.set(func() { again = len(w.requests) - asked }); again != 0 {
			t.Errorf("asked %d times within %v", again, maxDenied)
		}
		// Another holder gives something back: that is seen soon.
		w.set(func() { w.limit = 4 })
		time.Sleep(2 * time.Millisecond)
		if !take(t, table).Allowed {
			t.Error("denied although there is a token again")
		}
	})
}

func TestIdleLeasesGoBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWindow(100, time.Hour)
		table := New(w.ask, xxh3.HashString)
		defer table.Close(t.Context())
		take(t, table)
		if w.used() < 2 {
			t.Fatalf("%d tokens lent", w.used())
		}
		time.Sleep(DefaultTTL / 4 * 3)
		if used := w.used(); used != 1 {
			t.Errorf("%d tokens are gone, one was used", used)
		}
		// What the policy says for a cluster that is away is remembered longer than that, but not for ever.
		time.Sleep(rememberFor + time.Second)
		if n := remembered(table); n != 0 {
			t.Errorf("%d keys that hold nothing are remembered", n)
		}
	})
}

func TestCloseGivesEverythingBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWindow(100, time.Hour)
		table := New(w.ask, xxh3.HashString)
		for range 5 {
			take(t, table)
		}
		table.Close(t.Context())
		if used := w.used(); used != 5 {
			t.Errorf("%d tokens are gone, five were used", used)
		}
		if _, err := table.Take(t.Context(), "k", 1); err == nil {
			t.Error("a closed table decides")
		}
	})
}

func TestCloseDoesNotWaitForAShardThatIsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWindow(100, time.Hour)
		table := New(w.ask, xxh3.HashString)
		take(t, table)
		w.lose = func() bool { return true }
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		begin := time.Now()
		table.Close(ctx)
		if took := time.Since(begin); took > time.Second {
			t.Errorf("it took %v", took)
		}
	})
}

func TestLimitsThatCannotBeLeasedAreNotTriedAllTheTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked := 0
		table := New(func(context.Context, string, Request) (Grant, error) { asked++; return Grant{}, nil }, xxh3.HashString)
		defer table.Close(t.Context())
		for range 100 {
			if _, err := table.Take(t.Context(), "k", 1); !errors.Is(err, ErrNotLeasable) {
				t.Fatal(err)
			}
		}
		if asked != 1 {
			t.Errorf("asked %d times", asked)
		}
		time.Sleep(notLeasableFor + time.Second) // the policy may be another one by now
		if _, err := table.Take(t.Context(), "k", 1); !errors.Is(err, ErrNotLeasable) || asked != 2 {
			t.Errorf("after a while: %v, asked %d times", err, asked)
		}
	})
}

func TestNowNeverWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWindow(100, time.Hour)
		w.up = func() time.Duration { return 10 * time.Millisecond }
		table := New(w.ask, xxh3.HashString)
		defer table.Close(t.Context())
		begin := time.Now()
		if d, ok := table.Now("k", 1); ok {
			t.Errorf("decided from nothing: %+v", d)
		}
		if time.Since(begin) != 0 {
			t.Error("it waited")
		}
		time.Sleep(20 * time.Millisecond) // what it asked for is here
		if d, ok := table.Now("k", 1); !ok || !d.Allowed {
			t.Errorf("with a lease: %+v, %v", d, ok)
		}
	})
}

func TestTakeEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWindow(100, time.Hour)
		w.lose = func() bool { return true }
		table := New(w.ask, xxh3.HashString)
		defer table.Close(t.Context())
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		begin := time.Now()
		if _, err := table.Take(ctx, "k", 1); !errors.Is(err, context.DeadlineExceeded) || time.Since(begin) != 50*time.Millisecond {
			t.Errorf("%v after %v", err, time.Since(begin))
		}
	})
}

func TestTheFallbackDecidesWhileTheShardIsAway(t *testing.T) {
	away := errors.New("away")
	for name, tt := range map[string]struct {
		fallback Fallback
		least    int // of 1,000 requests in a second
		most     int
	}{
		"allow": {Fallback{Mode: Allow}, 1000, 1000},
		"deny":  {Fallback{Mode: Deny}, 0, 0},
		"local": {Fallback{Mode: Local, Rate: 100, Window: time.Second, Burst: 100}, 99, 101},
		// A rate that nobody knows lets nothing pass.
		"local, no rate": {Fallback{Mode: Local}, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWindow(1, time.Hour)
				table := New(func(ctx context.Context, key string, q Request) (Grant, error) {
					g, err := w.ask(ctx, key, q)
					g.Fallback = tt.fallback
					return g, err
				}, xxh3.HashString)
				defer table.Close(t.Context())
				take(t, table) // the policy is known
				w.set(func() { w.fail = away })
				time.Sleep(2 * time.Second)
				passed := 0
				for range 1000 {
					d := take(t, table)
					if d.Allowed {
						passed++
					} else if d.Retry <= 0 {
						t.Fatalf("no time to wait: %+v", d)
					}
					if !d.Fallback {
						t.Fatalf("not said to be a fallback: %+v", d)
					}
					time.Sleep(time.Millisecond)
				}
				if passed < tt.least || passed > tt.most {
					t.Errorf("%d of 1,000 passed, want %d to %d", passed, tt.least, tt.most)
				}
				w.set(func() { w.fail, w.limit = nil, 100 })
				time.Sleep(retryUnreachable)
				if d := take(t, table); !d.Allowed || d.Fallback {
					t.Errorf("back again: %+v", d)
				}
			})
		})
	}
	t.Run("never seen", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			table := New(func(context.Context, string, Request) (Grant, error) { return Grant{}, away }, xxh3.HashString)
			defer table.Close(t.Context())
			if _, err := table.Take(t.Context(), "k", 1); !errors.Is(err, away) {
				t.Errorf("got %v", err)
			}
		})
	})
}

func BenchmarkTake(b *testing.B) {
	w := newWindow(1<<31, time.Hour)
	table := New(w.ask, xxh3.HashString)
	defer table.Close(b.Context())
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if d, err := table.Take(b.Context(), "k", 1); err != nil || !d.Allowed {
				b.Errorf("%+v, %v", d, err)
				return
			}
		}
	})
}
