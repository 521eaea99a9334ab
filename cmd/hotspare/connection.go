package main

import (
	"os"
	"strings"

	"hotspare"
	"hotspare/ui/api/client"
)

// connection holds the flags that say where the appliance is.
type connection struct {
	socket, server, tokenFile string
}

func (c *connection) open() (*client.Client, error) {
	o := client.Options{Socket: c.socket, Server: c.server}
	if c.tokenFile != "" {
		b, err := os.ReadFile(c.tokenFile)
		if err != nil {
			return nil, &hotspare.Error{
				Code: hotspare.CodeUnauthorized, What: "the token cannot be read", Where: c.tokenFile, Err: err,
				Fix: "the appliance keeps it in <state>/api.token, mode 0600",
			}
		}
		o.Token = hotspare.NewSecret(strings.TrimSpace(string(b)))
	}
	return client.New(o), nil
}
