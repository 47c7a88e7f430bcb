package rpc

import (
	"time"

	"github.com/holdfastdb/holdfast/fsm/session"
)

// sessionPolicy is what sessions of a type are like unless their login says otherwise, and what suspicious ones come to.
type sessionPolicy struct {
	name                    string
	idle, absolute, refresh time.Duration
	ipBinding               string
	// What a change of network or device leads to, and more than burst validations in ten seconds; 0 for nothing.
	onNetwork, onDevice, onBurst session.Act
	burst                        int
}

// sessionPolicies are by session.Kind. The times are within those of NIST SP 800-63B-4 for its levels 1 (mobile) and 2
// (web, api), where a session is not idle for more than an hour, nor longer than a day.
var sessionPolicies = [...]sessionPolicy{
	session.Web: {
		name: "web", idle: 30 * time.Minute, absolute: 12 * time.Hour, refresh: 30 * 24 * time.Hour, ipBinding: bindingOff,
		onNetwork: session.Flag, onDevice: session.AskAgain, onBurst: session.Flag, burst: 3000,
	},
	session.Mobile: {
		name: "mobile", idle: 24 * time.Hour, absolute: 7 * 24 * time.Hour, refresh: 90 * 24 * time.Hour, ipBinding: bindingOff,
		onDevice: session.AskAgain, onBurst: session.Flag, burst: 3000,
	},
	session.API: {
		name: "api", idle: time.Hour, absolute: 24 * time.Hour, refresh: 30 * 24 * time.Hour, ipBinding: bindingOff,
		onNetwork: session.Flag, onDevice: session.Flag, onBurst: session.Flag, burst: 100_000,
	},
}

// policyOf finds the policy of a kind by its name; nil if there is none.
func policyOf(name string) (session.Kind, *sessionPolicy) {
	for k := session.Web; int(k) < len(sessionPolicies); k++ {
		if sessionPolicies[k].name == name {
			return k, &sessionPolicies[k]
		}
	}
	return 0, nil
}

// The ways in which a session is bound to an address.
const (
	bindingOff    = "off"
	bindingSubnet = "subnet"
	bindingExact  = "exact"
)

// The bits of an address that make its network: what one household or office has.
const (
	networkBits4 = 24
	networkBits6 = 48
)
