package client_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/holdfastdb/holdfast/client"
	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
)

// refusedCall is how a service refuses a call.
func refusedCall(t *testing.T, code codes.Code, reason string) error {
	t.Helper()
	s, err := status.New(code, "because").WithDetails(&errdetails.ErrorInfo{Reason: reason, Domain: "holdfast"})
	if err != nil {
		t.Fatal(err)
	}
	return s.Err()
}

// onSweep makes the only node of a fake cluster sweep its own way. It returns the requests that came.
func onSweep(f *fake, sweep func(try int) (*pb.RevokeMatchingResponse, error)) *[]*pb.RevokeMatchingRequest {
	var asked []*pb.RevokeMatchingRequest
	f.nodes["n1"].sweep = func(q *pb.RevokeMatchingRequest) (*pb.RevokeMatchingResponse, error) {
		f.mu.Lock()
		defer f.mu.Unlock()
		asked = append(asked, proto.Clone(q).(*pb.RevokeMatchingRequest))
		return sweep(len(asked))
	}
	return &asked
}

func TestASweepGoesOnFromPartToPartAndAddsUp(t *testing.T) {
	f := newFake(t, "n1")
	asked := onSweep(f, func(try int) (*pb.RevokeMatchingResponse, error) {
		return []*pb.RevokeMatchingResponse{
			{Scanned: 500, Revoked: 3, Unreadable: 1, Percent: 40, Next: "there"}, {Scanned: 20, Revoked: 4, Percent: 100},
		}[try-1], nil
	})
	c := f.client(0)
	before := time.UnixMilli(1_700_000_000_000)
	var got []client.Sweep
	for at, err := range c.Sessions().RevokeMatching(t.Context(), client.SessionFilter{
		Type: client.APISession, Device: "tv", CreatedBefore: before, IPRange: "192.0.2.0/24", From: "here", DryRun: true,
	}) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, at)
	}
	want := []client.Sweep{
		{Scanned: 500, Matched: 3, Unreadable: 1, Percent: 40, Next: "there"}, {Scanned: 520, Matched: 7, Unreadable: 1, Percent: 100},
	}
	if !slices.Equal(got, want) {
		t.Errorf("%+v", got)
	}
	for i, next := range []string{"here", "there"} {
		q := (*asked)[i]
		if q.Next != next || q.Type != "api" || q.Device != "tv" || !q.CreatedBefore.AsTime().Equal(before) || q.IpRange != "192.0.2.0/24" || !q.DryRun {
			t.Errorf("part %d: %v", i, q)
		}
	}
}

func TestASweepThatIsLeftAsksForNoMore(t *testing.T) {
	f := newFake(t, "n1")
	asked := onSweep(f, func(int) (*pb.RevokeMatchingResponse, error) { return &pb.RevokeMatchingResponse{Next: "on"}, nil })
	c := f.client(0)
	for range c.Sessions().RevokeMatching(t.Context(), client.SessionFilter{Type: client.WebSession}) {
		break
	}
	if len(*asked) != 1 {
		t.Errorf("%d parts", len(*asked))
	}
}

func TestAPartOfASweepIsTriedAgainWhateverBecameOfIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t, "n1")
		asked := onSweep(f, func(try int) (*pb.RevokeMatchingResponse, error) {
			switch try {
			case 1:
				return nil, refusedCall(t, codes.Unavailable, "UNAVAILABLE")
			case 2:
				return nil, refusedCall(t, codes.DeadlineExceeded, "OUTCOME_UNKNOWN")
			case 3:
				return nil, refusedCall(t, codes.ResourceExhausted, "OVERLOADED")
			}
			return &pb.RevokeMatchingResponse{Revoked: 2, Percent: 100}, nil
		})
		c := f.client(0)
		for at, err := range c.Sessions().RevokeMatching(t.Context(), client.SessionFilter{Type: client.WebSession}) {
			if err != nil || at.Matched != 2 || len(*asked) != 4 {
				t.Errorf("%+v, %v after %d tries", at, err, len(*asked))
			}
		}
	})
}

