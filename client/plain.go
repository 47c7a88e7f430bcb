package client

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// repeating tells what a second execution of a call would do.
type repeating uint8

const (
	repeatNever    repeating = iota // it could do something else than the first one
	repeatHarmless                  // it does what is left to do
	repeatRead                      // it does nothing: the call has no effect at all
)

// plainly makes a call that is for no single shard and so travels in no frame: nobody recognizes it when it comes a second
// time. It is tried until the client's timeout, but again only if it surely had no effect, or if that does no harm.
func (c *Client) plainly(ctx context.Context, again repeating, call func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Timeout)
	defer cancel()
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	unsure := false // an earlier try may have had an effect
	for pause := 10 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		err, said := plainError(call(ctx))
		lost := errors.Is(err, ErrOutcomeUnknown)
		if !lost && !errors.Is(err, ErrUnavailable) || lost && again == repeatNever {
			return err
		}
		unsure = unsure || lost
		if sleep(ctx, pause) == nil {
			_ = c.refresh(ctx) // or the same node is asked again
			continue
		}
		kind := ErrUnavailable
		if unsure && again != repeatRead {
			kind = ErrOutcomeUnknown
		}
		return fmt.Errorf("%w: %w: %s", kind, ctx.Err(), said)
	}
}

// plainError makes an error of the SDK of what came of a plain call, and tells what was said.
func plainError(err error) (_ error, said string) {
	if err == nil || errors.Is(err, ErrClosed) {
		return err, ""
	}
	said = status.Convert(err).Message()
	if errors.Is(err, ErrOutcomeUnknown) { // the connection was lost
		return err, said
	}
	kind := resultErrors[status.Code(err)]
	for _, d := range status.Convert(err).Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok && (info.Reason == "OVERLOADED" || info.Reason == "EXPIRED") {
			kind = ErrUnavailable
		}
	}
	switch {
	case status.Code(err) == codes.Canceled: // while it was under way
		kind = ErrOutcomeUnknown
	case kind == nil:
		return errors.New("holdfast: " + said), said
	}
	return fmt.Errorf("%w: %s", kind, said), said
}
