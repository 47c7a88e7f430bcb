package client

import (
	"fmt"
	"testing"
	"time"

	"github.com/holdfastdb/holdfast/rpc/sessiontoken"
)

// offline is a cache that follows nobody.
func offline(bytes int) *sessionCache {
	return newSessionCache(&Client{closed: true, cfg: Config{SessionCache: bytes}})
}

// remember fills the cache with a token that counts.
func remember(k *sessionCache, token string, size int) bool {
	o := &ValidateOption{stale: time.Hour}
	e := k.begin(cacheKey(KeyOf(token)), sessiontoken.ID{1}, 1, o)
	now := time.Now()
	v := &validated{
		Validation: Validation{Valid: true, Session: &Session{ExpiresAt: now.Add(time.Hour)}}, size: size, at: now,
	}
	kept := k.fill(e, v)
	if !kept {
		e.feed.remove(e)
	}
	return kept
}

func (k *sessionCache) holds(token string) bool {
	key := cacheKey(KeyOf(token))
	_, found := k.find(&key, &ValidateOption{stale: time.Hour})
	return found
}

// count is how many entries there are, how many bytes they take, and how many the index has.
func (k *sessionCache) count() (entries, bytes, indexed int) {
	for i := range k.stripes {
		st := &k.stripes[i]
		sum := 0
		for _, e := range st.entries {
			sum += e.bytes
		}
		if sum != st.bytes {
			panic("the stripe has lost count")
		}
		entries, bytes = entries+len(st.entries), bytes+sum
	}
	for _, list := range k.feeds[1].byUser {
		indexed += len(list)
	}
	return entries, bytes, indexed
}

func TestTheCacheOfSessionsTakesNoMoreThanItsBytes(t *testing.T) {
	const room = 1 << 20
	k := offline(room)
	for n := range 20_000 {
		remember(k, fmt.Sprint(n), 100)
		remember(k, fmt.Sprint(n/2), 100) // some again
	}
	entries, bytes, indexed := k.count()
	if bytes > room || bytes < room/2 {
		t.Errorf("%d bytes of %d are used", bytes, room)
	}
	if indexed != entries {
		t.Errorf("%d entries, and %d in the index: what was evicted is kept alive", entries, indexed)
	}
	k.forgetAll(1)
	if entries, bytes, indexed := k.count(); entries+bytes+indexed != 0 {
		t.Errorf("after all ended: %d entries, %d bytes, %d in the index", entries, bytes, indexed)
	}
}

// forgetAll ends all sessions that remember makes.
func (k *sessionCache) forgetAll(shard uint32) { k.feeds[shard].end(userOf(sessiontoken.ID{1}), nil) }

func TestWhatIsUsedStaysInTheCache(t *testing.T) {
	k := offline(1 << 20)
	remember(k, "used", 100)
	lost := 0
	for n := range 20_000 {
		if !k.holds("used") {
			lost++
			remember(k, "used", 100)
		}
		remember(k, fmt.Sprint(n), 100)
	}
	if lost > 20 {
		t.Errorf("it was evicted %d times", lost)
	}
}

func TestASessionThatIsLargeIsNotRemembered(t *testing.T) {
	k := offline(1 << 20)
	remember(k, "small", 100)
	if remember(k, "large", 1<<16) {
		t.Error("it takes the room of many")
	}
	if !k.holds("small") || k.holds("large") {
		t.Error("the wrong one is there")
	}
}
