package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/holdfastdb/holdfast/client"
	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
)

func newLimit(c *cli) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "limit",
		Short: "Rate limits: check, status, reset, replay",
		Example: `  holdfast limit check alice
  holdfast limit check alice --resource /api/orders --weight 3
  holdfast limit status alice
  holdfast limit replay access.log --algorithm token_bucket --rate 60 --window 60 --key ip`,
	}
	cmd.AddCommand(newLimitCheck(c), newLimitStatus(c), newLimitReset(c), newReplay(c))
	return cmd
}

// requestFlags are the parts of a request beside the client.
func requestFlags(cmd *cobra.Command, q *client.Request) {
	f := cmd.Flags()
	f.StringVar(&q.APIKey, "api-key", "", "API key of the request")
	f.StringVar(&q.Resource, "resource", "", "resource that is asked for")
	f.StringVar(&q.IP, "ip", "", "IP address of the caller")
	f.StringVar(&q.Region, "region", "", "region of the caller")
	f.StringSliceVar(&q.Policies, "policy", nil, "policies to apply, by id or name, instead of those that match")
}

// policyArg is the one policy that a verb may be about.
func policyArg(q *client.Request) (string, error) {
	switch len(q.Policies) {
	case 0:
		return "", nil
	case 1:
		return q.Policies[0], nil
	}
	return "", usageErrorf("--policy %s: name one policy", strings.Join(q.Policies, ","))
}

func clientArg(q *client.Request, args []string) error {
	if len(args) > 0 {
		q.Client = args[0]
	}
	if q.Client == "" && q.APIKey == "" && q.Resource == "" && q.IP == "" && q.Region == "" {
		return usageErrorf("name a client, or use --api-key, --resource, --ip or --region")
	}
	return nil
}

func newLimitCheck(c *cli) *cobra.Command {
	var q client.Request
	var peek, lease bool
	cmd := &cobra.Command{
		Use:   "check [CLIENT]",
		Short: "Make one decision; exit code 1 if denied",
		Example: `  holdfast limit check alice
  holdfast limit check alice --weight 5 -o json
  holdfast limit check alice --peek         what would be decided, without taking anything`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := clientArg(&q, args); err != nil {
				return err
			}
			m := &pb.CheckRequest{
				ClientId: q.Client, ApiKey: q.APIKey, Resource: q.Resource, Ip: q.IP, Region: q.Region,
				Weight: &q.Weight, Policies: q.Policies, Async: lease,
			}
			return c.with(cmd.Context(), func(ctx context.Context, cl *client.Client) error {
				limits := pb.NewLimitsClient(cl.Conn())
				decide := limits.Check
				if peek {
					decide = limits.Peek
				}
				r, err := decide(ctx, m)
				if err != nil {
					return err
				}
				return c.printDecision(r)
			})
		},
	}
	requestFlags(cmd, &q)
	cmd.Flags().Uint32Var(&q.Weight, "weight", 1, "tokens to take")
	cmd.Flags().BoolVar(&peek, "peek", false, "only tell, take nothing")
	cmd.Flags().BoolVar(&lease, "async", false, "answer from the node's lease if it has one")
	return cmd
}

func (c *cli) printDecision(r *pb.CheckResponse) error {
	t := &table{header: []string{"decision", "policy", "scope", "remaining", "limit", "reset in", "retry after"}}
	word := func(denied, shadow bool) string {
		switch {
		case denied && shadow:
			return "would deny"
		case denied:
			return "denied"
		}
		return "allowed"
	}
	for _, l := range r.Limits {
		t.add(word(l.Denied, l.Shadow), l.PolicyName, l.Scope, strconv.Itoa(int(l.RemainingQuota)), limitText(l),
			untilText(l.ResetTime), secondsText(l.RetryAfter))
	}
	if len(r.Limits) == 0 {
		remaining := "unlimited"
		if r.RemainingQuota != client.Unlimited {
			remaining = strconv.Itoa(int(r.RemainingQuota))
		}
		policy := r.PolicyApplied
		if policy == "" {
			policy = "(none applies)"
		}
		t.add(word(!r.Allowed, false), policy, "", remaining, "", "", secondsText(r.RetryAfter))
	}
	if err := c.printer().message(r, t); err != nil {
		return err
	}
	if !r.Allowed {
		return errDenied
	}
	return nil
}

