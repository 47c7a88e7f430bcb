package client_test

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/holdfastdb/holdfast/client"
	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
)

// isolated is a cluster of three, of whose nodes the first, which led, is cut off from the others but not from clients: it
// does not know that the second one leads now. The others take it for down if they have noticed.
func isolated(t *testing.T, believes string, noticed bool) *fake {
	f := newFake(t, "n1", "n2", "n3")
	f.mu.Lock()
	defer f.mu.Unlock()
	for name, n := range f.nodes {
		n.stale = func(m *pb.ClusterMapResponse) {
			for _, s := range m.Shards {
				s.Term = 2
			}
			if name != "n1" {
				if noticed {
					m.Nodes[0].State = "down"
				}
				return
			}
			for _, s := range m.Shards {
				s.Leader, s.Term = believes, 1
			}
			for _, other := range m.Nodes[1:] {
				other.State = "down"
			}
		}
	}
	f.leaders = map[uint32]string{1: "n2", 2: "n2"}
	return f
}

// A node that is cut off answers like any other. It is not believed.
func TestANodeThatIsCutOffIsNotBelieved(t *testing.T) {
	for name, believes := range map[string]string{"it believes to lead": "n1", "it knows no leader": ""} {
		t.Run(name, func(t *testing.T) {
			f := isolated(t, believes, false)
			f.on("n1", refuse(pb.FrameError_REASON_NOT_LEADER, ""))
			f.mu.Lock()
			f.nodes["n1"].slow = 10 * time.Millisecond // the last word is its own
			f.mu.Unlock()
			c := f.client(0)
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
			defer cancel()
			if _, err := c.Limits().Check(ctx, subject(1)); err != nil {
				t.Error(err)
			}
		})
	}
}

// A call that one node cannot serve is tried at another; and if the others know that it is cut off, it is not asked first.
func TestAPlainCallLeavesANodeThatCannotServe(t *testing.T) {
	for name, noticed := range map[string]bool{"nobody has noticed": false, "the others know": true} {
		t.Run(name, func(t *testing.T) {
			f := isolated(t, "n1", noticed)
			var asked atomic.Int32
			f.mu.Lock()
			f.nodes["n1"].sweep = func(*pb.RevokeMatchingRequest) (*pb.RevokeMatchingResponse, error) {
				asked.Add(1)
				return nil, refusedCall(t, codes.Unavailable, "UNAVAILABLE")
			}
			for _, name := range []string{"n2", "n3"} {
				f.nodes[name].sweep = func(*pb.RevokeMatchingRequest) (*pb.RevokeMatchingResponse, error) {
					return &pb.RevokeMatchingResponse{Revoked: 1, Percent: 100}, nil
				}
			}
			f.mu.Unlock()
			c := f.clientOf(0, "n1", "n2", "n3")
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
			defer cancel()
			for at, err := range c.Sessions().RevokeMatching(ctx, client.SessionFilter{Device: "tv"}) {
				if err != nil || at.Matched != 1 {
					t.Errorf("%+v, %v", at, err)
				}
			}
			if n := asked.Load(); n > 1 || noticed && n > 0 {
				t.Errorf("the node that is cut off was asked %d times", n)
			}
		})
	}
}

// Who is served well by one node hears of the others all the same, and is served by them when that one goes.
func TestAClientHearsOfNodesThatCameLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t, "n1")
		c := f.client(0)
		check := func() error {
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
			defer cancel()
			_, err := c.Limits().Check(ctx, subject(1))
			return err
		}
		if err := check(); err != nil {
			t.Fatal(err)
		}
		f.add("n2")
		time.Sleep(20 * time.Second)
		f.lead(1, "n2")
		f.lead(2, "n2")
		f.on("n1", always(death))
		if err := check(); err != nil {
			t.Errorf("with the only node gone that it was told of: %v", err)
		}
	})
}
