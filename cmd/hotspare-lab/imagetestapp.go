package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"hotspare"
	"hotspare/boot"
	"hotspare/testenv/lab/site"
	"hotspare/ui/api"
)

// imageTestApp says as what the image is started.
type imageTestApp struct {
	way     string
	http    string
	tcp     int
	port    int
	process string
	expect  string
}

func (a imageTestApp) validate() error {
	switch {
	case !slices.Contains([]string{"", "cold-iscsi", "cold-san", "ram"}, a.way):
		return fmt.Errorf("--way %s: possible are cold-iscsi, cold-san and ram; the others need a machine that waits", a.way)
	case a.http != "" && !strings.HasPrefix(a.http, "/"):
		return errors.New("--http is a path")
	case a.tcp < 0 || a.tcp > 65535 || a.port < 1 || a.port > 65535:
		return errors.New("a port is 1 to 65535")
	case a.way == "cold-san" && a.expect == "":
		return errors.New("--way cold-san needs --expect: no agent is inside that could tell")
	case a.way == "cold-san" && (a.http != "" || a.tcp != 0 || a.process != ""):
		return errors.New("--way cold-san has no service address: leave --http, --tcp and --process out")
	}
	return nil
}

// choose fills in the way, by what the image offers.
func (a *imageTestApp) choose(img api.Image) error {
	offers := map[string]string{"cold-iscsi": "kernel", "cold-san": "san", "ram": "ram"}
	bad := func(why, fix string) error {
		return &hotspare.Error{Code: hotspare.CodeInvalid, What: "the image cannot be tested like this", Why: why, Fix: fix}
	}
	if a.way == "" {
		for _, w := range []string{"cold-iscsi", "cold-san", "ram"} {
			if slices.Contains(img.Starts, offers[w]) {
				a.way = w
				break
			}
		}
	}
	switch {
	case a.way == "":
		return bad("no way to start it was found", "see the notes of `hotspare image show`")
	case !slices.Contains(img.Starts, offers[a.way]):
		return bad(fmt.Sprintf("it does not offer %s, but %s", a.way, strings.Join(img.Starts, ", ")), "leave --way out")
	case a.way == "cold-san" && a.expect == "":
		return bad("it starts by itself, without an agent that could tell", "give --expect TEXT, which its serial console shows when it is up")
	case a.way != "cold-san" && img.Init == "" && a.process == "":
		return bad("it has no init: it is one process", "give --process \"COMMAND ARGUMENTS\"")
	}
	return nil
}

// upMark is what the machine's console shows when its systemd is through.
const upMark = "hotspare-lab: the default target is reached"

// systemUp waits for the default target and shows what failed on its way. It does
// not ask systemd whether it is "running": this very command is a job of it.
const systemUp = `until systemctl is-active --quiet default.target; do sleep 0.5; done
systemctl list-units --failed --plain --no-legend --no-pager | while read -r unit rest; do echo "hotspare-lab: failed: $unit" > /dev/console; done
echo "` + upMark + `" > /dev/console`

// documents are the pool, the machine and the application of the test, as an
// operator would write them; JSON is YAML too.
func (a imageTestApp) documents(memory int, limit time.Duration, img api.Image) ([]byte, error) {
	type m = map[string]any
	resources := []m{}
	monitors := []m{{"name": "agent", "kind": "heartbeat"}}
	policy := m{"ways": []string{a.way}, "maxAttempts": 1, "bootDeadline": limit.String(), "onlineDeadline": limit.String(), "restarts": -1}
	if a.way == "cold-san" {
		policy["evidence"] = []string{"power"}
		monitors = []m{{"name": "never", "kind": "tcp", "port": 9}} // the console tells
	} else {
		resources = append(resources, m{"name": "address", "kind": "address"})
		if img.Init == "" {
			resources = append(resources, m{"name": "process", "kind": "process", "command": strings.Fields(a.process)})
		} else {
			resources = append(resources, m{"name": "system", "kind": "script", "online": []string{"/bin/sh", "-c", systemUp}, "offline": []string{"/bin/true"}})
		}
		if a.http != "" {
			monitors = append(monitors, m{"name": "http", "kind": "http", "url": a.http, "port": a.port})
		}
		if a.tcp != 0 {
			monitors = append(monitors, m{"name": "tcp", "kind": "tcp", "port": a.tcp})
		}
	}
	var out []byte
	for _, doc := range []m{
		{"kind": "pool", "name": "lab"},
		{"kind": "node", "name": "n1", "uuid": "00000000-0000-4000-8000-525400770001", "macs": []string{testMAC}, "pool": "lab", "cpus": 1, "memoryMiB": memory, "approved": true,
			"bmc": m{"address": "10.78.0.11", "user": "admin", "password": "lab-n1"}},
		{"kind": "application", "name": "tested", "image": "tested:1", "pools": []string{"lab"}, "address": "10.77.0.50/24", "resources": resources, "monitors": monitors, "policy": policy},
	} {
		b, err := json.Marshal(doc)
		if err != nil {
			return nil, err
		}
		out = append(append(out, "---\n"...), append(b, '\n')...)
	}
	return out, nil
}

const testMAC = "52:54:00:77:00:01"

