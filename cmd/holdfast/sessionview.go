package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/structpb"

	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
)

func newSessionGet(c *cli) *cobra.Command {
	return &cobra.Command{
		Use: "get SESSION", Short: "Show a session, by its id; also for a while after it ended",
		Example: "  holdfast session get ses_oTYZ4Rl2yr5Ojd3HkxCyVAAAAAAAAFAB -o yaml", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.sessions(cmd, func(ctx context.Context, s pb.SessionsClient) error {
				r, err := s.Get(ctx, &pb.GetSessionRequest{SessionId: args[0]})
				if err != nil {
					return err
				}
				return c.printer().message(r, sessionSheet(r))
			})
		},
	}
}

// sessionSheet shows all that is known of one session; what is not, it leaves out.
func sessionSheet(s *pb.Session) *table {
	t := &table{}
	row := func(name, value string) {
		if value != "" {
			t.add(name, value)
		}
	}
	row("session", s.SessionId)
	row("user", s.UserId)
	row("type", s.Type)
	row("state", sessionState(s))
	row("created", timeText(s.CreatedAt))
	row("last seen", timeText(s.LastSeenAt))
	row("expires", timeText(s.ExpiresAt))
	row("refresh expires", timeText(s.RefreshExpiresAt))
	row("ended", timeText(s.EndedAt))
	if s.IdleTimeout > 0 {
		row("idle timeout", shortDuration(time.Duration(s.IdleTimeout*float64(time.Second))))
	}
	row("device", structText(s.Device))
	row("ip", s.Ip)
	row("ip binding", s.IpBinding)
	if s.DeviceBinding {
		row("device binding", "on")
	}
	row("login", s.Login)
	row("service", s.Service)
	row("impersonator", s.Impersonator)
	if s.AttributesVersion > 0 {
		row("attributes", fmt.Sprintf("%s (version %d)", structText(s.Attributes), s.AttributesVersion))
	}
	return t
}

// sessionState is one word for a session, or why it ended.
func sessionState(s *pb.Session) string {
	switch {
	case s.Ended != "":
		return "ended: " + s.Ended
	case s.StepUpRequired:
		return "step-up required"
	case s.Flagged:
		return "flagged"
	}
	return "active"
}

// structText shows an object in one line.
func structText(s *structpb.Struct) string {
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(s.GetFields())) {
		value := s.Fields[name]
		text := value.GetStringValue()
		if _, isText := value.Kind.(*structpb.Value_StringValue); !isText {
			text = protojson.MarshalOptions{}.Format(value)
		}
		parts = append(parts, name+"="+text)
	}
	return strings.Join(parts, " ")
}

func newSessionList(c *cli) *cobra.Command {
	return &cobra.Command{
		Use: "list USER", Short: "List the sessions that a user has", Example: "  holdfast session list ann", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.sessions(cmd, func(ctx context.Context, s pb.SessionsClient) error {
				r, err := s.List(ctx, &pb.ListSessionsRequest{UserId: args[0]})
				if err != nil {
					return err
				}
				t := &table{header: []string{"session", "type", "state", "device", "ip", "created", "last seen", "expires in"}}
				for _, x := range r.Sessions {
					t.add(x.SessionId, x.Type, sessionState(x), structText(x.Device), x.Ip, timeText(x.CreatedAt), timeText(x.LastSeenAt), untilText(x.ExpiresAt))
				}
				return c.printer().message(r, t)
			})
		},
	}
}

func newSessionHistory(c *cli) *cobra.Command {
	return &cobra.Command{
		Use: "history USER", Short: "List the sessions that a user had, and why they ended: of 30 days, 100 at most",
		Example: "  holdfast session history ann", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.sessions(cmd, func(ctx context.Context, s pb.SessionsClient) error {
				r, err := s.History(ctx, &pb.ListSessionsRequest{UserId: args[0]})
				if err != nil {
					return err
				}
				t := &table{header: []string{"session", "type", "ended", "why", "device", "ip", "created", "last seen"}}
				for _, x := range r.Sessions {
					t.add(x.SessionId, x.Type, timeText(x.EndedAt), x.Ended, structText(x.Device), x.Ip, timeText(x.CreatedAt), timeText(x.LastSeenAt))
				}
				return c.printer().message(r, t)
			})
		},
	}
}

func newSessionAttributes(c *cli) *cobra.Command {
	q := &pb.SetAttributesRequest{}
	var set []string
	var version uint32
	cmd := &cobra.Command{
		Use:   "attributes SESSION",
		Short: "Show or change the attributes of a session",
		Long: `attributes changes those that --set and --remove name; others stay. With --version the change is refused if somebody
made another one since that version. Without any change it shows what is there.`,
		Example: `  holdfast session attributes ses_oTYZ4Rl2yr5Ojd3HkxCyVAAAAAAAAFAB
  holdfast session attributes ses_oTYZ4Rl2yr5Ojd3HkxCyVAAAAAAAAFAB --set plan=pro --set seats=5 --remove trial
  holdfast session attributes ses_oTYZ4Rl2yr5Ojd3HkxCyVAAAAAAAAFAB --set 'tags=["a","b"]' --version 3`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			q.SessionId = args[0]
			if q.Set, err = pairs("set", set, true); err != nil {
				return err
			}
			if cmd.Flags().Changed("version") {
				q.Version = &version
			}
			show := len(set)+len(q.Remove) == 0
			if show && q.Version != nil {
				return usageErrorf("--version is for a change: use --set or --remove")
			}
			return c.sessions(cmd, func(ctx context.Context, s pb.SessionsClient) error {
				var r *pb.SetAttributesResponse
				if show {
					x, err := s.Get(ctx, &pb.GetSessionRequest{SessionId: args[0]})
					if err != nil {
						return err
					}
					r = &pb.SetAttributesResponse{Version: x.AttributesVersion, Attributes: x.Attributes}
				} else if r, err = s.SetAttributes(ctx, q); err != nil {
					return err
				}
				return c.printer().message(r, attributesTable(r))
			})
		},
	}
	f := cmd.Flags()
	f.StringArrayVar(&set, "set", nil, "NAME=VALUE; JSON, or else a text")
	f.StringSliceVar(&q.Remove, "remove", nil, "names to remove")
	f.Uint32Var(&version, "version", 0, "the version that the change was made from")
	return cmd
}

func attributesTable(r *pb.SetAttributesResponse) *table {
	t := &table{header: []string{"attribute", "value"}}
	fields := r.Attributes.GetFields()
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		t.add(name, protojson.MarshalOptions{}.Format(fields[name]))
	}
	t.add()
	t.add("version " + count(r.Version))
	return t
}

func newSessionStats(c *cli) *cobra.Command {
	return &cobra.Command{
		Use: "stats", Short: "Count the sessions of the cluster, by type, and those that ended, by reason",
		Example: "  holdfast session stats\n  holdfast session stats -o json", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.sessions(cmd, func(ctx context.Context, s pb.SessionsClient) error {
				r, err := s.Stats(ctx, &pb.SessionStatsRequest{})
				if err != nil {
					return err
				}
				t := &table{header: []string{"type", "active", "created"}}
				for _, kind := range slices.Sorted(maps.Keys(r.Active)) {
					t.add(kind, wholeText(r.Active[kind]), wholeText(r.Created[kind]))
				}
				t.add()
				t.add("ENDED", "SESSIONS")
				for _, reason := range slices.Sorted(maps.Keys(r.Ended)) {
					t.add(reason, wholeText(r.Ended[reason]))
				}
				return c.printer().message(r, t)
			})
		},
	}
}

func wholeText(n float64) string { return fmt.Sprintf("%.0f", n) }
