package scsstore_test

import (
	"context"
	"iter"
	"sync"
	"time"

	"github.com/holdfastdb/holdfast/client"
)

// memory keeps sessions as a cluster does.
type memory struct {
	mu   sync.Mutex
	rows map[client.SavedKey]client.SavedSession
	dead map[client.SavedKey]bool
}

func newMemory() *memory {
	return &memory{rows: make(map[client.SavedKey]client.SavedSession), dead: make(map[client.SavedKey]bool)}
}

func (m *memory) Save(ctx context.Context, key client.SavedKey, data []byte, expires time.Time) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case m.dead[key]:
		return client.ErrConflict
	}
	m.rows[key] = client.SavedSession{Key: key, Data: data, ExpiresAt: expires}
	return nil
}

func (m *memory) Find(ctx context.Context, token string) ([]byte, bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	row, found := m.rows[client.KeyOf(token)]
	return row.Data, found && time.Now().Before(row.ExpiresAt), ctx.Err()
}

func (m *memory) Drop(ctx context.Context, key client.SavedKey) (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	_, found := m.rows[key]
	delete(m.rows, key)
	m.dead[key] = m.dead[key] || found
	return found, ctx.Err()
}

func (m *memory) Scan(ctx context.Context) iter.Seq2[client.SavedSession, error] {
	return func(yield func(client.SavedSession, error) bool) {
		m.mu.Lock()
		defer m.mu.Unlock()
		if ctx.Err() != nil {
			yield(client.SavedSession{}, ctx.Err())
			return
		}
		for _, row := range m.rows {
			if time.Now().Before(row.ExpiresAt) && !yield(row, nil) {
				return
			}
		}
	}
}
