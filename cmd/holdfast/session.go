package main

import (
	"context"
	"encoding/json"
	"io"
	"os"
	"regexp"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/holdfastdb/holdfast/client"
	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
)

func newSession(c *cli) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "session",
		Short: "Sessions: create, validate, refresh, logout, list, revoke, watch",
		Long: `session keeps who is logged in. Tokens are given out once, by create, refresh and rotate, and are never shown again.
A verb that takes a token reads it from standard input if it is -, so that it is neither in the shell's history nor in
the list of processes.`,
		Example: `  holdfast session create ann --device os=iOS --ip 192.0.2.7 --remember-me
  holdfast session validate -                 the token comes from standard input
  holdfast session list ann
  holdfast session revoke-user ann
  holdfast session sweep --type web --created-before 24h --dry-run`,
	}
	cmd.AddCommand(newSessionCreate(c), newSessionValidate(c), newSessionRefresh(c), newSessionRotate(c), newSessionLogout(c),
		newSessionGet(c), newSessionList(c), newSessionHistory(c), newSessionAttributes(c), newSessionRevoke(c),
		newSessionRevokeUser(c), newSessionEraseUser(c), newSessionSweep(c), newSessionStats(c), newSessionPolicies(c), newSessionSetPolicy(c), newSessionWatch(c),
		newSessionKeys(c))
	return cmd
}

// sessions runs f with the service's client.
func (c *cli) sessions(cmd *cobra.Command, f func(context.Context, pb.SessionsClient) error) error {
	return c.with(cmd.Context(), func(ctx context.Context, cl *client.Client) error {
		return f(ctx, pb.NewSessionsClient(cl.Conn()))
	})
}

// secrets are the tokens of sessions, whole or cut off.
var secrets = regexp.MustCompile(`\bhf[sr]_[\w-]+`)

// withoutSecrets takes tokens out of a text for people: a mistyped command line must not put them into a log.
func withoutSecrets(text string) string { return secrets.ReplaceAllString(text, "(a token)") }

// maxToken is more than any token has.
const maxToken = 4 << 10

// tokenArg is the token that an argument is, or that is on standard input.
func tokenArg(arg string) (string, error) {
	if arg != "-" {
		return arg, nil
	}
	text, err := io.ReadAll(io.LimitReader(os.Stdin, maxToken))
	if err != nil {
		return "", usageErrorf("read the token from standard input: %w", err)
	}
	token := strings.TrimSpace(string(text))
	if token == "" {
		return "", usageErrorf("there is no token on standard input")
	}
	return token, nil
}

// pairs reads name=value arguments. Values are texts, or as in JSON if typed and they are that.
func pairs(flag string, list []string, typed bool) (*structpb.Struct, error) {
	if len(list) == 0 {
		return nil, nil
	}
	all := make(map[string]any, len(list))
	for _, one := range list {
		name, value, ok := strings.Cut(one, "=")
		if !ok || name == "" {
			return nil, usageErrorf("--%s %q: use NAME=VALUE", flag, one)
		}
		all[name] = value
		var v any
		if typed && json.Unmarshal([]byte(value), &v) == nil {
			all[name] = v
		}
	}
	s, err := structpb.NewStruct(all)
	if err != nil {
		return nil, usageErrorf("--%s: %w", flag, err)
	}
	return s, nil
}

// timeout is a duration of a flag in seconds, nil if it was not given.
func timeout(cmd *cobra.Command, flag string, d time.Duration) *float64 {
	if !cmd.Flags().Changed(flag) {
		return nil
	}
	s := d.Seconds()
	return &s
}

// given is the value of a flag, nil if it was not given.
func given(cmd *cobra.Command, flag string, n *uint32) *uint32 {
	if !cmd.Flags().Changed(flag) {
		return nil
	}
	return n
}

