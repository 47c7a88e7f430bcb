package main

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfastdb/holdfast/client"
	"github.com/holdfastdb/holdfast/client/load"
)

// userNames are of this run alone, so that it can be undone.
func userNames(n int) []string {
	run := "bench-" + strconv.FormatInt(time.Now().UnixNano(), 36) + "-"
	names := make([]string, n)
	for i := range names {
		names[i] = run + strconv.Itoa(i)
	}
	return names
}

// preparers is how many calls are under way at the same time before and after a measurement.
const preparers = 256

// each calls do for 0 to n-1 and returns the first error, with which it ends early.
func each(ctx context.Context, n int, do func(ctx context.Context, i int) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var next atomic.Int64
	var working sync.WaitGroup
	for range min(preparers, n) {
		working.Go(func() {
			for i := int(next.Add(1)) - 1; i < n && ctx.Err() == nil; i = int(next.Add(1)) - 1 {
				if err := do(ctx, i); err != nil {
					cancel(err)
				}
			}
		})
	}
	working.Wait()
	return context.Cause(ctx)
}

// benchLogin is what a session of the workloads begins with.
func benchLogin(user string) client.Login {
	return client.Login{
		UserID: user, IP: "192.0.2.1", OnLimit: client.EvictOldest,
		Device: map[string]any{"fingerprint": "d-" + user, "name": "Firefox on Linux"},
	}
}

// eraser undoes what was made for users.
func eraser(sessions *client.Sessions, users []string, made func(i int) bool) func(context.Context) error {
	return func(ctx context.Context) error {
		return each(ctx, len(users), func(ctx context.Context, i int) error {
			if !made(i) {
				return nil
			}
			if _, err := sessions.EraseUser(ctx, users[i]); err != nil {
				return fmt.Errorf("erase the bench's sessions: %w", err)
			}
			return nil
		})
	}
}

// benchValidate validates sessions that it made before, each of a user of its own.
func benchValidate(ctx context.Context, cl *client.Client, r *benchRun) (load.Work, func(context.Context) error, error) {
	users, tokens, sessions := userNames(r.keys), make([]string, r.keys), cl.Sessions()
	cleanup := eraser(sessions, users, func(i int) bool { return tokens[i] != "" })
	err := each(ctx, r.keys, func(ctx context.Context, i int) error {
		t, err := sessions.Create(ctx, benchLogin(users[i]))
		tokens[i] = t.Token
		return err
	})
	if err != nil {
		_ = cleanup(context.WithoutCancel(ctx)) // the first error tells more
		return nil, nil, fmt.Errorf("make the bench's sessions: %w", err)
	}
	var options []client.ValidateOption
	if r.cached > 0 {
		options = append(options, client.MaxStale(r.cached))
	}
	return func(ctx context.Context, _, key int) error {
		v, err := sessions.Validate(ctx, tokens[key], options...)
		if err == nil && !v.Valid {
			return fmt.Errorf("a session of the bench does not count: %s", v.Reason)
		}
		return err
	}, cleanup, nil
}

// benchCreate logs users in.
func benchCreate(_ context.Context, cl *client.Client, r *benchRun) (load.Work, func(context.Context) error, error) {
	users, made, sessions := userNames(r.keys), make([]atomic.Bool, r.keys), cl.Sessions()
	return func(ctx context.Context, _, key int) error {
		made[key].Store(true)
		_, err := sessions.Create(ctx, benchLogin(users[key]))
		return err
	}, eraser(sessions, users, func(i int) bool { return made[i].Load() }), nil
}
