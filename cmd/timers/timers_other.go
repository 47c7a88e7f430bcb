//go:build !linux

// Package timers says how exact the timers of a process must be.
package timers

import "time"

// Slack lets the kernel fire timers late by up to d, where it can be asked to.
func Slack(time.Duration) {}

// Usual calls start, which starts a process.
func Usual(start func() error) error { return start() }