// What is told of the effect is right, and where to go on is never lost.
func TestASweepThatFailsTellsWhereToGoOn(t *testing.T) {
	for name, tt := range map[string]struct {
		code   codes.Code
		reason string
		dry    bool
		want   error
	}{
		"refused":           {codes.InvalidArgument, "INVALID", false, client.ErrInvalid},
		"without a leader":  {codes.Unavailable, "UNAVAILABLE", false, client.ErrUnavailable},
		"too late":          {codes.DeadlineExceeded, "EXPIRED", false, client.ErrUnavailable},
		"unknown":           {codes.DeadlineExceeded, "OUTCOME_UNKNOWN", false, client.ErrOutcomeUnknown},
		"unknown, dry":      {codes.DeadlineExceeded, "OUTCOME_UNKNOWN", true, client.ErrUnavailable},
		"a bound, no retry": {codes.ResourceExhausted, "EXHAUSTED", false, client.ErrExhausted},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFake(t, "n1")
				onSweep(f, func(try int) (*pb.RevokeMatchingResponse, error) {
					if try == 1 {
						return &pb.RevokeMatchingResponse{Scanned: 9, Next: "half"}, nil
					}
					return nil, refusedCall(t, tt.code, tt.reason)
				})
				c := f.client(3 * time.Second)
				begun, steps := time.Now(), 0
				for at, err := range c.Sessions().RevokeMatching(t.Context(), client.SessionFilter{Type: client.WebSession, DryRun: tt.dry}) {
					if steps++; steps == 1 {
						continue
					}
					if !errors.Is(err, tt.want) || at.Next != "half" || at.Scanned != 9 {
						t.Errorf("%+v, %v", at, err)
					}
				}
				if steps != 2 || time.Since(begun) > 3*time.Second {
					t.Errorf("%d steps in %v", steps, time.Since(begun))
				}
			})
		})
	}
}

func TestWhatASweepEndedIsNotRemembered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t, "n1")
		r := newRegister(f)
		token, _ := r.login("alice", nil)
		r.hangs = true // no event tells
		onSweep(f, func(int) (*pb.RevokeMatchingResponse, error) {
			r.revoke(token)
			return &pb.RevokeMatchingResponse{Revoked: 1}, nil
		})
		c := f.client(0)
		if v := validate(t, c, token, client.MaxStale(time.Hour)); !v.Valid {
			t.Fatalf("%+v", v)
		}
		for _, err := range c.Sessions().RevokeMatching(t.Context(), client.SessionFilter{Type: client.WebSession}) {
			if err != nil {
				t.Fatal(err)
			}
		}
		if v := validate(t, c, token, client.MaxStale(time.Hour)); v.Valid {
			t.Error("it counts on")
		}
	})
}

// A second put could change what somebody else put meanwhile, or find its own and call that a conflict.
func TestAPutOfUnknownOutcomeIsNotRepeated(t *testing.T) {
	for name, tt := range map[string]struct {
		code   codes.Code
		reason string
		want   error
		tries  int
	}{
		"unknown":               {codes.DeadlineExceeded, "OUTCOME_UNKNOWN", client.ErrOutcomeUnknown, 1},
		"another revision":      {codes.Aborted, "CONFLICT", client.ErrConflict, 1},
		"surely without effect": {codes.Unavailable, "UNAVAILABLE", nil, 2},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFake(t, "n1")
				tries := 0
				f.nodes["n1"].put = func(*pb.PutSessionPolicyRequest) (*pb.SessionPolicy, error) {
					if tries++; tries == 1 {
						return nil, refusedCall(t, tt.code, tt.reason)
					}
					return &pb.SessionPolicy{Type: "web"}, nil
				}
				_, err := f.client(0).Sessions().PutPolicy(t.Context(), client.SessionPolicy{Type: client.WebSession})
				if !errors.Is(err, tt.want) || tries != tt.tries {
					t.Errorf("%v after %d tries", err, tries)
				}
			})
		})
	}
}

