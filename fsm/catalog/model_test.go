package catalog

import (
	"cmp"
	"maps"
	"slices"

	"github.com/holdfastdb/holdfast/fsm"
)

// model is the catalog as its documentation tells it, in plain maps. Each command is written as what must hold for it
// to be accepted, and then what it changes.
type model struct {
	topology    Topology
	policies    map[uint32]Policy
	assignments map[pair]Assignment
	history     map[uint32][]Audit // oldest first
	domains     map[string]string
	sessions    map[string]SessionPolicy
	changes     []Change // all there ever were
}

type pair struct {
	policy uint32
	client string
}

func newModel() *model {
	return &model{
		policies: make(map[uint32]Policy), assignments: make(map[pair]Assignment), history: make(map[uint32][]Audit),
		domains: make(map[string]string), sessions: make(map[string]SessionPolicy),
	}
}

func (m *model) there() bool { return m.topology.Cluster.ID != "" }

func (m *model) changed(c Change) {
	m.topology.Cluster.Revision++
	c.Revision = m.topology.Cluster.Revision
	m.changes = append(m.changes, c)
}

func (m *model) audit(number uint32, a Audit) { m.history[number] = append(m.history[number], a) }

func (m *model) bootstrap(q Bootstrap, now fsm.Time) fsm.Code {
	if m.there() {
		if m.topology.Cluster.ID == q.ClusterID {
			return fsm.OK
		}
		return fsm.Conflict
	}
	m.topology.Cluster = Cluster{ID: q.ClusterID, Shards: q.Shards, Replicas: q.Replicas, Created: now, Epoch: 1}
	n := q.Node
	n.State, n.Joined = Active, now
	m.topology.Nodes = []Node{n}
	for i := range q.Shards {
		first, last := SplitSlots(i, q.Shards)
		m.topology.Shards = append(m.topology.Shards, Shard{
			ID: i + 1, First: first, Last: last, Epoch: 1, Gens: 1, Replicas: []Replica{{n.ID, 1, Voter}},
		})
	}
	return fsm.OK
}

func (m *model) putNode(q Node, now fsm.Time) fsm.Code {
	if !m.there() {
		return fsm.NotFound
	}
	nodes := &m.topology.Nodes
	i, found := slices.BinarySearchFunc(*nodes, q.ID, func(n Node, id string) int { return cmp.Compare(n.ID, id) })
	switch {
	case !found:
		q.State, q.Joined = Active, now
		*nodes = slices.Insert(*nodes, i, q)
	default:
		q.State, q.Joined = (*nodes)[i].State, (*nodes)[i].Joined
		if q == (*nodes)[i] {
			return fsm.OK
		}
		(*nodes)[i] = q
	}
	m.topology.Cluster.Epoch++
	return fsm.OK
}

func (m *model) shard(id uint32, epoch uint64) (*Shard, fsm.Code) {
	if id == 0 || int(id) > len(m.topology.Shards) {
		return nil, fsm.NotFound
	}
	if s := &m.topology.Shards[id-1]; s.Epoch == epoch {
		return s, fsm.OK
	}
	return nil, fsm.Conflict
}

func (m *model) addReplica(q AddReplica) fsm.Code {
	s, code := m.shard(q.Shard, q.Epoch)
	if code != fsm.OK {
		return code
	}
	if _, ok := m.topology.Node(q.Node); !ok {
		return fsm.Conflict
	}
	for _, r := range s.Replicas {
		if r.Node == q.Node {
			return fsm.Conflict
		}
	}
	s.Gens++
	s.Epoch++
	m.topology.Cluster.Epoch++
	s.Replicas = append(s.Replicas, Replica{q.Node, s.Gens, Learner})
	return fsm.OK
}

func (m *model) setReplica(q SetReplica) fsm.Code {
	s, code := m.shard(q.Shard, q.Epoch)
	if code != fsm.OK {
		return code
	}
	for i := range s.Replicas {
		if s.Replicas[i].Node == q.Node {
			s.Replicas[i].Role = q.Role
			s.Epoch++
			m.topology.Cluster.Epoch++
			return fsm.OK
		}
	}
	return fsm.NotFound
}

// find finds a policy by id or name, 0 for none.
func (m *model) find(idOrName string) uint32 {
	for n, p := range m.policies {
		if p.ID() == idOrName {
			return n
		}
	}
	for n, p := range m.policies {
		if p.Name == idOrName {
			return n
		}
	}
	return 0
}

