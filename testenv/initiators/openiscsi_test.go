package initiators_test

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"
)

// iscsidConf is what an operator sets for a root that must wait for its target:
// a long replacement timeout. Pings find a dead link within seconds.
const iscsidConf = `node.startup = manual
node.session.auth.authmethod = CHAP
node.session.auth.username = ` + chapUser + `
node.session.auth.password = ` + chapSecret + `
node.session.timeo.replacement_timeout = 600
node.conn[0].timeo.login_timeout = 3
node.conn[0].timeo.noop_out_interval = 1
node.conn[0].timeo.noop_out_timeout = 3
node.session.err_timeo.abort_timeout = 5
node.session.err_timeo.lu_reset_timeout = 5
node.session.initial_login_retry_max = 3
node.session.scan = auto
`

const mib = 1 << 20

// full asks for the long runs.
var full = os.Getenv("HOTSPARE_TEST_FULL") == "1"

// volumes of the stories: one with a file system, one for a load on the bare
// disk, one that is reached over both portals.
func volumes() map[string]int64 {
	return map[string]int64{"data": 24 * mib, "load": 64 * mib, "paths": 64 * mib}
}

// TestOpenISCSI takes Linux's initiator through the life of its volumes, in one
// machine: boots are what costs time. Each story builds on those before.
func TestOpenISCSI(t *testing.T) {
	n := makeNetwork(t)
	g := startTarget(t, n.ns, volumes(), n.portal(0), n.portal(1))
	l := &linux{machine: bootMachine(t, n), n: n}
	for _, story := range []struct {
		name string
		run  func(t *testing.T, l *linux, g *target)
	}{
		{"discovery", discovery},
		{"authentication", authentication},
		{"digests", digests},
		{"file system", fileSystem},
		{"online resize", onlineResize},
		{"trim", trim},
		{"log-in after a cut", cutLink},
		{"target killed", targetKilled},
		{"persistent reservations", persistentReservations},
		{"multipath", multipath},
		{"reboot", reboot},
		{"revocation", revocation},
	} {
		if !t.Run(story.name, func(t *testing.T) {
			l.t, l.n.t, g.t = t, t, t
			story.run(t, l, g)
		}) {
			break
		}
	}
	l.t, l.n.t, g.t = t, t, t
}

// linux is the machine as a user of iscsiadm sees it.
type linux struct {
	*machine
	n     network
	loads int // that were started
}

// node gives the arguments that name one target at one portal.
func (l *linux) node(volume string, portal int) string {
	return "-m node -T " + iqn(volume) + " -p " + l.n.portal(portal)
}

func (l *linux) set(volume string, portal int, name, value string) {
	l.t.Helper()
	l.sh("iscsiadm %s -o update -n '%s' -v '%s'", l.node(volume, portal), name, value)
}

// discover finds all volumes at both portals.
func (l *linux) discover() {
	l.t.Helper()
	for i := range 2 {
		out := l.sh("iscsiadm -m discovery -t sendtargets -p %s", l.n.portal(i))
		for v := range volumes() {
			if !strings.Contains(out, l.n.portal(i)+",1 "+iqn(v)) {
				l.t.Errorf("portal %d does not name %s:\n%s", i, v, out)
			}
		}
	}
}

// login logs in and gives the name of the disk.
func (l *linux) login(volume string, portal int) string {
	l.t.Helper()
	l.sh("iscsiadm %s -l", l.node(volume, portal))
	return l.disk(volume, portal)
}

func (l *linux) logout(volume string, portal int) {
	l.t.Helper()
	l.sh("iscsiadm %s -u", l.node(volume, portal))
}

var attached = regexp.MustCompile(`Attached scsi disk (\w+)\s+State: running`)

