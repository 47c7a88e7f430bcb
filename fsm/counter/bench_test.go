package counter

import (
	"encoding/binary"
	"fmt"
	"testing"

	"github.com/holdfastdb/holdfast/fsm"
)

// perEntry is how many takes a log entry carries in the benchmark: a shard under load fills its entries.
const perEntry = 256

func benchKey(n int) Key {
	var k Key
	binary.BigEndian.PutUint64(k[:], uint64(n)*0x9e3779b97f4a7c15)
	return k
}

// BenchmarkTake is the whole way of a take through the machine, from the encoded entry to the encoded result, without a
// disk. An operation is one take.
func BenchmarkTake(b *testing.B) {
	for _, a := range everyAlgorithm {
		for _, keys := range []int{1, 10_000} {
			b.Run(fmt.Sprintf("%s/keys=%d", a, keys), func(b *testing.B) { benchmarkTake(b, a, keys) })
		}
	}
}

func benchmarkTake(b *testing.B, a Algorithm, keys int) {
	s := newShard(b)
	s.withoutReopen = true
	p := params(a, 1000, 1000)
	var entry fsm.Entry
	calls := make([]fsm.Call, perEntry)
	var data []byte
	b.ReportAllocs()
	b.ResetTimer()
	for done := 0; done < b.N; done += perEntry {
		b.StopTimer()
		for i := range calls {
			l := Limit{Key: benchKey((done + i) % keys), Params: p}
			calls[i] = call(OpTake, &TakeRequest{1, []Limit{l}})
		}
		s.now += 100
		s.index++
		entry = fsm.Entry{Time: s.now, Frames: []fsm.Frame{{Calls: calls[:min(perEntry, b.N-done)]}}}
		data = entry.Append(data[:0])
		b.StartTimer()
		if _, err := s.machine.Apply([]fsm.LogEntry{{Index: s.index, Term: 1, Data: data}}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkSimulator(b *testing.B) {
	for _, a := range everyAlgorithm {
		b.Run(a.String(), func(b *testing.B) {
			s := NewSimulator()
			limits := []Limit{limit(1, params(a, 1000, 1000))}
			b.ReportAllocs()
			for i := range b.N {
				s.Take(epoch+fsm.Time(i), limits, 1)
			}
		})
	}
}
