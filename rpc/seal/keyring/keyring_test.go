package keyring_test

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/holdfastdb/holdfast/rpc/seal"
	"github.com/holdfastdb/holdfast/rpc/seal/keyring"
)

func newRing(t *testing.T) *keyring.Ring {
	t.Helper()
	r, err := keyring.New()
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func sealer(t *testing.T, r *keyring.Ring) *seal.Sealer {
	t.Helper()
	a, err := r.AEAD()
	if err != nil {
		t.Fatal(err)
	}
	return seal.New(a)
}

func step(t *testing.T, f func() (*keyring.Ring, error)) *keyring.Ring {
	t.Helper()
	r, err := f()
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func mustSeal(t *testing.T, s *seal.Sealer, text, place string) []byte {
	t.Helper()
	b, err := s.Seal([]byte(text), []byte(place))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func opens(s *seal.Sealer, sealed []byte, place, want string) bool {
	text, err := s.Open(sealed, []byte(place))
	return err == nil && string(text) == want
}

func TestWhatWasSealedIsReadWithItsKeyAtItsPlaceOnly(t *testing.T) {
	own, other := sealer(t, newRing(t)), sealer(t, newRing(t))
	a, b := mustSeal(t, own, "secret", "here"), mustSeal(t, own, "secret", "here")
	if bytes.Contains(a, []byte("secret")) || bytes.Equal(a, b) {
		t.Errorf("%q and %q: not encrypted, or twice the same", a, b)
	}
	if !opens(own, a, "here", "secret") {
		t.Error("its own key does not open it")
	}
	for i := range a {
		changed := bytes.Clone(a)
		changed[i] ^= 2 // not the first byte's value of what is not sealed
		if _, err := own.Open(changed, []byte("here")); !errors.Is(err, seal.ErrUnreadable) {
			t.Errorf("byte %d changed: %v", i, err)
		}
	}
	if _, err := own.Open(a, []byte("there")); !errors.Is(err, seal.ErrUnreadable) {
		t.Errorf("at another place: %v", err)
	}
	for name, s := range map[string]*seal.Sealer{"other keys": other, "no keys": seal.New(nil)} {
		if _, err := s.Open(a, []byte("here")); !errors.Is(err, seal.ErrUnreadable) || !strings.Contains(err.Error(), "same keys") {
			t.Errorf("with %s: %v", name, err)
		}
	}
}

// What was stored before there were keys stays readable.
func TestPlainTextIsReadWithKeys(t *testing.T) {
	if plain := mustSeal(t, seal.New(nil), "known", "here"); !opens(sealer(t, newRing(t)), plain, "here", "known") {
		t.Error("it is not")
	}
}

func TestRotationReadsWhatOlderKeysSealed(t *testing.T) {
	first := newRing(t)
	second := step(t, first.Rotate)
	third := step(t, second.Rotate)
	if keys := third.Keys(); len(keys) != 3 || keys[0].ID != first.Keys()[0].ID || keys[0].Primary || !keys[2].Primary || keys[1].Primary {
		t.Errorf("the keys are %v", keys)
	}
	old := mustSeal(t, sealer(t, first), "old", "p")
	fresh := mustSeal(t, sealer(t, third), "new", "p")
	if !opens(sealer(t, third), old, "p", "old") || !opens(sealer(t, third), fresh, "p", "new") {
		t.Error("the newest ring does not open all")
	}
	if opens(sealer(t, second), fresh, "p", "new") {
		t.Error("the new key does not seal")
	}
}

// A cluster rotates in two steps, so that at no moment a node seals what another one cannot open.
func TestAPreparedKeyOpensBeforeItSeals(t *testing.T) {
	first := newRing(t)
	prepared := step(t, first.Prepare)
	if _, err := prepared.Prepare(); err == nil {
		t.Error("prepared twice")
	}
	rotated := step(t, prepared.Rotate)
	if len(rotated.Keys()) != 2 || !rotated.Keys()[1].Primary {
		t.Fatalf("rotation did not take the prepared key: %v", rotated.Keys())
	}
	rings := []*seal.Sealer{sealer(t, first), sealer(t, prepared), sealer(t, rotated)}
	for i := range rings[:2] { // those that run beside each other
		for _, pair := range [][2]*seal.Sealer{{rings[i], rings[i+1]}, {rings[i+1], rings[i]}} {
			if !opens(pair[1], mustSeal(t, pair[0], "x", "p"), "p", "x") {
				t.Errorf("step %d: a node cannot read what another one sealed", i+1)
			}
		}
	}
}

func TestFiles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys.json")
	first := newRing(t)
	if err := first.Create(path); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if err := newRing(t).Create(path); !errors.Is(err, fs.ErrExist) {
		t.Errorf("created over another one: %v", err)
	}
	read := step(t, func() (*keyring.Ring, error) { return keyring.Read(path) })
	if !slices.Equal(read.Keys(), first.Keys()) {
		t.Errorf("%v was read as %v", first.Keys(), read.Keys())
	}
	next := step(t, read.Rotate)
	if err := os.WriteFile(path+".new", []byte("left behind"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := next.Replace(path); err != nil {
		t.Fatal(err)
	}
	read = step(t, func() (*keyring.Ring, error) { return keyring.Read(path) })
	if !slices.Equal(read.Keys(), next.Keys()) || !opens(sealer(t, read), mustSeal(t, sealer(t, first), "x", "p"), "p", "x") {
		t.Errorf("%v was read as %v", next.Keys(), read.Keys())
	}
	if list, err := os.ReadDir(filepath.Dir(path)); err != nil || len(list) != 1 {
		t.Errorf("%v is in the directory, %v", list, err)
	}
	for _, mode := range []fs.FileMode{0o640, 0o604, 0o620, 0o666} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		if _, err := keyring.Read(path); !errors.Is(err, keyring.ErrExposed) || !strings.Contains(err.Error(), "chmod 600") {
			t.Errorf("mode %v: %v", mode, err)
		}
	}
	if _, err := keyring.Read(path + "nope"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
}

// What is wrong is said without repeating it: it may be a key.
func TestWhatIsNoRingIsRefused(t *testing.T) {
	const secret = "GiBWyUfGgYk3RTRhj_LIUzSudIWlyjCftCOypTr0jCNSLg"
	key := func(kind, value string) string {
		return `{"primaryKeyId":1,"key":[{"keyData":{"typeUrl":"type.googleapis.com/google.crypto.tink.` + kind +
			`","value":"` + value + `","keyMaterialType":"SYMMETRIC"},"status":"ENABLED","keyId":1,"outputPrefixType":"TINK"}]}`
	}
	if _, err := keyring.Parse([]byte(key("AesGcmKey", "GiBWyUfGgYk3RTRhj/LIUzSudIWlyjCftCOypTr0jCNSLg=="))); err != nil {
		t.Fatalf("a good one: %v", err)
	}
	for name, text := range map[string]string{
		"nothing": "", "no JSON": secret, "no keys": "{}", "a key of 128 bits": key("AesGcmKey", "GhAAAAAAAAAAAAAAAAAAAAAA"),
		"another cipher": key("ChaCha20Poly1305Key", "EiAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=="),
		"no base64":      key("AesGcmKey", secret+"!"), "no primary": strings.Replace(key("AesGcmKey", "GiBWyUfGgYk3RTRhj/LIUzSudIWlyjCftCOypTr0jCNSLg=="), `Id":1`, `Id":2`, 1),
	} {
		if _, err := keyring.Parse([]byte(text)); !errors.Is(err, keyring.ErrInvalid) || strings.Contains(err.Error(), secret) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
