package main

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// etcdBasePort is the first of the ports that the etcd nodes listen on: client and peer of each.
const etcdBasePort = 23790

func etcdURL(node, kind int) string {
	return fmt.Sprintf("http://127.0.0.1:%d", etcdBasePort+2*node+kind)
}

// serveEtcd is the body of an etcd node's process.
func serveEtcd(ctx context.Context, node, nodes int, dir string) error {
	cfg := embed.NewConfig()
	cfg.Name, cfg.Dir, cfg.LogLevel = "e"+strconv.Itoa(node), dir, "fatal"
	client, peer := mustURL(etcdURL(node, 0)), mustURL(etcdURL(node, 1))
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{client}, []url.URL{client}
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = []url.URL{peer}, []url.URL{peer}
	var members []string
	for i := range nodes {
		members = append(members, fmt.Sprintf("e%d=%s", i, etcdURL(i, 1)))
	}
	cfg.InitialCluster = strings.Join(members, ",")
	cfg.QuotaBackendBytes = 8 << 30
	e, err := embed.StartEtcd(cfg)
	if err != nil {
		return fmt.Errorf("start etcd node %d: %w", node, err)
	}
	defer e.Close()
	select {
	case <-ctx.Done():
		return nil
	case err := <-e.Err():
		return err
	}
}

func mustURL(s string) url.URL {
	u, err := url.Parse(s)
	if err != nil {
		panic(err) // the callers pass constants with a port
	}
	return *u
}

// etcdPeer is a running etcd cluster.
type etcdPeer struct {
	processes []*process
	client    *clientv3.Client
}

func startEtcd(ctx context.Context, dir string) (*etcdPeer, error) {
	p := &etcdPeer{}
	var endpoints []string
	for i := range 3 {
		proc, err := startProcess(ctx, os.Args[0], "-serve-etcd", strconv.Itoa(i), "-dir", fmt.Sprintf("%s/etcd%d", dir, i))
		if err != nil {
			p.close()
			return nil, err
		}
		p.processes = append(p.processes, proc)
		endpoints = append(endpoints, strings.TrimPrefix(etcdURL(i, 0), "http://"))
	}
	var err error
	p.client, err = clientv3.New(clientv3.Config{
		Endpoints: endpoints, DialTimeout: 20 * time.Second,
		DialOptions: []grpc.DialOption{grpc.WithTransportCredentials(insecure.NewCredentials())},
	})
	if err != nil {
		p.close()
		return nil, fmt.Errorf("connect to etcd: %w", err)
	}
	return p, nil
}

// increment is etcd's way to count exactly: read, then write if nobody else did.
func (p *etcdPeer) increment(ctx context.Context, _, key int) error {
	name := "k" + strconv.Itoa(key)
	got, err := p.client.Get(ctx, name)
	if err != nil {
		return err
	}
	for {
		value, revision := 0, int64(0)
		if len(got.Kvs) > 0 {
			revision = got.Kvs[0].ModRevision
			if value, err = strconv.Atoi(string(got.Kvs[0].Value)); err != nil {
				return err
			}
		}
		txn, err := p.client.Txn(ctx).
			If(clientv3.Compare(clientv3.ModRevision(name), "=", revision)).
			Then(clientv3.OpPut(name, strconv.Itoa(value+1))).
			Else(clientv3.OpGet(name)).Commit()
		if err != nil {
			return err
		}
		if txn.Succeeded {
			return nil
		}
		got = (*clientv3.GetResponse)(txn.Responses[0].GetResponseRange())
	}
}

// put is a single durable write.
func (p *etcdPeer) put(ctx context.Context, _, key int) error {
	_, err := p.client.Put(ctx, "p"+strconv.Itoa(key), "1")
	return err
}

func (p *etcdPeer) close() {
	if p.client != nil {
		_ = p.client.Close() // the processes go next
	}
	for _, proc := range p.processes {
		proc.stop()
	}
}
