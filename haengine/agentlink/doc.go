// Package agentlink is the protocol between the appliance and the agent of a
// node: its messages, their framing and the rules that both ends share. The
// children server and client are its two ends; the agent imports the client
// only.
//
// The link is TLS 1.3 (RFC 8446) on TCP port 7443, opened by the node. Each
// message is a frame: a length of 4 bytes, big endian, at most MaxFrame, and
// that many bytes of JSON (RFC 8259), an envelope of version, kind and body.
//
//	node                                  appliance
//	  Hello{version, node, boot id}   ->
//	  Join{token, facts, CSR}         ->            without a certificate
//	                                  <-  Joined{certificate} | Refused
//	                                  <-  Welcome | Refused    with one
//	  Heartbeat{seq, app, epoch, ...} ->
//	                                  <-  HeartbeatAck{seq, granted, lease}
//	                                  <-  Order{id, boot id, epoch, ...}
//	  Result{order id, ok, code}      ->
//	  Report, Sample, Renew           ->
//
// A peer without a client certificate can only join. It proves itself by a
// one-time token of 256 bits, which the appliance minted for this boot attempt
// and of which it keeps a SHA-256 only; it gets a short-lived certificate bound
// to the node's name and its boot id (see Identity). The lease that keeps an
// application's service on a node is renewed by the answer to a heartbeat and
// counts from the moment that heartbeat was sent, see SAFETY S2.
//
// The package leaves to others: what a token is worth, who may hold a lease
// (both the appliance's), and what an order does (the agent's).
package agentlink
