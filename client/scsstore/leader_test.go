package scsstore_test

import (
	"context"
	"encoding/binary"
	"net/http"
	"strconv"
	"testing"
	"time"

	"github.com/holdfastdb/holdfast/client"
	"github.com/holdfastdb/holdfast/client/holdfasttest"
	"github.com/holdfastdb/holdfast/client/scsstore"
)

// A web application on a real cluster, in two processes, so to speak, while the node that leads the session's shard goes:
// everybody stays logged in, nothing that was saved is lost, and who logs out stays out.
func TestAWebApplicationSurvivesTheLossOfItsLeader(t *testing.T) {
	cluster := holdfasttest.Start(t, 3)
	one := newApp(t, scsstore.New(cluster.Client().Sessions().Saved()))
	two := newApp(t, scsstore.New(cluster.Client().Sessions().Saved()))

	alice, bob := browser(t), browser(t)
	get(t, alice, one.URL+"/login?user=alice")
	get(t, bob, one.URL+"/login?user=bob")
	cookies := alice.Jar.Cookies(mustURL(t, one.URL))

	leader := leaderOf(t, cluster, cookies[0].Value)
	stopped := make(chan struct{})
	for n := 1; ; n++ {
		if n == 10 {
			go func() {
				defer close(stopped)
				cluster.StopNode(leader)
			}()
		}
		if status, text := get(t, alice, one.URL+"/count"); status != http.StatusOK || text != strconv.Itoa(n) {
			t.Fatalf("request %d is answered with %d %q", n, status, text)
		}
		if n > 100 {
			select {
			case <-stopped:
			default:
				continue
			}
			break
		}
	}
	for b, want := range map[*http.Client]string{alice: "alice", bob: "bob"} {
		if _, user := get(t, b, one.URL+"/whoami"); user != want {
			t.Errorf("%q is logged in, want %q", user, want)
		}
	}

	// A request of alice's is under way in the first process while she logs out in the second one.
	slow := make(chan int)
	go func() {
		status, _ := get(t, &http.Client{Jar: alice.Jar}, one.URL+"/slow")
		slow <- status
	}()
	<-one.inside
	there := browser(t)
	there.Jar.SetCookies(mustURL(t, two.URL), cookies)
	if _, user := get(t, there, two.URL+"/whoami"); user != "alice" {
		t.Fatalf("in the other process %q is logged in", user)
	}
	get(t, there, two.URL+"/logout")
	cluster.StartNode(leader)
	one.goOn <- struct{}{}
	if status := <-slow; status != http.StatusInternalServerError {
		t.Errorf("the late request saved: %d", status)
	}
	again := browser(t)
	again.Jar.SetCookies(mustURL(t, one.URL), cookies)
	if _, user := get(t, again, one.URL+"/whoami"); user != "" {
		t.Errorf("%q is logged in again", user)
	}
	users := make(map[string]bool)
	err := one.manager.Iterate(t.Context(), func(ctx context.Context) error {
		users[one.manager.GetString(ctx, "user")] = true
		return nil
	})
	if err != nil || len(users) != 1 || !users["bob"] {
		t.Errorf("there are sessions of %v, %v", users, err)
	}
}

// leaderOf is the number of the node that leads the shard of a token.
func leaderOf(t *testing.T, cluster *holdfasttest.Cluster, token string) int {
	t.Helper()
	key := client.KeyOf(token)
	slot := binary.BigEndian.Uint16(key[:])
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		n := cluster.Node(0).Node
		for _, s := range n.Topology().Shards {
			if slot < s.First || slot > s.Last {
				continue
			}
			leader, _, _ := n.Leader(s.ID)
			for i := range 3 {
				if cluster.Node(i).Node.ID() == leader {
					return i
				}
			}
		}
	}
	t.Fatal("nobody leads the shard")
	return 0
}
