package counter

import (
	"reflect"
	"testing"

	"pgregory.net/rapid"
)

// The simulator answers as the machine would have, but for the numbers of the holds.
func TestSimulatorIsTheMachine(t *testing.T) {
	eachAlgorithm(t, everyAlgorithm, func(t *testing.T, a Algorithm) {
		rapid.Check(t, func(t *rapid.T) {
			s, sim := newShard(t), NewSimulator()
			s.withoutReopen = true
			limits := []Limit{limit(1, drawParams(t, a, true)), limit(2, drawParams(t, a, true))}
			limits[1].Shadow = rapid.Bool().Draw(t, "shadow")
			for range rapid.IntRange(1, 30).Draw(t, "steps") {
				s.now += drawStep(t, limits[0].Params)
				some := limits[rapid.IntRange(0, 1).Draw(t, "first"):]
				weight := uint32(rapid.IntRange(0, 6).Draw(t, "weight"))
				want, got := s.take(weight, some...), sim.Take(s.now, some, weight)
				if (want.Hold == 0) != (got.Hold == 0) {
					t.Fatalf("holds %d and %d", got.Hold, want.Hold)
				}
				if got.Hold = want.Hold; !reflect.DeepEqual(got, want) {
					t.Fatalf("%+v, the machine says %+v", got, want)
				}
			}
		})
	})
}
