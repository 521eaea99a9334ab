// Package process runs the commands of an image that has no init of its own:
// each in a control group below one of the application's, so that all of it can
// be killed at once (cgroup.kill, Linux 5.14), its words kept within bounds.
//
// It restarts nothing: whether a process that ended is started again is the
// service group's matter. Orphans are collected by package pid1.
package process
