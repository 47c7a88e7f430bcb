package client_test

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfastdb/holdfast/client"
)

// watched runs a watch until the test ends. next is its next event; the second result is false if there is none within
// a minute.
func watched(t *testing.T, c *client.Client) (next func() (client.SessionEvent, bool)) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	events := make(chan client.SessionEvent, 100)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for e := range c.Sessions().Watch(ctx) {
			events <- e
		}
	}()
	t.Cleanup(func() {
		stop()
		<-ended
	})
	return func() (client.SessionEvent, bool) {
		select {
		case e := <-events:
			return e, true
		case <-time.After(time.Minute):
			return client.SessionEvent{}, false
		}
	}
}

// expect takes so many events and compares them, sorted.
func expect(t *testing.T, next func() (client.SessionEvent, bool), want ...string) {
	t.Helper()
	var got []string
	for range want {
		e, ok := next()
		if !ok {
			break
		}
		got = append(got, fmt.Sprintf("%d %s %s", e.Shard, e.Kind, e.SessionID))
		if (e.Kind == client.EventLost) != (e.Err != nil) {
			t.Errorf("%+v", e)
		}
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Fatalf("got %q, want %q", got, want)
	}
}

func TestAWatchTellsWhatHappensAndWhatMayBeMissing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t, "n1")
		r := newRegister(f)
		token, id := r.login("alice", nil)
		next := watched(t, f.client(0))
		expect(t, next, "1 followed ", "2 followed ")
		r.revoke(token) // the fake tells on all streams
		expect(t, next, "1 ended "+id, "2 ended "+id)
		if e, ok := next(); ok {
			t.Fatalf("%+v out of nothing", e)
		}
		r.cutStreams()
		expect(t, next, "1 lost ", "2 lost ", "1 followed ", "2 followed ")
		r.repeat(id) // as a new leader does that executes what the former one told of
		if e, ok := next(); ok {
			t.Fatalf("%+v a second time", e)
		}
		r.set(func() { r.hangs = true })
		begun := time.Now()
		expect(t, next, "1 lost ", "2 lost ")
		if silent := time.Since(begun); silent > 10*time.Second {
			t.Errorf("a leader that hangs was noticed after %v", silent)
		}
		r.set(func() { r.hangs = false })
		expect(t, next, "1 followed ", "2 followed ")
	})
}

func TestAShardIsNotLostWhileItsEventsAreDealtWith(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t, "n1")
		newRegister(f)
		c := f.client(0)
		ctx, stop := context.WithTimeout(t.Context(), 3*time.Minute)
		defer stop()
		for e := range c.Sessions().Watch(ctx) {
			if e.Kind != client.EventFollowed {
				t.Errorf("%+v", e)
			}
			time.Sleep(time.Minute)
		}
		if ctx.Err() == nil {
			t.Error("the watch ended by itself")
		}
	})
}

func TestAWatchEndsWithItsClientOrWhenItIsLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // the bubble would not end with what is left behind
		f := newFake(t, "n1")
		newRegister(f)
		c := f.client(0)
		for range c.Sessions().Watch(t.Context()) {
			break
		}
		time.AfterFunc(time.Second, func() { _ = c.Close() })
		for e := range c.Sessions().Watch(t.Context()) {
			if e.Kind != client.EventFollowed && e.Kind != client.EventLost {
				t.Errorf("%+v", e)
			}
		}
		for e := range c.Sessions().Watch(t.Context()) {
			t.Errorf("of a client that was closed: %+v", e)
		}
	})
}

func TestAWatchOfARealCluster(t *testing.T) {
	c, _ := dialCluster(t, 0)
	next := watched(t, c)
	for followed := map[uint32]bool{}; len(followed) < 2; {
		e, ok := next()
		if !ok {
			t.Fatalf("followed: %v", followed)
		}
		followed[e.Shard] = followed[e.Shard] || e.Kind == client.EventFollowed
	}
	login := beginSession(t, c)
	if _, err := c.Sessions().Logout(t.Context(), login.Token); err != nil {
		t.Fatal(err)
	}
	var last client.SessionEvent
	for _, want := range []client.SessionEvent{{Kind: client.EventCreated}, {Kind: client.EventEnded, Reason: string(client.EndedLogout)}} {
		e, ok := next()
		for ; ok && e.SessionID != login.SessionID; e, ok = next() {
		}
		if e.Kind != want.Kind || e.Reason != want.Reason || e.Index <= last.Index || e.At.Before(last.At) {
			t.Errorf("%+v after %+v, want %+v", e, last, want)
		}
		last = e
	}
}
