//go:build planted

package plant

import (
	"fmt"
	"os"
	"strconv"
)

// Environment names the variable with the number of the bug that is there when a process starts, for tests of processes.
const Environment = "HOLDFAST_PLANTED"

func init() {
	text := os.Getenv(Environment)
	if text == "" {
		return
	}
	n, err := strconv.ParseUint(text, 10, 8)
	if err != nil {
		panic(fmt.Sprintf("%s: %v", Environment, err))
	}
	Set(Bug(n))
}
