// Package fsm is the replicated state machine of one shard: it turns log entries into changes of the shard's state
// and results, and nothing else. It computes; the shell around it (node/shard) does.
//
// Nothing in this package or in the data types below it reads a clock, random numbers, the network or a map in
// iteration order. Time comes out of the log.
//
// Invariants, named where the code depends on them:
//
//	I1  Applying the same entries to equal states gives equal states and equal outcomes, byte for byte, however the
//	    entries are grouped into calls of Apply.
//	I2  Shard time never goes back: it is max(previous, entry's stamp).
//	I3  The applied index is written in the same batch as the effects of the entry. An entry at or below it is skipped.
//	I4  A frame of a client has its effect at most once: it is applied, found in the client's window, or refused.
//	I5  A client's record outlives the deadline of every frame recorded in it, so that a late duplicate is found in
//	    the window or refused by its deadline.
//	I6  Every row that expires has a row in the expiry index at or before its expiry.
package fsm