// judge starts the image and waits for the verdict.
func (t *imageTester) judge(ctx context.Context, img api.Image, r *imageTestResult) error {
	if err := t.opts.app.choose(img); err != nil {
		return err
	}
	r.Way = t.opts.app.way
	docs, err := t.opts.app.documents(t.opts.memory, t.opts.timeout, img)
	if err != nil {
		return err
	}
	if _, err := t.site.API().Apply(ctx, "test", docs, false); err != nil {
		return err
	}
	t.say("start by %s", r.Way)
	wait, cancel := context.WithTimeout(ctx, t.opts.timeout)
	defer cancel()
	begun := time.Now()
	r.OK, r.Text = t.verdict(wait)
	r.Seconds = time.Since(begun).Seconds()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	r.Console = t.consoleEnd(25)
	if err := t.site.API().Get(ctx, "/api/v1/boots/"+testMAC, &r.Boots); err != nil {
		r.Boots = nil // it never asked for anything
	}
	r.explain, err = t.site.Hotspare(ctx, "explain", "boot", testMAC)
	if err != nil {
		r.explain = "the machine has asked for nothing"
	}
	return nil
}

// verdict waits until the image is up, or has failed, and says what was seen.
func (t *imageTester) verdict(ctx context.Context) (ok bool, text string) {
	a := t.opts.app
	phase, again := "", false
	snap, err := t.site.Until(ctx, "the image to come up", func(s api.Snapshot) bool {
		app, found := site.Application(s, "tested")
		if !found {
			return false
		}
		if now := app.Status.Phase + " " + app.Status.Reason; now != phase {
			phase = now
			t.say("  %s", strings.TrimSpace(now))
		}
		seen := a.expect == "" || strings.Contains(t.console(), a.expect)
		ok = seen && (a.way == "cold-san" || app.Status.Phase == "running")
		again = !ok && a.way != "cold-san" && startedAnew(t.console())
		return ok || again || app.Status.Phase == "down" || app.Status.Phase == "blocked"
	})
	app, _ := site.Application(snap, "tested")
	switch {
	case ok:
		return true, t.seen()
	case again:
		return false, "the machine ended and started anew before the image was up"
	case err != nil && a.expect != "" && app.Status.Phase == "running":
		return false, fmt.Sprintf("the console did not show %q within %s", a.expect, t.opts.timeout)
	case err != nil:
		return false, fmt.Sprintf("not within %s: it is %s", t.opts.timeout, strings.TrimSpace(app.Status.Phase+" "+app.Status.Reason))
	}
	why := app.Status.Reason
	for _, f := range snap.Failovers {
		if f.Application != "tested" {
			continue
		}
		for _, s := range f.Steps {
			if strings.Contains(s.Text, "fail") {
				why += "; " + s.Text
			}
		}
		break
	}
	return false, why
}

// seen says what the machine showed.
func (t *imageTester) seen() string {
	a, console := t.opts.app, t.console()
	var failed []string
	for line := range strings.Lines(console) {
		if _, unit, ok := strings.Cut(line, "hotspare-lab: failed: "); ok {
			failed = append(failed, boot.Plain(strings.TrimSpace(unit)))
		}
	}
	var words []string
	if strings.Contains(console, upMark) {
		words = append(words, "systemd reached the default target")
	}
	if a.process != "" && a.way != "cold-san" {
		words = append(words, "the process runs")
	}
	if a.http != "" {
		words = append(words, "HTTP answers on "+a.http)
	}
	if a.tcp != 0 {
		words = append(words, fmt.Sprintf("port %d answers", a.tcp))
	}
	if a.expect != "" {
		words = append(words, fmt.Sprintf("the console showed %q", a.expect))
	}
	if len(failed) > 0 {
		words = append(words, "failed units: "+strings.Join(failed, " "))
	}
	if len(words) == 0 {
		return "the service group is online"
	}
	return strings.Join(words, "; ")
}

// waits is what a machine's screen shows that asks for a boot when none is ordered:
// the one that was has ended. reset is the first word of its firmware.
const (
	waits = "hotspare: this machine waits"
	reset = "SeaBIOS"
)

// startedAnew says whether the machine has begun a further boot.
func startedAnew(console string) bool { return strings.Contains(console, waits) }

// firstBoot cuts a further boot off: why the first one ended stands before it.
func firstBoot(console string) string {
	if at := strings.Index(console, waits); at >= 0 {
		console = console[:at]
		if at = strings.LastIndex(console, reset); at > 0 {
			console = console[:at]
		}
	}
	return console
}

// maxConsole is how much of the serial console is looked at, from its end.
const maxConsole = 1 << 20

func (t *imageTester) console() string {
	f, err := os.Open(t.lab.SerialLog("n1"))
	if err != nil {
		return ""
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return ""
	}
	b := make([]byte, min(st.Size(), maxConsole))
	n, _ := f.ReadAt(b, st.Size()-int64(len(b)))
	return string(b[:n])
}

// consoleEnd gives the last lines, harmless for a terminal.
func (t *imageTester) consoleEnd(n int) []string {
	lines := strings.Split(strings.TrimSpace(strings.ReplaceAll(firstBoot(t.console()), "\r", "")), "\n")
	lines = lines[max(0, len(lines)-n):]
	for i := range lines {
		lines[i] = boot.Plain(lines[i])
	}
	return lines
}
