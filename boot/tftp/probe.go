package tftp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"time"

	"github.com/pin/tftp/v3"

	"hotspare"
)

// Probe fetches a file as a firmware does, in lock-step with blksize and tsize,
// and gives its length: the test that the port answers, that the loader is
// there, and that no firewall on this host stands between. The client is
// pin/tftp's, so the two ends of the protocol are not the same code.
func Probe(ctx context.Context, server netip.AddrPort, name string) (int64, error) {
	n, err := fetch(ctx, server, name) // ends by its own timeouts, and at the next block when ctx ends
	if err == nil {
		return n, nil
	}
	return n, &hotspare.Error{
		Code: hotspare.CodeTransfer, What: "the appliance's own TFTP server does not give a boot loader", Where: fmt.Sprintf("%s from %s", name, server),
		Why: err.Error(), Fix: "look for a firewall rule on UDP port 69 and above, and whether the loaders' packages are installed", Err: err,
	}
}

func fetch(ctx context.Context, server netip.AddrPort, name string) (int64, error) {
	c, err := tftp.NewClient(server.String())
	if err != nil {
		return 0, err
	}
	c.SetTimeout(time.Second)
	c.SetRetries(3)
	c.SetBlockSize(1428)
	c.RequestTSize(true)
	r, err := c.Receive(name, "octet")
	if err != nil {
		return 0, err
	}
	w := &counting{ctx: ctx}
	n, err := r.WriteTo(w)
	if in, ok := r.(tftp.IncomingTransfer); ok && err == nil {
		if size, known := in.Size(); known && size != n {
			err = fmt.Errorf("%d bytes came, %d were announced", n, size)
		}
	}
	return n, errors.Join(err, ctx.Err())
}

// counting drops what comes.
type counting struct{ ctx context.Context }

func (c *counting) Write(b []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return io.Discard.Write(b)
}
