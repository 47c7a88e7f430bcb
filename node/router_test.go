package node

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/holdfastdb/holdfast/fsm"
)

// fakeReplica is one group's replica on one of several fake nodes.
type fakeReplica struct {
	leading bool
	leader  string
	propose func(f *fsm.Frame) (fsm.FrameOutcome, error)
}

func (g *fakeReplica) Propose(_ context.Context, f *fsm.Frame) (fsm.FrameOutcome, error) {
	return g.propose(f)
}
func (g *fakeReplica) Query(_ context.Context, calls []fsm.Call) ([]fsm.Result, fsm.Applied, error) {
	return []fsm.Result{{Body: calls[0].Body}}, fsm.Applied{Index: 5, Time: 6}, nil
}
func (g *fakeReplica) Leader() (string, uint64) { return g.leader, 1 }
func (g *fakeReplica) IsLeader() bool           { return g.leading }

// fakeNodes connects routers directly; down tells calls to a node to fail, before or after they were served.
type fakeNodes struct {
	routers     map[string]*router
	failBefore  int
	failAfter   int
	frozen      string // a node that takes calls and does not answer
	callsServed int
}

func (n *fakeNodes) add(id string, g *fakeReplica, hint string) *router {
	r := &router{
		nodeID: id,
		local:  func(uint32) (replica, bool) { return g, g != nil },
		hint:   func(uint32) (string, bool) { return hint, hint != "" },
		log:    slog.New(slog.DiscardHandler),
	}
	r.call = func(ctx context.Context, nodeID, method string, request []byte) ([]byte, error) {
		if n.failBefore > 0 {
			n.failBefore--
			return nil, errors.New("connection refused")
		}
		if nodeID == n.frozen {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		n.callsServed++
		serve := n.routers[nodeID].servePropose
		if method == callQuery {
			serve = n.routers[nodeID].serveQuery
		}
		answer, err := serve(ctx, request)
		if n.failAfter > 0 {
			n.failAfter--
			return nil, errors.New("connection reset")
		}
		return answer, err
	}
	n.routers[id] = r
	return r
}

func echoOutcome(f *fsm.Frame) (fsm.FrameOutcome, error) {
	return fsm.FrameOutcome{Index: 9, Results: []fsm.Result{{Body: f.Calls[0].Body}}}, nil
}

func TestRouterAsksTheLeaderAndRetriesWhatIsSafe(t *testing.T) {
	calls := []fsm.Call{{Type: 1, Op: 1, Body: []byte("x")}}
	named := fsm.Frame{Client: [16]byte{1}, Seq: 1, Calls: calls}
	anonymous := fsm.Frame{Calls: calls}
	tests := map[string]struct {
		frame                 fsm.Frame
		failBefore, failAfter int
		refusals              int
		executed              int
		unknown               bool
	}{
		"at once":                             {frame: named, executed: 1},
		"the connection fails before":         {frame: named, failBefore: 2, executed: 1},
		"the answer is lost":                  {frame: named, failAfter: 1, executed: 2},
		"refusals":                            {frame: named, refusals: 3, executed: 4},
		"anonymous, refusals":                 {frame: anonymous, refusals: 3, executed: 4},
		"anonymous, the answer is lost":       {frame: anonymous, failAfter: 1, executed: 1, unknown: true},
		"anonymous, connection fails unclear": {frame: anonymous, failBefore: 1, executed: 0, unknown: true},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				executed := 0
				nodes := &fakeNodes{routers: map[string]*router{}, failBefore: tt.failBefore, failAfter: tt.failAfter}
				nodes.add("b", &fakeReplica{leading: true, propose: func(f *fsm.Frame) (fsm.FrameOutcome, error) {
					executed++
					if executed <= tt.refusals {
						return fsm.FrameOutcome{}, errNoLeader
					}
					return echoOutcome(f)
				}}, "")
				a := nodes.add("a", &fakeReplica{leader: "b/1"}, "")
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				defer cancel()
				out, err := a.propose(ctx, 1, &tt.frame)
				if tt.unknown != errors.Is(err, fsm.ErrOutcomeUnknown) || (err == nil && string(out.Results[0].Body) != "x") {
					t.Errorf("%+v, %v", out, err)
				}
				if executed != tt.executed {
					t.Errorf("executed %d times, want %d", executed, tt.executed)
				}
			})
		})
	}
}

