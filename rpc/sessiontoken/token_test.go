package sessiontoken

import (
	"encoding/base64"
	"errors"
	"strings"
	"testing"
)

var (
	here  = ClusterOf("here")
	other = ClusterOf("elsewhere")
)

func sample(kind Kind) Token {
	t := Token{Kind: kind, Cluster: here}
	for i := range t.Session {
		t.Session[i] = byte(i + 1)
	}
	for i := range t.Secret {
		t.Secret[i] = byte(0xff - i)
		if kind == Refresh {
			t.Family[i] = byte(0x80 + i)
		}
	}
	return t
}

// The texts are what clients hold: they have to be readable for as long as tokens count.
func TestTheFormOfTokensIsFixed(t *testing.T) {
	texts := map[Kind]string{
		Access:  "hfs_gAGUAgECAwQFBgcICQoLDA0ODxAREhMUFRYXGP_-_fz7-vn49_b19PPy8fDv7u3s6-rp6Ofm5eTj4uHgLWHKfg",
		Refresh: "hfr_gAGUAgECAwQFBgcICQoLDA0ODxAREhMUFRYXGP_-_fz7-vn49_b19PPy8fDv7u3s6-rp6Ofm5eTj4uHggIGCg4SFhoeIiYqLjI2Oj5CRkpOUlZaXmJmam5ydnp-fNQBe",
	}
	for kind, text := range texts {
		token := sample(kind)
		if got := token.String(); got != text {
			t.Errorf("kind %d is %s, want %s", kind, got, text)
		}
		if got, err := Parse(text, kind, here); err != nil || got != token {
			t.Errorf("%s is read as %+v, %v", text, got, err)
		}
	}
	id := sample(Access).Session
	if got, want := id.String(), "ses_AQIDBAUGBwgJCgsMDQ4PEBESExQVFhcY"; got != want {
		t.Errorf("the id is %s, want %s", got, want)
	}
	if id.Slot() != 0x0102 {
		t.Errorf("slot %x", id.Slot())
	}
}

func TestParse(t *testing.T) {
	access, refresh := sample(Access), sample(Refresh)
	a, r := access.String(), refresh.String()
	flip := func(text string, i int) string {
		b := []byte(text)
		if b[i] == 'A' {
			b[i] = 'B'
		} else {
			b[i] = 'A'
		}
		return string(b)
	}
	tests := map[string]struct {
		text    string
		kind    Kind
		cluster Cluster
		want    error
	}{
		"access":                       {a, Access, here, nil},
		"refresh":                      {r, Refresh, here, nil},
		"of any cluster":               {a, Access, Cluster{}, nil},
		"refresh for access":           {r, Access, here, ErrKind},
		"access for refresh":           {a, Refresh, here, ErrKind},
		"of another cluster":           {a, Access, other, ErrForeign},
		"refresh of another cluster":   {r, Refresh, other, ErrForeign},
		"nothing":                      {"", Access, here, ErrMalformed},
		"a prefix":                     {prefixAccess, Access, here, ErrMalformed},
		"another prefix":               {"xyz_" + a[4:], Access, here, ErrMalformed},
		"the prefix of the other kind": {prefixRefresh + a[4:], Refresh, here, ErrMalformed},
		"no prefix":                    {a[4:], Access, here, ErrMalformed},
		"a byte less":                  {a[:len(a)-1], Access, here, ErrMalformed},
		"a byte more":                  {a + "A", Access, here, ErrMalformed},
		"a space before":               {" " + a, Access, here, ErrMalformed},
		"a line break after":           {a + "\n", Access, here, ErrMalformed},
		"a line break inside":          {a[:20] + "\r\n" + a[20:], Access, here, ErrMalformed},
		"a line break for a byte":      {a[:20] + "\n" + a[21:], Access, here, ErrMalformed},
		"padding":                      {a + "==", Access, here, ErrMalformed},
		"the other alphabet":           {strings.NewReplacer("-", "+", "_", "/").Replace(a[4:]), Access, here, ErrMalformed},
		"very long":                    {prefixAccess + strings.Repeat("A", 1<<20), Access, here, ErrMalformed},
		"a secret mistyped":            {flip(a, 50), Access, here, ErrMalformed},
		"a cluster mistyped":           {flip(a, 5), Access, here, ErrMalformed},
		"a sum mistyped":               {flip(a, len(a)-3), Access, here, ErrMalformed},
		"an id":                        {access.Session.String(), Access, here, ErrMalformed},
	}
	for name, test := range tests {
		token, err := Parse(test.text, test.kind, test.cluster)
		if !errors.Is(err, test.want) || (err == nil) != (test.want == nil) {
			t.Errorf("%s: %v, want %v", name, err, test.want)
		}
		if err != nil && token != (Token{}) {
			t.Errorf("%s: refused, and read as %+v", name, token)
		}
	}
}