// disk gives the name of the disk of a session, once the kernel has it.
func (l *linux) disk(volume string, portal int) string {
	l.t.Helper()
	for deadline := time.Now().Add(patience); ; {
		var target, at string
		out := l.sh("iscsiadm -m session -P 3")
		for line := range strings.Lines(out) {
			f := strings.Fields(line)
			switch {
			case len(f) > 1 && f[0] == "Target:":
				target = f[1]
			case len(f) > 2 && f[0] == "Current":
				at, _, _ = strings.Cut(f[2], ",")
			}
			if m := attached.FindStringSubmatch(line); m != nil && target == iqn(volume) && at == l.n.portal(portal) {
				return m[1]
			}
		}
		if time.Now().After(deadline) {
			l.t.Fatalf("no disk of %s at portal %d:\n%s", volume, portal, out)
		}
		l.sh("sleep 0.2")
	}
}

// session gives the folder of a session below /sys.
func (l *linux) session(disk string) string {
	l.t.Helper()
	return strings.TrimSpace(l.sh(`d=$(readlink -f /sys/block/%s/device); s=${d%%/target*}; echo $s/iscsi_session/${s##*/}`, disk))
}

// work is a load on a device.
type work struct {
	*order
	l    *linux
	seed int
	done int // chunks that it has flushed, as far as we know
}

// workChunks is the part of a device that a load uses, in chunks of 64 KiB.
const workChunks = 256

// work starts a load and waits until it is under way. It goes on until stop.
func (l *linux) work(device string) *work {
	l.t.Helper()
	l.loads++
	l.sh("touch /run/work")
	w := &work{order: l.start(fmt.Sprintf("guest write %s %d %d /run/work", device, l.loads, workChunks)), l: l, seed: l.loads}
	w.until(16)
	return w
}

// until waits until the load has flushed so many chunks.
func (w *work) until(chunks int) {
	w.m.t.Helper()
	for w.done < chunks {
		text, exit, more := w.line()
		if !more {
			w.m.t.Fatalf("%s: ended with %d before chunk %d:\n%s", w.what, exit, chunks, w.out.String())
		}
		w.heed(text)
	}
}

func (w *work) heed(text string) {
	w.m.t.Helper()
	if strings.HasPrefix(text, "error:") {
		w.m.t.Logf("load %d: %s", w.seed, text)
		return
	}
	if _, err := fmt.Sscanf(text, "flushed %d", &w.done); err != nil {
		w.m.t.Fatalf("load %d: %q", w.seed, text)
	}
}

// more waits for chunks that are written from now on.
func (w *work) more(chunks int) {
	w.m.t.Helper()
	for len(w.lines) > 0 { // what was flushed before counts as before
		text, _, more := w.line()
		if !more {
			w.m.t.Fatalf("load %d has ended: %s", w.seed, w.out.String())
		}
		w.heed(text)
	}
	w.until(w.done + chunks)
}

// ends reads to the load's end and gives its status.
func (w *work) ends() int {
	w.m.t.Helper()
	for {
		text, exit, more := w.line()
		if !more {
			return exit
		}
		w.heed(text)
	}
}

// stop ends the load, which must not have met any error.
func (w *work) stop() *work {
	w.m.t.Helper()
	w.l.sh("rm /run/work")
	if exit := w.ends(); exit != 0 {
		w.m.t.Fatalf("load %d: exit status %d", w.seed, exit)
	}
	return w
}

// verify looks for all that a load has flushed, on a disk.
func (l *linux) verify(w *work, disk string) {
	l.t.Helper()
	l.sh("guest verify /dev/%s %d %d %d", disk, w.seed, workChunks, w.done)
}

// discovery: both portals name the volumes.
func discovery(_ *testing.T, l *linux, _ *target) { l.discover() }

