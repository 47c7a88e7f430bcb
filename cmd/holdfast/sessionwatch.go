package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/encoding/protojson"

	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
)

const (
	// watchPing is how often a leader must show that it still leads.
	watchPing = 5 * time.Second
	// watchPause is between two tries to follow a shard.
	watchPause = 500 * time.Millisecond
)

func newSessionWatch(c *cli) *cobra.Command {
	return &cobra.Command{
		Use:   "watch",
		Short: "Tell what happens to sessions, as it happens, until Ctrl-C",
		Long: `watch follows all shards: sessions that begin, end, change, or do something suspicious. The events of a shard are in
order. When a shard gets another leader, what happened meanwhile may be missing; a line on standard error says so.
With -o json, each event is one line.`,
		Example: `  holdfast session watch
  holdfast session watch -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return c.watch(cmd.Context()) },
	}
}

// watcher prints what the followers of all shards get.
type watcher struct {
	c   *cli
	mu  sync.Mutex
	err error // of printing
	// stop ends the followers.
	stop context.CancelFunc
}

func (c *cli) watch(ctx context.Context) (err error) {
	cl, err := c.dial(ctx)
	if err != nil {
		return err
	}
	defer func() { err = plain(errors.Join(err, cl.Close())) }()
	data := pb.NewDataClient(cl.Conn())
	m, err := data.ClusterMap(ctx, &pb.ClusterMapRequest{})
	if err != nil {
		return err
	}
	following, stop := context.WithCancel(ctx)
	defer stop()
	w := &watcher{c: c, stop: stop}
	if c.format == "table" {
		w.print(func(out io.Writer) error { return eventLine(out, "AT", "EVENT", "REASON", "SESSION", "SHARD") })
	}
	var followers, ready sync.WaitGroup
	for _, s := range m.Shards {
		ready.Add(1)
		followers.Go(func() { w.shard(following, data, s.Shard, ready.Done) })
	}
	followers.Go(func() {
		ready.Wait()
		if following.Err() == nil {
			fmt.Fprintf(c.stderr, "watching %d shards\n", len(m.Shards))
		}
	})
	followers.Wait()
	return w.err
}

// shard follows one shard from leader to leader until ctx ends. It calls ready once: when it follows, or at the end.
func (w *watcher) shard(ctx context.Context, data pb.DataClient, shard uint32, ready func()) {
	once := sync.OnceFunc(ready)
	defer once()
	followed := false
	for ctx.Err() == nil {
		err := w.follow(ctx, data, shard, func() {
			if followed {
				fmt.Fprintf(w.c.stderr, "shard %d is followed again: events may be missing\n", shard)
			}
			followed = true
			once()
		})
		if ctx.Err() != nil {
			return
		}
		if followed {
			fmt.Fprintf(w.c.stderr, "shard %d is not followed any more: %v\n", shard, plain(err))
		}
		select {
		case <-time.After(watchPause):
		case <-ctx.Done():
		}
	}
}

// errSilent tells of a leader that shows no sign of life.
var errSilent = errors.New("its leader does not answer")

// follow follows one leader as long as it leads. It calls begun when the first ping is answered: no event after that is
// missed.
func (w *watcher) follow(ctx context.Context, data pb.DataClient, shard uint32, begun func()) error {
	addr, err := leaderOf(ctx, data, shard)
	if err != nil {
		return err
	}
	conn, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return fmt.Errorf("connect to %s: %w", addr, err)
	}
	defer conn.Close()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	st, err := pb.NewSessionsClient(conn).Follow(ctx)
	if err != nil {
		return err
	}
	answered := make(chan struct{}, 1)
	var pinging sync.WaitGroup
	defer pinging.Wait()
	defer cancel(nil)
	pinging.Go(func() { cancel(ping(ctx, st, shard, answered)) })
	for {
		r, err := st.Recv()
		if err != nil {
			if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.Canceled) {
				err = cause
			}
			return err
		}
		for _, e := range r.Events {
			w.event(shard, e)
		}
		if r.Pong == 1 {
			begun()
		}
		if r.Pong != 0 {
			answered <- struct{}{}
		}
	}
}

// ping sends a ping and the next one when that is answered, not too often. It returns when the stream is of no use.
func ping(ctx context.Context, st grpc.BidiStreamingClient[pb.FollowRequest, pb.FollowResponse], shard uint32, answered <-chan struct{}) error {
	for n := uint64(1); ; n++ {
		if err := st.Send(&pb.FollowRequest{Shard: shard, Ping: n}); err != nil {
			<-ctx.Done() // Recv has the reason
			return nil
		}
		late := time.After(2 * watchPing)
		next := time.After(watchPing)
		select {
		case <-answered:
		case <-late:
			return errSilent
		case <-ctx.Done():
			return nil
		}
		select {
		case <-next:
		case <-ctx.Done():
			return nil
		}
	}
}

// leaderOf is the address of a shard's leader.
func leaderOf(ctx context.Context, data pb.DataClient, shard uint32) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	m, err := data.ClusterMap(ctx, &pb.ClusterMapRequest{})
	if err != nil {
		return "", err
	}
	for _, s := range m.Shards {
		for _, n := range m.Nodes {
			if s.Shard == shard && n.NodeId == s.Leader {
				return n.GrpcAddr, nil
			}
		}
	}
	return "", fmt.Errorf("shard %d has no leader", shard)
}

// print writes something whole. Followers end when nobody reads any more.
func (w *watcher) print(f func(io.Writer) error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err != nil {
		return
	}
	if err := f(w.c.stdout); err != nil {
		w.err = fmt.Errorf("write an event: %w", err)
		w.stop()
	}
}

func (w *watcher) event(shard uint32, e *pb.SessionEvent) {
	w.print(func(out io.Writer) error {
		if w.c.format == "table" {
			at := e.At.AsTime().Format("2006-01-02T15:04:05.000Z")
			return eventLine(out, at, e.Event, e.Reason, e.SessionId, count(shard))
		}
		text, err := protojson.MarshalOptions{UseProtoNames: true, EmitUnpopulated: true}.Marshal(e)
		if err != nil {
			return err
		}
		all := map[string]json.RawMessage{"shard": json.RawMessage(count(shard))}
		if err := json.Unmarshal(text, &all); err != nil {
			return err
		}
		all["index"] = json.RawMessage(count(e.Index)) // not as a text
		if text, err = json.Marshal(all); err != nil {
			return err
		}
		if w.c.format == "json" {
			_, err = out.Write(append(text, '\n'))
			return err
		}
		var doc bytes.Buffer
		doc.WriteString("---\n")
		if err := (&printer{out: &doc, format: "yaml"}).raw(text); err != nil {
			return err
		}
		_, err = out.Write(doc.Bytes())
		return err
	})
}

// eventLine has columns that are as wide as their widest value, as what follows is not known.
func eventLine(out io.Writer, at, event, reason, session, shard string) error {
	_, err := fmt.Fprintf(out, "%-24s  %-10s  %-16s  %-36s  %s\n", at, event, reason, session, shard)
	return err
}
