package wire

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"hotspare"
	"hotspare/bmc"
)

// authCapabilities is Get Channel Authentication Capabilities for the present
// channel at Administrator level, outside a session, in IPMI v1.5 framing,
// which every IPMI BMC must answer to anybody (IPMI v2.0 sections 13.6, 22.13).
var authCapabilities = []byte{
	0x06, 0x00, 0xff, 0x07, // RMCP: version 1.0, no acknowledge, class IPMI
	0x00, 0, 0, 0, 0, 0, 0, 0, 0, // session: none
	9,                      // length of the message
	0x20, 0x18, 0xc8, 0x81, // to the BMC, NetFn App, checksum, from software 81h
	0x00, 0x38, 0x8e, 0x04, // sequence, command 38h, channel Eh with v2.0 data, Administrator
	0xb5, // checksum
}

const reachInterval = time.Second // between repetitions of a question that may be lost

// reachIPMI asks without credentials whether something there speaks IPMI v2.0.
func reachIPMI(ctx context.Context, c Config) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, c.ReachTimeout)
	defer cancel()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "udp", c.where())
	if err != nil {
		return "", bmc.NewError(hotspare.CodeBMCUnreachable, c.where(), "", err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	buf := make([]byte, 512)
	for {
		if _, err := conn.Write(authCapabilities); err != nil && !refusedPort(err) {
			return "", bmc.NewError(hotspare.CodeBMCUnreachable, c.where(), "", err)
		}
		detail, again, err := readCapabilities(ctx, conn, buf)
		if !again {
			return detail, err
		}
		if ctx.Err() != nil {
			return "", bmc.NewError(hotspare.CodeBMCUnreachable, c.where(),
				fmt.Sprintf("nothing answered IPMI within %s", c.ReachTimeout), context.Cause(ctx))
		}
	}
}

// readCapabilities waits one interval for the answer.
func readCapabilities(ctx context.Context, conn net.Conn, buf []byte) (detail string, again bool, err error) {
	until := time.Now().Add(reachInterval)
	conn.SetReadDeadline(until)
	for {
		if ctx.Err() != nil {
			return "", true, nil
		}
		n, err := conn.Read(buf)
		if refusedPort(err) {
			// ICMP says that nobody listens; the BMC may be restarting. Wait the
			// interval out, then ask again.
			wait(ctx, time.Until(until))
			return "", true, nil
		}
		if err != nil {
			return "", true, nil
		}
		v2, ok := parseCapabilities(buf[:n])
		if !ok {
			continue // something else; go on listening
		}
		if !v2 {
			return "", false, bmc.NewError(hotspare.CodeBMCRefused, conn.RemoteAddr().String(),
				"it speaks IPMI v1.5 only, which has no usable security", nil)
		}
		return "IPMI v2.0", false, nil
	}
}

// parseCapabilities reads the answer and says whether it offers IPMI v2.0
// sessions.
func parseCapabilities(p []byte) (v2, ok bool) {
	const header = 14 // RMCP and session header without authentication
	if len(p) < header+16 || p[0] != 0x06 || p[3]&0x1f != 0x07 || p[4] != 0x00 {
		return false, false
	}
	m := p[header:]
	if m[1]>>2 != 0x07 || m[5] != 0x38 || m[6] != 0x00 {
		return false, false
	}
	// m[7] channel, m[8] types: bit 7 says that m[10] is valid, whose bit 1 is v2.0.
	return m[8]&0x80 != 0 && m[10]&0x02 != 0, true
}

func refusedPort(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && !op.Timeout() && !errors.Is(err, net.ErrClosed)
}

func wait(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// reachRedfish reads the service root, which needs no credentials (DSP0266,
// section "Resource request authentication").
func reachRedfish(ctx context.Context, c Config) (string, error) {
	client, _ := newHTTP(c)
	defer client.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+c.where()+"/redfish/v1/", http.NoBody)
	if err != nil {
		return "", bmc.NewError(hotspare.CodeBMCUnreachable, c.where(), "", err)
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", bmc.NewError(hotspare.CodeBMCUnreachable, c.where(), "", err)
	}
	defer resp.Body.Close()
	var root struct{ RedfishVersion string }
	if err := json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(&root); err != nil || root.RedfishVersion == "" {
		return "", bmc.NewError(hotspare.CodeBMCRefused, c.where(), "something answers there, but it is not Redfish ("+resp.Status+")", err)
	}
	return "Redfish " + root.RedfishVersion, nil
}
