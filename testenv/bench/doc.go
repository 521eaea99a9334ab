// Command bench measures the appliance's parts beside a peer and beside the
// limits of the same machine, in the same run: `make bench PART=storage`.
//
// Part storage sets the target and its store against Debian's tgt, turn by turn,
// with CHAP and statistics on: one load generator for both, an initiator of its
// own (package iscsi's PDUs, raw sockets, one thread). What loopback TCP and the
// disk can do at all is measured by iperf3 and fio. Every figure is the median
// of its rounds, and so is every ratio: of the ratios of the rounds, since a
// machine that others use changes from minute to minute.
//
// It needs the Debian packages of packaging/bench-packages.txt, root, and about
// 6 GiB in /dev/shm and in the work directory. It uses loopback ports that are
// free, and removes what it made.
package main
