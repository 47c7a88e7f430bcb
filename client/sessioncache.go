package client

import (
	"crypto/sha256"
	"maps"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfastdb/holdfast/rpc/sessiontoken"
)

// sessionCache remembers which tokens counted, for who is content with less than the newest. The promise of an entry that
// is served: the session counted at some moment of the last so many milliseconds. An entry proves this of the moment at
// which the validation that filled it began, and of every moment at which a ping was sent that the stream of events
// answered, while the entry is there; see followed. Time is nanoseconds since the cache was made.
type sessionCache struct {
	c       *Client
	born    time.Time
	room    int // bytes in a stripe
	stripes [cacheStripes]cacheStripe

	mu    sync.Mutex
	feeds map[uint32]*feed // by shard
}

const (
	cacheStripes        = 64
	defaultSessionCache = 64 << 20
)

// cacheKey is the SHA-256 of a token: who reads this process's memory does not find tokens in the cache, and how long a
// look takes tells nothing of those that are there.
type cacheKey [sha256.Size]byte

type cacheStripe struct {
	mu      sync.RWMutex
	entries map[cacheKey]*cached
	bytes   int
}

// cached is a token that counted. What is not atomic is written before others see the entry.
type cached struct {
	key     cacheKey
	id      sessiontoken.ID
	feed    *feed
	stream  *followed // that tells of the end of the session, nil if none does
	begun   int64     // when the validation began
	until   int64     // when the cluster must be asked again, whatever is known
	ip      string
	device  map[string]any
	bare    bool
	session *Session
	bytes   int

	dead atomic.Bool // an event, or who ended it, told that it may not be so any more
	used atomic.Bool // since it was last considered for eviction
}

func newSessionCache(c *Client) *sessionCache {
	size := c.cfg.SessionCache
	if size <= 0 {
		size = defaultSessionCache
	}
	k := &sessionCache{c: c, born: time.Now(), room: size / cacheStripes, feeds: make(map[uint32]*feed)}
	for i := range k.stripes {
		k.stripes[i].entries = make(map[cacheKey]*cached)
	}
	return k
}

func (k *sessionCache) now() int64 { return int64(time.Since(k.born)) }

func (k *sessionCache) stripe(key *cacheKey) *cacheStripe { return &k.stripes[key[0]%cacheStripes] }

// find answers from what is remembered.
func (k *sessionCache) find(key *cacheKey, o *ValidateOption) (Validation, bool) {
	now := k.now()
	st := k.stripe(key)
	st.mu.RLock()
	e := st.entries[*key]
	st.mu.RUnlock()
	if e == nil {
		return Validation{}, false
	}
	e.feed.wish(o.stale)
	proven := e.proven() // before dead is looked at: what an event ended must not seem proven by the pong behind it
	age := max(now-proven, 0)
	if e.dead.Load() || age > int64(o.stale) || now >= e.until || !e.fits(o) {
		return Validation{}, false
	}
	if !e.used.Load() {
		e.used.Store(true)
	}
	return Validation{Valid: true, Session: e.session, Age: time.Duration(age)}, true
}

// proven is the last moment of which it is known that the token counted, unless the entry is dead.
func (e *cached) proven() int64 {
	if e.stream == nil {
		return e.begun
	}
	return max(e.begun, e.stream.confirmed.Load())
}

// fits tells whether the answer would be the same to this question.
func (e *cached) fits(o *ValidateOption) bool {
	return e.ip == o.ip && (!e.bare || o.bare) && sameDevice(e.device, o.device)
}

// sameDevice compares what was stored, which has numbers as JSON has them, with what was presented. What it does not
// recognize costs a round trip and no more.
func sameDevice(stored, presented map[string]any) bool {
	if len(stored) != len(presented) {
		return false
	}
	for name, p := range presented {
		s, ok := stored[name]
		if !ok {
			return false
		}
		switch p := p.(type) {
		case string, bool, float64, nil:
			if s != p {
				return false
			}
		case int:
			if s != float64(p) {
				return false
			}
		default:
			if !reflect.DeepEqual(s, p) {
				return false
			}
		}
	}
	return true
}

// begin makes the entry of a validation that is about to begin. Events that come before its answer find it.
func (k *sessionCache) begin(key cacheKey, id sessiontoken.ID, shard uint32, o *ValidateOption) *cached {
	f := k.feed(shard)
	f.wish(o.stale)
	e := &cached{key: key, id: id, feed: f, ip: o.ip, bare: o.bare}
	f.add(e)
	return e
}

