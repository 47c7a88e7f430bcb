package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
)

func newSessionPolicies(c *cli) *cobra.Command {
	return &cobra.Command{
		Use: "policies", Short: "Tell what sessions of each type are like", Example: "  holdfast session policies\n  holdfast session policies -o yaml", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.sessions(cmd, func(ctx context.Context, s pb.SessionsClient) error {
				r, err := s.ListPolicies(ctx, &pb.ListSessionPoliciesRequest{})
				if err != nil {
					return err
				}
				return c.printer().message(r, sessionPolicyTable(r.Policies))
			})
		},
	}
}

func sessionPolicyTable(list []*pb.SessionPolicy) *table {
	t := &table{header: []string{"type", "idle", "absolute", "refresh", "sessions", "devices", "on limit", "ip binding", "new network", "two networks", "new device", "burst", "on burst", "revision"}}
	span := func(seconds float64) string {
		if seconds == 0 {
			return "never"
		}
		return shortDuration(time.Duration(seconds * float64(time.Second)))
	}
	bound := func(n uint32) string {
		if n == 0 {
			return "any"
		}
		return count(n)
	}
	for _, p := range list {
		t.add(p.Type, span(p.IdleTimeout), span(p.AbsoluteTimeout), span(p.RefreshTimeout), bound(p.MaxSessions), bound(p.MaxDevices), p.OnLimit,
			p.IpBinding, p.OnNetworkChange, p.OnTwoNetworks, p.OnDeviceChange, count(p.Burst), p.OnBurst, count(p.Revision))
	}
	return t
}

func newSessionSetPolicy(c *cli) *cobra.Command {
	q := &pb.PutSessionPolicyRequest{}
	var idle, absolute, refresh time.Duration
	var sessions, devices, burst uint32
	cmd := &cobra.Command{
		Use:   "set-policy TYPE",
		Short: "Change what sessions of a type are like: web, mobile or api",
		Long: `set-policy changes what its flags name. Timeouts, limits and binding are those of sessions that begin from now on, if
their login does not say otherwise; what is suspicious changes for all.`,
		Example: `  holdfast session set-policy web --idle-timeout 15m --max-sessions 5 --on-limit evict_oldest
  holdfast session set-policy mobile --on-device-change revoke
  holdfast session set-policy api --ip-binding exact --expected-revision 2`,
		Args: cobra.ExactArgs(1), ValidArgs: []string{"web", "mobile", "api"},
		RunE: func(cmd *cobra.Command, args []string) error {
			if cmd.Flags().Changed("expected-revision") && q.ExpectedRevision == 0 {
				return usageErrorf("--expected-revision must be at least 1")
			}
			q.Type = args[0]
			q.IdleTimeout, q.AbsoluteTimeout = timeout(cmd, "idle-timeout", idle), timeout(cmd, "absolute-timeout", absolute)
			q.RefreshTimeout = timeout(cmd, "refresh-timeout", refresh)
			q.MaxSessions, q.MaxDevices = given(cmd, "max-sessions", &sessions), given(cmd, "max-devices", &devices)
			q.Burst = given(cmd, "burst", &burst)
			return c.sessions(cmd, func(ctx context.Context, s pb.SessionsClient) error {
				r, err := s.PutPolicy(ctx, q)
				if err != nil {
					return err
				}
				return c.printer().message(r, sessionPolicyTable([]*pb.SessionPolicy{r}))
			})
		},
	}
	f := cmd.Flags()
	f.DurationVar(&idle, "idle-timeout", 0, "end after so long without use; 0 for never")
	f.DurationVar(&absolute, "absolute-timeout", 0, "end after so long in any case")
	f.DurationVar(&refresh, "refresh-timeout", 0, "how long a refresh token counts")
	f.Uint32Var(&sessions, "max-sessions", 0, "sessions that a user may have; 0 for the system's limit")
	f.Uint32Var(&devices, "max-devices", 0, "devices that a user may have; 0 for no limit")
	f.StringVar(&q.OnLimit, "on-limit", "", "if there are too many: refuse or evict_oldest")
	f.StringVar(&q.IpBinding, "ip-binding", "", "from where else a session counts: off (anywhere), subnet or exact")
	f.StringVar(&q.OnNetworkChange, "on-network-change", "", "what another network comes to: ignore, flag, step_up or revoke")
	f.StringVar(&q.OnTwoNetworks, "on-two-networks", "", "what two networks in turns, within ten seconds, come to: ignore, flag, step_up or revoke")
	f.StringVar(&q.OnDeviceChange, "on-device-change", "", "what another device comes to: ignore, flag, step_up or revoke")
	f.StringVar(&q.OnBurst, "on-burst", "", "what too many validations come to: ignore, flag, step_up or revoke")
	f.Uint32Var(&burst, "burst", 0, "validations in ten seconds that are not too many")
	f.Uint32Var(&q.ExpectedRevision, "expected-revision", 0, "change it only if it has this revision")
	return cmd
}
