package policy

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash"
	"slices"
	"strings"

	"github.com/zeebo/xxh3"

	"github.com/holdfastdb/holdfast/fsm/catalog"
	"github.com/holdfastdb/holdfast/fsm/counter"
)

// rule is a compiled policy.
type rule struct {
	policy *catalog.Policy
	params counter.Params
	scope  int
	prefix bool // of the resource
}

// entry is a rule for everyone, under an assignment.
type entry struct {
	*rule
	assignment catalog.Assignment
	priority   int32
}

// index is what does not change between two revisions.
type index struct {
	byNumber map[uint32]*rule
	byName   map[string]*rule
	// Rules for everyone: by exact resource, by resource prefix, and for all resources. Each list is sorted so that
	// the first entry of a scope that qualifies is the one that applies.
	exact    map[string][]entry
	prefixes map[string][]entry
	lengths  []int // of the keys of prefixes
	all      []entry
}

func compile(policies []catalog.Policy, everyone []catalog.Assignment) *index {
	x := &index{
		byNumber: make(map[uint32]*rule, len(policies)), byName: make(map[string]*rule, len(policies)),
		exact: make(map[string][]entry), prefixes: make(map[string][]entry),
	}
	for i := range policies {
		p := &policies[i]
		scope, err := scopeBits(p.Scope)
		params, paramsErr := Params(p)
		if err != nil || paramsErr != nil {
			continue // a newer version made it; this one cannot apply it
		}
		r := &rule{policy: p, params: params, scope: scope, prefix: strings.HasSuffix(p.Resource, "*")}
		x.byNumber[p.Number], x.byName[p.Name] = r, r
	}
	for _, a := range everyone {
		r := x.byNumber[a.Policy]
		if r == nil {
			continue
		}
		e := entry{rule: r, assignment: a, priority: a.EffectivePriority(r.policy)}
		switch {
		case r.policy.Resource == "":
			x.all = append(x.all, e)
		case r.prefix:
			key := strings.TrimSuffix(r.policy.Resource, "*")
			x.prefixes[key] = append(x.prefixes[key], e)
			if !slices.Contains(x.lengths, len(key)) {
				x.lengths = append(x.lengths, len(key))
			}
		default:
			x.exact[r.policy.Resource] = append(x.exact[r.policy.Resource], e)
		}
	}
	first := func(a, b entry) int {
		return cmp.Or(cmp.Compare(a.scope, b.scope), cmp.Compare(b.priority, a.priority), cmp.Compare(a.policy.Number, b.policy.Number))
	}
	slices.SortFunc(x.all, first)
	for _, list := range x.exact {
		slices.SortFunc(list, first)
	}
	for _, list := range x.prefixes {
		slices.SortFunc(list, first)
	}
	return x
}

// Params are a policy's rules as counters know them, checked.
func Params(p *catalog.Policy) (counter.Params, error) {
	algorithm, ok := counter.ParseAlgorithm(p.Algorithm)
	if !ok {
		return counter.Params{}, fmt.Errorf("algorithm %q: use one of %s", p.Algorithm, strings.Join(counter.Algorithms(), ", "))
	}
	calendar, ok := counter.ParseCalendar(p.Calendar)
	if !ok {
		return counter.Params{}, fmt.Errorf("calendar %q: use minute, hour, day, week, month or year", p.Calendar)
	}
	params := counter.Params{Algorithm: algorithm, Rate: p.Rate, Window: p.WindowMS, Burst: p.Burst, Calendar: calendar}
	return params, params.Validate()
}

func (r *rule) applies(q *Request, given int) bool {
	p := r.policy
	if !p.Active || r.scope&^given != 0 {
		return false
	}
	if p.Resource != "" && q.Resource != p.Resource &&
		(!r.prefix || !strings.HasPrefix(q.Resource, p.Resource[:len(p.Resource)-1])) {
		return false
	}
	return p.Rollout >= 100 || p.Rollout > 0 && rolloutBucket(p.Number, q.first()) < p.Rollout
}

// rolloutBucket places a client in one of a hundred buckets, differently for each policy.
func rolloutBucket(policy uint32, client string) uint32 {
	return uint32(xxh3.HashStringSeed(client, uint64(policy)) % 100)
}

// match builds the limit. A counter that counts by the subject lives on the subject's shard, whatever else it counts by,
// so that all limits of one client are decided in one step; others have a place of their own.
func (r *rule) match(q *Request, h *hasher, subject int, rate uint32) Match {
	params := r.params
	if rate != 0 {
		if params.Burst == params.Rate {
			params.Burst = rate
		}
		params.Rate = rate
		if params.Validate() != nil {
			params = r.params // an override that does not fit the policy any more
		}
	}
	m := Match{Policy: r.policy, Limit: counter.Limit{
		Policy: r.policy.Number, Shadow: r.policy.Shadow, Params: params, Key: r.key(q, h),
	}}
	if r.scope&(1<<subject) != 0 {
		m.RoutingKey = q.SubjectKey()
		return m
	}
	key := []byte(r.policy.Scope)
	sep := byte(':')
	for i, v := range q.values() {
		if r.scope&(1<<i) != 0 {
			key = append(append(key, sep), v...)
			sep = 0
		}
	}
	m.RoutingKey = string(key)
	return m
}

// hasher is what naming a counter takes, to be used again: SHA-256 in an interface takes memory for itself and for what it hashes.
type hasher struct {
	hash.Hash
	room [128]byte
	sum  [sha256.Size]byte
}

func newHasher() any { return &hasher{Hash: sha256.New()} }

// key names the counter. See counter.Key.
func (r *rule) key(q *Request, h *hasher) (k counter.Key) {
	b := binary.BigEndian.AppendUint32(h.room[:0], r.policy.Number)
	for i, v := range q.values() {
		if r.scope&(1<<i) != 0 {
			b = append(binary.AppendUvarint(append(b, byte(i)), uint64(len(v))), v...)
		}
	}
	h.Reset()
	h.Write(b)
	copy(k[:], h.Sum(h.sum[:0]))
	return k
}
