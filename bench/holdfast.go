package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/holdfastdb/holdfast/client"
	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
)

// holdfastPeer is three Holdfast nodes in processes of their own, and an SDK in this one.
type holdfastPeer struct {
	nodes       []*process
	client      *client.Client
	limits      *client.Limits
	names       []string
	tokens, ids []string // of sessions
}

// The resources that the policies are for: one whose counters are whole again at once, one whose counters live on.
const (
	benchResource = "bench"
	liveResource  = "live"
)

// startHoldfast builds the binary and starts the nodes; it returns when every shard has three voters and the leaders are
// spread.
func startHoldfast(ctx context.Context, dir string, shards int) (_ *holdfastPeer, err error) {
	binary := filepath.Join(dir, "holdfast")
	build := exec.CommandContext(ctx, "go", "build", "-o", binary, "./cmd/holdfast")
	build.Dir, build.Stderr = "..", os.Stderr
	if err := build.Run(); err != nil {
		return nil, fmt.Errorf("build holdfast: %w", err)
	}
	p := &holdfastPeer{names: keyNames(manyKeys)}
	defer func() {
		if err != nil {
			p.close()
		}
	}()
	addrs, err := freeAddrs(12)
	if err != nil {
		return nil, err
	}
	for i := range 3 {
		a := addrs[i*4:]
		args := []string{
			"start", "--name", "n" + strconv.Itoa(i+1), "--data", filepath.Join(dir, "holdfast-"+strconv.Itoa(i+1)),
			"--grpc", a[0], "--http", a[1], "--peer", a[2], "--gossip", a[3], "--shards", strconv.Itoa(shards), "--log-level", "warn",
		}
		if i == 0 {
			args = append(args, "--bootstrap")
		} else {
			args = append(args, "--join", addrs[3])
		}
		n, err := startProcessTo(ctx, nil, binary, args...)
		if err != nil {
			return nil, err
		}
		p.nodes = append(p.nodes, n)
	}
	begin, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if p.client, err = client.Dial(begin, client.Config{Addrs: []string{addrs[0]}}); err != nil {
		return nil, err
	}
	p.limits = p.client.Limits()
	if err := p.settle(begin); err != nil {
		return nil, err
	}
	return p, p.prepare(begin)
}

// settle waits until the cluster has the shape that is measured.
func (p *holdfastPeer) settle(ctx context.Context) error {
	for {
		r, err := pb.NewClusterClient(p.client.Conn()).Status(ctx, &pb.ClusterStatusRequest{})
		if err == nil && r.Healthy && len(r.Nodes) == 3 {
			leads := map[string]int{}
			for _, s := range r.Shards {
				leads[s.Info.Leader]++
			}
			if len(leads) == min(3, len(r.Shards)) {
				return nil
			}
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("the cluster did not settle: %w", errors.Join(err, ctx.Err()))
		}
	}
}

func (p *holdfastPeer) prepare(ctx context.Context) error {
	policies := pb.NewPoliciesClient(p.client.Conn())
	for _, q := range []*pb.CreatePolicyRequest{
		{Name: "bench", Algorithm: "token_bucket", RateLimit: 1_000_000_000, TimeWindow: 1, Resource: benchResource},
		{Name: "live", Algorithm: "token_bucket", RateLimit: 100, TimeWindow: 3600, Resource: liveResource},
	} {
		policy, err := policies.CreatePolicy(ctx, q)
		if err != nil {
			return err
		}
		_, err = policies.AssignClients(ctx, &pb.AssignClientsRequest{PolicyId: policy.PolicyId, ClientIds: []string{"*"}})
		if err != nil {
			return err
		}
	}
	return nil
}

// touch makes a counter that lives on.
func (p *holdfastPeer) touch(ctx context.Context, key int) error {
	_, err := p.limits.Check(ctx, client.Request{Client: "client-" + strconv.Itoa(key), Resource: liveResource})
	return err
}

func (p *holdfastPeer) check(ctx context.Context, _, key int) error {
	d, err := p.limits.Check(ctx, client.Request{Client: p.names[key], Resource: benchResource})
	if err == nil && (!d.Allowed || d.Policy == "") {
		return fmt.Errorf("not decided by the policy: %+v", d)
	}
	return err
}

func (p *holdfastPeer) lease(ctx context.Context, _, key int) error {
	d, err := p.limits.Async(ctx, client.Request{Client: p.names[key], Resource: benchResource})
	if err == nil && (!d.Allowed || d.Fallback) {
		return fmt.Errorf("not decided by a lease: %+v", d)
	}
	return err
}

// usage is what the nodes use together.
func (p *holdfastPeer) usage() (cpu time.Duration, largest int64, err error) {
	for _, n := range p.nodes {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", n.cmd.Process.Pid))
		if err != nil {
			return 0, 0, err
		}
		// The fields after the name in parentheses; see proc(5).
		_, rest, _ := strings.Cut(string(stat), ") ")
		fields := strings.Fields(rest)
		user, _ := strconv.Atoi(fields[11])
		system, _ := strconv.Atoi(fields[12])
		pages, _ := strconv.ParseInt(fields[21], 10, 64)
		const ticksPerSecond = 100
		cpu += time.Duration(user+system) * time.Second / ticksPerSecond
		largest = max(largest, pages*int64(os.Getpagesize()))
	}
	return cpu, largest, nil
}

func (p *holdfastPeer) close() {
	if p.client != nil {
		_ = p.client.Close()
	}
	for _, n := range p.nodes {
		n.stop()
	}
}

func keyNames(n int) []string {
	names := make([]string, n)
	for i := range names {
		names[i] = "client-" + strconv.Itoa(i)
	}
	return names
}

// freeAddrs finds addresses that nothing listens at.
func freeAddrs(n int) ([]string, error) {
	var addrs []string
	for range n {
		l, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close()
		addrs = append(addrs, l.Addr().String())
	}
	return addrs, nil
}
