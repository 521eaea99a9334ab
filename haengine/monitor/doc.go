// Package monitor looks at applications: it runs their monitors at their
// intervals from one vantage and emits a haengine.Sample for every look. It never
// decides; how many bad samples make a failure is the engine's.
//
// The appliance runs it for haengine.FromAppliance, the node agent for
// haengine.FromNode. Kinds: HTTP (RFC 9110: status and text in the body), TCP
// (connect), PostgreSQL (a query with an expected first column and number of
// rows, over a new connection each time, so that a hung or full server is seen).
// Heartbeats are not looked for: they are the agent's own voice.
package monitor
