package main

import (
	"context"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/holdfastdb/holdfast/client"
	"github.com/holdfastdb/holdfast/fsm/counter"
	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
)

func newPolicy(c *cli) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "policy",
		Short: "Rate-limit policies: create, get, list, update, delete, assign, import",
		Example: `  holdfast policy create --name api --rate 100 --window 60
  holdfast policy assign api alice bob
  holdfast policy assign api '*'                  every client
  holdfast policy update api --rate 200
  holdfast policy history api`,
	}
	cmd.AddCommand(newPolicyCreate(c), newPolicyGet(c), newPolicyList(c), newPolicyUpdate(c), newPolicyDelete(c),
		newPolicyAssign(c), newPolicyUnassign(c), newPolicyClients(c), newPolicyHistory(c), newPolicyImport(c), newPolicyDomains(c), newPolicyDeleteDomain(c))
	return cmd
}

// policies runs f with the service's client.
func (c *cli) policies(cmd *cobra.Command, f func(context.Context, pb.PoliciesClient) error) error {
	return c.with(cmd.Context(), func(ctx context.Context, cl *client.Client) error {
		return f(ctx, pb.NewPoliciesClient(cl.Conn()))
	})
}

// policyFlags are the fields of a policy.
type policyFlags struct {
	name, algorithm, scope, resource, calendar, onUnavailable, description string
	rate, burst, rollout                                                   uint32
	window                                                                 float64
	priority                                                               int32
	active, shadow                                                         bool
}

func (p *policyFlags) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&p.name, "name", "", "unique name")
	f.StringVar(&p.algorithm, "algorithm", "token_bucket", strings.Join(counter.Algorithms(), ", "))
	f.Uint32Var(&p.rate, "rate", 0, "tokens per window; slots for concurrency")
	f.Float64Var(&p.window, "window", 0, "length of the window in seconds")
	f.Uint32Var(&p.burst, "burst", 0, "tokens that can be taken at once, for token_bucket (default: the rate) and leaky_bucket (default: 1)")
	f.StringVar(&p.scope, "scope", "", "what is counted: client, api_key, ip, region, resource, or several joined with + (default client)")
	f.StringVar(&p.resource, "resource", "", `resources to which it applies: exact, or a prefix that ends in "*"`)
	f.StringVar(&p.calendar, "calendar", "", "minute, hour, day, week, month or year in UTC instead of --window, for fixed_window")
	f.StringVar(&p.onUnavailable, "on-unavailable", "", "what SDKs with leases do without the cluster: allow, deny or local (default local)")
	f.StringVar(&p.description, "description", "", "for people")
	f.Uint32Var(&p.rollout, "rollout", 100, "share of clients in percent to which it applies")
	f.Int32Var(&p.priority, "priority", 0, "of several policies of one scope the highest applies")
	f.BoolVar(&p.active, "active", true, "apply it")
	f.BoolVar(&p.shadow, "shadow", false, "count and report, never deny")
	_ = cmd.RegisterFlagCompletionFunc("algorithm", cobra.FixedCompletions(counter.Algorithms(), cobra.ShellCompDirectiveNoFileComp))
}

func newPolicyCreate(c *cli) *cobra.Command {
	var p policyFlags
	cmd := &cobra.Command{
		Use:   "create --name NAME --rate N --window SECONDS",
		Short: "Create a policy",
		Example: `  holdfast policy create --name api --rate 100 --window 60
  holdfast policy create --name login --algorithm sliding_log --rate 5 --window 300 --scope ip
  holdfast policy create --name quota --algorithm fixed_window --rate 100000 --calendar month`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.policies(cmd, func(ctx context.Context, s pb.PoliciesClient) error {
				r, err := s.CreatePolicy(ctx, &pb.CreatePolicyRequest{
					Name: p.name, Algorithm: p.algorithm, RateLimit: p.rate, TimeWindow: p.window, BurstCapacity: p.burst,
					Active: &p.active, Shadow: p.shadow, RolloutPercent: &p.rollout, Priority: p.priority, Scope: p.scope,
					Resource: p.resource, Calendar: p.calendar, OnUnavailable: p.onUnavailable, Description: p.description,
				})
				if err != nil {
					return err
				}
				return c.printer().message(r, policyTable([]*pb.Policy{r}))
			})
		},
	}
	p.add(cmd)
	_ = cmd.MarkFlagRequired("name")
	_ = cmd.MarkFlagRequired("rate")
	return cmd
}

