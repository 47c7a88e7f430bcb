package sim

import (
	"github.com/holdfastdb/holdfast/cluster-tests/check"
	"github.com/holdfastdb/holdfast/cluster-tests/history"
)

// Sample has porcupine judge what it can of a run, after the run and outside of its time. Those that are wrong are drawn into
// the directory, if there is one, and if asked for all others too.
func (r *Report) Sample(dir string, draw bool) (all check.Sampled) {
	for _, part := range r.parts {
		s := check.Porcupine(r.history, check.Sampling{Sequences: part.Sequences(), Dir: dir, Draw: draw})
		all.Keys, all.Operations, all.Skipped, all.Left = all.Keys+s.Keys, all.Operations+s.Operations, all.Skipped+s.Skipped, all.Left+s.Left
		all.Violations = append(all.Violations, s.Violations...)
	}
	r.Violations = append(r.Violations, all.Violations...)
	return all
}

// Save writes the history of a run into a directory.
func (r *Report) Save(dir string) error { return history.Save(dir, r.history) }
