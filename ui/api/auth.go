package api

import (
	"crypto/subtle"
	"net"
	"strings"

	"github.com/gofiber/fiber/v2"

	"hotspare"
)

const byKey = "hotspare-by" // fiber local: who asks, for the record

// guard admits a request, or answers why not. The unix socket's file mode is
// its guard. Everywhere else a change needs the token; reading without it is
// allowed only from the loopback interface and under a loopback host name, so
// that a page of another site cannot read through the browser (DNS rebinding).
func guard(token hotspare.Secret) fiber.Handler {
	return func(c *fiber.Ctx) error {
		if c.Context().LocalAddr().Network() == "unix" {
			c.Locals(byKey, "local operator")
			return c.Next()
		}
		if given, ok := strings.CutPrefix(c.Get(fiber.HeaderAuthorization), "Bearer "); ok && !token.IsZero() &&
			subtle.ConstantTimeCompare([]byte(given), []byte(token.Reveal())) == 1 {
			c.Locals(byKey, "token")
			return c.Next()
		}
		read := c.Method() == fiber.MethodGet || c.Method() == fiber.MethodHead
		if read && loopback(c) {
			c.Locals(byKey, "loopback")
			return c.Next()
		}
		return answer(c, &hotspare.Error{
			Code: hotspare.CodeUnauthorized, What: "this request needs the token", Where: c.Method() + " " + c.Path(),
			Fix: "send `Authorization: Bearer TOKEN` with the contents of <state>/api.token, or use the unix socket",
		})
	}
}

func loopback(c *fiber.Ctx) bool {
	if !c.Context().RemoteIP().IsLoopback() {
		return false
	}
	host := string(c.Context().Host())
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	ip := net.ParseIP(strings.Trim(host, "[]"))
	return host == "localhost" || (ip != nil && ip.IsLoopback())
}

// harden sets the headers that keep a browser from running or framing anything
// but our own files.
func harden(c *fiber.Ctx) error {
	c.Set("Content-Security-Policy", "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
	c.Set("X-Content-Type-Options", "nosniff")
	c.Set("Referrer-Policy", "no-referrer")
	return c.Next()
}

func answer(c *fiber.Ctx, err error) error {
	p := problem(err)
	return c.Status(p.Status).JSON(p, p.ContentType(""))
}
