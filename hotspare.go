// Package hotspare holds the two values that every other package of the
// project shares: Error, which tells an operator what went wrong and what to do
// about it under a stable code, and Secret, a string that does not print.
//
// It stands at the root of the module because imports go from child to parent
// only: boot, bmc, images, storage and haengine are siblings that never import
// each other, and this package is their one common parent. It imports the
// standard library's pure parts alone and must stay this small.
package hotspare
