package main

import (
	"net/url"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"hotspare"
	"hotspare/ui/api/client"
)

// connection holds the flags that say where the appliance is.
type connection struct {
	socket, server, tokenFile string
}

// with opens a client for fn.
func (c *connection) with(fn func(*client.Client) error) error {
	cl, err := c.open()
	if err != nil {
		return err
	}
	defer cl.Close()
	return fn(cl)
}

// named resolves a kind's name and gives the API's path of that kind, or of one
// resource of it.
func (c *connection) named(cmd *cobra.Command, args []string, fn func(cl *client.Client, kind, path string) error) error {
	kind, err := kindOf(cmd, args[0])
	if err != nil {
		return err
	}
	path := "/api/v1/" + kind
	if len(args) == 2 {
		path += "/" + url.PathEscape(args[1])
	}
	return c.with(func(cl *client.Client) error { return fn(cl, kind, path) })
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
