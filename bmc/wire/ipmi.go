package wire

import (
	"context"
	"errors"
	"os/exec"
	"strconv"
	"strings"
	"time"

	bmclib "github.com/bmc-toolbox/bmclib/v2"
	"github.com/bmc-toolbox/bmclib/v2/providers/ipmitool"
	"github.com/go-logr/logr"
	"github.com/jacobweinstock/registrar"

	"hotspare"
	"hotspare/bmc"
)

// ipmi is a BMC behind bmclib's ipmitool provider. Each call is one or more
// runs of the program, each with a session of its own, so there is nothing to
// keep open.
type ipmi struct {
	cfg   Config
	tool  string
	suite int // 0: not known yet

	proved bool // the BMC accepted user and password at least once

	refused   error // the last refusal of the password
	refusedAt time.Time
}

func newIPMI(c Config) (*ipmi, error) {
	name := c.IPMITool
	if name == "" {
		name = "ipmitool"
	}
	tool, err := exec.LookPath(name)
	if err != nil {
		return nil, bmc.NewError(hotspare.CodeBMCTool, c.where(), "", err)
	}
	return &ipmi{cfg: c, tool: tool, suite: c.CipherSuite}, nil
}

// client gives bmclib with the one provider that is meant.
func (d *ipmi) client(suite int) (*bmclib.Client, error) {
	log := logr.FromSlogHandler(d.cfg.Log.Handler())
	host := d.cfg.Host
	if strings.Contains(host, ":") {
		host = "[" + host + "]" // the provider joins host and port itself
	}
	conn, err := ipmitool.New(host, d.cfg.User, d.cfg.Password.Reveal(),
		ipmitool.WithIpmitoolPath(d.tool),
		ipmitool.WithPort(strconv.Itoa(d.cfg.Port)),
		ipmitool.WithCipherSuite(strconv.Itoa(suite)),
		ipmitool.WithLogger(log))
	if err != nil {
		return nil, bmc.NewError(hotspare.CodeBMCTool, d.cfg.where(), "", err)
	}
	reg := registrar.NewRegistry(registrar.WithLogger(log))
	reg.Register(ipmitool.ProviderName, ipmitool.ProviderProtocol, ipmitool.Features, nil, conn)
	return bmclib.NewClient(host, d.cfg.User, d.cfg.Password.Reveal(),
		bmclib.WithRegistry(reg), bmclib.WithLogger(log)), nil
}

// PowerState runs `chassis power status`.
func (d *ipmi) PowerState(ctx context.Context) (bmc.PowerState, error) {
	state := bmc.PowerUnknown
	err := d.call(ctx, func(ctx context.Context, c *bmclib.Client, _ int) error {
		text, err := c.GetPowerState(ctx)
		if err != nil {
			return err
		}
		state = parseChassisPower(text)
		return nil
	})
	return state, err
}

// parseChassisPower reads the output of `ipmitool chassis power status`. Only a
// line that says exactly on or off counts.
func parseChassisPower(output string) bmc.PowerState {
	state := bmc.PowerUnknown
	for line := range strings.Lines(output) {
		word, found := strings.CutPrefix(strings.TrimSpace(line), "Chassis Power is ")
		if !found {
			continue
		}
		if state != bmc.PowerUnknown {
			return bmc.PowerUnknown // two answers are none
		}
		state = bmc.ParsePowerState(word)
	}
	return state
}

func (d *ipmi) PowerOff(ctx context.Context) error { return d.setPower(ctx, "off") }

func (d *ipmi) PowerOn(ctx context.Context) error { return d.setPower(ctx, "on") }

func (d *ipmi) setPower(ctx context.Context, state string) error {
	return d.call(ctx, func(ctx context.Context, c *bmclib.Client, _ int) error {
		if !d.proved {
			// bmclib logs in up to three times for one power command; a wrong
			// password must not be tried that often.
			if _, err := c.GetPowerState(ctx); err != nil {
				return err
			}
		}
		ok, err := c.SetPowerState(ctx, state)
		return accepted(ok, err)
	})
}

func accepted(ok bool, err error) error {
	if err == nil && !ok {
		return errors.New("the BMC did not accept the command")
	}
	return err
}

// SystemUUID runs `mc guid`, for which bmclib has no means. ipmitool finds out
// in which byte order the BMC gives it.
func (d *ipmi) SystemUUID(ctx context.Context) (string, error) {
	var uuid string
	err := d.call(ctx, func(ctx context.Context, _ *bmclib.Client, suite int) error {
		output, err := d.run(ctx, suite, "mc", "guid")
		if err != nil {
			return err
		}
		var ok bool
		if uuid, ok = parseGUID(output); !ok {
			return errors.New("the BMC gave no usable system GUID")
		}
		return nil
	})
	return uuid, err
}

// parseGUID finds "System GUID  : 8f7c1a52-..." in ipmitool's output.
func parseGUID(output string) (string, bool) {
	for line := range strings.Lines(output) {
		key, value, found := strings.Cut(line, ":")
		if !found || strings.TrimSpace(key) != "System GUID" {
			continue
		}
		uuid := strings.ToLower(strings.TrimSpace(value))
		return uuid, bmc.SameUUID(uuid, uuid) // a UUID that is one equals itself
	}
	return "", false
}

