package catalog

import (
	"reflect"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/storage/kv"
)

// follower keeps a picture of the policies by following the changes, as the nodes do.
type follower struct {
	revision uint64
	seen     picture
}

func newFollower() *follower {
	return &follower{seen: picture{
		make(map[uint32]Policy), make(map[string][]Assignment), make(map[string]string), make(map[string]SessionPolicy),
	}}
}

// follow reads only what the feed says has changed.
func (f *follower) follow(r kv.Reader) error {
	list, revision, err := Changes(r, f.revision)
	if err != nil {
		return err
	}
	for _, c := range list {
		if c.Policy != 0 {
			p, found, err := get[Policy](r, numbered(prefixPolicy, c.Policy))
			if err != nil {
				return err
			}
			if f.seen.policies[c.Policy] = p; !found {
				delete(f.seen.policies, c.Policy)
			}
		}
		if c.Client != "" {
			list, err := AssignmentsOf(r, c.Client)
			if err != nil {
				return err
			}
			if f.seen.assignments[c.Client] = list; len(list) == 0 {
				delete(f.seen.assignments, c.Client)
			}
		}
		if c.Domain != "" {
			delete(f.seen.domains, c.Domain)
			all, err := AllDomains(r)
			if err != nil {
				return err
			}
			for _, d := range all {
				if d.Name == c.Domain {
					f.seen.domains[d.Name] = d.YAML
				}
			}
		}
		if c.Sessions != "" {
			all, err := SessionPolicies(r)
			if err != nil {
				return err
			}
			for _, p := range all {
				if p.Type == c.Sessions {
					f.seen.sessions[p.Type] = p
				}
			}
		}
	}
	f.revision = revision
	return nil
}

// steps draws commands, applies them to the catalog and to the model, and compares what both say.
type steps struct {
	t         *rapid.T
	c         *cat
	m         *model
	followers []*follower
	ids       map[string]string // replica ids ever given, by shard, and to what
}

func draw[T any](s *steps, name string, from ...T) T { return rapid.SampledFrom(from).Draw(s.t, name) }

// same compares a command's fate with the model's, and returns the answer of one that was accepted.
func same[A any](s *steps, r fsm.Result, want fsm.Code) (a A, ok bool) {
	a, code := answer[A](s.c, r)
	if code != want {
		s.t.Fatalf("the catalog says %v %s, the model %v", r.Code, r.Body, want)
	}
	return a, code == fsm.OK
}

func (s *steps) equal(what string, got, want any) {
	if !reflect.DeepEqual(got, want) {
		s.t.Fatalf("%s: %+v, the model has %+v", what, got, want)
	}
}

func (s *steps) bootstrap(*rapid.T) {
	q := Bootstrap{ClusterID: draw(s, "cluster", "c1", "c2"), Shards: draw[uint32](s, "shards", 1, 3), Replicas: 3, Node: firstNode}
	r := s.c.Do(Call(OpBootstrap, q))
	if got, ok := same[Cluster](s, r, s.m.bootstrap(q, s.c.Now)); ok {
		s.equal("cluster", got, s.m.topology.Cluster)
	}
}

func (s *steps) node() string { return draw(s, "node", "n1", "n2", "n3", "n") }

func (s *steps) putNode(*rapid.T) {
	q := Node{ID: s.node(), Peer: draw(s, "peer", "a", "b"), Zone: draw(s, "zone", "", "z")}
	r := s.c.Do(Call(OpPutNode, q))
	if got, ok := same[Cluster](s, r, s.m.putNode(q, s.c.Now)); ok {
		s.equal("cluster", got, s.m.topology.Cluster)
	}
}

func (s *steps) place() (shard uint32, epoch uint64) {
	shard = draw[uint32](s, "shard", 0, 1, 2, 3, 4)
	epoch = uint64(rapid.IntRange(0, 3).Draw(s.t, "epoch"))
	if shard > 0 && int(shard) <= len(s.m.topology.Shards) && rapid.Bool().Draw(s.t, "fresh") {
		epoch = s.m.topology.Shards[shard-1].Epoch
	}
	return shard, epoch
}

