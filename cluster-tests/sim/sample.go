package sim

import (
	"slices"

	"github.com/anishathalye/porcupine"

	"github.com/holdfastdb/holdfast/cluster-tests/check"
	"github.com/holdfastdb/holdfast/cluster-tests/history"
	"github.com/holdfastdb/holdfast/cluster-tests/models"
)

// sequential are the resources whose counters porcupine can judge: those that nothing but checks, questions and resets touch.
var sequential = []string{resourceSum, "token_bucket", "sliding_window", "sliding_log", "fixed_window", "leaky_bucket"}

// Sample has porcupine judge the counters of a run, after the run and outside of its time. When an operation of unknown
// outcome took effect, the state of a window or bucket after it depends on: only what came before the first one is looked
// at, but for the window that never ends. The histories are drawn into the directory, if there is one.
func (r *Report) Sample(dir string) check.Sampled {
	rules := rules()
	resource := func(op *history.Op) string { return op.Input.(models.LimitOp).Request.Resource }
	s := check.Porcupine(r.history, check.Sampling{
		Key: func(op *history.Op) (string, bool) {
			return resource(op) + "/" + op.Input.(models.LimitOp).Request.Client, slices.Contains(sequential, resource(op))
		},
		Model: func(_ string, ops []*history.Op) (porcupine.Model, bool) {
			p := rules[resource(ops[0])]
			return models.LimitSequence(p), models.CanJudge(p, ops)
		},
		Until: func(op *history.Op) bool { return op.Outcome == history.Unknown && resource(op) != resourceSum },
		Dir:   dir, Draw: dir != "",
	})
	r.Violations = append(r.Violations, s.Violations...)
	return s
}
