package gossip

import (
	"encoding/json"
	"log/slog"
	"net"
	"testing"
	"time"
)

func start(t *testing.T, id, cluster string, changed chan<- string) *Gossip {
	t.Helper()
	g, err := Start(Config{
		NodeID: id, Bind: "127.0.0.1:0",
		Meta:     Meta{ClusterID: cluster, Name: id, GRPC: id + ":1", Peer: id + ":2"},
		OnChange: func() { changed <- id },
		Logger:   slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = g.Close() })
	return g
}

// await waits, driven by change events, until ok.
func await(t *testing.T, what string, changed <-chan string, ok func() bool) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	poll := time.NewTicker(20 * time.Millisecond)
	defer poll.Stop()
	for !ok() {
		select {
		case <-changed:
		case <-poll.C:
		case <-deadline:
			t.Fatalf("never: %s", what)
		}
	}
}

func TestNodesSeeEachOtherTheirDataAndTheirLeads(t *testing.T) {
	changed := make(chan string, 100)
	a, b := start(t, "a", "c1", changed), start(t, "b", "", changed)
	a.Announce(3, 7)
	if err := b.Join([]string{a.Addr()}); err != nil {
		t.Fatal(err)
	}
	await(t, "a sees b", changed, func() bool { m, ok := a.Member("b"); return ok && m.Alive && m.Meta.Peer == "b:2" })
	await(t, "b sees a's lead", changed, func() bool { l, ok := b.Leader(3); return ok && l.NodeID == "a" && l.Term == 7 })

	b.Announce(3, 8)
	await(t, "a hears the newer leader", changed, func() bool { l, _ := a.Leader(3); return l.NodeID == "b" && l.Term == 8 })
	a.Announce(3, 7)
	if l, _ := a.Leader(3); l.NodeID != "b" {
		t.Errorf("an older term replaced a newer one: %+v", l)
	}

	if err := b.SetMeta(Meta{ClusterID: "c1", Name: "b", Peer: "b:9"}); err != nil {
		t.Fatal(err)
	}
	await(t, "a sees b's new address", changed, func() bool { m, _ := a.Member("b"); return m.Meta.Peer == "b:9" })

	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	await(t, "a sees b leave", changed, func() bool { m, _ := a.Member("b"); return !m.Alive })
}

// A node that starts again calls the nodes that it knows at once. Waiting for the next turn, it took them for dead for ten
// seconds.
func TestKnownNodesAreCalledAtOnce(t *testing.T) {
	changed := make(chan string, 100)
	a, b := start(t, "a", "c1", changed), start(t, "b", "c1", changed)
	begin := time.Now()
	b.SetKnown([]string{a.Addr()})
	await(t, "b sees a", changed, func() bool { m, ok := b.Member("a"); return ok && m.Alive })
	if took := time.Since(begin); took > rejoinInterval/2 {
		t.Errorf("it took %v", took)
	}
}

func TestNodesOfAnotherClusterAreNotAccepted(t *testing.T) {
	changed := make(chan string, 100)
	a, b := start(t, "a", "c1", changed), start(t, "b", "c2", changed)
	_ = b.Join([]string{a.Addr()}) // memberlist may or may not report it: what counts is who is seen
	if m, ok := a.Member("b"); ok {
		t.Errorf("a accepted %+v", m)
	}
	if m, ok := b.Member("a"); ok {
		t.Errorf("b accepted %+v", m)
	}
}

// The name of an interface is not all of them.
func TestANameIsListenedAtAsItsAddress(t *testing.T) {
	for _, key := range [][]byte{nil, make([]byte, 32)} {
		g, err := Start(Config{NodeID: "a", Bind: "localhost:0", Key: key, Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		if host, _, err := net.SplitHostPort(g.Addr()); err != nil || !net.ParseIP(host).IsLoopback() {
			t.Errorf("it is at %s, %v", g.Addr(), err)
		}
		if err := g.Close(); err != nil {
			t.Error(err)
		}
	}
}

// Behind an address that others do not see, a node tells the one that they do.
func TestTheAdvertisedHostIsTold(t *testing.T) {
	g, err := Start(Config{
		NodeID: "a", Bind: "127.0.0.1:0", Advertise: "192.0.2.7", Key: make([]byte, 32), Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	if host, port, err := net.SplitHostPort(g.Addr()); err != nil || host != "192.0.2.7" || port == "0" {
		t.Errorf("it is at %s, %v", g.Addr(), err)
	}
}

func TestPlainTextIsRefusedOffLoopback(t *testing.T) {
	if _, err := Start(Config{NodeID: "a", Bind: "0.0.0.0:0", Logger: slog.New(slog.DiscardHandler)}); err == nil {
		t.Error("started without a key on a public address")
	}
}

// Nodes of two versions hear each other.
func TestWhatNodesTellEachOtherIsPinned(t *testing.T) {
	for want, v := range map[string]any{
		`{"g":3,"t":7,"n":"a"}`: Lead{Group: 3, Term: 7, NodeID: "a"},
		`{"c":"c1","n":"a","g":"g:1","h":"h:1","p":"p:1","z":"z"}`: Meta{ClusterID: "c1", Name: "a", GRPC: "g:1", HTTP: "h:1", Peer: "p:1", Zone: "z"},
	} {
		if got, err := json.Marshal(v); err != nil || string(got) != want {
			t.Errorf("%T is told as %s, %v; want %s", v, got, err, want)
		}
	}
}

// Whatever arrives, a lead's term never goes back.
func FuzzMessages(f *testing.F) {
	f.Add([]byte(`{"g":3,"t":7,"n":"b"}`))
	f.Add([]byte(`{"g":3,"t":4,"n":"b"}`))
	f.Add([]byte(`[{"g":3,"t":9,"n":"a"},{"g":3,"t":8,"n":"b"}]`))
	f.Add([]byte(`[{"g":3,"t":4,"n":"b"}]`))
	f.Add([]byte(`{"g":-1}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		g := &Gossip{leads: map[uint32]Lead{3: {Group: 3, Term: 5, NodeID: "a"}}}
		for range 2 {
			before := g.leads[3].Term
			(*delegate)(g).NotifyMsg(b)
			(*delegate)(g).MergeRemoteState(b, false)
			if after := g.leads[3].Term; after < before {
				t.Errorf("%q takes the term from %d to %d", b, before, after)
			}
		}
	})
}
