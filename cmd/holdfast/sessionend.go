package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
)

// endSessions runs what ends sessions and tells how many.
func (c *cli) endSessions(cmd *cobra.Command, f func(context.Context, pb.SessionsClient) (*pb.RevokedSessions, error)) error {
	return c.sessions(cmd, func(ctx context.Context, s pb.SessionsClient) error {
		r, err := f(ctx, s)
		if err != nil {
			return err
		}
		t := &table{header: []string{"sessions ended"}}
		t.add(count(r.Revoked))
		return c.printer().message(r, t)
	})
}

func count[T uint32 | uint64](n T) string { return strconv.FormatUint(uint64(n), 10) }

func newSessionRevoke(c *cli) *cobra.Command {
	return &cobra.Command{
		Use: "revoke SESSION", Short: "End a session, by its id", Example: "  holdfast session revoke ses_oTYZ4Rl2yr5Ojd3HkxCyVAAAAAAAAFAB", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.endSessions(cmd, func(ctx context.Context, s pb.SessionsClient) (*pb.RevokedSessions, error) {
				return s.Revoke(ctx, &pb.RevokeSessionRequest{SessionId: args[0]})
			})
		},
	}
}

func newSessionRevokeUser(c *cli) *cobra.Command {
	q := &pb.RevokeUserRequest{}
	cmd := &cobra.Command{
		Use: "revoke-user USER", Short: "End the sessions of a user: all, all but one, or those of one login",
		Example: `  holdfast session revoke-user ann
  holdfast session revoke-user ann --except ses_oTYZ4Rl2yr5Ojd3HkxCyVAAAAAAAAFAB
  holdfast session revoke-user ann --login sso-7`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			q.UserId = args[0]
			return c.endSessions(cmd, func(ctx context.Context, s pb.SessionsClient) (*pb.RevokedSessions, error) {
				return s.RevokeUser(ctx, q)
			})
		},
	}
	cmd.Flags().StringVar(&q.Except, "except", "", "id of a session that stays")
	cmd.Flags().StringVar(&q.Login, "login", "", "only the sessions of this login")
	return cmd
}

func newSessionEraseUser(c *cli) *cobra.Command {
	return &cobra.Command{
		Use: "erase-user USER", Short: "End a user's sessions and delete all that is known of them, the history too",
		Example: "  holdfast session erase-user ann", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.endSessions(cmd, func(ctx context.Context, s pb.SessionsClient) (*pb.RevokedSessions, error) {
				return s.EraseUser(ctx, &pb.EraseUserRequest{UserId: args[0]})
			})
		},
	}
}

// sweep is a walk over all sessions, or what is left of one.
type sweep struct {
	Scanned uint64 `json:"scanned"`
	Matched uint64 `json:"matched"`
	Revoked uint64 `json:"revoked"`
	// Unreadable are those of which nothing is known for want of a key; they do not match.
	Unreadable uint64  `json:"unreadable"`
	Percent    float64 `json:"percent"`
	// Next is where to go on; empty at the end.
	Next string `json:"next"`
}

func newSessionSweep(c *cli) *cobra.Command {
	q := &pb.RevokeMatchingRequest{}
	var before string
	cmd := &cobra.Command{
		Use:   "sweep",
		Short: "End all sessions that meet conditions, or count them",
		Long: `sweep looks at all sessions of the cluster, a part at a time, and ends those that meet all conditions. What it has ended
stays ended if it is stopped; it then says with which --next it goes on. Sessions that begin meanwhile may be missed.`,
		Example: `  holdfast session sweep --type web --created-before 24h --dry-run
  holdfast session sweep --created-before 2026-11-24T08:00:00Z
  holdfast session sweep --ip-range 198.51.100.0/24 --device android`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if q.CreatedBefore, err = momentArg("created-before", before); err != nil {
				return err
			}
			return c.sweep(cmd.Context(), q)
		},
	}
	f := cmd.Flags()
	f.StringVar(&q.Type, "type", "", "web, mobile or api")
	f.StringVar(&q.Device, "device", "", "a text in anything that is known of the device")
	f.StringVar(&before, "created-before", "", "a time as 2026-11-24T08:00:00Z, or an age as 24h")
	f.StringVar(&q.IpRange, "ip-range", "", "an address, or a prefix as 198.51.100.0/24")
	f.StringVar(&q.Next, "next", "", "go on where a sweep with the same conditions has stopped")
	f.BoolVar(&q.DryRun, "dry-run", false, "only count")
	return cmd
}

// momentArg reads a time, or an age.
func momentArg(flag, text string) (*timestamppb.Timestamp, error) {
	if text == "" {
		return nil, nil
	}
	if age, err := time.ParseDuration(text); err == nil && age >= 0 {
		return timestamppb.New(time.Now().Add(-age)), nil
	}
	at, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return nil, usageErrorf("--%s %q: use a time as 2026-11-24T08:00:00Z, or an age as 24h", flag, text)
	}
	return timestamppb.New(at), nil
}

// percentScale is the finest progress that the bar shows, in parts of a percent.
const percentScale = 100

func (c *cli) sweep(ctx context.Context, q *pb.RevokeMatchingRequest) (err error) {
	cl, err := c.dial(ctx)
	if err != nil {
		return err
	}
	defer func() { err = plain(errors.Join(err, cl.Close())) }()
	service := pb.NewSessionsClient(cl.Conn())
	return c.sweepBy(q, func(q *pb.RevokeMatchingRequest) (*pb.RevokeMatchingResponse, error) {
		ctx, cancel := context.WithTimeout(ctx, verbTimeout)
		defer cancel()
		return service.RevokeMatching(ctx, q)
	})
}

// sweepBy sweeps by steps, each of which looks at a part.
func (c *cli) sweepBy(q *pb.RevokeMatchingRequest, step func(*pb.RevokeMatchingRequest) (*pb.RevokeMatchingResponse, error)) error {
	what := "ending sessions"
	if q.DryRun {
		what = "counting sessions"
	}
	bar := c.progress(what, 100*percentScale)
	done := sweep{Next: q.Next}
	for more := true; more; more = done.Next != "" {
		q.Next = done.Next
		r, err := step(q)
		if err != nil {
			bar.done()
			if done.Next != "" {
				fmt.Fprintf(c.stderr, "Stopped at %.1f %%: %d of %d sessions matched. Go on with the same conditions and --next %s\n",
					done.Percent, done.Matched, done.Scanned, done.Next)
			}
			return err
		}
		bar.add(int64((r.Percent - done.Percent) * percentScale))
		done.Scanned, done.Matched = done.Scanned+uint64(r.Scanned), done.Matched+uint64(r.Revoked)
		done.Unreadable += uint64(r.Unreadable)
		done.Percent, done.Next = r.Percent, r.Next
	}
	bar.done()
	if done.Unreadable > 0 {
		fmt.Fprintf(c.stderr, "%d sessions could not be read, for want of a key, and do not match\n", done.Unreadable)
	}
	if !q.DryRun {
		done.Revoked = done.Matched
	}
	t := &table{header: []string{"scanned", "matched", "ended"}}
	t.add(count(done.Scanned), count(done.Matched), count(done.Revoked))
	return c.printer().value(done, t)
}
