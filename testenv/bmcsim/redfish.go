package bmcsim

import (
	"errors"
	"net"
)

type redfishServer struct{ listener net.Listener }

func newRedfish(*controller, Options) (*redfishServer, error) {
	return nil, errors.New("bmcsim: redfish: not built yet")
}
func (r *redfishServer) serve() error { return nil }
func (r *redfishServer) close()       {}