// authentication: CHAP, and mutual CHAP; a wrong secret of either side ends it.
func authentication(t *testing.T, l *linux, _ *target) {
	refused := func(what string) {
		t.Helper()
		if out := l.fails("iscsiadm %s -l", l.node("data", 0)); !strings.Contains(out, "login failed due to authorization failure") {
			t.Errorf("%s: %s", what, out)
		}
	}
	l.set("data", 0, "node.session.auth.password", "not-the-secret-at-all")
	refused("a wrong secret")
	l.set("data", 0, "node.session.auth.authmethod", "None")
	refused("no secret")
	l.set("data", 0, "node.session.auth.authmethod", "CHAP")
	l.set("data", 0, "node.session.auth.password", chapSecret)
	l.login("data", 0)
	l.logout("data", 0)
	l.set("data", 0, "node.session.auth.username_in", mutualUser)
	l.set("data", 0, "node.session.auth.password_in", "secret-of-an-impostor")
	l.fails("iscsiadm %s -l", l.node("data", 0))
	l.set("data", 0, "node.session.auth.password_in", mutualSecret)
	l.login("data", 0)
	l.logout("data", 0)
}

// digests: CRC32C over headers and data, with real data behind them.
func digests(t *testing.T, l *linux, _ *target) {
	for _, kind := range []string{"HeaderDigest", "DataDigest"} {
		l.set("data", 0, "node.conn[0].iscsi."+kind, "CRC32C")
	}
	disk := l.login("data", 0)
	out := l.sh("iscsiadm -m session -P 2")
	for _, want := range []string{"HeaderDigest: CRC32C", "DataDigest: CRC32C"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %s:\n%s", want, out)
		}
	}
	l.verify(l.work("/dev/"+disk).stop(), disk)
	l.logout("data", 0)
}

// fileSystem: what is written is there after another log-in. (The shell of
// busybox would take its own mke2fs.)
func fileSystem(_ *testing.T, l *linux, _ *target) {
	disk := l.login("data", 0)
	l.sh(`/sbin/mke2fs -q -t ext4 /dev/%s && mount -t ext4 /dev/%s /mnt && mkdir /mnt/a && cp -a /usr /mnt/a/ && sync
cd /mnt/a && find . -type f | xargs sha256sum > /mnt/sums && [ $(wc -l < /mnt/sums) -gt 4 ]`, disk, disk)
	l.sh("umount /mnt")
	l.logout("data", 0)
	disk = l.login("data", 0)
	l.sh("mount -t ext4 /dev/%s /mnt", disk)
	l.checkSums()
}

// checkSums reads all files from the disk, not from the page cache.
func (l *linux) checkSums() {
	l.t.Helper()
	l.sh("echo 3 > /proc/sys/vm/drop_caches; cd /mnt/a && sha256sum -c -s /mnt/sums")
}

// onlineResize: a mounted volume grows, and the file system in it.
func onlineResize(_ *testing.T, l *linux, g *target) {
	disk := l.disk("data", 0)
	g.ask("resize data 48M", nil)
	l.checkSums() // the next command meets a unit attention
	l.sh("dmesg | grep 'Capacity data has changed'")
	l.sh("iscsiadm %s -R", l.node("data", 0))
	l.sh("until [ $(cat /sys/block/%s/size) = %d ]; do sleep 0.1; done", disk, 48*mib/512)
	l.sh("resize2fs /dev/%s && [ $(df -m /mnt | awk 'END { print $2 }') -gt 36 ]", disk)
	l.sh("mkdir /mnt/a/more && dd if=/dev/urandom of=/mnt/a/more/big bs=1M count=20 conv=fsync && cd /mnt/a && sha256sum ./more/big >> /mnt/sums && sync")
	l.checkSums()
}

// trim: the space of deleted files goes back to the store.
func trim(t *testing.T, l *linux, g *target) {
	allocated := func() int64 {
		t.Helper()
		var s struct{ Allocated int64 }
		g.ask("stats data", &s)
		return s.Allocated
	}
	l.sh("dd if=/dev/urandom of=/mnt/waste bs=1M count=8 conv=fsync")
	before := allocated()
	l.sh("rm /mnt/waste && sync && fstrim -v /mnt")
	if after := allocated(); after > before-7*mib { // the journal has grown meanwhile
		t.Errorf("%d bytes allocated before the trim, %d after", before, after)
	}
	l.checkSums()
}

