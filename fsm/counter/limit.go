package counter

import (
	"encoding/binary"
	"fmt"

	"github.com/holdfastdb/holdfast/fsm"
	"github.com/holdfastdb/holdfast/storage/wire"
)

// KeyBytes is the length of a Key.
const KeyBytes = 12

// Key names a counter: the first 96 bits of a SHA-256 of the policy, the scope and what is counted. That is short enough
// for a million counters to fit 64 MB, and nobody can find a second name for somebody else's counter.
type Key [KeyBytes]byte

// Algorithm is how a limit counts. Stored: never reorder.
type Algorithm uint8

// The algorithms.
const (
	TokenBucket   Algorithm = 1
	SlidingWindow Algorithm = 2
	SlidingLog    Algorithm = 3
	FixedWindow   Algorithm = 4
	LeakyBucket   Algorithm = 5
	Concurrency   Algorithm = 6
)

var algorithmNames = [...]string{
	TokenBucket: "token_bucket", SlidingWindow: "sliding_window", SlidingLog: "sliding_log",
	FixedWindow: "fixed_window", LeakyBucket: "leaky_bucket", Concurrency: "concurrency",
}

// Algorithms lists the names of all algorithms.
func Algorithms() []string { return algorithmNames[1:] }

// String returns the name used on all interfaces.
func (a Algorithm) String() string {
	if a != 0 && int(a) < len(algorithmNames) {
		return algorithmNames[a]
	}
	return fmt.Sprintf("algorithm(%d)", uint8(a))
}

// ParseAlgorithm finds an algorithm by its name.
func ParseAlgorithm(name string) (Algorithm, bool) {
	for a, n := range algorithmNames {
		if n == name && n != "" {
			return Algorithm(a), true
		}
	}
	return 0, false
}

// Bursts tells whether the algorithm has a burst capacity.
func (a Algorithm) Bursts() bool { return a == TokenBucket || a == LeakyBucket }

// Params are the rules of a limit.
type Params struct {
	Algorithm Algorithm
	// Rate is how many tokens a window admits; for Concurrency how many may be in use at once.
	Rate uint32
	// Window is the length of the window in milliseconds; for Concurrency how long a slot is held at most.
	Window fsm.Millis
	// Burst is the capacity of the buckets; the others ignore it.
	Burst uint32
	// Calendar replaces Window for FixedWindow.
	Calendar Calendar
}

// Bounds of Params.
const (
	MaxRate      = 1_000_000_000
	MaxWindow    = 366 * 24 * 3600 * 1000
	MaxListed    = 10_000    // Rate of SlidingLog and Concurrency, which keep a list
	maxTokenTime = 1<<62 - 1 // tokens times milliseconds: the sum of two must not overflow
)

// Validate explains what is wrong with the rules, for people. Commands must only carry rules that pass.
func (p *Params) Validate() error {
	largest := max(p.Rate, p.Burst)
	switch {
	case p.Algorithm == 0 || int(p.Algorithm) >= len(algorithmNames):
		return fmt.Errorf("unknown algorithm")
	case p.Rate < 1 || p.Rate > MaxRate:
		return fmt.Errorf("rate_limit must be 1 to %d", MaxRate)
	case p.Window < 1 || p.Window > MaxWindow:
		return fmt.Errorf("time_window must be 0.001 to %d seconds", MaxWindow/1000)
	case (p.Algorithm == SlidingLog || p.Algorithm == Concurrency) && p.Rate > MaxListed:
		return fmt.Errorf("rate_limit of %s must be at most %d: it keeps a list; use another algorithm", p.Algorithm, MaxListed)
	case p.Algorithm.Bursts() && (p.Burst < 1 || p.Burst > MaxRate):
		return fmt.Errorf("burst_capacity must be 1 to %d", MaxRate)
	case p.Calendar != 0 && p.Algorithm != FixedWindow:
		return fmt.Errorf("calendar windows need fixed_window")
	case int(p.Calendar) >= len(calendarNames):
		return fmt.Errorf("unknown calendar window")
	case p.Algorithm.Bursts() && uint64(largest) > maxTokenTime/uint64(p.Window): // the others do not multiply
		return fmt.Errorf("rate_limit or burst_capacity times time_window is too large: use a shorter window")
	}
	return nil
}

// Limit is one counter to take from and its rules.
type Limit struct {
	Key Key
	// Policy is the number of the policy that the rules come from; it is returned with the result.
	Policy uint32
	// Shadow: count and report, never deny.
	Shadow bool
	Params
}

// MaxLimits bounds the limits of one command.
const MaxLimits = 16

const (
	limitShadow        = 0x08
	limitAlgorithm     = 0x07
	limitCalendarShift = 4
	limitMinBytes      = KeyBytes + 5
)

func (l *Limit) append(dst []byte) []byte {
	dst = append(dst, l.Key[:]...)
	flags := byte(l.Algorithm) | byte(l.Calendar)<<limitCalendarShift
	if l.Shadow {
		flags |= limitShadow
	}
	dst = append(dst, flags)
	dst = binary.AppendUvarint(dst, uint64(l.Policy))
	dst = binary.AppendUvarint(dst, uint64(l.Rate))
	dst = binary.AppendUvarint(dst, uint64(l.Window))
	return binary.AppendUvarint(dst, uint64(l.Burst))
}

func decodeLimit(d *wire.Decoder) Limit {
	var l Limit
	copy(l.Key[:], d.Bytes(KeyBytes))
	flags := d.Byte()
	l.Algorithm = Algorithm(flags & limitAlgorithm)
	l.Calendar = Calendar(flags >> limitCalendarShift)
	l.Shadow = flags&limitShadow != 0
	l.Policy, l.Rate = d.Uint32(), d.Uint32()
	window := d.Uvarint()
	l.Burst = d.Uint32()
	l.Window = fsm.Millis(min(window, MaxWindow+1)) // Validate refuses what is larger
	if l.Validate() != nil {
		d.Fail()
	}
	return l
}

func appendLimits(dst []byte, limits []Limit) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(limits)))
	for i := range limits {
		dst = limits[i].append(dst)
	}
	return dst
}

// decodeLimits uses room if it is enough.
func decodeLimits(d *wire.Decoder, room []Limit) []Limit {
	n := d.Count(limitMinBytes)
	if n == 0 || n > MaxLimits {
		d.Fail()
		return nil
	}
	limits := room[:min(n, len(room))]
	if n > len(room) {
		limits = make([]Limit, n)
	}
	for i := range limits {
		limits[i] = decodeLimit(d)
	}
	return limits
}