func TestAPutThatIsCutOffHasAnUnknownOutcome(t *testing.T) {
	f := newFake(t, "n1")
	ctx, cancel := context.WithCancel(t.Context())
	f.nodes["n1"].put = func(*pb.PutSessionPolicyRequest) (*pb.SessionPolicy, error) {
		cancel()
		<-t.Context().Done()
		return nil, errors.New("too late")
	}
	_, err := f.client(0).Sessions().PutPolicy(ctx, client.SessionPolicy{Type: client.WebSession})
	if !errors.Is(err, client.ErrOutcomeUnknown) {
		t.Errorf("got %v", err)
	}
}

func TestPoliciesOfARealCluster(t *testing.T) {
	c, _ := dialCluster(t, 0)
	s := c.Sessions()
	p, err := s.Policy(t.Context(), client.MobileSession)
	if err != nil || p.AbsoluteTimeout != 7*24*time.Hour || p.MaxSessions != client.NoLimit || p.OnDeviceChange != client.SignStepUp {
		t.Fatalf("%+v, %v", p, err)
	}
	before := p.Revision
	put, err := s.PutPolicy(t.Context(), client.SessionPolicy{
		Type: client.MobileSession, IdleTimeout: client.NoIdleTimeout, MaxDevices: 5, OnLimit: client.EvictOldest,
		OnTwoNetworks: client.SignFlag, Revision: before,
	})
	if err != nil || put.OnTwoNetworks != client.SignFlag || put.OnNetworkChange != client.SignIgnore || put.Revision != before+1 || put.IdleTimeout != client.NoIdleTimeout || put.MaxDevices != 5 || put.AbsoluteTimeout != p.AbsoluteTimeout {
		t.Fatalf("%+v, %v", put, err)
	}
	put.IdleTimeout, put.MaxDevices, put.OnTwoNetworks = 24*time.Hour, client.NoLimit, client.SignIgnore
	if put, err = s.PutPolicy(t.Context(), put); err != nil || put.MaxDevices != client.NoLimit || put.IdleTimeout != 24*time.Hour {
		t.Errorf("what was read, changed and put: %+v, %v", put, err)
	}
	put.Revision--
	if _, err := s.PutPolicy(t.Context(), put); !errors.Is(err, client.ErrConflict) {
		t.Errorf("from an older revision: %v", err)
	}
	if _, err := s.Policy(t.Context(), "desk"); !errors.Is(err, client.ErrNotFound) {
		t.Errorf("a type that is none: %v", err)
	}
	if _, err := s.PutPolicy(t.Context(), client.SessionPolicy{Type: "desk"}); !errors.Is(err, client.ErrInvalid) {
		t.Errorf("a type that is none: %v", err)
	}
}

func TestASweepAndTheNumbersOfARealCluster(t *testing.T) {
	c, _ := dialCluster(t, 0)
	s := c.Sessions()
	login, err := s.Create(t.Context(), client.Login{UserID: t.Name(), Type: client.APISession, Device: map[string]any{"model": t.Name()}})
	if err != nil {
		t.Fatal(err)
	}
	before, err := s.Stats(t.Context())
	if err != nil || before.Active[client.APISession] < 1 || before.Created[client.APISession] < 1 {
		t.Fatalf("%+v, %v", before, err)
	}
	for _, dry := range []bool{true, false} {
		var last client.Sweep
		for at, err := range s.RevokeMatching(t.Context(), client.SessionFilter{Device: t.Name(), DryRun: dry}) {
			if err != nil {
				t.Fatal(err)
			}
			last = at
		}
		if last.Matched != 1 || last.Percent != 100 || last.Next != "" {
			t.Errorf("dry %v: %+v", dry, last)
		}
		if v := validate(t, c, login.Token); v.Valid != dry {
			t.Errorf("dry %v: %+v", dry, v)
		}
	}
	after, err := s.Stats(t.Context())
	if err != nil || after.Ended[client.EndedRevoked] <= before.Ended[client.EndedRevoked] {
		t.Errorf("%+v, %v", after, err)
	}
	for _, err := range s.RevokeMatching(t.Context(), client.SessionFilter{}) {
		if !errors.Is(err, client.ErrInvalid) {
			t.Errorf("without a condition: %v", err)
		}
	}
}