// cutLink: the cable is out while a load runs, until the initiator has noticed.
// When it is back, the session is, and the load never learns of it.
func cutLink(_ *testing.T, l *linux, _ *target) {
	disk := l.login("load", 0)
	session := l.session(disk)
	w := l.work("/dev/" + disk)
	l.n.cut(0)
	l.sh("while [ $(cat %s/state) = LOGGED_IN ]; do sleep 0.1; done", session)
	l.n.mend(0)
	w.more(64)
	l.verify(w.stop(), disk)
	l.checkSums()
}

// targetKilled: kill -9 of the target under a load, again and again. It begins
// anew on the same directory, the initiator logs in again by itself, and every
// byte is there.
func targetKilled(_ *testing.T, l *linux, g *target) { // S14
	kills := 3
	if full {
		kills = 20
	}
	disk := l.disk("load", 0)
	w := l.work("/dev/" + disk)
	for range kills {
		g.kill()
		g.run()
		w.more(40)
	}
	l.verify(w.stop(), disk)
	l.checkSums()
}

// persistentReservations: two sessions of one machine are two to the unit. One
// keeps the other from writing, a kill of the target included (APTPL), until it
// is preempted.
func persistentReservations(t *testing.T, l *linux, g *target) {
	var disks, sessions [2]string
	for i := range 2 {
		disks[i] = l.login("paths", i)
		sessions[i] = l.session(disks[i])
		l.sh("sg_persist -n --out --register --param-sark=0x%da --param-aptpl /dev/%s", i+1, disks[i])
	}
	may := func(holder int) { // only the holder writes, both read
		t.Helper()
		l.sh("guest write /dev/%s 1 8 /none", disks[holder])
		l.fails("guest write /dev/%s 2 8 /none", disks[1-holder])
		l.sh("guest verify /dev/%s 1 8 8", disks[1-holder])
	}
	const writeExclusive = 1
	l.sh("sg_persist -n --out --reserve --param-rk=0x1a --prout-type=%d /dev/%s", writeExclusive, disks[0])
	may(0)
	g.kill()
	g.run()
	for _, session := range sessions {
		l.sh("until [ $(cat %s/state) = LOGGED_IN ]; do sleep 0.1; done", session)
	}
	if out := l.sh("sg_persist -n --in --read-keys /dev/%s; sg_persist -n --in --read-reservation /dev/%s", disks[0], disks[1]); !strings.Contains(out, "0x1a") || !strings.Contains(out, "0x2a") || !strings.Contains(out, "Write Exclusive") {
		t.Errorf("after a kill of the target:\n%s", out)
	}
	may(0)
	l.sh("sg_persist -n --out --preempt --param-rk=0x2a --param-sark=0x1a --prout-type=%d /dev/%s", writeExclusive, disks[1])
	may(1)
	l.sh("sg_persist -n --out --clear --param-rk=0x2a /dev/%s", disks[1])
	for i := range 2 {
		l.sh("guest write /dev/%s 1 8 /none", disks[i])
		l.logout("paths", i)
	}
}

