//go:build !unix

package procs

import "time"

func used() (time.Duration, bool) { return 0, false }
