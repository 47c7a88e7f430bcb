package client_test

import (
	"errors"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/holdfastdb/holdfast/client"
	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
	"github.com/holdfastdb/holdfast/rpc/sessiontoken"
)

// foreignToken is the same token, of another cluster.
func foreignToken(t *testing.T, token string) string {
	t.Helper()
	parts, err := sessiontoken.Parse(token, sessiontoken.Access, sessiontoken.Cluster{})
	if err != nil {
		t.Fatal(err)
	}
	parts.Cluster = sessiontoken.ClusterOf("another")
	return parts.String()
}

// answer makes a node answer every operation with one message.
func answer(t *testing.T, m proto.Message) func(*pb.FrameRequest) reaction {
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return always(reaction{answers: []*pb.FrameResponse{{Results: []*pb.OpResult{{Response: b}}}}})
}

// sent is the only operation that reached the cluster, decoded into m.
func sent(t *testing.T, f *fake, m proto.Message) *pb.FrameRequest {
	t.Helper()
	log := f.log()
	if len(log) != 1 || len(log[0].Ops) != 1 || log[0].Ops[0].Type != 3 {
		t.Fatalf("want one operation on sessions:\n%s", f.describe())
	}
	if err := proto.Unmarshal(log[0].Ops[0].Request, m); err != nil {
		t.Fatal(err)
	}
	return log[0].FrameRequest
}

// "alice" is in the upper half of the slots, "bob" too, and "carol" in the lower one.
func TestOperationsGoWhereTheUserIs(t *testing.T) {
	pair := func(t *testing.T, user string) (f *fake, c *client.Client, token, id string) {
		f = newFake(t, "n1")
		r := newRegister(f)
		token, id = r.login(user, nil)
		return f, f.client(0), token, id
	}
	shards := make(map[uint32]bool)
	for _, user := range []string{"alice", "bob", "carol", "dave", "erin"} {
		calls := map[string]func(*client.Sessions, string, string) error{
			"create": func(s *client.Sessions, _, _ string) error {
				_, err := s.Create(t.Context(), client.Login{UserID: user})
				return err
			},
			"list": func(s *client.Sessions, _, _ string) error { _, err := s.List(t.Context(), user); return err },
			"history": func(s *client.Sessions, _, _ string) error {
				_, err := s.History(t.Context(), user)
				return err
			},
			"erase": func(s *client.Sessions, _, _ string) error { _, err := s.EraseUser(t.Context(), user); return err },
			"validate": func(s *client.Sessions, token, _ string) error {
				_, err := s.Validate(t.Context(), token)
				return err
			},
			"logout": func(s *client.Sessions, token, _ string) error { _, err := s.Logout(t.Context(), token); return err },
			"get":    func(s *client.Sessions, _, id string) error { _, err := s.Get(t.Context(), id); return err },
			"set": func(s *client.Sessions, _, id string) error {
				_, err := s.SetAttributes(t.Context(), id, client.AttributeChange{Remove: []string{"x"}})
				return err
			},
		}
		var shard uint32
		for name, call := range calls {
			f, c, token, id := pair(t, user)
			f.on("n1", answer(t, &pb.RevokedSessions{})) // all fields of other answers may be absent too
			if name == "get" {
				f.on("n1", answer(t, &pb.HeldSession{SessionId: make([]byte, 24)}))
			}
			if err := call(c.Sessions(), token, id); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			q := f.log()[0]
			if shard == 0 {
				shard = q.Shard
			}
			if q.Shard != shard {
				t.Errorf("%s of %s goes to shard %d, others to %d", name, user, q.Shard, shard)
			}
			if q.Query != (q.Ops[0].Method >= 64) {
				t.Errorf("%s: method %d in a frame with query %v", name, q.Ops[0].Method, q.Query)
			}
		}
		shards[shard] = true
	}
	if len(shards) != 2 {
		t.Errorf("all users are in one shard: nothing was tested")
	}
}

