// Package envoyrls speaks envoy.service.ratelimit.v3.RateLimitService, with policies in the YAML dialect of Envoy's
// reference rate limit service (github.com/envoyproxy/ratelimit).
//
// It differs from the reference in one point, on purpose: a request that one descriptor denies takes nothing from the
// others. Everything else that is visible, from the windows to the order of matching, is as there.
package envoyrls

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/fsm/counter"
)

// Domain is the compiled configuration of one domain.
type Domain struct {
	Name string
	root *level
	// Rules counts the limits.
	Rules int
}

// level is the descriptors below one descriptor.
type level struct {
	exact     map[string]*descriptor // by key_value, or key for any value
	wildcards []*descriptor          // in the order of the file
}

type descriptor struct {
	key, value string
	rule       *rule
	below      *level
	shared     bool // one counter for all values that a wildcard matches
}

// rule is a limit.
type rule struct {
	name      string
	perUnit   uint32
	unit      string
	unlimited bool
	shadow    bool
	quota     bool
	replaces  []string
}

// The YAML dialect.
type (
	yamlDomain struct {
		Domain      string           `yaml:"domain"`
		Descriptors []yamlDescriptor `yaml:"descriptors"`
	}
	yamlDescriptor struct {
		Key            string           `yaml:"key"`
		Value          string           `yaml:"value"`
		RateLimit      *yamlLimit       `yaml:"rate_limit"`
		Descriptors    []yamlDescriptor `yaml:"descriptors"`
		Shadow         bool             `yaml:"shadow_mode"`
		Quota          bool             `yaml:"quota_mode"`
		DetailedMetric bool             `yaml:"detailed_metric"`
		ValueToMetric  bool             `yaml:"value_to_metric"`
		ShareThreshold bool             `yaml:"share_threshold"`
		Metadata       map[string]any   `yaml:"metadata"`
	}
	yamlLimit struct {
		Name            string     `yaml:"name"`
		Unit            string     `yaml:"unit"`
		RequestsPerUnit uint32     `yaml:"requests_per_unit"`
		Unlimited       bool       `yaml:"unlimited"`
		Replaces        []yamlName `yaml:"replaces"`
	}
	yamlName struct {
		Name string `yaml:"name"`
	}
)

// windows are the lengths of the units, as the reference has them.
var windows = map[string]fsm.Millis{
	"second": 1000, "minute": 60_000, "hour": 3_600_000, "day": 86_400_000, "week": 7 * 86_400_000,
	"month": 30 * 86_400_000, "year": 365 * 86_400_000,
}

const (
	maxYAML  = 1 << 20
	maxDepth = 16
)

// Parse compiles a file. Errors tell what is wrong with it, for people.
func Parse(text string) (*Domain, error) {
	if len(text) > maxYAML {
		return nil, fmt.Errorf("the file has %d bytes, at most %d are allowed", len(text), maxYAML)
	}
	d := yaml.NewDecoder(bytes.NewReader([]byte(text)))
	d.KnownFields(true)
	var file yamlDomain
	if err := d.Decode(&file); err != nil {
		return nil, fmt.Errorf("not in the dialect: %w", err)
	}
	if err := d.Decode(&yamlDomain{}); !errors.Is(err, io.EOF) {
		return nil, errors.New("a file holds one domain")
	}
	if file.Domain == "" {
		return nil, errors.New("domain is missing")
	}
	domain := &Domain{Name: file.Domain}
	var err error
	domain.root, err = domain.compile(file.Descriptors, file.Domain, 0)
	return domain, err
}

