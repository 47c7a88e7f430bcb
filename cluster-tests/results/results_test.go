package results

import (
	"os"
	"path/filepath"
	"testing"
)

func TestASectionIsReplacedBetweenItsMarks(t *testing.T) {
	const begin, end = "<!-- measured: a -->\n", "<!-- end: a -->\n"
	for name, tt := range map[string]struct{ before, after string }{
		"a new page":               {"", begin + "new\n" + end},
		"without the section":      {"x\n", "x\n" + begin + "new\n" + end},
		"with the section":         {"x\n" + begin + "old\nolder\n" + end + "y\n", "x\n" + begin + "new\n" + end + "y\n"},
		"with another section":     {"<!-- measured: b -->\nold\n<!-- end: b -->\n", "<!-- measured: b -->\nold\n<!-- end: b -->\n" + begin + "new\n" + end},
		"with a section cut short": {"x\n" + begin + "old\n", "x\n" + begin + "old\n" + begin + "new\n" + end},
	} {
		path := filepath.Join(t.TempDir(), "page.md")
		if tt.before != "" {
			if err := os.WriteFile(path, []byte(tt.before), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := Write(path, "a", "new\n"); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(path); err != nil || string(got) != tt.after {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}