func TestALoginSaysWhatItIsTold(t *testing.T) {
	f := newFake(t, "n1")
	expires := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	refresh := "refresh"
	f.on("n1", answer(t, &pb.SessionTokens{
		SessionId: "id", Token: "access", RefreshToken: &refresh, ExpiresAt: timestamppb.New(expires), Evicted: 2,
	}))
	got, err := f.client(0).Sessions().Create(t.Context(), client.Login{
		UserID: "alice", Type: client.MobileSession, Device: map[string]any{"id": "phone"}, IP: "10.0.0.1", RememberMe: true,
		RefreshTimeout: time.Hour, IdleTimeout: client.NoIdleTimeout, Attributes: map[string]any{"cart": []any{1, "x"}},
		IPBinding: client.BindSubnet, MaxSessions: 3, MaxDevices: client.NoLimit, OnLimit: client.EvictOldest,
	})
	if err != nil {
		t.Fatal(err)
	}
	want := client.Tokens{SessionID: "id", Token: "access", RefreshToken: "refresh", ExpiresAt: expires, Evicted: 2}
	if got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	var q pb.CreateSessionRequest
	sent(t, f, &q)
	if q.GetIdleTimeout() != 0 || q.IdleTimeout == nil {
		t.Error("no idle timeout must be told from that of the type")
	}
	if q.AbsoluteTimeout != nil {
		t.Error("what was not asked for was sent")
	}
	if q.Type != "mobile" || q.Device.AsMap()["id"] != "phone" || q.GetRefreshTimeout() != 3600 || q.GetMaxSessions() != 3 || q.MaxDevices == nil || q.GetMaxDevices() != 0 ||
		q.OnLimit != "evict_oldest" || q.IpBinding != "subnet" {
		t.Errorf("%v", &q)
	}
}

func TestAttributesAreComparedAndSetInOneStep(t *testing.T) {
	f := newFake(t, "n1")
	_, id := newRegister(f).login("alice", nil)
	f.on("n1", always(reaction{answers: []*pb.FrameResponse{{Results: []*pb.OpResult{
		{Code: uint32(codes.Aborted), Message: "the attributes are at version 8, not 7"},
	}}}}))
	_, err := f.client(0).Sessions().SetAttributes(t.Context(), id, client.AttributeChange{
		Set: map[string]any{"theme": "dark"}, Remove: []string{"cart"}, IfVersion: new(uint32(7)),
	})
	if !errors.Is(err, client.ErrConflict) {
		t.Errorf("got %v, want a conflict", err)
	}
	var q pb.SetAttributesRequest
	sent(t, f, &q)
	if q.GetVersion() != 7 || q.Set.AsMap()["theme"] != "dark" || len(q.Remove) != 1 {
		t.Errorf("%v", &q)
	}
}

func TestWhatIsNoTokenOrIdIsRefusedHere(t *testing.T) {
	f := newFake(t, "n1")
	token, _ := newRegister(f).login("alice", nil)
	s := f.client(0).Sessions()
	for name, call := range map[string]struct {
		do   func() error
		want error
	}{
		"logout":  {func() error { _, err := s.Logout(t.Context(), "x"); return err }, client.ErrToken},
		"foreign": {func() error { _, err := s.Rotate(t.Context(), foreignToken(t, token)); return err }, client.ErrToken},
		"refresh with an access token": {func() error {
			_, err := s.Refresh(t.Context(), token)
			return err
		}, client.ErrToken},
		"revoke": {func() error { _, err := s.Revoke(t.Context(), token); return err }, client.ErrInvalid},
		"get":    {func() error { _, err := s.Get(t.Context(), ""); return err }, client.ErrInvalid},
		"a device with a channel": {func() error {
			_, err := s.Create(t.Context(), client.Login{UserID: "alice", Device: map[string]any{"x": make(chan int)}})
			return err
		}, client.ErrInvalid},
	} {
		if err := call.do(); !errors.Is(err, call.want) {
			t.Errorf("%s: got %v, want %v", name, err, call.want)
		}
	}
	if len(f.log()) != 0 {
		t.Errorf("the cluster was asked:\n%s", f.describe())
	}
}

func TestARefusedTokenIsAnErrTokenThatSaysWhy(t *testing.T) {
	f := newFake(t, "n1")
	token, _ := newRegister(f).login("alice", nil)
	f.on("n1", always(reaction{answers: []*pb.FrameResponse{{Results: []*pb.OpResult{
		{Code: uint32(codes.Unauthenticated), Message: "the token does not count: rotated"},
	}}}}))
	_, err := f.client(0).Sessions().Rotate(t.Context(), token)
	if !errors.Is(err, client.ErrToken) {
		t.Errorf("got %v", err)
	}
}
