package dhcp

import (
	"hotspare/boot"
)

func bootOf(m boot.MAC) boot.Request { return boot.Request{MAC: m} }
