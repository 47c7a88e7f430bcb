package rpc

import (
	"context"
	"slices"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/fsm/catalog"
	"github.com/holdfastdb/holdfast/rpc/envoyrls"
	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
)

// ImportEnvoy implements the service.
func (s *policies) ImportEnvoy(ctx context.Context, q *pb.ImportEnvoyRequest) (*pb.ImportEnvoyResponse, error) {
	d, err := envoyrls.Parse(q.Yaml)
	if err != nil {
		return nil, statusOf(invalidf("yaml: %v", err))
	}
	if err := checkText("domain", d.Name); err != nil {
		return nil, statusOf(err)
	}
	if !q.DryRun {
		known, err := s.domains()
		if err != nil {
			return nil, statusOf(err)
		}
		isNew := !slices.ContainsFunc(known, func(k catalog.Domain) bool { return k.Name == d.Name })
		if isNew && len(known) >= maxDomains {
			return nil, statusOf(fsm.Errorf(fsm.Exhausted, "there are %d domains already: delete one", len(known)))
		}
		if err := s.putDomain(ctx, catalog.Domain{Name: d.Name, YAML: q.Yaml, Actor: actor(ctx)}); err != nil {
			return nil, statusOf(err)
		}
	}
	return &pb.ImportEnvoyResponse{Domain: d.Name, Rules: uint32(d.Rules)}, nil
}

// maxDomains bounds what every node keeps compiled. It is checked where a domain comes in, so a few more are possible.
const maxDomains = 1000

// domains reads this node's copy of the catalog, which has what was acknowledged.
func (s *policies) domains() ([]catalog.Domain, error) {
	view := s.node.CatalogView()
	defer view.Close()
	return catalog.AllDomains(catalog.View(view))
}

func (s *policies) putDomain(ctx context.Context, d catalog.Domain) error {
	_, err := change[catalog.Nothing](ctx, s.node, catalog.Call(catalog.OpPutDomain, d))
	return err
}

// envoyPage is how much YAML is enough for a page. One domain more may be on it, and a client takes 4 MiB in all.
const envoyPage = 2 << 20

// ListEnvoy implements the service.
func (s *policies) ListEnvoy(_ context.Context, q *pb.ListEnvoyRequest) (*pb.ListEnvoyResponse, error) {
	view := s.node.CatalogView()
	defer view.Close()
	r, size := &pb.ListEnvoyResponse{}, 0
	err := catalog.DomainsAfter(catalog.View(view), q.PageToken, func(d catalog.Domain) bool {
		if size >= envoyPage {
			r.NextPageToken = r.Domains[len(r.Domains)-1].Domain
			return false
		}
		r.Domains = append(r.Domains, &pb.EnvoyDomain{Domain: d.Name, Yaml: d.YAML, Actor: d.Actor, UpdatedAt: timestamp(d.Updated)})
		size += len(d.YAML)
		return true
	})
	return r, statusOf(err)
}

// DeleteEnvoy implements the service.
func (s *policies) DeleteEnvoy(ctx context.Context, q *pb.DeleteEnvoyRequest) (*pb.DeleteEnvoyResponse, error) {
	known, err := s.domains()
	if err != nil {
		return nil, statusOf(err)
	}
	if !slices.ContainsFunc(known, func(d catalog.Domain) bool { return d.Name == q.Domain }) {
		return nil, statusOf(fsm.Errorf(fsm.NotFound, "no domain %q", q.Domain))
	}
	if err := s.putDomain(ctx, catalog.Domain{Name: q.Domain, Actor: actor(ctx)}); err != nil { // one without content is deleted
		return nil, statusOf(err)
	}
	return &pb.DeleteEnvoyResponse{}, nil
}
