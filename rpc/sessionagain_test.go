package rpc

import (
	"context"
	"errors"
	"log/slog"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/fsm/catalog"
	"github.com/holdfastdb/holdfast/fsm/fsmtest"
	"github.com/holdfastdb/holdfast/fsm/session"
	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
	"github.com/holdfastdb/holdfast/rpc/seal"
	"github.com/holdfastdb/holdfast/storage/kv"
)

// sessionGroups is one shard with all slots, which answers questions too.
type sessionGroups struct{ *groups }

func (g *sessionGroups) Topology() *catalog.Topology {
	return &catalog.Topology{Shards: []catalog.Shard{{ID: 1, Last: 1<<16 - 1}}}
}

func (g *sessionGroups) CatalogView() kv.View { return fsmtest.NewMemory().View() }

func (g *sessionGroups) WatchCatalog(func()) (stop func()) { return func() {} }

func (g *sessionGroups) Query(_ context.Context, group uint32, calls []fsm.Call) ([]fsm.Result, fsm.Applied, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := g.machines[group].Flush(); err != nil {
		return nil, fsm.Applied{}, err
	}
	reg, err := fsm.New(Types()...)
	if err != nil {
		return nil, fsm.Applied{}, err
	}
	return reg.Query(g.stores[group].View(), calls)
}

// once has the next call fail in a way, and those after it succeed.
func (g *sessionGroups) once(what fault) {
	next := g.calls
	g.fault = func(n int, _ uint32) fault {
		if n == next {
			return what
		}
		return fine
	}
}

func newSessionGroups(t *testing.T) (*sessionGroups, *sessions) {
	t.Helper()
	g := &sessionGroups{newGroups(t, 1)}
	s := &sessions{node: g, limits: &limits{node: g}, sealer: seal.New(nil)}
	var err error
	if s.policies, err = newSessionPolicies(g); err != nil {
		t.Fatal(err)
	}
	s.uses = newUses(g, s.group, s.policies, slog.New(slog.DiscardHandler))
	t.Cleanup(s.uses.close)
	return g, s
}

// A frame whose answer was lost is sent again: attributes are changed once, and the answer is that of the first time.
func TestAttributesAreChangedOnceHoweverOftenAFrameComes(t *testing.T) {
	g, s := newSessionGroups(t)
	made, err := s.Create(t.Context(), &pb.CreateSessionRequest{UserId: "ada"})
	if err != nil {
		t.Fatal(err)
	}
	change := func(seq uint64, value string, version *uint32) (*pb.SetAttributesResponse, error) {
		frame := &pb.PackedFrame{Client: make([]byte, 16), Shard: 1, Seq: seq, DeadlineMs: int64(g.now) + 1000}
		set, err := structpb.NewStruct(map[string]any{"theme": value})
		if err != nil {
			t.Fatal(err)
		}
		return s.SetAttributes(withFrame(t.Context(), frame, 0), &pb.SetAttributesRequest{SessionId: made.SessionId, Set: set, Version: version})
	}
	expect := func(what string, m *pb.SetAttributesResponse, err error, version uint32, value any) {
		t.Helper()
		if err != nil || m.Version != version || m.Attributes.AsMap()["theme"] != value {
			t.Errorf("%s: %v, %v; want version %d, %v", what, m, err, version, value)
		}
	}
	g.once(answered)
	if _, err := change(1, "dark", nil); !errors.Is(err, fsm.ErrOutcomeUnknown) {
		t.Fatalf("the answer was lost, and the error is %v", err)
	}
	m, err := change(1, "dark", nil)
	expect("again", m, err, 1, "dark")
	g.once(answered)
	if _, err := change(2, "light", new(uint32(1))); !errors.Is(err, fsm.ErrOutcomeUnknown) {
		t.Fatalf("the answer was lost, and the error is %v", err)
	}
	m, err = change(2, "light", new(uint32(1)))
	expect("again, from a version", m, err, 2, "light")
	m, err = change(3, "blue", nil)
	expect("somebody else", m, err, 3, "blue")
	m, err = change(2, "light", new(uint32(1)))
	if err != nil || m.Version != 2 || m.Attributes != nil {
		t.Errorf("again, after somebody else: %v, %v", m, err)
	}
	if _, err := s.Revoke(t.Context(), &pb.RevokeSessionRequest{SessionId: made.SessionId}); err != nil {
		t.Fatal(err)
	}
	m, err = change(2, "light", new(uint32(1)))
	if err != nil || m.Version != 2 {
		t.Errorf("again, after the session ended: %v, %v", m, err)
	}
	if _, err := change(4, "red", nil); codeOf(err) != fsm.NotFound {
		t.Errorf("of a session that ended: %v", err)
	}
}