// Close has nothing to close: sessions end with each run of ipmitool.
func (d *ipmi) Close(context.Context) error { return nil }

// call does one operation: it asks first without credentials whether the BMC is
// there, finds the cipher suite if it is not known, and translates errors.
func (d *ipmi) call(ctx context.Context, op func(context.Context, *bmclib.Client, int) error) error {
	if d.refused != nil && time.Since(d.refusedAt) < d.cfg.PasswordPause {
		return d.refused
	}
	ctx, cancel := context.WithTimeout(ctx, d.cfg.Timeout)
	defer cancel()
	if _, err := reachIPMI(ctx, d.cfg); err != nil {
		return err
	}
	suites := []int{d.suite}
	if d.suite == 0 {
		suites = []int{17, 3}
	}
	var err error
	for _, suite := range suites {
		if err = d.try(ctx, suite, op); err == nil {
			d.suite, d.proved, d.refused = suite, true, nil
			return nil
		}
		if !errors.Is(err, errSuite) {
			break
		}
	}
	if errors.Is(err, bmc.ErrPassword) {
		d.proved, d.refused, d.refusedAt = false, err, time.Now()
	}
	return err
}

func (d *ipmi) try(ctx context.Context, suite int, op func(context.Context, *bmclib.Client, int) error) error {
	c, err := d.client(suite)
	if err != nil {
		return err
	}
	if err = op(ctx, c, suite); err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return bmc.NewError(hotspare.CodeBMCUnreachable, d.cfg.where(), "it did not answer in time", context.Cause(ctx))
	}
	if e := classify(d.cfg.where(), err.Error(), err); e != nil {
		return e
	}
	// ipmitool says why a session failed only when it is asked to be verbose,
	// which bmclib cannot. One more attempt tells a wrong password from the rest.
	output, verr := d.run(ctx, suite, "-v", "chassis", "power", "status")
	if verr == nil {
		return bmc.NewError(hotspare.CodeBMCRefused, d.cfg.where(), firstLine(err.Error()), err)
	}
	if e := classify(d.cfg.where(), output, err); e != nil {
		return e
	}
	if ctx.Err() != nil {
		return bmc.NewError(hotspare.CodeBMCUnreachable, d.cfg.where(), "it did not answer in time", context.Cause(ctx))
	}
	return bmc.NewError(hotspare.CodeBMCRefused, d.cfg.where(), firstLine(err.Error()), err)
}

// run starts ipmitool itself. The password goes by the environment, which only
// the same user and root can read; the process list does not show it.
func (d *ipmi) run(ctx context.Context, suite int, args ...string) (string, error) {
	all := []string{"-I", "lanplus", "-H", d.cfg.Host, "-p", strconv.Itoa(d.cfg.Port), "-U", d.cfg.User,
		"-E", "-N", "5", "-C", strconv.Itoa(suite)}
	if args[0] == "-v" {
		all, args = append(all, "-v"), args[1:]
	}
	cmd := exec.CommandContext(ctx, d.tool, append(all, args...)...)
	cmd.Env = []string{"IPMITOOL_PASSWORD=" + d.cfg.Password.Reveal()}
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	if err != nil {
		return string(out), &toolError{output: strings.TrimSpace(string(out)), err: err}
	}
	return string(out), nil
}

type toolError struct {
	output string
	err    error
}

func (e *toolError) Error() string { return "ipmitool: " + e.err.Error() + ": " + e.output }
func (e *toolError) Unwrap() error { return e.err }

var errSuite = errors.New("cipher suite not offered")

// classify finds the cause in what ipmitool 1.8.18 and 1.8.19 print; nil if the
// text does not tell. Order matters: the general texts follow the special ones.
func classify(where, output string, cause error) error {
	text := strings.ToLower(output)
	has := func(words ...string) bool {
		for _, w := range words {
			if strings.Contains(text, w) {
				return true
			}
		}
		return false
	}
	switch {
	case has("no matching cipher suite", "invalid authentication algorithm", "invalid integrity algorithm",
		"invalid confidentiality algorithm"):
		return bmc.NewError(hotspare.CodeBMCRefused, where, "it does not offer that cipher suite", errors.Join(errSuite, cause))
	case has("insufficient privilege", "unauthorized role", "role requested", "set session privilege level to"):
		return bmc.NewError(hotspare.CodeBMCPrivilege, where, firstLine(output), cause)
	case has("hmac is invalid", "unauthorized name", "password invalid", "incorrect password", "invalid user name", "rakp 4 message has invalid integrity"):
		return bmc.NewError(hotspare.CodeBMCPassword, where, "", cause)
	case has("get auth capabilities error", "no response from remote controller", "could not open socket", "address lookup for"):
		return bmc.NewError(hotspare.CodeBMCUnreachable, where, firstLine(output), cause)
	case has("completion code", "command not supported", "command failed", "node busy", "not supported in present state", "control to"):
		return bmc.NewError(hotspare.CodeBMCRefused, where, firstLine(output), cause)
	default:
		return nil
	}
}

// firstLine gives the telling line of a tool's output.
func firstLine(text string) string {
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line != "" && !strings.HasPrefix(line, "Loading IANA") && !strings.HasPrefix(line, "ipmitool version") {
			return line
		}
	}
	return ""
}
