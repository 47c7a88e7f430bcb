package main

import (
	"context"
	"errors"
	"net"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/holdfastdb/holdfast/client"
)

const (
	connectTimeout = 5 * time.Second
	verbTimeout    = 30 * time.Second
)

// with connects to the cluster for one verb.
func (c *cli) with(ctx context.Context, do func(context.Context, *client.Client) error) error {
	cl, err := c.dial(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, verbTimeout)
	defer cancel()
	return plain(errors.Join(do(ctx, cl), cl.Close()))
}

func (c *cli) dial(ctx context.Context) (*client.Client, error) {
	if len(c.addrs) == 0 {
		return nil, usageErrorf("--addr is empty: use HOST:PORT, or leave it away for %s", strings.Join(defaultAddrs(), ","))
	}
	for _, addr := range c.addrs {
		_, port, err := net.SplitHostPort(addr)
		if n, numErr := strconv.ParseUint(port, 10, 16); err != nil || numErr != nil || n == 0 {
			return nil, usageErrorf("--addr %q: use HOST:PORT", addr)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	cl, err := client.Dial(ctx, client.Config{Addrs: c.addrs})
	if err != nil {
		return nil, &exitError{code: exitUnreachable, err: err}
	}
	return cl, nil
}

// plain takes the words of gRPC off an error and finds its exit code.
func plain(err error) error {
	var exit *exitError
	if err == nil || errors.As(err, &exit) {
		return err
	}
	if errors.Is(err, client.ErrUnavailable) || errors.Is(err, client.ErrOutcomeUnknown) {
		return &exitError{code: exitUnreachable, err: err}
	}
	// Not status.FromError, which puts the words back for an error that is wrapped.
	var carrier interface{ GRPCStatus() *status.Status }
	if !errors.As(err, &carrier) {
		return err
	}
	s := carrier.GRPCStatus()
	code := exitRefused
	switch s.Code() {
	case codes.Unavailable, codes.DeadlineExceeded:
		code = exitUnreachable
	case codes.InvalidArgument:
		code = exitUsage
	}
	return &exitError{code: code, err: errors.New(s.Message()), answered: s.Code() != codes.Unavailable}
}
