package main

import (
	"context"
	"fmt"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/holdfastdb/holdfast/client"
	"github.com/holdfastdb/holdfast/client/load"
)

// store is a system as a store of sessions.
type store struct {
	name     string
	fill     func(ctx context.Context, sessions int) error
	validate load.Work
	create   load.Work
	close    func()

	valid, made []load.Result // by round
}

// measureSessions compares reading and making sessions.
func (s *settings) measureSessions(ctx context.Context) error {
	systems, h, err := s.start(ctx)
	var stores []*store
	for _, sys := range systems {
		stores = append(stores, &store{name: sys.name, close: sys.close})
	}
	defer func() {
		for _, st := range stores {
			st.close()
		}
	}()
	if err != nil {
		return err
	}
	for i, sys := range systems {
		sys.sessions(stores[i])
		if err := stores[i].fill(ctx, manyKeys); err != nil {
			return fmt.Errorf("make sessions on %s: %w", stores[i].name, err)
		}
	}
	many := load.Load{Callers: 256, Keys: manyKeys, Warmup: s.warmup, Duration: s.duration}
	for round := range s.rounds {
		for _, st := range stores {
			st.valid = append(st.valid, many.Run(ctx, st.validate))
			fmt.Printf("round %d  %-8s  validate, 256 callers  %s\n", round+1, st.name, describe(st.valid[round]))
			st.made = append(st.made, many.Run(ctx, st.create))
			fmt.Printf("round %d  %-8s  create, 256 callers    %s\n", round+1, st.name, describe(st.made[round]))
			if ctx.Err() != nil {
				return ctx.Err()
			}
		}
	}
	var cached load.Result
	var bytes, writes float64
	if h != nil {
		own := load.Load{Callers: 2 * runtime.NumCPU(), Keys: manyKeys, Warmup: s.warmup, Duration: s.duration, Sample: 64}
		cached = own.Run(ctx, h.validateCached)
		fmt.Printf("holdfast  validate from memory  %s\n", describe(cached))
		if writes, err = h.touchShare(ctx, many); err != nil {
			return err
		}
		if bytes, err = bytesPerSession(ctx, s.dir); err != nil {
			return err
		}
	}
	text := s.sessionTable(stores, cached, writes, bytes)
	fmt.Print("\n", text)
	if s.out != "" {
		return writeSection(s.out, fmt.Sprintf("--work sessions --shards %d", s.shards), text)
	}
	return nil
}

func (s *settings) sessionTable(stores []*store, cached load.Result, writes, bytes float64) string {
	var b strings.Builder
	row := func(cells ...string) { fmt.Fprintf(&b, "| %s |\n", strings.Join(cells, " | ")) }
	row("work", "system", "ops/s", "p50", "p99", "Holdfast compared")
	row("---", "---", "---", "---", "---", "---")
	part := func(work map[string]string, of func(*store) []load.Result) {
		for _, st := range stores {
			ratio := ""
			if st.name != "holdfast" && stores[0].name == "holdfast" {
				ratio = fmt.Sprintf("%.1f×", medianOf(of(stores[0]), perSecond)/medianOf(of(st), perSecond))
			}
			r := of(st)
			row(work[st.name], st.name, fmt.Sprintf("%.0f", medianOf(r, perSecond)), short(time.Duration(medianOf(r, p50))), short(time.Duration(medianOf(r, p99))), ratio)
		}
	}
	part(map[string]string{
		"holdfast": "validate, linearizable, 256 callers", "etcd": "linearizable get, 256 callers", "redis": "GET, 256 callers",
	}, func(st *store) []load.Result { return st.valid })
	part(map[string]string{
		"holdfast": "create, 256 callers", "etcd": "put, 256 callers", "redis": "SET, 256 callers",
	}, func(st *store) []load.Result { return st.made })
	if cached.Ops > 0 {
		row("validate from the SDK's memory, at most a second old, one process", "holdfast", fmt.Sprintf("%.0f", cached.PerSecond), short(cached.P50), short(cached.P99), "")
		fmt.Fprintf(&b, "\n| Holdfast alone | |\n| --- | --- |\n")
		row("sessions written because they were used, a hundred validations", fmt.Sprintf("%.2f", 100*writes))
		row("a session on disk, of a million, after compaction", fmt.Sprintf("%.0f bytes", bytes))
	}
	fmt.Fprintf(&b, "\n%d CPUs, %s, %s; %d rounds of %v each, medians; Holdfast with --shards %d; every system is three processes on loopback with every write synced.\n",
		runtime.NumCPU(), runtime.Version(), time.Now().UTC().Format("2006-01-02"), s.rounds, s.duration, s.shards)
	return b.String()
}

