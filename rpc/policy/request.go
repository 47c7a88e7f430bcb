package policy

import (
	"fmt"
	"slices"
	"strings"
)

// Request is what is known of a request to be limited.
type Request struct {
	Client, APIKey, IP, Region, Resource string
	// Policies names, by id or name, the policies to apply instead of those that match.
	Policies []string

	subjectKey string // once it was asked for
}

// The dimensions of a request, as bits of a scope.
const (
	dimClient = 1 << iota
	dimAPIKey
	dimIP
	dimRegion
	dimResource
	scopes = 1 << iota // how many combinations there are
)

var dimNames = [...]string{"client", "api_key", "ip", "region", "resource"}

// ParseScope checks a scope such as "client" or "client+resource" and returns its standard form.
func ParseScope(scope string) (string, error) {
	bits, err := scopeBits(scope)
	if err != nil {
		return "", err
	}
	var names []string
	for i, name := range dimNames {
		if bits&(1<<i) != 0 {
			names = append(names, name)
		}
	}
	return strings.Join(names, "+"), nil
}

func scopeBits(scope string) (int, error) {
	bits := 0
	for name := range strings.SplitSeq(scope, "+") {
		i := slices.Index(dimNames[:], name)
		if i < 0 || bits&(1<<i) != 0 {
			return 0, fmt.Errorf("scope %q: use client, api_key, ip, region or resource, or several joined with +", scope)
		}
		bits |= 1 << i
	}
	return bits, nil
}

func (q *Request) dims() int {
	given := 0
	for i, v := range q.values() {
		if v != "" {
			given |= 1 << i
		}
	}
	return given
}

func (q *Request) values() [len(dimNames)]string {
	return [...]string{q.Client, q.APIKey, q.IP, q.Region, q.Resource}
}

// subject is the dimension whose shard decides: the first that is given.
func (q *Request) subject() int {
	for i, v := range q.values() {
		if v != "" {
			return i
		}
	}
	return 0
}

func (q *Request) first() string { return q.values()[q.subject()] }

// SubjectKey is the routing key of the shard that decides on a request.
func (q *Request) SubjectKey() string {
	if q.subjectKey == "" {
		i := q.subject()
		q.subjectKey = dimNames[i] + ":" + q.values()[i]
	}
	return q.subjectKey
}