// The bounds of how long a session is used without the cluster noting it: a sixteenth of its idle timeout, and of a short
// one a fourth, as the nodes do it. So it ends so much early at most, and never late.
const (
	minUnused = time.Second
	maxUnused = time.Minute
)

// fill puts an entry in its place with the answer to its validation; false if something happened to its session since it
// began, or if it is too large to keep.
func (k *sessionCache) fill(e *cached, v *validated) bool {
	life := v.Session.ExpiresAt.Sub(v.at)
	if idle := v.Session.IdleTimeout; idle > 0 {
		noted := v.at.Sub(v.Session.LastSeenAt)
		life = min(life, max(min(minUnused, idle/4), min(idle/16, maxUnused)-noted))
	}
	e.until = e.begun + int64(life)
	e.session = v.Session
	e.device, _ = decodeObject(v.device) // it was just encoded
	e.bytes = 768 + 6*v.size             // what the maps and texts of an answer take, roughly
	if e.bytes > k.room/4 {
		return false
	}
	st := k.stripe(&e.key)
	var gone []*cached
	st.mu.Lock()
	alive := !e.dead.Load() // who kills it later finds it in the stripe
	if alive {
		if old := st.entries[e.key]; old != nil {
			st.remove(old)
			gone = append(gone, old)
		}
		for st.bytes+e.bytes > k.room {
			gone = append(gone, st.evict(k.now()))
		}
		st.entries[e.key] = e
		st.bytes += e.bytes
	}
	st.mu.Unlock()
	for _, old := range gone {
		old.feed.remove(old)
	}
	return alive
}

func (st *cacheStripe) remove(e *cached) {
	delete(st.entries, e.key)
	st.bytes -= e.bytes
}

// evictionSample is how many entries are looked at to evict one.
const evictionSample = 8

// evict makes room: it takes out one of a few entries, one that is over or else one that was not used lately. There is
// one. Called with mu held.
func (st *cacheStripe) evict(now int64) *cached {
	var victim *cached
	n := 0
	for _, e := range st.entries { // in random order
		if victim == nil || !e.used.Load() {
			victim = e
		}
		if n++; e.dead.Load() || now >= e.until {
			victim = e
			break
		}
		if n == evictionSample {
			break
		}
		e.used.Store(false)
	}
	st.remove(victim)
	return victim
}

// forget takes out what is remembered of a token.
func (k *sessionCache) forget(key *cacheKey) {
	st := k.stripe(key)
	st.mu.Lock()
	e := st.entries[*key]
	if e != nil {
		st.remove(e)
	}
	st.mu.Unlock()
	if e != nil {
		e.feed.remove(e)
	}
}

// bury takes out entries that are dead.
func (k *sessionCache) bury(dead []*cached) {
	for _, e := range dead {
		st := k.stripe(&e.key)
		st.mu.Lock()
		if st.entries[e.key] == e {
			st.remove(e)
		}
		st.mu.Unlock()
	}
}

// feed returns what is known of a shard's events, and has them followed.
func (k *sessionCache) feed(shard uint32) *feed {
	k.mu.Lock()
	f := k.feeds[shard]
	if f == nil {
		f = &feed{k: k, shard: shard, byUser: make(map[userKey][]*cached)}
		k.feeds[shard] = f
	}
	k.mu.Unlock()
	f.follow()
	return f
}

// forgetUser takes out what is remembered of a user's sessions: what this client did to them it does not have to be told.
func (k *sessionCache) forgetUser(user userKey) {
	shard := k.c.routes.Load().shardAt(uint16(user[0])<<8 | uint16(user[1]))
	k.mu.Lock()
	f := k.feeds[shard]
	k.mu.Unlock()
	if f != nil {
		f.end(user, nil)
	}
}

// forgetUsers takes out everything, for an end of sessions that names no user.
func (k *sessionCache) forgetUsers() {
	k.mu.Lock()
	feeds := slices.Collect(maps.Values(k.feeds))
	k.mu.Unlock()
	for _, f := range feeds {
		f.mu.Lock()
		users := slices.Collect(maps.Keys(f.byUser))
		f.mu.Unlock()
		for _, user := range users {
			f.end(user, nil)
		}
	}
}
