package catalog

import (
	"errors"
	"math"
	"slices"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/storage/kv"
	"github.com/holdfastdb/holdfast/storage/plant"
)

// errBehind is returned when the ring of changes does not reach back far enough.
var errBehind = errors.New("catalog: the changes asked for are forgotten")

// IsBehind reports that a follower of changes must read everything again.
func IsBehind(err error) bool { return errors.Is(err, errBehind) }

// Changes reads the changes after revision since, in order, from a view of the type's keys, and tells the newest
// revision. IsBehind tells that there were too many.
func Changes(r kv.Reader, since uint64) (changes []Change, revision uint64, err error) {
	c, found, err := get[Cluster](r, []byte(keyCluster))
	if err != nil || !found {
		return nil, since, err
	}
	if c.Revision-since > ChangesKept || since > c.Revision {
		return nil, c.Revision, errBehind
	}
	for rev := since + 1; rev <= c.Revision; rev++ {
		ch, found, err := get[Change](r, numbered(prefixChange, uint32(rev%ChangesKept)))
		if err != nil {
			return nil, since, err
		}
		if !found || ch.Revision != rev {
			return nil, c.Revision, errBehind
		}
		if rev%8 == 0 && plant.On(plant.MissChange) {
			continue
		}
		changes = append(changes, ch)
	}
	return changes, c.Revision, nil
}

// AllPolicies reads all policies, by number, from a view of the type's keys.
func AllPolicies(r kv.Reader) ([]Policy, error) {
	var list []Policy
	err := each(r, []byte(prefixPolicy), after([]byte(prefixPolicy)), func(_ []byte, p Policy) bool {
		list = append(list, p)
		return true
	})
	return list, err
}

// AllDomains reads all domains from a view of the type's keys.
func AllDomains(r kv.Reader) ([]Domain, error) {
	var list []Domain
	err := DomainsAfter(r, "", func(d Domain) bool {
		list = append(list, d)
		return true
	})
	return list, err
}

// DomainsAfter reads the domains behind one, by name, as long as f returns true.
func DomainsAfter(r kv.Reader, name string, f func(Domain) bool) error {
	begin := []byte(prefixDomain)
	if name != "" {
		begin = append(begin, name+"\x00"...) // no name has one
	}
	return each(r, begin, after([]byte(prefixDomain)), func(_ []byte, d Domain) bool { return f(d) })
}

func getPolicy(v *fsm.View, q *Body[PolicyRef]) (Body[Policy], error) {
	p, err := FindPolicy(v, q.V.Policy)
	return Body[Policy]{p}, err
}

// Page asks for a part of a list.
type Page struct {
	Policy string `json:",omitempty"` // whose list, where there is one for each policy
	After  string `json:",omitempty"` // the last of the page before
	Size   int
}

// MaxPage bounds a page.
const MaxPage = 1000

func (p *Page) size() int { return min(max(p.Size, 1), MaxPage) }

// Policies is a page of policies.
type Policies struct {
	List []Policy
	More bool
}

func listPolicies(v *fsm.View, q *Body[Page]) (Body[Policies], error) {
	n, _ := ParsePolicyID(q.V.After)
	var page Policies
	if n == math.MaxUint32 { // none has a higher number, and n+1 would begin again
		return Body[Policies]{page}, nil
	}
	err := each(v, numbered(prefixPolicy, n+1), after([]byte(prefixPolicy)), func(_ []byte, p Policy) bool {
		if page.More = len(page.List) == q.V.size(); page.More {
			return false
		}
		page.List = append(page.List, p)
		return true
	})
	return Body[Policies]{page}, err
}

// Clients is a page of a policy's assignments.
type Clients struct {
	List []Assignment
	More bool
}

func listClients(v *fsm.View, q *Body[Page]) (Body[Clients], error) {
	p, err := FindPolicy(v, q.V.Policy)
	if err != nil {
		return Body[Clients]{}, err
	}
	clients, more, err := clientsOf(v, p.Number, q.V.After, q.V.size())
	if err != nil {
		return Body[Clients]{}, err
	}
	page := Clients{More: more}
	for _, client := range clients {
		a, found, err := get[Assignment](v, assignmentKey(client, p.Number))
		if err != nil {
			return Body[Clients]{}, err
		}
		if found {
			page.List = append(page.List, a)
		}
	}
	return Body[Clients]{page}, nil
}

// historyNumber is what a history is kept under. A deleted policy's is found by its id.
func historyNumber(v *fsm.View, policy string) (uint32, error) {
	switch policy {
	case DomainHistory:
		return domainNumber, nil
	case SessionPolicyHistory:
		return sessionPolicyNumber, nil
	}
	n, isID := ParsePolicyID(policy)
	p, err := FindPolicy(v, policy)
	var refusal *fsm.Error
	switch {
	case err == nil:
		return p.Number, nil
	case !isID || n == math.MaxUint32 || !errors.As(err, &refusal): // behind the last number they begin again
		return 0, err
	}
	return n, nil
}

// history lists a policy's changes, newest first.
func history(v *fsm.View, q *Body[PolicyRef]) (Body[[]Audit], error) {
	n, err := historyNumber(v, q.V.Policy)
	if err != nil {
		return Body[[]Audit]{}, err
	}
	var list []Audit
	if err := each(v, numbered(prefixHistory, n), numbered(prefixHistory, n+1), func(_ []byte, a Audit) bool {
		list = append(list, a)
		return true
	}); err != nil {
		return Body[[]Audit]{}, err
	}
	if len(list) == 0 && n != domainNumber {
		return Body[[]Audit]{}, fsm.Errorf(fsm.NotFound, "no policy %q", q.V.Policy)
	}
	slices.Reverse(list)
	return Body[[]Audit]{list}, nil
}

// View gives the catalog's keys of a view of group 0, as the functions here read them.
func View(r kv.Reader) kv.Reader { return fsm.ViewOf(r, TypeID, 0) }