func newSessionCreate(c *cli) *cobra.Command {
	q := &pb.CreateSessionRequest{}
	var device, attributes []string
	var idle, absolute, refresh time.Duration
	var sessions, devices uint32
	cmd := &cobra.Command{
		Use:   "create USER",
		Short: "Begin a session and give out its tokens",
		Example: `  holdfast session create ann --device os=iOS --ip 192.0.2.7
  holdfast session create ann --type mobile --remember-me --attribute plan=pro --attribute seats=5
  holdfast session create ann --max-sessions 3 --on-limit evict_oldest
  holdfast session create ann --idle-timeout 5m --absolute-timeout 1h -o json`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			q.UserId = args[0]
			q.IdleTimeout, q.AbsoluteTimeout = timeout(cmd, "idle-timeout", idle), timeout(cmd, "absolute-timeout", absolute)
			q.RefreshTimeout = timeout(cmd, "refresh-timeout", refresh)
			q.MaxSessions, q.MaxDevices = given(cmd, "max-sessions", &sessions), given(cmd, "max-devices", &devices)
			if q.Device, err = pairs("device", device, false); err != nil {
				return err
			}
			if q.Attributes, err = pairs("attribute", attributes, true); err != nil {
				return err
			}
			return c.sessions(cmd, func(ctx context.Context, s pb.SessionsClient) error {
				r, err := s.Create(ctx, q)
				if err != nil {
					return err
				}
				return c.printTokens(r)
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&q.Type, "type", "web", "web, mobile or api: what is not said follows from it")
	f.StringArrayVar(&device, "device", nil, "NAME=VALUE of the device; fingerprint, or else id, tells it from others")
	f.StringVar(&q.Ip, "ip", "", "address of the login")
	f.BoolVar(&q.RememberMe, "remember-me", false, "also give out a refresh token")
	f.DurationVar(&idle, "idle-timeout", 0, "end after so long without use; 0 for never (default: the type's)")
	f.DurationVar(&absolute, "absolute-timeout", 0, "end after so long in any case (default: the type's)")
	f.DurationVar(&refresh, "refresh-timeout", 0, "how long the refresh token counts (default: the type's)")
	f.StringArrayVar(&attributes, "attribute", nil, "NAME=VALUE to keep with the session; JSON, or else a text")
	f.StringVar(&q.IpBinding, "ip-binding", "", "from where else the session counts: off (anywhere), subnet or exact")
	f.BoolVar(&q.DeviceBinding, "device-binding", false, "it counts on its device only")
	f.StringVar(&q.Login, "login", "", "name of a login that sessions at several services belong to")
	f.StringVar(&q.Service, "service", "", "the service of this session")
	f.StringVar(&q.Impersonator, "impersonator", "", "who acts as the user, for support")
	f.Uint32Var(&sessions, "max-sessions", 0, "sessions that the user may have with this one; 0 for the system's limit (default: the type's)")
	f.Uint32Var(&devices, "max-devices", 0, "devices that the user may have with this one; 0 for no limit (default: the type's)")
	f.StringVar(&q.OnLimit, "on-limit", "", "if there are too many: refuse or evict_oldest (default: the type's)")
	return cmd
}

// printTokens is the one place that writes tokens.
func (c *cli) printTokens(r *pb.SessionTokens) error {
	t := &table{}
	t.add("session", r.SessionId)
	t.add("token", r.Token)
	t.add("expires", timeText(r.ExpiresAt))
	if r.RefreshToken != nil {
		t.add("refresh token", r.GetRefreshToken())
		t.add("refresh expires", timeText(r.RefreshExpiresAt))
	}
	if r.Evicted > 0 {
		t.add("ended for it", count(r.Evicted))
	}
	return c.printer().message(r, t)
}

func newSessionValidate(c *cli) *cobra.Command {
	q := &pb.ValidateSessionRequest{}
	var device []string
	cmd := &cobra.Command{
		Use:   "validate TOKEN",
		Short: "Tell whether an access token counts, and whose it is; exit code 1 if it does not",
		Example: `  holdfast session validate - < token.txt
  holdfast session validate - --ip 192.0.2.7 --device os=iOS -o json`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if q.Token, err = tokenArg(args[0]); err != nil {
				return err
			}
			if q.Device, err = pairs("device", device, false); err != nil {
				return err
			}
			return c.sessions(cmd, func(ctx context.Context, s pb.SessionsClient) error {
				r, err := s.Validate(ctx, q)
				if err != nil {
					return err
				}
				return c.printValidation(r)
			})
		},
	}
	cmd.Flags().StringVar(&q.Ip, "ip", "", "from where it was presented")
	cmd.Flags().StringArrayVar(&device, "device", nil, "NAME=VALUE of the device on which it was presented")
	return cmd
}

func (c *cli) printValidation(r *pb.ValidateSessionResponse) error {
	t := &table{header: []string{"verdict", "user", "type", "session", "last seen", "expires in"}}
	verdict := "valid"
	if !r.Valid {
		verdict = "refused: " + r.Reason
	}
	if s := r.Session; s != nil {
		if s.Ended != "" {
			verdict += ", " + s.Ended
		}
		t.add(verdict, s.UserId, s.Type, s.SessionId, timeText(s.LastSeenAt), untilText(s.ExpiresAt))
	} else {
		t.add(verdict)
	}
	if err := c.printer().message(r, t); err != nil {
		return err
	}
	if !r.Valid {
		return errDenied
	}
	return nil
}

func newSessionRefresh(c *cli) *cobra.Command {
	return &cobra.Command{
		Use: "refresh REFRESH_TOKEN", Short: "Exchange a refresh token for a new pair of tokens",
		Long: `refresh exchanges a refresh token. The old one counts for up to 10 seconds more, for requests at the same time; whoever
uses it later ends the session, for one of the two who had it has stolen it.`,
		Example: "  holdfast session refresh - < refresh-token.txt", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			token, err := tokenArg(args[0])
			if err != nil {
				return err
			}
			return c.sessions(cmd, func(ctx context.Context, s pb.SessionsClient) error {
				r, err := s.Refresh(ctx, &pb.RefreshSessionRequest{RefreshToken: token})
				if err != nil {
					return err
				}
				return c.printTokens(r)
			})
		},
	}
}

