package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"
)

const redisBasePort = 23890

// tokenBucket is the usual rate limiter on Redis: a hash with the tokens left and the time of the last refill, by the
// server's clock, in one script.
var tokenBucket = redis.NewScript(`
local rate, burst, cost = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local state = redis.call('HMGET', KEYS[1], 'tokens', 'at')
local tokens, at = tonumber(state[1]) or burst, tonumber(state[2]) or now
tokens = math.min(burst, tokens + (now - at) * rate / 1000)
local allowed = 0
if tokens >= cost then
  tokens, allowed = tokens - cost, 1
end
redis.call('HSET', KEYS[1], 'tokens', tokens, 'at', now)
redis.call('PEXPIRE', KEYS[1], 60000)
return {allowed, math.floor(tokens)}
`)

// redisPeer is a running Redis primary with two replicas, every write on disk before its answer.
type redisPeer struct {
	processes []*process
	client    *redis.Client
}

func startRedis(ctx context.Context, dir string) (*redisPeer, error) {
	p := &redisPeer{}
	for i := range 3 {
		data := fmt.Sprintf("%s/redis%d", dir, i)
		if err := os.MkdirAll(data, 0o700); err != nil {
			return nil, err
		}
		args := []string{
			"--port", strconv.Itoa(redisBasePort + i), "--dir", data, "--bind", "127.0.0.1", "--daemonize", "no",
			"--appendonly", "yes", "--appendfsync", "always", "--save", "", "--loglevel", "warning",
		}
		if i > 0 {
			args = append(args, "--replicaof", "127.0.0.1", strconv.Itoa(redisBasePort))
		}
		proc, err := startProcessTo(ctx, io.Discard, "redis-server", args...)
		if err != nil {
			p.close()
			return nil, fmt.Errorf("%w (install it: the Debian package redis-server)", err)
		}
		p.processes = append(p.processes, proc)
	}
	p.client = redis.NewClient(&redis.Options{Addr: fmt.Sprintf("127.0.0.1:%d", redisBasePort), PoolSize: 256})
	deadline := time.Now().Add(20 * time.Second)
	for {
		err := p.client.Ping(ctx).Err()
		if err == nil {
			return p, nil
		}
		if time.Now().After(deadline) {
			p.close()
			return nil, fmt.Errorf("connect to redis: %w", err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// check makes one decision of the token bucket.
func (p *redisPeer) check(ctx context.Context, _, key int) error {
	return tokenBucket.Run(ctx, p.client, []string{"k" + strconv.Itoa(key)}, 1_000_000, 1_000_000, 1).Err()
}

func (p *redisPeer) close() {
	if p.client != nil {
		_ = p.client.Close()
	}
	for _, proc := range p.processes {
		proc.stop()
	}
}
