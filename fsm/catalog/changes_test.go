package catalog

import (
	"errors"
	"fmt"
	"testing"

	"github.com/holdfastdb/holdfast/fsm"
)

// The ring holds exactly ChangesKept changes; who is one further behind is told so.
func TestRingWraps(t *testing.T) {
	c := setUp(t, 1)
	c.OpenOnce = true
	c.create("a")
	clients := manyClients(MaxAssign)
	for _, _, err := c.changes(0); !IsBehind(err); _, _, err = c.changes(0) {
		if err != nil {
			t.Fatal(err)
		}
		c.assignMany("a", clients)
	}
	revision := c.topology().Cluster.Revision
	if revision <= ChangesKept || revision > ChangesKept+MaxAssign {
		t.Fatalf("behind at revision %d", revision)
	}
	for since, behind := range map[uint64]bool{
		0: true, revision - ChangesKept - 1: true, revision - ChangesKept: false, revision - 1: false, revision: false,
		revision + 1: true, 1 << 63: true,
	} {
		list, newest, err := c.changes(since)
		if IsBehind(err) != behind || !behind && err != nil {
			t.Fatalf("changes since %d of %d: %v", since, revision, err)
		}
		equal(t, "newest", newest, revision)
		if behind {
			continue
		}
		equal(t, "changes", len(list), revision-since)
		for i, ch := range list {
			rev := since + 1 + uint64(i)
			want := Change{Revision: rev, Client: clients[(rev-2)%MaxAssign]} // the first change is the policy's
			if ch != want {
				t.Fatalf("change: %+v, want %+v", ch, want)
			}
		}
	}
}

// A ring with a hole, as after a mistake in storage, sends its readers to read everything.
func TestRingWithHole(t *testing.T) {
	c := setUp(t, 1)
	for i := range 5 {
		c.create(fmt.Sprint(i))
	}
	withRecord(c, numbered(prefixChange, 3), Change{Revision: 3 + ChangesKept})
	if _, _, err := c.changes(2); !IsBehind(err) {
		t.Errorf("over a foreign change: %v", err)
	}
	if list, _, err := c.changes(3); err != nil || len(list) != 2 {
		t.Errorf("after it: %v %v", list, err)
	}
	if IsBehind(errors.New("other")) || IsBehind(nil) {
		t.Error("every error is behind")
	}
}

// A record with a field of a later version stops the replica: it must not guess.
func TestUnknownRecord(t *testing.T) {
	c := setUp(t, 1)
	c.Put([]byte("\x02"+keyCluster), []byte(`{"ID":"c1","Later":1}`))
	v := c.View()
	defer v.Close()
	if _, _, err := ReadTopology(View(v), nil); !errors.Is(err, fsm.ErrCorrupt) {
		t.Errorf("topology: %v", err)
	}
	if _, _, err := Changes(View(v), 0); !errors.Is(err, fsm.ErrCorrupt) {
		t.Errorf("changes: %v", err)
	}
}

// check finds a state whose two directions differ.
func TestCheckFinds(t *testing.T) {
	for name, spoil := range map[string]func(c *cat){
		"assignment without client": func(c *cat) { withRecord(c, assignmentKey("y", 1), Assignment{Policy: 1, Client: "y"}) },
		"client without assignment": func(c *cat) { withRecord(c, clientKey(1, "y"), Nothing{}) },
		"name without policy":       func(c *cat) { withRecord(c, []byte(prefixName+"b"), uint32(2)) },
		"pairs that do not match": func(c *cat) {
			withRecord(c, assignmentKey("y", 1), Assignment{Policy: 1, Client: "y"})
			withRecord(c, clientKey(1, "z"), Nothing{})
		},
		"name of another policy": func(c *cat) {
			withRecord(c, numbered(prefixPolicy, 2), Policy{Number: 2, Name: "b"})
			withRecord(c, []byte(prefixName+"b"), uint32(1))
		},
		"assignment to no policy": func(c *cat) {
			withRecord(c, assignmentKey("y", 9), Assignment{Policy: 9, Client: "y"})
			withRecord(c, clientKey(9, "y"), Nothing{})
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := setUp(t, 1)
			c.create("a")
			c.assignMany("a", []string{"x"})
			c.Check()
			spoil(c)
			if err := Type().Check(c.View(), c.Now); err == nil {
				t.Error("not found")
			}
		})
	}
}
