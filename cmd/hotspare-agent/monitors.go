package main

import (
	"hotspare/haengine"
	"hotspare/haengine/agentlink"
	"hotspare/haengine/monitor"
)

// Monitors looks at the application from the node.
type Monitors interface {
	Watch(app haengine.Application, epoch haengine.Epoch)
	Forget(app string)
}

// newMonitors makes monitors whose samples go to send.
func newMonitors(send func(agentlink.Sample)) Monitors {
	return monitor.New(haengine.FromNode, func(s haengine.Sample) {
		send(agentlink.Sample{
			App: s.App, Epoch: uint64(s.Epoch), Monitor: s.Monitor, OK: s.OK, Why: s.Why,
			LatencyMicros: s.Latency.Microseconds(), UpMillis: bootTime().Milliseconds(),
		})
	})
}
