package storagetest

import (
	"fmt"
	"maps"
	"sync"
)

// History is what a part of a store has been told to hold, as text by name. A store keeps the changes of a part in their
// order, so what a crash leaves of them is a beginning. Its methods are safe for concurrent use.
type History struct {
	mu           sync.Mutex
	after        []map[string]string // so many changes
	acknowledged int
}

// NewHistory begins with nothing.
func NewHistory() *History { return &History{after: []map[string]string{{}}} }

// Change notes a change that is about to be made. The function that it returns notes that it is acknowledged, with all
// before it.
func (h *History) Change(how func(map[string]string)) (acknowledge func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	next := maps.Clone(h.after[len(h.after)-1])
	how(next)
	h.after = append(h.after, next)
	n := len(h.after) - 1
	return func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.acknowledged = max(h.acknowledged, n)
	}
}

// Acknowledged counts the changes that were acknowledged, and those before them.
func (h *History) Acknowledged() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.acknowledged
}

// Check looks whether what is held is a beginning of the history that has so many changes, or more.
func (h *History) Check(held map[string]string, atLeast int) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, after := range h.after[atLeast:] {
		if maps.Equal(held, after) {
			return nil
		}
	}
	return fmt.Errorf("it holds %v, which is none of %v", held, h.after[atLeast:])
}