// Whoever changes one character of a token, or cuts it off anywhere, does not get another token.
func TestNoTokenIsNearAnother(t *testing.T) {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_=\n"
	for _, kind := range []Kind{Access, Refresh} {
		token := sample(kind)
		text := token.String()
		for i := len(prefixAccess); i < len(text); i++ {
			if _, err := Parse(text[:i], kind, Cluster{}); !errors.Is(err, ErrMalformed) {
				t.Errorf("cut to %d characters: %v", i, err)
			}
			for _, c := range []byte(alphabet) {
				if c == text[i] {
					continue
				}
				if _, err := Parse(text[:i]+string(c)+text[i+1:], kind, Cluster{}); !errors.Is(err, ErrMalformed) {
					t.Errorf("with %q at %d: %v", c, i, err)
				}
			}
		}
	}
}

func TestParseID(t *testing.T) {
	id := sample(Access).Session
	text := id.String()
	if got, err := ParseID(text); err != nil || got != id {
		t.Errorf("%s is read as %x, %v", text, got, err)
	}
	body := base64.RawURLEncoding.EncodeToString(id[:])
	for name, bad := range map[string]string{
		"nothing": "", "a prefix": prefixID, "no prefix": body, "an access token's prefix": prefixAccess + body, "a byte less": text[:len(text)-1],
		"a byte more": text + "A", "a line break after": text + "\n", "a line break inside": text[:9] + "\n" + text[9:],
		"very long": prefixID + strings.Repeat("A", 1<<20), "the other alphabet": prefixID + strings.Repeat("+", 32),
	} {
		if got, err := ParseID(bad); !errors.Is(err, ErrMalformed) || got != (ID{}) {
			t.Errorf("%s: %x, %v", name, got, err)
		}
	}
}

func TestClustersAndSecretsDiffer(t *testing.T) {
	if here == other || here == (Cluster{}) {
		t.Errorf("clusters %x and %x", here, other)
	}
	a, b := Secret{1}, Secret{2}
	if a.Hash() == b.Hash() {
		t.Error("secrets have the same hash")
	}
}

// There is one text for each token, and none but those.
func FuzzParse(f *testing.F) {
	for _, kind := range []Kind{Access, Refresh} {
		token := sample(kind)
		f.Add(token.String())
	}
	f.Add("hfs_")
	f.Fuzz(func(t *testing.T, text string) {
		for _, kind := range []Kind{Access, Refresh} {
			token, err := Parse(text, kind, Cluster{})
			if err != nil {
				if !errors.Is(err, ErrMalformed) && !errors.Is(err, ErrKind) {
					t.Fatalf("%q: %v", text, err)
				}
				continue
			}
			if again := token.String(); again != text || token.Kind != kind {
				t.Fatalf("%q is accepted, and written as %q", text, again)
			}
			if _, err := Parse(text, kind, token.Cluster); err != nil {
				t.Fatalf("%q at its cluster: %v", text, err)
			}
		}
	})
}

func FuzzParseID(f *testing.F) {
	f.Add(sample(Access).Session.String())
	f.Fuzz(func(t *testing.T, text string) {
		id, err := ParseID(text)
		if err != nil {
			if !errors.Is(err, ErrMalformed) {
				t.Fatalf("%q: %v", text, err)
			}
			return
		}
		if again := id.String(); again != text {
			t.Fatalf("%q is accepted, and written as %q", text, again)
		}
	})
}

// What is written is read, whatever the parts are.
func FuzzToken(f *testing.F) {
	f.Add(true, []byte("some bytes that are the parts of a token"))
	f.Fuzz(func(t *testing.T, refresh bool, parts []byte) {
		token := Token{Kind: Access}
		if refresh {
			token.Kind = Refresh
		}
		for _, part := range [][]byte{token.Cluster[:], token.Session[:], token.Secret[:]} {
			parts = parts[copy(part, parts):]
		}
		if refresh {
			copy(token.Family[:], parts)
		}
		text := token.String()
		if got, err := Parse(text, token.Kind, token.Cluster); err != nil || got != token || len(text) > MaxText {
			t.Fatalf("%+v is written as %q and read as %+v, %v", token, text, got, err)
		}
	})
}
