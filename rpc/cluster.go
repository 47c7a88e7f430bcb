package rpc

import (
	"context"

	"github.com/holdfastdb/holdfast/fsm"
	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
)

// cluster implements holdfast.v1.Cluster.
type cluster struct {
	pb.UnimplementedClusterServer
	node Node
}

// Status implements the service.
func (s *cluster) Status(ctx context.Context, _ *pb.ClusterStatusRequest) (*pb.ClusterStatusResponse, error) {
	t := s.node.Topology()
	if t == nil {
		return nil, statusOf(errNoTopology)
	}
	r := &pb.ClusterStatusResponse{ClusterId: t.Cluster.ID, Epoch: uint32(t.Cluster.Epoch), Healthy: true}
	for i := range t.Nodes {
		r.Nodes = append(r.Nodes, nodeInfo(s.node, &t.Nodes[i]))
	}
	type place struct {
		group uint32
		id    string
	}
	found := make(map[place]ReplicaStatus)
	commit := make(map[uint32]uint64)
	for _, replicas := range s.node.Statuses(ctx) {
		for _, x := range replicas {
			found[place{x.Group, x.ReplicaID}] = x
			if x.State == "leader" {
				commit[x.Group] = max(commit[x.Group], x.Commit)
			}
		}
	}
	for i := range t.Shards {
		c := &t.Shards[i]
		row := &pb.ShardStatus{Info: shardInfo(s.node, c)}
		leaders, voters := 0, 0
		for _, x := range c.Replicas {
			m := &pb.ReplicaStatus{NodeId: x.Node, Role: string(x.Role), State: "unreachable"}
			if st, ok := found[place{c.ID, x.ID()}]; ok {
				m.State, m.Term = st.State, uint32(st.Term)
				m.CommitIndex, m.AppliedIndex, m.SizeBytes = float64(st.Commit), float64(st.Applied), float64(st.SizeBytes)
				m.Lag = float64(max(commit[c.ID], st.Applied) - st.Applied)
				if x.Role == "voter" {
					voters++
				}
				if st.State == "leader" {
					leaders++
				}
			}
			row.Replicas = append(row.Replicas, m)
		}
		want := min(t.Cluster.Replicas, len(t.Nodes))
		r.Healthy = r.Healthy && leaders == 1 && voters >= want
		r.Shards = append(r.Shards, row)
	}
	return r, nil
}

// TransferLeader implements the service.
func (s *cluster) TransferLeader(ctx context.Context, q *pb.TransferLeaderRequest) (*pb.TransferLeaderResponse, error) {
	t := s.node.Topology()
	if t == nil {
		return nil, statusOf(errNoTopology)
	}
	if q.Shard != catalogGroup && !hasShard(t, q.Shard) {
		return nil, statusOf(fsm.Errorf(fsm.NotFound, "no shard %d", q.Shard))
	}
	for _, n := range t.Nodes {
		if n.ID == q.Node || n.Name == q.Node {
			err := s.node.Transfer(ctx, q.Shard, n.ID)
			if err != nil && kindOf(err) == internal { // the leader refuses, in words
				err = fsm.Errorf(fsm.Conflict, "%v", err)
			}
			if err != nil {
				return nil, statusOf(err)
			}
			return &pb.TransferLeaderResponse{Leader: n.ID}, nil
		}
	}
	return nil, statusOf(fsm.Errorf(fsm.NotFound, "no node %q", q.Node))
}