func (d *Domain) compile(list []yamlDescriptor, path string, depth int) (*level, error) {
	if depth >= maxDepth {
		return nil, fmt.Errorf("%s: nested more than %d deep", path, maxDepth)
	}
	l := &level{exact: make(map[string]*descriptor)}
	for i := range list {
		y := &list[i]
		if y.Key == "" {
			return nil, fmt.Errorf("%s: a descriptor has no key", path)
		}
		name := y.Key
		if y.Value != "" {
			name += "_" + y.Value
		}
		where := path + "." + name
		if l.exact[name] != nil {
			return nil, fmt.Errorf("%s: duplicate descriptor", where)
		}
		x := &descriptor{key: y.Key, value: y.Value, shared: y.ShareThreshold}
		wildcard := strings.HasSuffix(y.Value, "*")
		if y.ShareThreshold && !wildcard {
			return nil, fmt.Errorf("%s: share_threshold needs a value that ends in *", where)
		}
		if strings.Contains(strings.TrimSuffix(y.Value, "*"), "*") {
			return nil, fmt.Errorf("%s: * is supported at the end of a value only", where)
		}
		var err error
		if x.rule, err = compileRule(y, where); err != nil {
			return nil, err
		}
		if x.rule != nil {
			d.Rules++
		}
		if len(y.Descriptors) > 0 {
			if x.below, err = d.compile(y.Descriptors, where, depth+1); err != nil {
				return nil, err
			}
		}
		if wildcard {
			l.wildcards = append(l.wildcards, x)
		}
		l.exact[name] = x
	}
	return l, nil
}

func compileRule(y *yamlDescriptor, where string) (*rule, error) {
	if y.RateLimit == nil {
		return nil, nil
	}
	r := &rule{
		name: y.RateLimit.Name, perUnit: y.RateLimit.RequestsPerUnit, unit: strings.ToLower(y.RateLimit.Unit),
		unlimited: y.RateLimit.Unlimited, shadow: y.Shadow, quota: y.Quota,
	}
	_, known := windows[r.unit]
	switch {
	case r.unlimited && r.unit != "":
		return nil, fmt.Errorf("%s: unlimited takes no unit", where)
	case !r.unlimited && !known:
		return nil, fmt.Errorf("%s: unit %q: use second, minute, hour, day, week, month or year", where, y.RateLimit.Unit)
	case !r.unlimited:
		params := r.params()
		if err := params.Validate(); err != nil {
			return nil, fmt.Errorf("%s: requests_per_unit %d in a %s: %w", where, r.perUnit, r.unit, err)
		}
	}
	for _, other := range y.RateLimit.Replaces {
		if other.Name == "" || other.Name == r.name {
			return nil, fmt.Errorf("%s: replaces needs the name of another rule", where)
		}
		r.replaces = append(r.replaces, other.Name)
	}
	return r, nil
}

// params are the rules as counters know them: fixed windows, aligned to the epoch.
func (r *rule) params() counter.Params {
	return counter.Params{Algorithm: counter.FixedWindow, Rate: max(r.perUnit, 1), Window: windows[r.unit]}
}

// entry is one part of a request's descriptor.
type entry struct{ key, value string }

// find returns the rule for a descriptor and the parts of its counter's name; nil if none matches. As in the reference,
// an exact value comes before wildcards and these before any value, and the rule must be as deep as the descriptor.
func (d *Domain) find(entries []entry) (*rule, []string) {
	l := d.root
	var name []string
	for i, e := range entries {
		if l == nil {
			return nil, nil
		}
		x := l.match(e)
		if x == nil {
			return nil, nil
		}
		value := e.value
		if x.shared {
			value = x.value
		}
		name = append(name, e.key, value)
		if i == len(entries)-1 {
			return x.rule, name
		}
		l = x.below
	}
	return nil, nil
}

func (l *level) match(e entry) *descriptor {
	if e.value != "" && !strings.HasSuffix(e.value, "*") {
		if x := l.exact[e.key+"_"+e.value]; x != nil && x.key == e.key {
			return x
		}
	}
	for _, x := range l.wildcards {
		if x.key == e.key && strings.HasPrefix(e.value, strings.TrimSuffix(x.value, "*")) {
			return x
		}
	}
	if x := l.exact[e.key]; x != nil && x.value == "" {
		return x
	}
	return nil
}
