package catalog

import (
	"fmt"
	"testing"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/fsm/catalog/catalogtest"
	"github.com/holdfastdb/holdfast/storage/kv"
)

// cat is a catalog under test.
type cat struct{ *catalogtest.Shard }

func newCat(t catalogtest.Failer) *cat { return &cat{catalogtest.New(t, Type())} }

var firstNode = Node{ID: "n1", Name: "one", GRPC: "h1:1", HTTP: "h1:2", Peer: "h1:3", Gossip: "h1:4", Zone: "z1"}

// setUp makes a cluster of some shards on node n1.
func setUp(t catalogtest.Failer, shards uint32) *cat {
	c := newCat(t)
	done[Cluster](c, OpBootstrap, Bootstrap{ClusterID: "c1", Shards: shards, Replicas: 3, Node: firstNode})
	return c
}

// done applies a command that must succeed.
func done[A, Q any](c *cat, op uint8, q Q) A {
	c.T.Helper()
	return must[A](c, c.Do(Call(op, q)))
}

// refused applies a command that must not succeed.
func refused[Q any](c *cat, op uint8, q Q, want fsm.Code) {
	c.T.Helper()
	if r := c.Do(Call(op, q)); r.Code != want {
		c.T.Fatalf("command %d %+v: %v %s, want %v", op, q, r.Code, r.Body, want)
	}
}

// asked runs a query that must succeed.
func asked[A, Q any](c *cat, op uint8, q Q) A {
	c.T.Helper()
	return must[A](c, c.Query(Call(op, q)))
}

func must[A any](c *cat, r fsm.Result) A {
	c.T.Helper()
	a, code := answer[A](c, r)
	if code != fsm.OK {
		c.T.Fatalf("refused: %v %s", r.Code, r.Body)
	}
	return a
}

func answer[A any](c *cat, r fsm.Result) (a A, code fsm.Code) {
	c.T.Helper()
	if r.Code != fsm.OK {
		return a, r.Code
	}
	a, err := Decode[A](r.Body)
	if err != nil {
		c.T.Fatalf("answer: %v", err)
	}
	return a, fsm.OK
}

// read runs one of the package's functions on the catalog's keys.
func read[A any](c *cat, f func(kv.Reader) (A, error)) A {
	c.T.Helper()
	v := c.View()
	defer v.Close()
	a, err := f(View(v))
	if err != nil {
		c.T.Fatalf("read: %v", err)
	}
	return a
}

func (c *cat) topology() Topology { c.T.Helper(); return asked[Topology](c, OpTopology, Nothing{}) }

func (c *cat) assignments(client string) []Assignment {
	c.T.Helper()
	return read(c, func(r kv.Reader) ([]Assignment, error) { return AssignmentsOf(r, client) })
}

// changes follows the feed from a revision on.
func (c *cat) changes(since uint64) (list []Change, revision uint64, err error) {
	v := c.View()
	defer v.Close()
	return Changes(View(v), since)
}

func samplePolicy(name string) Policy {
	return Policy{
		Name: name, Algorithm: "token_bucket", Rate: 100, WindowMS: 1000, Burst: 100, Active: true, Rollout: 100,
		Scope: "client", OnUnavailable: "local",
	}
}

func (c *cat) create(name string) Policy {
	c.T.Helper()
	return done[Policy](c, OpCreatePolicy, PolicyEdit{Policy: samplePolicy(name), Actor: "tester"})
}

// manyClients are n ids in their order in the catalog.
func manyClients(n int) []string {
	list := make([]string, n)
	for i := range list {
		list[i] = fmt.Sprintf("client-%06d", i)
	}
	return list
}

// assignMany assigns clients in as many commands as it takes.
func (c *cat) assignMany(policy string, clients []string) {
	c.T.Helper()
	for len(clients) > 0 {
		n := min(len(clients), MaxAssign)
		done[uint32](c, OpAssign, Assign{Policy: policy, Clients: clients[:n]})
		clients = clients[n:]
	}
}

func equal(t testing.TB, what string, got, want any) {
	t.Helper()
	if g, w := fmt.Sprintf("%+v", got), fmt.Sprintf("%+v", want); g != w {
		t.Errorf("%s: %s, want %s", what, g, w)
	}
}
