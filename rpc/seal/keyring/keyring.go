// Package keyring keeps the keys with which payloads are sealed: AES-256-GCM, in a keyset of Tink as JSON. The newest text
// is sealed with the primary key; what any other key of the ring sealed stays readable. It is the one package that knows
// Tink, so that who needs no keys does not link it.
//
// The keys are in the file in clear text: whoever can read the file, or the environment of the process, can read the
// payloads. So Read refuses a file that is not its owner's alone.
package keyring

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/tink-crypto/tink-go/v2/aead"
	"github.com/tink-crypto/tink-go/v2/aead/aesgcm"
	"github.com/tink-crypto/tink-go/v2/insecurecleartextkeyset"
	"github.com/tink-crypto/tink-go/v2/keyset"

	"github.com/holdfastdb/holdfast/rpc/seal"
)

// ErrInvalid is returned for what is no ring of keys.
var ErrInvalid = errors.New("not a keyset of AES-256-GCM keys as JSON")

// ErrExposed is returned for a file that others than its owner can read.
var ErrExposed = errors.New("others can read the keys: chmod 600 the file")

const (
	keyBytes = 32
	maxFile  = 1 << 20
)

// Ring is a set of keys, one of them primary. It does not change.
type Ring struct{ handle *keyset.Handle }

// Key is what may be told of a key.
type Key struct {
	ID uint32
	// Primary is the key that seals.
	Primary bool
	// Enabled is false for one that was switched off, with Tink's own tools: it does not open anything.
	Enabled bool
}

// New makes a ring of one new key.
func New() (*Ring, error) {
	m := keyset.NewManager()
	id, err := m.Add(aead.AES256GCMKeyTemplate())
	if err != nil {
		return nil, fmt.Errorf("make a key: %w", err)
	}
	return ring(m, id)
}

func ring(m *keyset.Manager, primary uint32) (*Ring, error) {
	if err := m.SetPrimary(primary); err != nil {
		return nil, fmt.Errorf("make a key primary: %w", err)
	}
	h, err := m.Handle()
	if err != nil {
		return nil, fmt.Errorf("make a ring of keys: %w", err)
	}
	return &Ring{h}, nil
}

// Prepare returns the ring with one more key, which opens and does not seal yet. Nodes of a cluster need it before any of
// them seals with it.
func (r *Ring) Prepare() (*Ring, error) {
	if _, prepared := r.next(); prepared {
		return nil, errors.New("a key is prepared already")
	}
	m := keyset.NewManagerFromHandle(r.handle)
	if _, err := m.Add(aead.AES256GCMKeyTemplate()); err != nil {
		return nil, fmt.Errorf("make a key: %w", err)
	}
	h, err := m.Handle()
	if err != nil {
		return nil, fmt.Errorf("make a ring of keys: %w", err)
	}
	return &Ring{h}, nil
}

// Rotate returns the ring with another primary key: the one that was prepared, or else a new one.
func (r *Ring) Rotate() (*Ring, error) {
	id, prepared := r.next()
	m := keyset.NewManagerFromHandle(r.handle)
	if !prepared {
		var err error
		if id, err = m.Add(aead.AES256GCMKeyTemplate()); err != nil {
			return nil, fmt.Errorf("make a key: %w", err)
		}
	}
	return ring(m, id)
}

// next is the key that was prepared: keys are in the order in which they were added, and it is behind the primary.
func (r *Ring) next() (id uint32, prepared bool) {
	for _, k := range r.Keys() {
		switch {
		case k.Primary:
			prepared = false
		case k.Enabled:
			id, prepared = k.ID, true
		}
	}
	return id, prepared
}

// Keys lists the keys, the oldest first.
func (r *Ring) Keys() []Key {
	list := make([]Key, 0, r.handle.Len())
	for i := range r.handle.Len() {
		e, err := r.handle.Entry(i)
		if err != nil {
			continue // cannot be: i is below Len
		}
		list = append(list, Key{ID: e.KeyID(), Primary: e.IsPrimary(), Enabled: e.KeyStatus() == keyset.Enabled})
	}
	return list
}

// AEAD is what seals and opens with the keys.
func (r *Ring) AEAD() (seal.AEAD, error) {
	a, err := aead.New(r.handle)
	if err != nil {
		return nil, fmt.Errorf("use the keys: %w", err)
	}
	return a, nil
}

// Parse reads a ring. Errors have no part of the text in them.
func Parse(text []byte) (*Ring, error) {
	h, err := insecurecleartextkeyset.Read(keyset.NewJSONReader(bytes.NewReader(text)))
	if err != nil {
		return nil, ErrInvalid
	}
	for i := range h.Len() {
		e, err := h.Entry(i)
		if err != nil {
			return nil, ErrInvalid
		}
		p, ok := e.Key().Parameters().(*aesgcm.Parameters)
		if !ok || p.KeySizeInBytes() != keyBytes {
			return nil, ErrInvalid
		}
	}
	if _, err := h.Primary(); err != nil {
		return nil, ErrInvalid
	}
	return &Ring{h}, nil
}

// Read reads a ring from a file.
func Read(path string) (*Ring, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("read keys: %w", err)
	}
	switch {
	case info.Mode().Perm()&0o077 != 0:
		return nil, fmt.Errorf("%s has mode %#o: %w", path, info.Mode().Perm(), ErrExposed)
	case info.Size() > maxFile:
		return nil, fmt.Errorf("%s: %w", path, ErrInvalid)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read keys: %w", err)
	}
	r, err := Parse(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return r, nil
}

// Create writes a ring to a new file. It never overwrites one: keys that are lost are payloads that are lost.
func (r *Ring) Create(path string) error {
	text, err := r.text()
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("write keys: %w", err)
	}
	_, err = f.Write(text)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("write keys: %w", errors.Join(err, os.Remove(path)))
	}
	return syncDir(filepath.Dir(path))
}

// Replace writes a ring in the place of the one that is in a file: all of it or nothing.
func (r *Ring) Replace(path string) error {
	next := path + ".new"
	if err := os.Remove(next); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("write keys: %w", err)
	}
	if err := r.Create(next); err != nil {
		return err
	}
	if err := os.Rename(next, path); err != nil {
		return fmt.Errorf("write keys: %w", errors.Join(err, os.Remove(next)))
	}
	return syncDir(filepath.Dir(path))
}

func (r *Ring) text() ([]byte, error) {
	var b bytes.Buffer
	if err := insecurecleartextkeyset.Write(r.handle, keyset.NewJSONWriter(&b)); err != nil {
		return nil, fmt.Errorf("write keys: %w", err)
	}
	b.WriteByte('\n')
	return b.Bytes(), nil
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("write keys: %w", err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("write keys: %w", err)
	}
	return nil
}