// sessionValue is about what a session is in the other stores.
var sessionValue = strings.Repeat("x", 200)

func (p *etcdPeer) sessions(st *store) {
	st.fill = func(ctx context.Context, n int) error {
		return inParallel(n, func(i int) error {
			_, err := p.client.Put(ctx, "s"+strconv.Itoa(i), sessionValue)
			return err
		})
	}
	st.validate = func(ctx context.Context, _, key int) error {
		r, err := p.client.Get(ctx, "s"+strconv.Itoa(key))
		if err == nil && len(r.Kvs) == 0 {
			return fmt.Errorf("no session %d", key)
		}
		return err
	}
	var next atomic.Int64
	st.create = func(ctx context.Context, _, _ int) error {
		_, err := p.client.Put(ctx, "n"+strconv.FormatInt(next.Add(1), 10), sessionValue)
		return err
	}
}

func (p *redisPeer) sessions(st *store) {
	const life = 12 * time.Hour
	st.fill = func(ctx context.Context, n int) error {
		return inParallel(n, func(i int) error { return p.client.Set(ctx, "s"+strconv.Itoa(i), sessionValue, life).Err() })
	}
	st.validate = func(ctx context.Context, _, key int) error { return p.client.Get(ctx, "s"+strconv.Itoa(key)).Err() }
	var next atomic.Int64
	st.create = func(ctx context.Context, _, _ int) error {
		return p.client.Set(ctx, "n"+strconv.FormatInt(next.Add(1), 10), sessionValue, life).Err()
	}
}

func (p *holdfastPeer) sessions(st *store) {
	s := p.client.Sessions()
	st.fill = func(ctx context.Context, n int) error {
		p.tokens, p.ids = make([]string, n), make([]string, n)
		return inParallel(n, func(i int) error {
			t, err := s.Create(ctx, p.login("user-"+strconv.Itoa(i)))
			p.tokens[i], p.ids[i] = t.Token, t.SessionID
			return err
		})
	}
	st.validate = func(ctx context.Context, _, key int) error { return p.validate(ctx, key) }
	var next atomic.Int64
	st.create = func(ctx context.Context, _, _ int) error {
		_, err := s.Create(ctx, p.login("new-"+strconv.FormatInt(next.Add(1), 10)))
		return err
	}
}

func (p *holdfastPeer) login(user string) client.Login {
	return client.Login{UserID: user, IP: "192.0.2.7", Device: map[string]any{"fingerprint": "d-" + user, "name": "Firefox on Linux"}}
}

func (p *holdfastPeer) validate(ctx context.Context, key int, options ...client.ValidateOption) error {
	v, err := p.client.Sessions().Validate(ctx, p.tokens[key], options...)
	if err == nil && !v.Valid {
		return fmt.Errorf("not valid: %s", v.Reason)
	}
	return err
}

func (p *holdfastPeer) validateCached(ctx context.Context, _, key int) error {
	return p.validate(ctx, key, client.MaxStale(time.Second))
}

// touchShare is how many sessions were written, because they were used, for each validation under steady load.
func (p *holdfastPeer) touchShare(ctx context.Context, l load.Load) (float64, error) {
	// A use is written if the one that is stored is a minute old, so the first minute would tell of none.
	l.Warmup, l.Duration = 65*time.Second, time.Minute
	fmt.Println("holdfast  validating for two minutes")
	begin := time.Now().Add(l.Warmup)
	r := l.Run(ctx, func(ctx context.Context, _, key int) error { return p.validate(ctx, key) })
	var written atomic.Int64
	err := inParallel(len(p.ids), func(i int) error {
		one, err := p.client.Sessions().Get(ctx, p.ids[i])
		if err == nil && one.LastSeenAt.After(begin) {
			written.Add(1)
		}
		return err
	})
	return float64(written.Load()) / float64(r.Ops), err
}

// inParallel calls f for 0 to n-1 from 256 goroutines, and returns one of the errors.
func inParallel(n int, f func(i int) error) error {
	const callers = 256
	errs := make(chan error, callers)
	for c := range callers {
		go func() {
			for i := c; i < n; i += callers {
				if err := f(i); err != nil {
					errs <- err
					return
				}
			}
			errs <- nil
		}()
	}
	var failure error
	for range callers {
		if err := <-errs; err != nil {
			failure = err
		}
	}
	return failure
}