func (s *steps) addReplica(*rapid.T) {
	shard, epoch := s.place()
	q := AddReplica{shard, epoch, s.node()}
	r := s.c.Do(Call(OpAddReplica, q))
	if got, ok := same[Shard](s, r, s.m.addReplica(q)); ok {
		s.equal("shard", got, s.m.topology.Shards[shard-1])
	}
}

func (s *steps) setReplica(*rapid.T) {
	shard, epoch := s.place()
	q := SetReplica{shard, epoch, s.node(), draw(s, "role", Voter, Learner)}
	r := s.c.Do(Call(OpSetReplica, q))
	if got, ok := same[Shard](s, r, s.m.setReplica(q)); ok {
		s.equal("shard", got, s.m.topology.Shards[shard-1])
	}
}

func (s *steps) edit() PolicyEdit {
	p := samplePolicy(draw(s, "name", "a", "b", "ab"))
	p.Rate = rapid.Uint32Range(1, 9).Draw(s.t, "rate")
	return PolicyEdit{Policy: p, Actor: draw(s, "actor", "", "me")}
}

func (s *steps) create(*rapid.T) {
	q := s.edit()
	r := s.c.Do(Call(OpCreatePolicy, q))
	if got, ok := same[Policy](s, r, s.m.create(q, s.c.Now)); ok {
		s.equal("policy", got, s.m.policies[got.Number])
	}
}

func (s *steps) update(*rapid.T) {
	q := s.edit()
	q.Policy.Number, q.Expected = rapid.Uint32Range(0, 6).Draw(s.t, "number"), rapid.Uint32Range(0, 3).Draw(s.t, "expected")
	r := s.c.Do(Call(OpUpdatePolicy, q))
	if got, ok := same[Policy](s, r, s.m.update(q, s.c.Now)); ok {
		s.equal("policy", got, s.m.policies[got.Number])
	}
}

func (s *steps) policy() string { return draw(s, "policy", "a", "b", "ab", "p1", "p2", "p3", "p4") }

func (s *steps) delete(*rapid.T) {
	q := PolicyRef{Policy: s.policy(), Actor: "me"}
	r := s.c.Do(Call(OpDeletePolicy, q))
	same[Nothing](s, r, s.m.delete(q, s.c.Now))
}

var fewClients = []string{"a", "a\x01", "ab", Everyone, "a\x00", "\xc3\xa9"}

func (s *steps) assign(*rapid.T) {
	q := Assign{
		Policy: s.policy(), Clients: rapid.SliceOfN(rapid.SampledFrom(fewClients), 0, 4).Draw(s.t, "clients"),
		Rate: rapid.Uint32Range(0, 2).Draw(s.t, "rate"), Priority: draw(s, "priority", nil, ptr[int32](0), ptr[int32](-7)),
		From: draw[fsm.Time](s, "from", 0, s.c.Now), To: draw[fsm.Time](s, "to", 0, s.c.Now+1),
	}
	un := rapid.Bool().Draw(s.t, "un")
	r := s.c.Do(Call(map[bool]uint8{false: OpAssign, true: OpUnassign}[un], q))
	code, n := s.m.assign(q, s.c.Now, un)
	if got, ok := same[uint32](s, r, code); ok {
		s.equal("number of clients", got, n)
	}
}

func (s *steps) putDomain(*rapid.T) {
	q := Domain{Name: draw(s, "domain", "d", "e", "dd"), YAML: draw(s, "yaml", "", "1", "2")}
	r := s.c.Do(Call(OpPutDomain, q))
	same[Nothing](s, r, s.m.putDomain(q, s.c.Now))
}

func (s *steps) putSessionPolicy(*rapid.T) {
	q := SessionPolicy{
		Type: draw(s, "type", "web", "mobile", "api"), Sessions: rapid.Uint32Range(0, 2).Draw(s.t, "sessions"),
		Actor: draw(s, "actor", "", "me"), Revision: rapid.Uint32Range(0, 3).Draw(s.t, "revision"),
	}
	r := s.c.Do(Call(OpPutSessionPolicy, q))
	if got, ok := same[SessionPolicy](s, r, s.m.putSessionPolicy(q, s.c.Now)); ok {
		s.equal("session policy", got, s.m.sessions[q.Type])
	}
}

