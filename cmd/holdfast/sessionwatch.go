package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/holdfastdb/holdfast/client"
	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
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

// watch prints what happens until ctx ends, or nobody reads any more.
func (c *cli) watch(ctx context.Context) (err error) {
	cl, err := c.dial(ctx)
	if err != nil {
		return err
	}
	defer func() { err = plain(errors.Join(err, cl.Close())) }()
	m, err := pb.NewDataClient(cl.Conn()).ClusterMap(ctx, &pb.ClusterMapRequest{})
	if err != nil {
		return err
	}
	if c.format == "table" {
		if err := eventLine(c.stdout, "AT", "EVENT", "REASON", "SESSION", "SHARD"); err != nil {
			return fmt.Errorf("write the header: %w", err)
		}
	}
	followed := make(map[uint32]bool)
	for e := range cl.Sessions().Watch(ctx) {
		switch {
		case e.Kind == client.EventLost:
			fmt.Fprintf(c.stderr, "shard %d is not followed any more: %v\n", e.Shard, plain(e.Err))
		case e.Kind == client.EventFollowed && followed[e.Shard]:
			fmt.Fprintf(c.stderr, "shard %d is followed again: events may be missing\n", e.Shard)
		case e.Kind == client.EventFollowed:
			if followed[e.Shard] = true; len(followed) == len(m.Shards) {
				fmt.Fprintf(c.stderr, "watching %d shards\n", len(followed))
			}
		default:
			if err := c.event(&e); err != nil {
				return fmt.Errorf("write an event: %w", err)
			}
		}
	}
	return nil
}

// event prints one event.
func (c *cli) event(e *client.SessionEvent) error {
	if c.format == "table" {
		at := e.At.UTC().Format("2006-01-02T15:04:05.000Z")
		return eventLine(c.stdout, at, string(e.Kind), e.Reason, e.SessionID, count(e.Shard))
	}
	text, err := protojson.MarshalOptions{UseProtoNames: true, EmitUnpopulated: true}.Marshal(&pb.SessionEvent{
		SessionId: e.SessionID, Event: string(e.Kind), Reason: e.Reason, Index: e.Index, At: timestamppb.New(e.At),
	})
	if err != nil {
		return err
	}
	all := map[string]json.RawMessage{"shard": json.RawMessage(count(e.Shard))}
	if err := json.Unmarshal(text, &all); err != nil {
		return err
	}
	all["index"] = json.RawMessage(count(e.Index)) // not as a text
	if text, err = json.Marshal(all); err != nil {
		return err
	}
	if c.format == "json" {
		_, err = c.stdout.Write(append(text, '\n'))
		return err
	}
	var doc bytes.Buffer
	doc.WriteString("---\n")
	if err := (&printer{out: &doc, format: "yaml"}).raw(text); err != nil {
		return err
	}
	_, err = c.stdout.Write(doc.Bytes())
	return err
}

// eventLine has columns that are as wide as their widest value, as what follows is not known.
func eventLine(out io.Writer, at, event, reason, session, shard string) error {
	_, err := fmt.Fprintf(out, "%-24s  %-10s  %-16s  %-36s  %s\n", at, event, reason, session, shard)
	return err
}