func TestRouterFindsALeaderThatOnlyGossipKnows(t *testing.T) {
	nodes := &fakeNodes{routers: map[string]*router{}}
	nodes.add("b", &fakeReplica{leading: true, propose: echoOutcome}, "")
	c := nodes.add("c", nil, "b")
	c.local = func(uint32) (replica, bool) { return nil, false }
	out, err := c.propose(t.Context(), 1, &fsm.Frame{Calls: []fsm.Call{{Type: 1, Op: 1, Body: []byte("y")}}})
	if err != nil || out.Index != 9 {
		t.Errorf("%+v, %v", out, err)
	}
	results, applied, err := c.query(t.Context(), 1, []fsm.Call{{Type: 1, Op: 64, Body: []byte("q")}})
	if err != nil || string(results[0].Body) != "q" || applied.Index != 5 || applied.Time != 6 {
		t.Errorf("%+v, %+v, %v", results, applied, err)
	}
}

func TestRouterGivesUpWithItsContextAndTellsOverloadAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes := &fakeNodes{routers: map[string]*router{}}
		full := &fakeReplica{leading: true, propose: func(*fsm.Frame) (fsm.FrameOutcome, error) {
			return fsm.FrameOutcome{}, fsm.ErrOverloaded
		}}
		nodes.add("b", full, "")
		a := nodes.add("a", &fakeReplica{leader: "b/1"}, "")
		begin := time.Now()
		if _, err := a.propose(t.Context(), 1, &fsm.Frame{}); !errors.Is(err, fsm.ErrOverloaded) || time.Since(begin) != 0 {
			t.Errorf("after %v: %v", time.Since(begin), err)
		}

		alone := nodes.add("c", &fakeReplica{}, "")
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := alone.propose(ctx, 1, &fsm.Frame{Client: [16]byte{1}, Seq: 1})
		if !errors.Is(err, errNoLeader) || !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, fsm.ErrOutcomeUnknown) {
			t.Errorf("no leader: %v", err)
		}
	})
}

// A leader whose disk is full hands over to one with room, which takes a moment. When nobody has room, the caller is told.
func TestRouterWaitsForALeaderWithRoom(t *testing.T) {
	for name, room := range map[string]time.Duration{"soon": time.Second, "never": time.Hour} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				begin := time.Now()
				nodes := &fakeNodes{routers: map[string]*router{}}
				nodes.add("b", &fakeReplica{leading: true, propose: func(f *fsm.Frame) (fsm.FrameOutcome, error) {
					if time.Since(begin) < room {
						return fsm.FrameOutcome{}, fsm.ErrDiskFull
					}
					return echoOutcome(f)
				}}, "")
				a := nodes.add("a", &fakeReplica{leader: "b/1"}, "")
				_, err := a.propose(t.Context(), 1, &fsm.Frame{Calls: []fsm.Call{{Type: 1, Op: 1}}})
				if served := err == nil; served != (room < time.Minute) || !served && !errors.Is(err, fsm.ErrDiskFull) {
					t.Errorf("after %v: %v", time.Since(begin), err)
				}
				if took := time.Since(begin); took > 3*time.Second {
					t.Errorf("it took %v", took)
				}
			})
		})
	}
}

// A frozen leader keeps its connections, and says nothing. The others elect a new one after a while; who waits for the old
// one must not do so to the end of its own patience.
func TestRouterLeavesALeaderThatIsFrozenForTheNextOne(t *testing.T) {
	const elected = 2 * time.Second
	for name, next := range map[string]string{"another node": "c", "this node": "a"} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				nodes := &fakeNodes{routers: map[string]*router{}, frozen: "b"}
				nodes.add("c", &fakeReplica{leading: true, propose: echoOutcome}, "")
				a := nodes.add("a", nil, "b")
				var mine atomic.Pointer[fakeReplica]
				mine.Store(&fakeReplica{leader: "b/1"})
				a.local = func(uint32) (replica, bool) { return mine.Load(), true }
				time.AfterFunc(elected, func() {
					mine.Store(&fakeReplica{leader: next + "/1", leading: next == "a", propose: echoOutcome})
				})
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				defer cancel()
				begin := time.Now()
				queried := make(chan error)
				go func() {
					_, _, err := a.query(ctx, 1, []fsm.Call{{Type: 1, Op: 64}})
					queried <- err
				}()
				_, err := a.propose(ctx, 1, &fsm.Frame{Client: [16]byte{1}, Seq: 1, Calls: []fsm.Call{{Type: 1, Op: 1}}})
				if err := errors.Join(err, <-queried); err != nil || time.Since(begin) > elected+2*leaderCheck {
					t.Errorf("after %v: %v", time.Since(begin), err)
				}
				synctest.Wait() // what watched the leaders has ended
			})
		})
	}
}

