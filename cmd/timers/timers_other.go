//go:build !linux

// Package timers says how exact the timers of a process must be.
package timers

import "time"

// Kernel is how late timers are that nobody has asked to be otherwise; only Linux can be asked.
const Kernel = 0

// Slack lets the kernel fire timers late by up to d, where it can.
func Slack(time.Duration) {}
