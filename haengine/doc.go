// Package haengine decides which node runs which application.
//
// It is a pure core: Step takes a state, a moment and an event, and gives the
// next state and the actions to perform. It opens no socket, reads no clock and
// draws no random number; package haengine/runner feeds it events, journals each
// state before any effect (haengine/store) and performs the actions through
// small interfaces that the appliance implements. The same input gives the same
// output, so a failover can be replayed, simulated (testenv/sim) and explained.
//
// The state has two parts. Durable is journalled before an action is performed
// and survives a restart; Soft holds counters of suspicion and the last samples,
// and is gathered anew. A grant is the right of one boot of one node to run one
// application; its number, the epoch, is raised for every grant and is durable
// before it is used. An application starts elsewhere only after exclusion
// evidence about every earlier grant; docs/safety.md names the rules (S1 to S17,
// L1 to L3, E1 to E2) and the tests that prove them, docs/failover.md the phases.
//
// What this package leaves to others: performing actions (runner and the
// appliance), measuring (haengine/monitor, the agent), keeping state
// (haengine/store), secrets, images, volumes, boot answers.
package haengine