// A connection's status is not that of the request, which may succeed elsewhere.
func TestRouterTellsALeaderThatDoesNotAnswerInItsOwnWords(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes := &fakeNodes{routers: map[string]*router{}}
		a := nodes.add("a", &fakeReplica{leader: "b/1"}, "")
		a.call = func(context.Context, string, string, []byte) ([]byte, error) {
			return nil, status.Error(codes.DeadlineExceeded, "late")
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		var foreign interface{ GRPCStatus() *status.Status }
		if _, _, err := a.query(ctx, 1, []fsm.Call{{Type: 1, Op: 64}}); !errors.Is(err, fsm.ErrNotLeader) || errors.As(err, &foreign) {
			t.Errorf("query: %v", err)
		}
		_, err := a.propose(ctx, 1, &fsm.Frame{Client: [16]byte{1}, Seq: 1})
		if !errors.Is(err, fsm.ErrOutcomeUnknown) || errors.As(err, &foreign) {
			t.Errorf("propose: %v", err)
		}
	})
}

// An attempt whose outcome is unknown may have had its effect. What later attempts are told changes nothing about that: the
// caller must not take the frame for one without effect and send it under another number.
func TestAnUnknownOutcomeStaysUnknown(t *testing.T) {
	for name, later := range map[string]error{
		"overloaded": fsm.ErrOverloaded, "no leader": errNoLeader, "closed": fsm.ErrClosed,
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				nodes := &fakeNodes{routers: map[string]*router{}, failAfter: 1}
				executed := 0
				nodes.add("b", &fakeReplica{leading: true, propose: func(f *fsm.Frame) (fsm.FrameOutcome, error) {
					if executed++; executed == 1 {
						return echoOutcome(f)
					}
					return fsm.FrameOutcome{}, later
				}}, "")
				a := nodes.add("a", &fakeReplica{leader: "b/1"}, "")
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				_, err := a.propose(ctx, 1, &fsm.Frame{Client: [16]byte{1}, Seq: 1, Calls: []fsm.Call{{Type: 1, Op: 1, Body: []byte("x")}}})
				if !errors.Is(err, fsm.ErrOutcomeUnknown) || fsm.Safe(err) || errors.Is(err, later) {
					t.Errorf("after an execution whose answer was lost: %v (safe: %v)", err, fsm.Safe(err))
				}
			})
		})
	}
	both := fmt.Errorf("%w: %w", fsm.ErrOutcomeUnknown, fsm.ErrNotLeader)
	if fsm.Safe(both) {
		t.Error("an error that is both unknown and a refusal counts as safe")
	}
	if _, err := readAnswer(writeAnswer(nil, fmt.Errorf("%w: %w", fsm.ErrOutcomeUnknown, fsm.ErrOverloaded))); !errors.Is(err, fsm.ErrOutcomeUnknown) {
		t.Errorf("between nodes it became %v", err)
	}
}

// Nodes of two versions answer each other.
func TestAnswersBetweenNodesArePinned(t *testing.T) {
	out := fsm.FrameOutcome{Index: 300, Time: 5, Results: []fsm.Result{{Code: fsm.OK, Body: []byte("x")}}}
	text := ""
	for _, b := range [][]byte{
		writeAnswer(&out, nil), writeAnswer(nil, fsm.ErrNotLeader), writeAnswer(nil, fsm.ErrOverloaded), writeAnswer(nil, fsm.ErrOutcomeUnknown),
		writeAnswer(nil, fsm.ErrDiskFull),
	} {
		text += hex.EncodeToString(b) + "\n"
	}
	golden(t, "answers.golden", text)
}

func FuzzTarget(f *testing.F) {
	f.Add((&fsm.Frame{Calls: []fsm.Call{{Type: 1, Op: 1}}}).Append([]byte{1}))
	r := &router{local: func(uint32) (replica, bool) { return &fakeReplica{leading: true}, true }}
	f.Fuzz(func(t *testing.T, b []byte) {
		g, frame, err := r.target(b)
		if (err == nil) != (g != nil && frame != nil) {
			t.Errorf("%v %v %v", g, frame, err)
		}
	})
}