// A logout that is sent again tells the same, though the token counts no longer.
func TestALogoutIsAnsweredAsTheFirstTime(t *testing.T) {
	g, s := newSessionGroups(t)
	made, err := s.Create(t.Context(), &pb.CreateSessionRequest{UserId: "ada"})
	if err != nil {
		t.Fatal(err)
	}
	rotated, err := s.Rotate(t.Context(), &pb.RotateSessionRequest{Token: made.Token})
	if err != nil {
		t.Fatal(err)
	}
	step, err := s.planLogout(&pb.LogoutRequest{Token: rotated.Token})
	if err != nil {
		t.Fatal(err)
	}
	for try := range 3 {
		out, err := g.Propose(t.Context(), 1, &fsm.Frame{Client: [16]byte{1}, Seq: 1, Deadline: g.now + 1000, Calls: []fsm.Call{step.call}})
		if err != nil || out.Replayed != (try > 0) {
			t.Fatalf("try %d: %+v, %v", try, out, err)
		}
		m, err := step.finish(out.Results[0], out.Time)
		if err != nil || m.(*pb.RevokedSessions).Revoked != 1 {
			t.Errorf("try %d: %v, %v", try, m, err)
		}
	}
	if m, err := s.Logout(t.Context(), &pb.LogoutRequest{Token: rotated.Token}); err != nil || m.Revoked != 0 {
		t.Errorf("a session that is over: %v, %v", m, err)
	}
	if _, err := s.Logout(t.Context(), &pb.LogoutRequest{Token: made.Token}); !errors.As(err, new(*tokenRefused)) {
		t.Errorf("a token that was replaced: %v", err)
	}
}

// A login whose answer was lost was executed: that its tokens cannot be issued again does not say that it was not.
func TestTokensThatCannotBeIssuedAgain(t *testing.T) {
	g, s := newSessionGroups(t)
	step, err := s.planCreate(&pb.CreateSessionRequest{UserId: "ada"}, secret())
	if err != nil {
		t.Fatal(err)
	}
	out, err := g.Propose(t.Context(), 1, &fsm.Frame{Calls: []fsm.Call{step.call}})
	if err != nil {
		t.Fatal(err)
	}
	g.once(refused)
	if _, err := step.again(t.Context(), out.Results[0], out.Time); !errors.Is(err, fsm.ErrOutcomeUnknown) {
		t.Errorf("the shard is overloaded: %v", err)
	}
	var made session.CreateResult
	if err := made.Decode(out.Results[0].Body); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Revoke(t.Context(), &pb.RevokeSessionRequest{SessionId: idOf(made.Session).String()}); err != nil {
		t.Fatal(err)
	}
	m, err := step.again(t.Context(), out.Results[0], out.Time)
	if err != nil {
		t.Fatalf("the session has ended since: %v", err)
	}
	v, err := s.Validate(t.Context(), &pb.ValidateSessionRequest{Token: m.(*pb.SessionTokens).Token})
	if err != nil || v.Valid {
		t.Errorf("its token: %v, %v", v, err)
	}
}

// Operations of one frame that are carried out later are carried out with what each of them says.
func TestEachOperationOfAFrameKeepsItsRequest(t *testing.T) {
	c := newSmall(t, nil)
	defer c.close()
	themes := []string{"dark", "light", "blue"}
	var ops []*pb.Op
	var ids []string
	for _, theme := range themes {
		set, err := structpb.NewStruct(map[string]any{"theme": theme})
		if err != nil {
			t.Fatal(err)
		}
		id := c.login("ada").SessionId
		body, err := proto.Marshal(&pb.SetAttributesRequest{SessionId: id, Set: set})
		if err != nil {
			t.Fatal(err)
		}
		ids, ops = append(ids, id), append(ops, &pb.Op{Type: session.TypeID, Method: methodSetAttributes, Request: body})
	}
	x := newStream(t.Context(), c.server.data)
	x.frame(&pb.PackedFrame{Client: clientID, Shard: 1, Seq: 1, DeadlineMs: int64(now()) + 10_000, Ops: packed(ops...)})
	<-x.wake
	for i, id := range ids {
		if r := x.queue[0].Results[i]; r.Code != 0 {
			t.Errorf("operation %d: %v", i, r)
		}
		if got := c.get(id).Attributes.AsMap()["theme"]; got != themes[i] {
			t.Errorf("session %d has %v, want %s", i, got, themes[i])
		}
	}
}