func policyTable(list []*pb.Policy) *table {
	t := &table{header: []string{"id", "name", "algorithm", "limit", "burst", "scope", "resource", "state", "revision"}}
	for _, p := range list {
		limit := strconv.Itoa(int(p.RateLimit)) + " per " + shortDuration(time.Duration(p.TimeWindow*float64(time.Second)))
		if p.Calendar != "" {
			limit = strconv.Itoa(int(p.RateLimit)) + " per calendar " + p.Calendar
		}
		state := "active"
		switch {
		case !p.Active:
			state = "off"
		case p.Shadow:
			state = "shadow"
		case p.RolloutPercent < 100:
			state = strconv.Itoa(int(p.RolloutPercent)) + " %"
		}
		burst := ""
		if p.BurstCapacity > 0 {
			burst = strconv.Itoa(int(p.BurstCapacity))
		}
		t.add(p.PolicyId, p.Name, p.Algorithm, limit, burst, p.Scope, p.Resource, state, strconv.Itoa(int(p.Revision)))
	}
	return t
}

func newPolicyGet(c *cli) *cobra.Command {
	return &cobra.Command{
		Use: "get POLICY", Short: "Show a policy, by id or name", Example: "  holdfast policy get api -o yaml", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.policies(cmd, func(ctx context.Context, s pb.PoliciesClient) error {
				r, err := s.GetPolicy(ctx, &pb.GetPolicyRequest{PolicyId: args[0]})
				if err != nil {
					return err
				}
				return c.printer().message(r, policyTable([]*pb.Policy{r}))
			})
		},
	}
}

func newPolicyList(c *cli) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List all policies", Example: "  holdfast policy list", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.policies(cmd, func(ctx context.Context, s pb.PoliciesClient) error {
				all := &pb.ListPoliciesResponse{}
				for token := ""; ; {
					r, err := s.ListPolicies(ctx, &pb.ListPoliciesRequest{PageSize: maxPage, PageToken: token})
					if err != nil {
						return err
					}
					all.Policies = append(all.Policies, r.Policies...)
					if token = r.NextPageToken; token == "" {
						break
					}
				}
				return c.printer().message(all, policyTable(all.Policies))
			})
		},
	}
}

func newPolicyUpdate(c *cli) *cobra.Command {
	var p policyFlags
	var revision uint32
	cmd := &cobra.Command{
		Use: "update POLICY", Short: "Change the fields that are given",
		Example: "  holdfast policy update api --rate 200\n  holdfast policy update api --active=false", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			q := &pb.UpdatePolicyRequest{PolicyId: args[0], ExpectedRevision: revision}
			given := func(name string) bool { return cmd.Flags().Changed(name) }
			if given("expected-revision") && revision == 0 {
				return usageErrorf("--expected-revision must be at least 1: that is what a new policy has")
			}
			take(given("name"), &q.Name, &p.name)
			take(given("algorithm"), &q.Algorithm, &p.algorithm)
			take(given("rate"), &q.RateLimit, &p.rate)
			take(given("window"), &q.TimeWindow, &p.window)
			take(given("burst"), &q.BurstCapacity, &p.burst)
			take(given("scope"), &q.Scope, &p.scope)
			take(given("resource"), &q.Resource, &p.resource)
			take(given("calendar"), &q.Calendar, &p.calendar)
			take(given("on-unavailable"), &q.OnUnavailable, &p.onUnavailable)
			take(given("description"), &q.Description, &p.description)
			take(given("rollout"), &q.RolloutPercent, &p.rollout)
			take(given("priority"), &q.Priority, &p.priority)
			take(given("active"), &q.Active, &p.active)
			take(given("shadow"), &q.Shadow, &p.shadow)
			return c.policies(cmd, func(ctx context.Context, s pb.PoliciesClient) error {
				r, err := s.UpdatePolicy(ctx, q)
				if err != nil {
					return err
				}
				return c.printer().message(r, policyTable([]*pb.Policy{r}))
			})
		},
	}
	p.add(cmd)
	cmd.Flags().Uint32Var(&revision, "expected-revision", 0, "refuse if the policy is at another revision")
	return cmd
}

// take sets a field of an update if its flag was given.
func take[T any](given bool, field **T, value *T) {
	if given {
		*field = value
	}
}

func newPolicyDelete(c *cli) *cobra.Command {
	return &cobra.Command{
		Use: "delete POLICY", Short: "Delete a policy and its assignments", Example: "  holdfast policy delete api", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.policies(cmd, func(ctx context.Context, s pb.PoliciesClient) error {
				r, err := s.DeletePolicy(ctx, &pb.DeletePolicyRequest{PolicyId: args[0]})
				if err != nil {
					return err
				}
				t := &table{}
				t.add("deleted " + args[0])
				return c.printer().message(r, t)
			})
		},
	}
}

