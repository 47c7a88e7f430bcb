package main

import (
	"context"
	"io"
	"os"
	"strconv"

	"github.com/spf13/cobra"

	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
)

// maxImport is more than the server takes.
const maxImport = 2 << 20

func newPolicyImport(c *cli) *cobra.Command {
	var dryRun bool
	cmd := &cobra.Command{
		Use:   "import FILE",
		Short: "Import limits for Envoy from a YAML file",
		Long: `import reads one domain in the YAML dialect of Envoy's reference rate limit service and replaces what the cluster had
for that domain. Envoy's rate_limit filter then asks any node at its gRPC address. FILE may be - for standard input.`,
		Example: `  holdfast policy import edge.yaml --dry-run       only check the file
  holdfast policy import edge.yaml`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			in := io.Reader(os.Stdin)
			if args[0] != "-" {
				f, err := os.Open(args[0])
				if err != nil {
					return usageErrorf("%w", err)
				}
				defer f.Close()
				in = f
			}
			text, err := io.ReadAll(io.LimitReader(in, maxImport))
			if err != nil {
				return usageErrorf("%w", err)
			}
			return c.policies(cmd, func(ctx context.Context, s pb.PoliciesClient) error {
				r, err := s.ImportEnvoy(ctx, &pb.ImportEnvoyRequest{Yaml: string(text), DryRun: dryRun})
				if err != nil {
					return err
				}
				t := &table{header: []string{"domain", "rules", "imported"}}
				t.add(r.Domain, strconv.Itoa(int(r.Rules)), strconv.FormatBool(!dryRun))
				return c.printer().message(r, t)
			})
		},
	}
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "only check the file")
	return cmd
}

func newPolicyDomains(c *cli) *cobra.Command {
	return &cobra.Command{
		Use: "domains", Short: "List what was imported for Envoy", Example: "  holdfast policy domains\n  holdfast policy domains -o yaml", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.policies(cmd, func(ctx context.Context, s pb.PoliciesClient) error {
				r := &pb.ListEnvoyResponse{}
				for more := true; more; more = r.NextPageToken != "" {
					page, err := s.ListEnvoy(ctx, &pb.ListEnvoyRequest{PageToken: r.NextPageToken})
					if err != nil {
						return err
					}
					r.Domains, r.NextPageToken = append(r.Domains, page.Domains...), page.NextPageToken
				}
				t := &table{header: []string{"domain", "size", "imported", "by"}}
				for _, d := range r.Domains {
					t.add(d.Domain, bytesText(float64(len(d.Yaml))), timeText(d.UpdatedAt), d.Actor)
				}
				return c.printer().message(r, t)
			})
		},
	}
}

func newPolicyDeleteDomain(c *cli) *cobra.Command {
	return &cobra.Command{
		Use: "delete-domain DOMAIN", Short: "Forget what was imported for Envoy", Example: "  holdfast policy delete-domain edge", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.policies(cmd, func(ctx context.Context, s pb.PoliciesClient) error {
				r, err := s.DeleteEnvoy(ctx, &pb.DeleteEnvoyRequest{Domain: args[0]})
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