func limitText(l *pb.LimitState) string {
	return fmt.Sprintf("%d per %s", l.Limit, shortDuration(time.Duration(l.Window*float64(time.Second))))
}

// shortDuration writes a duration without the parts that are zero: 1m0s is 1m.
func shortDuration(d time.Duration) string {
	switch {
	case d >= 24*time.Hour && d%(24*time.Hour) == 0:
		return fmt.Sprintf("%dd", d/(24*time.Hour))
	case d >= time.Hour && d%time.Hour == 0:
		return fmt.Sprintf("%dh", d/time.Hour)
	case d >= time.Minute && d%time.Minute == 0:
		return fmt.Sprintf("%dm", d/time.Minute)
	}
	return d.String()
}

func untilText(t *timestamppb.Timestamp) string {
	if t == nil {
		return ""
	}
	return max(time.Until(t.AsTime()), 0).Round(time.Millisecond).String()
}

func secondsText(s float64) string {
	switch {
	case s < 0:
		return "never"
	case s == 0:
		return ""
	}
	return time.Duration(s * float64(time.Second)).Round(time.Millisecond).String()
}

func newLimitStatus(c *cli) *cobra.Command {
	var q client.Request
	cmd := &cobra.Command{
		Use:     "status [CLIENT]",
		Short:   "Tell the quota that is left",
		Example: "  holdfast limit status alice\n  holdfast limit status alice --policy api -o json",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := clientArg(&q, args); err != nil {
				return err
			}
			policy, err := policyArg(&q)
			if err != nil {
				return err
			}
			m := &pb.LimitStatusRequest{ClientId: q.Client, ApiKey: q.APIKey, Resource: q.Resource, Ip: q.IP, Region: q.Region, PolicyId: policy}
			return c.with(cmd.Context(), func(ctx context.Context, cl *client.Client) error {
				r, err := pb.NewLimitsClient(cl.Conn()).Status(ctx, m)
				if err != nil {
					return err
				}
				t := &table{header: []string{"policy", "id", "scope", "used", "remaining", "limit", "reset in"}}
				for _, l := range r.Policies {
					t.add(l.PolicyName, l.PolicyId, l.Scope, strconv.Itoa(int(l.CurrentUsage)), strconv.Itoa(int(l.RemainingQuota)),
						limitText(l), untilText(l.ResetTime))
				}
				return c.printer().message(r, t)
			})
		},
	}
	requestFlags(cmd, &q)
	return cmd
}

func newLimitReset(c *cli) *cobra.Command {
	var q client.Request
	cmd := &cobra.Command{
		Use:     "reset [CLIENT]",
		Short:   "Forget what was used: the next check starts from a full quota",
		Example: "  holdfast limit reset alice\n  holdfast limit reset alice --policy api",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := clientArg(&q, args); err != nil {
				return err
			}
			policy, err := policyArg(&q)
			if err != nil {
				return err
			}
			m := &pb.LimitResetRequest{ClientId: q.Client, ApiKey: q.APIKey, Resource: q.Resource, Ip: q.IP, Region: q.Region, PolicyId: policy}
			return c.with(cmd.Context(), func(ctx context.Context, cl *client.Client) error {
				r, err := pb.NewLimitsClient(cl.Conn()).Reset(ctx, m)
				if err != nil {
					return err
				}
				t := &table{header: []string{"limits reset"}}
				t.add(strconv.Itoa(int(r.Reset_)))
				return c.printer().message(r, t)
			})
		},
	}
	requestFlags(cmd, &q)
	return cmd
}
