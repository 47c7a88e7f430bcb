// Package results writes what runs have measured into a page, between marks, so that nobody types figures.
package results

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
)

// Write replaces what stands between the marks of a section of a page, or appends a section with its marks.
func Write(path, section, text string) error {
	old, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("read the page: %w", err)
	}
	if err := os.WriteFile(path, []byte(replace(string(old), section, text)), 0o644); err != nil {
		return fmt.Errorf("write the page: %w", err)
	}
	return nil
}

func replace(page, section, text string) string {
	begin, end := "<!-- measured: "+section+" -->\n", "<!-- end: "+section+" -->\n"
	i, j := strings.Index(page, begin), strings.Index(page, end)
	if i < 0 || j < i {
		return page + begin + text + end
	}
	return page[:i] + begin + text + page[j:]
}

// Commit names what was measured, as far as git can tell. A + says that there were changes beside it.
var Commit = sync.OnceValue(func() string {
	head, err := exec.Command("git", "rev-parse", "--short", "HEAD").Output()
	if err != nil {
		return "unknown"
	}
	name := strings.TrimSpace(string(head))
	changes, err := exec.Command("git", "status", "--porcelain", "--untracked-files=no", "--", ":/", ":!/docs").Output()
	if err != nil || len(changes) > 0 {
		name += "+"
	}
	return name
})