func newSessionRotate(c *cli) *cobra.Command {
	q := &pb.RotateSessionRequest{}
	cmd := &cobra.Command{
		Use: "rotate TOKEN", Short: "Exchange an access token, and end the old one at once: after a change of privileges",
		Example: `  holdfast session rotate - < token.txt
  holdfast session rotate - --step-up-done`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if q.Token, err = tokenArg(args[0]); err != nil {
				return err
			}
			return c.sessions(cmd, func(ctx context.Context, s pb.SessionsClient) error {
				r, err := s.Rotate(ctx, q)
				if err != nil {
					return err
				}
				return c.printTokens(r)
			})
		},
	}
	cmd.Flags().BoolVar(&q.StepUpDone, "step-up-done", false, "the user has proved again who they are")
	return cmd
}

func newSessionLogout(c *cli) *cobra.Command {
	q := &pb.LogoutRequest{}
	cmd := &cobra.Command{
		Use: "logout TOKEN", Short: "End the session of an access token",
		Example: `  holdfast session logout - < token.txt
  holdfast session logout - --everywhere`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if q.Token, err = tokenArg(args[0]); err != nil {
				return err
			}
			return c.endSessions(cmd, func(ctx context.Context, s pb.SessionsClient) (*pb.RevokedSessions, error) { return s.Logout(ctx, q) })
		},
	}
	cmd.Flags().BoolVar(&q.WholeLogin, "whole-login", false, "also the sessions of the same login at other services")
	cmd.Flags().BoolVar(&q.Everywhere, "everywhere", false, "also all other sessions of the user")
	return cmd
}
