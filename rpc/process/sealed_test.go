package process_test

import (
	"bytes"
	"context"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/status"

	"github.com/holdfastdb/holdfast/client"
	"github.com/holdfastdb/holdfast/node"
	"github.com/holdfastdb/holdfast/node/shard"
	pb "github.com/holdfastdb/holdfast/rpc/holdfastpb"
	"github.com/holdfastdb/holdfast/rpc/process"
	"github.com/holdfastdb/holdfast/rpc/seal"
	"github.com/holdfastdb/holdfast/rpc/seal/keyring"
	"github.com/holdfastdb/holdfast/rpc/sessiontoken"
)

// journal is what a node logs.
type journal struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (j *journal) Write(b []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.Write(b)
}

// withNode runs a node on a directory as long as f does.
func withNode(t *testing.T, dir string, keys seal.AEAD, j *journal, f func(ctx context.Context, cl *client.Client)) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	p, err := process.Start(ctx, process.Config{
		GRPC: "127.0.0.1:0", HTTP: "127.0.0.1:0", Peer: "127.0.0.1:0", Keys: keys,
		Node: node.Config{
			Name: "n1", Dir: dir, Gossip: "127.0.0.1:0", Shards: 2, Replicas: 1, Bootstrap: true,
			Timing: shard.Timing{Heartbeat: 250 * time.Millisecond, Commit: 50 * time.Millisecond},
			Logger: slog.New(slog.NewTextHandler(j, &slog.HandlerOptions{Level: slog.LevelDebug})),
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := p.Close(ctx); err != nil {
			t.Error(err)
		}
	}()
	if err := p.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	cl, err := client.Dial(ctx, client.Config{Addrs: []string{p.GRPCAddr()}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cl.Close() }()
	f(ctx, cl)
}

// holders are the files below a directory that contain a text.
func holders(t *testing.T, dir string, text []byte) (list []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		if bytes.Contains(b, text) {
			list = append(list, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func newKeys(t *testing.T) (*keyring.Ring, seal.AEAD) {
	t.Helper()
	ring, err := keyring.New()
	if err != nil {
		t.Fatal(err)
	}
	return ring, aead(t, ring)
}

func aead(t *testing.T, ring *keyring.Ring) seal.AEAD {
	t.Helper()
	a, err := ring.AEAD()
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// What sessions say of users is nowhere on the disk of a node with keys: not in the log, not in the state. The same
// search finds all of it when there are no keys. The secrets of tokens are nowhere in any case.
func TestNothingOfUsersIsOnTheDiskInClear(t *testing.T) {
	canaries := map[string]string{
		"user":             "canary-user-Zk3vQ8sLw2",
		"ip":               "203.0.113.77",
		"device":           "canary-device-Hf9rT1xNe5",
		"device later":     "canary-device-Jm6bC4yGa7",
		"attribute":        "canary-attribute-Pd2wK8uVo3",
		"attribute's name": "canary-name-Rb5nX0qSi9",
		"attribute later":  "canary-attribute-Ty7zF3hMc1",
		"login":            "canary-login-Lg4jE6dWp8",
		"service":          "canary-service-Ux1aB9vKf2",
		"impersonator":     "canary-impersonator-Cs8oI5tYq0",
		"saved session":    "canary-saved-Nw3gD7lRz6",
	}
	_, keys := newKeys(t)
	for name, tt := range map[string]struct {
		keys  seal.AEAD
		found bool
	}{"with keys": {keys, false}, "without": {nil, true}} {
		t.Run(name, func(t *testing.T) {
			dir, j := t.TempDir(), &journal{}
			secrets := make(map[string][]byte)
			withNode(t, dir, tt.keys, j, func(ctx context.Context, cl *client.Client) {
				sessions := cl.Sessions()
				made, err := sessions.Create(ctx, client.Login{
					UserID: canaries["user"], Type: client.APISession, IP: canaries["ip"], Device: map[string]any{"fingerprint": canaries["device"]},
					Attributes: map[string]any{canaries["attribute's name"]: canaries["attribute"]}, RememberMe: true,
					Login: canaries["login"], Service: canaries["service"], Impersonator: canaries["impersonator"],
				})
				if err != nil {
					t.Fatal(err)
				}
				if _, err := sessions.SetAttributes(ctx, made.SessionID, client.AttributeChange{Set: map[string]any{"later": canaries["attribute later"]}}); err != nil {
					t.Fatal(err)
				}
				if err := sessions.Saved().Save(ctx, client.KeyOf("a token"), []byte(canaries["saved session"]), time.Now().Add(time.Hour)); err != nil {
					t.Fatal(err)
				}
				// On another device it is flagged, and remembers that device.
				for flagged := false; !flagged; {
					v, err := sessions.Validate(ctx, made.Token, client.OnDevice(map[string]any{"fingerprint": canaries["device later"]}))
					if err != nil || !v.Valid {
						t.Fatal(v, err)
					}
					flagged = v.Session.Flagged
				}
				access, err := sessiontoken.Parse(made.Token, sessiontoken.Access, sessiontoken.Cluster{})
				if err != nil {
					t.Fatal(err)
				}
				refresh, err := sessiontoken.Parse(made.RefreshToken, sessiontoken.Refresh, sessiontoken.Cluster{})
				if err != nil {
					t.Fatal(err)
				}
				secrets["access token"], secrets["refresh token"], secrets["family"] = access.Secret[:], refresh.Secret[:], refresh.Family[:]
				secrets["access token's text"], secrets["refresh token's text"] = []byte(made.Token[20:]), []byte(made.RefreshToken[20:])
			})
			for what, text := range canaries {
				found := strings.Join(holders(t, dir, []byte(text)), " ")
				inLog, inState := strings.Contains(found, "/raft/"), strings.Contains(found, "/state/")
				replaced := what == "device" || what == "attribute" // what the state held may be gone
				if tt.found && (!inLog || !inState && !replaced) || !tt.found && found != "" {
					t.Errorf("the %s is in %q", what, found)
				}
				if strings.Contains(j.text.String(), text) {
					t.Errorf("the %s is in what the node logs", what)
				}
			}
			for what, secret := range secrets {
				if found := holders(t, dir, secret); len(found) > 0 || bytes.Contains(j.text.Bytes(), secret) {
					t.Errorf("the %s is in %q, or in what the node logs", what, found)
				}
			}
		})
	}
}

func TestANodeReadsWithOldKeysAndSaysWhenItHasNone(t *testing.T) {
	dir, j := t.TempDir(), &journal{}
	ring, keys := newKeys(t)
	rotated, err := ring.Rotate()
	if err != nil {
		t.Fatal(err)
	}
	var made client.Tokens
	withNode(t, dir, keys, j, func(ctx context.Context, cl *client.Client) {
		if made, err = cl.Sessions().Create(ctx, client.Login{UserID: "ann"}); err != nil {
			t.Fatal(err)
		}
	})
	_, others := newKeys(t)
	for name, wrong := range map[string]seal.AEAD{"other keys": others, "no keys": nil} {
		withNode(t, dir, wrong, j, func(ctx context.Context, cl *client.Client) {
			_, err := pb.NewSessionsClient(cl.Conn()).Validate(ctx, &pb.ValidateSessionRequest{Token: made.Token})
			if !strings.Contains(status.Convert(err).Message(), "give all nodes the same keys") {
				t.Errorf("with %s: %v", name, err)
			}
		})
	}
	withNode(t, dir, aead(t, rotated), j, func(ctx context.Context, cl *client.Client) {
		if v, err := cl.Sessions().Validate(ctx, made.Token); err != nil || !v.Valid || v.Session.UserID != "ann" {
			t.Errorf("after a rotation: %+v, %v", v, err)
		}
		if _, err := cl.Sessions().Create(ctx, client.Login{UserID: "ann"}); err != nil {
			t.Error(err)
		}
	})
	// Ending sessions needs no key.
	withNode(t, dir, nil, j, func(ctx context.Context, cl *client.Client) {
		if n, err := cl.Sessions().RevokeUser(ctx, "ann"); err != nil || n != 2 {
			t.Errorf("revoked without keys: %d, %v", n, err)
		}
	})
}