// multipath: two portals are two ways to one unit. Either may go, and the target
// may restart; the load goes on.
func multipath(t *testing.T, l *linux, g *target) {
	var disks, devices, sessions [2]string
	for i := range 2 {
		l.set("paths", i, "node.session.timeo.replacement_timeout", "3")
		disks[i] = l.login("paths", i)
		devices[i] = strings.TrimSpace(l.sh("cat /sys/block/%s/dev", disks[i]))
		sessions[i] = l.session(disks[i])
	}
	// The names by which multipathd knows that both are one unit.
	l.sh("cmp /sys/block/%[1]s/device/wwid /sys/block/%[2]s/device/wwid && cmp /sys/block/%[1]s/device/vpd_pg83 /sys/block/%[2]s/device/vpd_pg83", disks[0], disks[1])
	l.sh("dmsetup --noudevrules --noudevsync create paths --table '0 %d multipath 1 queue_if_no_path 0 1 1 round-robin 0 2 1 %s 1 %s 1'", volumes()["paths"]/512, devices[0], devices[1])
	// What multipathd does: a way that works again is used again.
	checker := l.start(fmt.Sprintf(`way() { dmsetup status paths | grep -q "$1 F" && [ $(cat $2/state) = LOGGED_IN ] && [ $(cat /sys/block/$3/device/state) = running ] && dmsetup message paths 0 reinstate_path $1; }
while dmsetup status paths > /dev/null 2>&1; do way %s %s %s; way %s %s %s; sleep 0.3; done`, devices[0], sessions[0], disks[0], devices[1], sessions[1], disks[1]))
	w := l.work("/dev/dm-0")
	for i := range 2 {
		l.n.cut(i)
		l.sh("until dmsetup status paths | grep -q '%s F'; do sleep 0.1; done", devices[i])
		w.more(32) // over the other one
		l.n.mend(i)
		l.sh("until dmsetup status paths | grep -q '%s A'; do sleep 0.1; done", devices[i])
	}
	g.kill()
	g.run()
	w.more(32)
	w.stop()
	l.sh("dmsetup --noudevrules --noudevsync remove paths")
	checker.end()
	for i := range 2 {
		l.sh("until [ $(cat %s/state) = LOGGED_IN ]; do sleep 0.1; done", sessions[i])
		l.verify(w, l.disk("paths", i))
	}
	var stats struct{ Sessions []any }
	if g.ask("stats paths", &stats); len(stats.Sessions) != 2 {
		t.Errorf("%d sessions, not one at each portal", len(stats.Sessions))
	}
	for i := range 2 {
		l.logout("paths", i)
	}
}

// reboot: the machine resets in the middle of its work. What it had flushed is
// there when it comes back, and the file system is sound.
func reboot(_ *testing.T, l *linux, _ *target) {
	disk := l.disk("load", 0)
	w := l.work("/dev/" + disk)
	l.start("echo b > /proc/sysrq-trigger")
	l.booted()
	for len(w.lines) > 0 { // what it could still say
		text, _, _ := w.line()
		w.heed(text)
	}
	l.discover()
	l.verify(w, l.login("load", 0))
	disk = l.login("data", 0)
	l.sh("mount -t ext4 /dev/%s /mnt", disk) // replays the journal
	l.checkSums()
	l.sh("umount /mnt && e2fsck -f -n /dev/%s", disk)
}

// revocation: the grant goes under a load. The initiator is cut, does not come
// in again, and what it holds back never lands.
func revocation(t *testing.T, l *linux, g *target) { // S2
	disk := l.disk("load", 0)
	session := l.session(disk)
	w := l.work("/dev/" + disk)
	var revoked struct {
		Epoch    uint64
		Sessions int
	}
	g.ask("revoke load 2", &revoked)
	if revoked.Epoch != 2 || revoked.Sessions < 1 { // the one from before the reboot may be there yet
		t.Errorf("revoked: %+v", revoked)
	}
	type landed struct{ Writes, Discards, Flushes uint64 }
	var before, after landed
	g.ask("stats load", &before)
	l.sh("while [ $(cat %s/state) = LOGGED_IN ]; do sleep 0.1; done", session)
	l.logout("load", 0)
	if w.ends() == 0 {
		t.Error("a revoked initiator writes to the end")
	}
	l.fails("iscsiadm %s -l", l.node("load", 0))
	if g.ask("stats load", &after); after != before {
		t.Errorf("after the revocation %+v became %+v", before, after)
	}
	g.ask("grant load 3", nil)
	l.verify(w, l.login("load", 0))
}