func newPolicyAssign(c *cli) *cobra.Command {
	var rate uint32
	var priority int32
	var from, to string
	cmd := &cobra.Command{
		Use: "assign POLICY CLIENT...", Short: `Put clients under a policy; "*" is every client`,
		Example: "  holdfast policy assign api alice bob --rate 500\n  holdfast policy assign api '*'", Args: cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			q := &pb.AssignClientsRequest{PolicyId: args[0], ClientIds: args[1:]}
			take(cmd.Flags().Changed("rate"), &q.OverrideRateLimit, &rate)
			take(cmd.Flags().Changed("priority"), &q.Priority, &priority)
			var err error
			if q.EffectiveFrom, err = timeFlag("from", from); err != nil {
				return err
			}
			if q.EffectiveTo, err = timeFlag("to", to); err != nil {
				return err
			}
			return c.policies(cmd, func(ctx context.Context, s pb.PoliciesClient) error {
				r, err := s.AssignClients(ctx, q)
				if err != nil {
					return err
				}
				t := &table{}
				t.add("assigned " + strconv.Itoa(int(r.Assigned)) + " to " + args[0])
				return c.printer().message(r, t)
			})
		},
	}
	cmd.Flags().Uint32Var(&rate, "rate", 0, "rate for these clients instead of the policy's")
	cmd.Flags().Int32Var(&priority, "priority", 0, "priority for these clients instead of the policy's")
	cmd.Flags().StringVar(&from, "from", "", "effective from, as 2026-01-31T00:00:00Z")
	cmd.Flags().StringVar(&to, "to", "", "effective until")
	return cmd
}

func timeFlag(name, value string) (*timestamppb.Timestamp, error) {
	if value == "" {
		return nil, nil
	}
	t, err := time.Parse(time.RFC3339, value)
	if err != nil {
		return nil, usageErrorf("--%s %q: use a time such as 2026-01-31T00:00:00Z", name, value)
	}
	return timestamppb.New(t), nil
}

func newPolicyUnassign(c *cli) *cobra.Command {
	return &cobra.Command{
		Use: "unassign POLICY CLIENT...", Short: "Take clients out of a policy", Example: "  holdfast policy unassign api alice", Args: cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.policies(cmd, func(ctx context.Context, s pb.PoliciesClient) error {
				r, err := s.UnassignClients(ctx, &pb.UnassignClientsRequest{PolicyId: args[0], ClientIds: args[1:]})
				if err != nil {
					return err
				}
				t := &table{}
				t.add("unassigned " + strconv.Itoa(int(r.Unassigned)) + " from " + args[0])
				return c.printer().message(r, t)
			})
		},
	}
}

// maxPage is the most that a node lists at once.
const maxPage = 1000

func newPolicyClients(c *cli) *cobra.Command {
	var size uint32
	var after string
	cmd := &cobra.Command{
		Use: "clients POLICY", Short: "List the clients under a policy", Example: "  holdfast policy clients api --size 1000", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if size < 1 || size > maxPage {
				return usageErrorf("--size must be 1 to %d", maxPage)
			}
			return c.policies(cmd, func(ctx context.Context, s pb.PoliciesClient) error {
				r, err := s.ListClients(ctx, &pb.ListClientsRequest{PolicyId: args[0], PageSize: size, PageToken: after})
				if err != nil {
					return err
				}
				t := &table{header: []string{"client", "rate", "priority", "from", "to"}}
				for _, a := range r.Clients {
					t.add(a.ClientId, optional(a.OverrideRateLimit), optional(a.Priority), timeText(a.EffectiveFrom), timeText(a.EffectiveTo))
				}
				if r.NextPageToken != "" {
					t.add("more: --after " + r.NextPageToken)
				}
				return c.printer().message(r, t)
			})
		},
	}
	cmd.Flags().Uint32Var(&size, "size", 100, "clients to list, up to 1000")
	cmd.Flags().StringVar(&after, "after", "", "the last client of the list before")
	return cmd
}

func optional[T uint32 | int32](v *T) string {
	if v == nil {
		return ""
	}
	return strconv.Itoa(int(*v))
}

func timeText(t *timestamppb.Timestamp) string {
	if t == nil {
		return ""
	}
	return t.AsTime().Format(time.RFC3339)
}

func newPolicyHistory(c *cli) *cobra.Command {
	return &cobra.Command{
		Use: "history POLICY", Short: "Who changed a policy, and when", Example: "  holdfast policy history api", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.policies(cmd, func(ctx context.Context, s pb.PoliciesClient) error {
				r, err := s.PolicyHistory(ctx, &pb.PolicyHistoryRequest{PolicyId: args[0]})
				if err != nil {
					return err
				}
				t := &table{header: []string{"at", "action", "revision", "actor", "detail"}}
				for _, h := range r.Changes {
					t.add(timeText(h.At), h.Action, strconv.Itoa(int(h.Revision)), h.Actor, h.Detail)
				}
				return c.printer().message(r, t)
			})
		},
	}
}