func (s *steps) pass(*rapid.T) { s.c.Now += fsm.Time(rapid.IntRange(1, 5).Draw(s.t, "pass")) }

// follow has one of the followers, who are at different revisions, catch up.
func (s *steps) follow(*rapid.T) {
	i := rapid.IntRange(0, len(s.followers)).Draw(s.t, "follower")
	if i == len(s.followers) {
		s.followers = append(s.followers, newFollower())
	}
	v := s.c.View()
	defer v.Close()
	if err := s.followers[i].follow(View(v)); err != nil {
		s.t.Fatalf("follow: %v", err)
	}
	s.equal("what a follower sees", s.followers[i].seen, s.m.picture())
}

// check compares everything that can be asked. It runs after each step.
func (s *steps) check(*rapid.T) {
	s.c.Check()
	s.equal("topology", s.c.topology(), s.m.topology)
	for _, shard := range s.m.topology.Shards {
		for _, r := range shard.Replicas {
			key := string(rune(shard.ID)) + ReplicaID("", r.Gen)
			if was, given := s.ids[key]; given && was != r.Node {
				s.t.Fatalf("generation %d of shard %d belonged to %s and belongs to %s", r.Gen, shard.ID, was, r.Node)
			}
			s.ids[key] = r.Node
		}
	}
	list, revision, err := s.c.changes(0)
	if err != nil || revision != s.m.topology.Cluster.Revision || !slices.Equal(list, s.m.changes) {
		s.t.Fatalf("changes to %d: %+v %v, the model has %+v", revision, list, err, s.m.changes)
	}
	want := s.m.picture()
	got := newFollower().seen
	for _, p := range read(s.c, AllPolicies) {
		got.policies[p.Number] = p
	}
	for _, d := range read(s.c, AllDomains) {
		got.domains[d.Name] = d.YAML
	}
	for _, p := range read(s.c, SessionPolicies) {
		got.sessions[p.Type] = p
	}
	for _, client := range fewClients {
		if list := s.c.assignments(client); len(list) > 0 {
			got.assignments[client] = list
		}
	}
	s.equal("policies, assignments, domains and session policies", got, want)
	for n, lines := range s.m.history {
		name := PolicyID(n)
		switch n {
		case domainNumber:
			name = DomainHistory
		case sessionPolicyNumber:
			name = SessionPolicyHistory
		}
		audit := asked[[]Audit](s.c, OpHistory, PolicyRef{Policy: name})
		slices.Reverse(audit)
		s.equal("history", audit, lines)
		r := s.c.Query(Call(OpListClients, Page{Policy: PolicyID(n), Size: MaxPage}))
		if _, there := s.m.policies[n]; there {
			s.equal("clients", clientIDs(must[Clients](s.c, r).List), s.m.clients(n))
		} else if r.Code != fsm.NotFound {
			s.t.Fatalf("clients of a deleted policy: %v", r.Code)
		}
	}
	for _, name := range []string{"a", "b", "ab", "p1", "p2"} {
		r := s.c.Query(Call(OpGetPolicy, PolicyRef{Policy: name}))
		if n := s.m.find(name); n != 0 {
			s.equal("policy "+name, must[Policy](s.c, r), s.m.policies[n])
		} else if r.Code != fsm.NotFound {
			s.t.Fatalf("policy %s, which is not there: %v", name, r.Code)
		}
	}
}

// TestModel runs random commands, most of which have something to contradict them. The machine that is opened again
// before each entry and the rule that a refusal writes nothing are verified on the way: see catalogtest.Shard.
func TestModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := &steps{t: t, c: newCat(t), m: newModel(), ids: make(map[string]string)}
		if rapid.IntRange(0, 9).Draw(t, "set up") > 0 { // or most of a run is refused
			s.bootstrap(t)
		}
		t.Repeat(map[string]func(*rapid.T){
			"": s.check, "bootstrap": s.bootstrap, "put node": s.putNode, "add replica": s.addReplica, "set replica": s.setReplica,
			"create": s.create, "update": s.update, "delete": s.delete, "assign": s.assign, "assign more": s.assign,
			"put domain": s.putDomain, "put session policy": s.putSessionPolicy, "follow": s.follow, "pass": s.pass,
		})
	})
}
