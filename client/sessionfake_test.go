package client_test

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/zeebo/xxh3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/holdfastdb/holdfast/client"
	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
	"github.com/holdfastdb/holdfast/rpc/sessiontoken"
)

// register is what a fake cluster knows of sessions: the answer that the holder of each token gets. A test begins and ends
// sessions here, as if another client had done it; how its events travel can be disturbed.
type register struct {
	f *fake

	mu       sync.Mutex
	answers  map[string]*pb.HeldValidation // by token
	asked    int                           // validations that were answered
	followed int                           // streams that were opened
	index    uint64                        // of the newest event
	streams  map[chan carried]struct{}
	latency  time.Duration // of everything that streams carry
	hangs    bool          // streams carry nothing, and do not end
	refuses  bool          // no stream is opened
	cut      chan struct{} // closed to end all streams
	hold     chan struct{} // if there is one, validations are answered, from what was, when it is closed
}

// carried is a message on its way.
type carried struct {
	*pb.FollowResponse
	left time.Time
}

func leaves(m *pb.FollowResponse) carried { return carried{m, time.Now()} }

// newRegister makes all nodes of a fake cluster serve sessions.
func newRegister(f *fake) *register {
	r := &register{
		f: f, answers: make(map[string]*pb.HeldValidation), streams: make(map[chan carried]struct{}),
		cut: make(chan struct{}),
	}
	for _, n := range f.all() {
		f.mu.Lock()
		n.serve, n.follow = r.serve, r.follow
		f.mu.Unlock()
	}
	return r
}

// login begins a session and returns its token and its id.
func (r *register) login(user string, change func(*pb.HeldSession)) (token, id string) {
	var name sessiontoken.ID
	slot, sum := xxh3.HashString(user)>>48, sha256.Sum256([]byte(user))
	name[0], name[1] = byte(slot>>8), byte(slot)
	copy(name[2:16], sum[:])
	r.mu.Lock()
	defer r.mu.Unlock()
	binary.BigEndian.PutUint64(name[16:], uint64(len(r.answers)+1))
	t := sessiontoken.Token{Kind: sessiontoken.Access, Cluster: sessiontoken.ClusterOf("fake"), Session: name}
	profile, err := proto.Marshal(&pb.SessionProfile{UserId: user})
	if err != nil {
		r.f.t.Fatal(err)
	}
	s := &pb.HeldSession{
		SessionId: name[:], Type: "web", Profile: profile, ExpiresAtMs: time.Now().Add(1000 * time.Hour).UnixMilli(),
		LastSeenAtMs: time.Now().UnixMilli(),
	}
	if change != nil {
		change(s)
	}
	r.answers[t.String()] = &pb.HeldValidation{Valid: true, Session: s}
	return t.String(), name.String()
}

// revoke ends a session: when it returns, that is acknowledged.
func (r *register) revoke(token string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	id := r.answers[token].Session.SessionId
	r.answers[token] = &pb.HeldValidation{Reason: "ended", Session: &pb.HeldSession{SessionId: id, Ended: "revoked"}}
	r.index++
	r.tell(sessiontoken.ID(id).String())
}

// tell tells of the end of a session, which was the newest event. Called with mu held.
func (r *register) tell(id string) {
	for out := range r.streams {
		out <- leaves(&pb.FollowResponse{Events: []*pb.SessionEvent{{SessionId: id, Event: "ended", Reason: "revoked", Index: r.index}}})
	}
}

func (r *register) repeat(id string) { r.set(func() { r.tell(id) }) }

// set changes how streams behave.
func (r *register) set(change func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	change()
}

func (r *register) cutStreams() {
	r.set(func() {
		close(r.cut)
		r.cut = make(chan struct{})
	})
}

func (r *register) validations() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.asked
}

// serve answers frames. Whatever is no validation is over at once, and changed nothing.
func (r *register) serve(q *pb.FrameRequest) reaction {
	a := &pb.FrameResponse{ShardTimeMs: time.Now().UnixMilli(), Index: 1}
	var hold chan struct{}
	for _, op := range q.Ops {
		var m proto.Message = &pb.RevokedSessions{} // as all fields of other answers may be absent too
		if op.Method == 64 {
			var v pb.PresentedToken
			if err := proto.Unmarshal(op.Request, &v); err != nil {
				r.f.t.Error(err)
			}
			m, hold = r.validate(v.Token)
		}
		b, err := proto.Marshal(m)
		if err != nil {
			r.f.t.Error(err)
		}
		a.Results = append(a.Results, &pb.OpResult{Response: b})
	}
	if hold != nil {
		<-hold
	}
	return reaction{answers: []*pb.FrameResponse{a}}
}

func (r *register) validate(token string) (*pb.HeldValidation, chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.asked++
	if v := r.answers[token]; v != nil {
		return v, r.hold
	}
	return &pb.HeldValidation{Reason: "unknown"}, r.hold
}

// follow serves one stream: what it carries keeps its order.
func (r *register) follow(st grpc.BidiStreamingServer[pb.FollowRequest, pb.FollowResponse]) error {
	r.mu.Lock()
	if r.refuses {
		r.mu.Unlock()
		return status.Error(codes.Unavailable, "not the leader")
	}
	out := make(chan carried, 1<<16)
	r.streams[out] = struct{}{}
	r.followed++
	cut := r.cut
	r.mu.Unlock()
	defer r.set(func() { delete(r.streams, out) })

	go func() {
		for {
			q, err := st.Recv()
			if err != nil {
				return
			}
			out <- leaves(&pb.FollowResponse{Pong: q.Ping}) // what was acknowledged before is in out already
		}
	}()
	for {
		select {
		case <-st.Context().Done():
			return st.Context().Err()
		case <-cut:
			return status.Error(codes.Unavailable, "no longer the leader")
		case m := <-out:
			r.mu.Lock()
			latency, hangs := r.latency, r.hangs
			r.mu.Unlock()
			arrives := time.After(time.Until(m.left.Add(latency)))
			if hangs {
				arrives = nil
			}
			select {
			case <-st.Context().Done():
				continue
			case <-cut:
				continue
			case <-arrives:
			}
			if err := st.Send(m.FollowResponse); err != nil {
				return err
			}
		}
	}
}

// validate asks the SDK whether a token counts.
func validate(t *testing.T, c *client.Client, token string, options ...client.ValidateOption) client.Validation {
	t.Helper()
	v, err := c.Sessions().Validate(t.Context(), token, options...)
	if err != nil {
		t.Fatal(fmt.Errorf("validate: %w", err))
	}
	return v
}
