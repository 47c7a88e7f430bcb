package main

import (
	"context"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/holdfastdb/holdfast/client"
	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
)

func newCluster(c *cli) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "cluster",
		Short:   "The cluster: status, nodes, shards, transfer",
		Example: "  holdfast cluster status\n  holdfast cluster shards -o json\n  holdfast cluster transfer 3 n2",
	}
	// field is the part of the status that the verb is about, empty for all of it.
	verb := func(use, short, field string, show func(*pb.ClusterStatusResponse) *table) *cobra.Command {
		return &cobra.Command{Use: use, Short: short, Example: "  holdfast cluster " + use, Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
			return c.with(cmd.Context(), func(ctx context.Context, cl *client.Client) error {
				r, err := pb.NewClusterClient(cl.Conn()).Status(ctx, &pb.ClusterStatusRequest{})
				if err != nil {
					return err
				}
				return c.printer().field(r, field, show(r))
			})
		}}
	}
	cmd.AddCommand(
		verb("status", "Who is up and who leads what", "", statusTable),
		verb("nodes", "The nodes and their addresses", "nodes", nodesTable),
		verb("shards", "The shards and their replicas", "shards", shardsTable),
		newTransfer(c),
	)
	return cmd
}

func nodeNames(r *pb.ClusterStatusResponse) map[string]string {
	names := make(map[string]string, len(r.Nodes))
	for _, n := range r.Nodes {
		names[n.NodeId] = n.Name
	}
	return names
}

func statusTable(r *pb.ClusterStatusResponse) *table {
	leads, replicas := map[string]int{}, map[string]int{}
	for _, s := range r.Shards {
		for _, x := range s.Replicas {
			replicas[x.NodeId]++
			if x.State == "leader" {
				leads[x.NodeId]++
			}
		}
	}
	health := "healthy"
	if !r.Healthy {
		health = "NOT HEALTHY: see holdfast cluster shards"
	}
	t := &table{header: []string{"node", "state", "leads", "replicas", "grpc", "http", "zone"}}
	for _, n := range r.Nodes {
		t.add(n.Name, n.State, strconv.Itoa(leads[n.NodeId]), strconv.Itoa(replicas[n.NodeId]), n.GrpcAddr, n.HttpAddr, n.Zone)
	}
	t.add()
	t.add(fmt.Sprintf("cluster %s, %d shards, %s", r.ClusterId, len(r.Shards), health))
	return t
}

func nodesTable(r *pb.ClusterStatusResponse) *table {
	t := &table{header: []string{"name", "id", "state", "grpc", "http", "zone"}}
	for _, n := range r.Nodes {
		t.add(n.Name, n.NodeId, n.State, n.GrpcAddr, n.HttpAddr, n.Zone)
	}
	return t
}

func shardsTable(r *pb.ClusterStatusResponse) *table {
	names := nodeNames(r)
	t := &table{header: []string{"shard", "slots", "node", "role", "state", "term", "applied", "lag", "size"}}
	for _, s := range r.Shards {
		for i, x := range s.Replicas {
			shard, slots := "", ""
			if i == 0 {
				shard, slots = strconv.Itoa(int(s.Info.Shard)), fmt.Sprintf("%d-%d", s.Info.FirstSlot, s.Info.LastSlot)
			}
			t.add(shard, slots, names[x.NodeId], x.Role, x.State, strconv.Itoa(int(x.Term)),
				fmt.Sprintf("%.0f", x.AppliedIndex), fmt.Sprintf("%.0f", x.Lag), bytesText(x.SizeBytes))
		}
	}
	return t
}

// bytesText is a size for people, a dash if it is not known: a replica that has written nothing but its log yet, or one
// that cannot be asked.
func bytesText(n float64) string {
	if n == 0 {
		return "-"
	}
	for _, unit := range []string{"B", "kB", "MB"} {
		if n < 1000 {
			return fmt.Sprintf("%.3g %s", n, unit)
		}
		n /= 1000
	}
	return fmt.Sprintf("%.3g GB", n)
}

func newTransfer(c *cli) *cobra.Command {
	return &cobra.Command{
		Use: "transfer SHARD NODE", Short: "Hand the leadership of a shard to a node; shard 0 is the catalog",
		Example: "  holdfast cluster transfer 3 n2", Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			shard, err := strconv.ParseUint(args[0], 10, 32)
			if err != nil {
				return usageErrorf("SHARD %q is not a number", args[0])
			}
			return c.with(cmd.Context(), func(ctx context.Context, cl *client.Client) error {
				r, err := pb.NewClusterClient(cl.Conn()).TransferLeader(ctx, &pb.TransferLeaderRequest{Shard: uint32(shard), Node: args[1]})
				if err != nil {
					return err
				}
				t := &table{}
				t.add("shard " + args[0] + " is led by " + args[1])
				return c.printer().message(r, t)
			})
		},
	}
}
