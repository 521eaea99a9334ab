// Package group runs a service group: it brings an application's resources
// online in the order of their dependencies, watches them, restarts what fails
// within the local limits, reports what does not come back, and takes them
// offline in the reverse order.
//
// It decides nothing about the node: what a report leads to is the appliance's
// matter, and the drop is package fence's. What a kind of resource is made of
// stands behind Driver.
package group
