package sim

import "github.com/holdfastdb/holdfast/cluster-tests/check"

// Sample has porcupine judge what it can of a run, after the run and outside of its time. The histories are drawn into the
// directory, if there is one.
func (r *Report) Sample(dir string) (all check.Sampled) {
	for _, part := range r.parts {
		s := check.Porcupine(r.history, check.Sampling{Sequences: part.Sequences(), Dir: dir, Draw: dir != ""})
		all.Keys, all.Operations, all.Skipped, all.Left = all.Keys+s.Keys, all.Operations+s.Operations, all.Skipped+s.Skipped, all.Left+s.Left
		all.Violations = append(all.Violations, s.Violations...)
	}
	r.Violations = append(r.Violations, all.Violations...)
	return all
}
