package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/fsm/catalog"
)

// callJoin asks any member to take a node in. The request is the node's catalog record, the answer the cluster's.
const callJoin = "join"

// enter makes the node part of its cluster: of the one that its directory belongs to, of a new one, or of the one that
// it was told to join.
func (n *Node) enter(ctx context.Context) error {
	switch {
	case n.ClusterID() != "":
		n.gossip.SetKnown(n.cfg.Join)
		if err := n.openGroup(catalogGroup, 1, false); err != nil {
			return err
		}
		n.readTopology()
		if n.topology.Load() == nil && n.cfg.Bootstrap {
			// The process ended between the two steps of a bootstrap.
			if err := n.makeCluster(ctx); err != nil {
				return err
			}
		}
		n.work.Go(n.register)
	case n.cfg.Bootstrap:
		// If we stop before the identity is saved, the next start finds the group and goes on; the other way round it would
		// wait for a group that nobody made.
		if err := n.openGroup(catalogGroup, 1, true); err != nil {
			return err
		}
		if err := n.setIdentity(newID()); err != nil {
			return err
		}
		if err := n.makeCluster(ctx); err != nil {
			return err
		}
	default:
		id, err := n.join(ctx)
		if err != nil {
			return err
		}
		// As with a bootstrap: who has a cluster in its identity has a log.
		if err := n.openGroup(catalogGroup, 1, false); err != nil {
			return err
		}
		if err := n.setIdentity(id); err != nil {
			return err
		}
	}
	n.wake()
	return nil
}

func (n *Node) setIdentity(clusterID string) error {
	filesystem := n.cfg.FS
	if filesystem == nil {
		filesystem = vfs.Default
	}
	n.identity.ClusterID = clusterID
	if err := n.identity.save(filesystem, n.cfg.Dir); err != nil {
		return err
	}
	n.setCluster(clusterID)
	return n.gossip.SetMeta(n.meta())
}

// record is what the catalog shall know of this node.
func (n *Node) record() catalog.Node {
	return catalog.Node{
		ID: n.identity.NodeID, Name: n.cfg.Name, GRPC: n.cfg.GRPC, HTTP: n.cfg.HTTP, Peer: n.cfg.PeerAddr,
		Gossip: n.gossip.Addr(), Zone: n.cfg.Zone, State: catalog.Active,
	}
}

func (n *Node) makeCluster(ctx context.Context) error {
	call := catalog.Call(catalog.OpBootstrap, catalog.Bootstrap{
		ClusterID: n.ClusterID(), Shards: n.cfg.Shards, Replicas: n.cfg.Replicas, Node: n.record(),
	})
	if _, err := n.command(ctx, call); err != nil {
		return fmt.Errorf("make the cluster: %w", err)
	}
	n.log.Info("made a cluster", "cluster", n.ClusterID(), "shards", n.cfg.Shards)
	n.readTopology()
	return nil
}

// command executes one catalog command and returns its answer.
func (n *Node) command(ctx context.Context, call fsm.Call) ([]byte, error) {
	out, err := n.gateway.do(ctx, catalogGroup, []fsm.Call{call})
	if err != nil {
		return nil, err
	}
	if err := out.Results[0].Err(); err != nil {
		return nil, err
	}
	return out.Results[0].Body, nil
}

// joinRetry is how often a node asks to be taken in.
const joinRetry = time.Second

// join asks the members that gossip finds until one takes this node in, and returns whose members they are.
func (n *Node) join(ctx context.Context) (clusterID string, err error) {
	request, err := json.Marshal(n.record())
	if err != nil {
		return "", fmt.Errorf("join: %w", err)
	}
	told := false
	for {
		err := n.gossip.Join(n.cfg.Join)
		if err == nil {
			var id string
			if id, err = n.askToJoin(ctx, request); err == nil {
				return id, nil
			}
		}
		if !told {
			n.log.Info("waiting for the cluster to take this node in", "join", n.cfg.Join, "error", err)
			told = true
		}
		if stop := wait(ctx, joinRetry); stop != nil {
			return "", fmt.Errorf("join %v: %w", n.cfg.Join, errors.Join(err, stop))
		}
	}
}

func (n *Node) askToJoin(ctx context.Context, request []byte) (string, error) {
	err := errors.New("no member of a cluster answers there")
	for _, m := range n.gossip.Members() {
		if m.Meta.ClusterID == "" || m.NodeID == n.identity.NodeID || !m.Alive {
			continue
		}
		ask, cancel := context.WithTimeout(ctx, 10*time.Second)
		answer, callErr := n.net.Call(ask, m.NodeID, callJoin, request)
		cancel()
		if callErr == nil {
			var c catalog.Cluster
			if c, callErr = catalog.Decode[catalog.Cluster](answer); callErr == nil {
				return c.ID, nil
			}
		}
		err = callErr
	}
	return "", err
}

func (n *Node) serveJoin(ctx context.Context, from string, request []byte) ([]byte, error) {
	record, err := catalog.Decode[catalog.Node](request)
	if err != nil {
		return nil, fmt.Errorf("malformed request to join: %w", err)
	}
	if record.ID != from {
		return nil, fmt.Errorf("node %s asks for node %q to be taken in: a node joins for itself", from, record.ID)
	}
	answer, err := n.command(ctx, catalog.Call(catalog.OpPutNode, record))
	if err != nil {
		return nil, err
	}
	n.log.Info("took a node in", "name", record.Name, "id", record.ID, "peer", record.Peer)
	return answer, nil
}

// register tells the catalog this node's addresses after a restart, if they have changed.
func (n *Node) register() {
	for {
		if t := n.topology.Load(); t != nil {
			known, ok := t.Node(n.identity.NodeID)
			mine := n.record()
			mine.State, mine.Joined = known.State, known.Joined
			if ok && known == mine {
				return
			}
			ctx, cancel := context.WithTimeout(n.ctx, 10*time.Second)
			_, err := n.command(ctx, catalog.Call(catalog.OpPutNode, mine))
			cancel()
			if err == nil {
				return
			}
			n.log.Info("could not tell the cluster this node's addresses, trying again", "error", err)
		}
		if wait(n.ctx, joinRetry) != nil {
			return
		}
	}
}
