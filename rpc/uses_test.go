package rpc

import (
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/fsm/session"
	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
)

func idle(d time.Duration) func(*pb.CreateSessionRequest) {
	return func(q *pb.CreateSessionRequest) { q.IdleTimeout = proto.Float64(d.Seconds()) }
}

// Sessions that are used all the time cost few writes, and never idle out.
func TestUsesAreWrittenSeldom(t *testing.T) {
	for _, timeout := range []time.Duration{time.Minute, 30 * time.Minute} {
		synctest.Test(t, func(t *testing.T) {
			c := newSmall(t, nil)
			defer c.close()
			var tokens []string
			for _, user := range users(50) {
				tokens = append(tokens, c.login(user, idle(timeout)).Token)
			}
			before, validations := 0, 0
			for _, s := range c.shards {
				before += s.entries
			}
			for range 300 { // five minutes
				for _, token := range tokens {
					if reason := c.reason(token); reason != "" {
						t.Fatalf("used steadily: %s", reason)
					}
					validations++
				}
				time.Sleep(time.Second)
			}
			writes := -before
			for _, s := range c.shards {
				writes += s.entries
			}
			if writes > validations/50 || writes == 0 {
				t.Errorf("timeout %v: %d writes for %d validations", timeout, writes, validations)
			}
		})
	}
}

// A session ends its idle timeout after its last use, or so much earlier as a use may go unwritten; and never later.
func TestAnIdleSessionEndsInTime(t *testing.T) {
	for _, timeout := range []time.Duration{time.Second, 3 * time.Second, time.Minute, 10 * time.Minute, 2 * time.Hour} {
		due := time.Duration(useDue(millis(timeout))) * time.Millisecond
		for _, last := range []time.Duration{0, due / 2, due, due * 3 / 2, due * 5 / 2} { // its last use, after steady ones
			synctest.Test(t, func(t *testing.T) {
				c := newSmall(t, nil)
				defer c.close()
				m := c.login("alice", idle(timeout))
				begin := time.Now()
				for time.Since(begin) < last {
					time.Sleep(min(due/4, last-time.Since(begin)))
					if reason := c.reason(m.Token); reason != "" {
						t.Fatalf("timeout %v: used steadily: %s after %v", timeout, reason, time.Since(begin))
					}
				}
				time.Sleep(min(2*usePause, timeout/2))
				end := c.get(m.SessionId).ExpiresAt.AsTime().Sub(begin)
				if end > last+timeout || end < last+timeout-due {
					t.Errorf("timeout %v, used last after %v: it ends after %v", timeout, last, end)
				}
				time.Sleep(end - time.Since(begin) - time.Millisecond)
				if got := c.get(m.SessionId); got.Ended != "" {
					t.Errorf("it has ended before: %v", got)
				}
				time.Sleep(time.Millisecond)
				if got := c.get(m.SessionId); got.Ended != "idle" {
					t.Errorf("it has not ended: %v", got)
				}
			})
		}
	}
}

// A shard that nobody leads holds up no other.
func TestAShardWithoutALeaderHoldsUpNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newSmall(t, nil)
		defer c.close()
		var tokens []string
		for _, user := range users(30) {
			tokens = append(tokens, c.login(user, idle(time.Minute)).Token)
		}
		c.shards[1].silent.Store(true)
		time.Sleep(10 * time.Second)
		for _, token := range tokens {
			c.reason(token)
		}
		time.Sleep(time.Second)
		for id, s := range c.shards {
			if n := s.done(session.OpTouch); (n == 0) != (id == 1) {
				t.Errorf("shard %d was told %d times", id, n)
			}
		}
		c.shards[1].silent.Store(false)
		time.Sleep(requestTimeout)
		for _, token := range tokens { // what was lost is noted again
			c.reason(token)
		}
		time.Sleep(time.Second)
		if n := c.shards[1].done(session.OpTouch); n == 0 {
			t.Error("shard 1 was told nothing")
		}
	})
}

// Of two signs the one counts that leads to more, in whichever order they come.
func TestTheStrongerActCounts(t *testing.T) {
	for _, order := range [][]session.Act{{session.Flag, session.EndSession}, {session.EndSession, session.Flag}, {session.EndSession, session.AskAgain, session.Flag}} {
		synctest.Test(t, func(t *testing.T) {
			c := newSmall(t, nil)
			defer c.close()
			m := c.login("alice")
			list, err := c.List(t.Context(), &pb.ListSessionsRequest{UserId: "alice"})
			if err != nil || len(list.Sessions) != 1 {
				t.Fatal(err)
			}
			k := keyOfText(t, m.SessionId)
			for _, act := range order {
				c.uses.mark(session.MarkRequest{Session: k, Sign: session.NetworkChanged, Act: act})
			}
			time.Sleep(time.Second)
			if got := c.get(m.SessionId).Ended; got != "suspicious" || c.of("alice").done(session.OpMark) != 1 {
				t.Errorf("%v: %q after %d marks", order, got, c.of("alice").done(session.OpMark))
			}
		})
	}
}

// More validations in ten seconds than the policy expects are one sign, not one for each.
func TestABurstCountsOnceInAWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newSmall(t, nil)
		defer c.close()
		c.policy(&pb.PutSessionPolicyRequest{Type: "web", Burst: proto.Uint32(100), OnBurst: "step_up"})
		calm, m := c.login("bob"), c.login("alice")
		for range 100 {
			if c.reason(calm.Token) != "" || c.reason(m.Token) != "" {
				t.Fatal("as many as expected are a sign")
			}
		}
		for range 300 {
			c.reason(m.Token)
		}
		time.Sleep(time.Second)
		if got := c.reason(m.Token); got != "step_up_required" || c.reason(calm.Token) != "step_up_required" && c.of("alice").done(session.OpMark) != 1 {
			t.Errorf("%q after %d marks", got, c.of("alice").done(session.OpMark))
		}
	})
}

// What is told at once is no more than a frame may have, however much has gathered.
func TestWhatGathersGoesInFrames(t *testing.T) {
	noted := make(map[session.Key]fsm.Time)
	for i := range uint64(maxUses) {
		noted[session.Key{Number: i}] = 4_000_000_000_000
	}
	calls := useCalls(noted, nil)
	for i := 0; i < len(calls); i += maxUseCalls {
		f := fsm.Frame{Calls: calls[i:min(i+maxUseCalls, len(calls))]}
		if size := len(f.Append(nil)); size > fsm.MaxFrameBytes {
			t.Fatalf("a frame of %d bytes, at most %d are allowed", size, fsm.MaxFrameBytes)
		}
	}
}

// A node that stops leaves nothing behind, though uses wait and a shard does not answer: the bubble would not end.
func TestClosingEndsTheSenders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newSmall(t, nil)
		token := c.login("alice", idle(time.Minute)).Token
		c.of("alice").silent.Store(true)
		time.Sleep(10 * time.Second)
		c.reason(token)
		time.Sleep(time.Second) // its sender waits for the shard
		c.close()
		c.reason(token)
		synctest.Wait()
		if n := c.of("alice").done(session.OpTouch); n != 0 {
			t.Errorf("%d", n)
		}
	})
}