func (m *model) create(q PolicyEdit, now fsm.Time) fsm.Code {
	if !m.there() {
		return fsm.NotFound
	}
	if m.find(q.Policy.Name) != 0 {
		return fsm.Conflict
	}
	m.topology.Cluster.Policies++
	p := q.Policy
	p.Number, p.Revision, p.Created, p.Updated = m.topology.Cluster.Policies, 1, now, now
	m.policies[p.Number] = p
	m.changed(Change{Policy: p.Number})
	m.audit(p.Number, Audit{At: now, Actor: q.Actor, Action: "create", Revision: 1, Policy: &p})
	return fsm.OK
}

func (m *model) update(q PolicyEdit, now fsm.Time) fsm.Code {
	p := q.Policy
	old, found := m.policies[p.Number]
	if !found {
		return fsm.NotFound
	}
	if other := m.find(p.Name); q.Expected != 0 && q.Expected != old.Revision || other != 0 && other != p.Number {
		return fsm.Conflict
	}
	p.Revision, p.Created, p.Updated = old.Revision+1, old.Created, now
	m.policies[p.Number] = p
	m.changed(Change{Policy: p.Number})
	m.audit(p.Number, Audit{At: now, Actor: q.Actor, Action: "update", Revision: p.Revision, Policy: &p})
	return fsm.OK
}

func (m *model) delete(q PolicyRef, now fsm.Time) fsm.Code {
	n := m.find(q.Policy)
	if n == 0 {
		return fsm.NotFound
	}
	for _, client := range m.clients(n) {
		delete(m.assignments, pair{n, client})
		m.changed(Change{Client: client})
	}
	p := m.policies[n]
	delete(m.policies, n)
	m.changed(Change{Policy: n})
	m.audit(n, Audit{At: now, Actor: q.Actor, Action: "delete", Revision: p.Revision + 1, Policy: &p})
	return fsm.OK
}

// clients are a policy's, in order.
func (m *model) clients(number uint32) (list []string) {
	for p := range m.assignments {
		if p.policy == number {
			list = append(list, p.client)
		}
	}
	slices.Sort(list)
	return list
}

func (m *model) assign(q Assign, now fsm.Time, un bool) (fsm.Code, uint32) {
	n := m.find(q.Policy)
	if n == 0 {
		return fsm.NotFound, 0
	}
	var touched []string
	for i, client := range q.Clients {
		_, there := m.assignments[pair{n, client}]
		if slices.Contains(q.Clients[:i], client) || un && !there {
			continue
		}
		touched = append(touched, client)
	}
	for _, client := range touched {
		if un {
			delete(m.assignments, pair{n, client})
		} else {
			m.assignments[pair{n, client}] = Assignment{n, client, q.Rate, q.Priority, q.From, q.To}
		}
		m.changed(Change{Client: client})
	}
	action := map[bool]string{false: "assign", true: "unassign"}[un]
	m.audit(n, Audit{At: now, Actor: q.Actor, Action: action, Revision: m.policies[n].Revision, Detail: summary(touched)})
	return fsm.OK, uint32(len(touched))
}

func (m *model) putDomain(q Domain, now fsm.Time) fsm.Code {
	if !m.there() {
		return fsm.NotFound
	}
	m.domains[q.Name] = q.YAML
	action := "import"
	if q.YAML == "" {
		action = "delete"
		delete(m.domains, q.Name)
	}
	m.changed(Change{Domain: q.Name})
	m.audit(domainNumber, Audit{At: now, Actor: q.Actor, Action: action, Detail: q.Name})
	return fsm.OK
}

func (m *model) putSessionPolicy(q SessionPolicy, now fsm.Time) fsm.Code {
	old := m.sessions[q.Type]
	if q.Revision != 0 && q.Revision != old.Revision {
		return fsm.Conflict
	}
	if !m.there() {
		return fsm.NotFound
	}
	q.Updated, q.Revision = now, old.Revision+1
	m.sessions[q.Type] = q
	m.changed(Change{Sessions: q.Type})
	m.audit(sessionPolicyNumber, Audit{At: now, Actor: q.Actor, Action: "update", Detail: q.Type})
	return fsm.OK
}

// picture is what readers of policies see, in a form that can be compared.
type picture struct {
	policies    map[uint32]Policy
	assignments map[string][]Assignment // of a client, by policy
	domains     map[string]string
	sessions    map[string]SessionPolicy
}

func (m *model) picture() picture {
	p := picture{maps.Clone(m.policies), make(map[string][]Assignment), maps.Clone(m.domains), maps.Clone(m.sessions)}
	for _, n := range slices.Sorted(maps.Keys(m.history)) { // every number there ever was
		for _, client := range m.clients(n) {
			p.assignments[client] = append(p.assignments[client], m.assignments[pair{n, client}])
		}
	}
	return p
}
