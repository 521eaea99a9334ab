// Package api is the REST interface of the appliance: fiber v2 for transport,
// huma for the OpenAPI 3.1 document (/api/v1/openapi.json), answers and checks of
// requests. Errors are RFC 9457 problems made by one mapper. It shows the value
// types of its own views and calls the verbs of Verbs, which the appliance
// implements; it decides nothing.
package api

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"reflect"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humafiber"
	"github.com/gofiber/fiber/v2"
	"github.com/gofiber/fiber/v2/middleware/adaptor"
	"github.com/gofiber/fiber/v2/middleware/filesystem"

	"hotspare"
	"hotspare/haengine"
)

// Options configure a Server. Verbs is required.
type Options struct {
	Verbs   Verbs
	Token   hotspare.Secret // for every way in but the unix socket
	Page    fs.FS           // the console's files; nil: none
	Metrics http.Handler    // answers /metrics to who may read the API; nil: nothing does
	Version string
	Log     *slog.Logger // nil: silent
}

// Server answers the REST interface on any number of listeners.
type Server struct {
	app  *fiber.App
	log  *slog.Logger
	done chan struct{} // closed by Shutdown: ends the streams

	mu        sync.Mutex // of what follows, and of closing done
	listeners []net.Listener
}

// New builds a Server.
func New(o Options) (*Server, error) {
	if o.Verbs.Viewer == nil || o.Verbs.Resources == nil || o.Verbs.Engine == nil || o.Verbs.Images == nil || o.Verbs.Explainer == nil || o.Verbs.History == nil {
		return nil, errors.New("api: a verb is missing")
	}
	if (o.Verbs.Keeper == nil) != (o.Verbs.Tasks == nil) {
		return nil, errors.New("api: of Keeper and Tasks one is missing")
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	s := &Server{log: o.Log, done: make(chan struct{})}
	s.app = fiber.New(fiber.Config{
		DisableStartupMessage: true,
		Immutable:             true, // values outlive their handlers in the engine's records
		BodyLimit:             1 << 20,
		ReadTimeout:           30 * time.Second,
		IdleTimeout:           2 * time.Minute,
		ErrorHandler:          func(c *fiber.Ctx, err error) error { return answer(c, fiberError(err)) },
	})
	s.app.Use(harden, s.logged)
	s.app.Use("/api", guard(o.Token))
	if o.Metrics != nil {
		s.app.Get("/metrics", guard(o.Token), adaptor.HTTPHandler(o.Metrics))
	}

	cfg := huma.DefaultConfig("hotspare", o.Version)
	cfg.OpenAPIPath = "/api/v1/openapi"
	cfg.DocsPath, cfg.SchemasPath = "", ""
	cfg.CreateHooks = nil
	cfg.Transformers = append(cfg.Transformers, asProblem)
	cfg.Components.Schemas = huma.NewMapRegistry("#/components/schemas/", schemaName)
	h := humafiber.NewV2(s.app, cfg)
	routes{Verbs: o.Verbs, done: s.done}.register(h)
	if o.Page != nil {
		s.app.Use("/", filesystem.New(filesystem.Config{Root: http.FS(o.Page), Index: "index.html", MaxAge: 0}))
	}
	return s, nil
}

// schemaName keeps a view and the declared type that it embeds apart: Node and
// NodeSpec.
func schemaName(t reflect.Type, hint string) string {
	name := huma.DefaultSchemaNamer(t, hint)
	if t.Kind() == reflect.Struct && t.PkgPath() == reflect.TypeFor[haengine.Node]().PkgPath() {
		name += "Spec"
	}
	return name
}

// fiberError gives fiber's own errors (no such route, body too large) a code.
func fiberError(err error) error {
	var fe *fiber.Error
	if !errors.As(err, &fe) {
		return err
	}
	e := &hotspare.Error{Code: hotspare.CodeInvalid, What: fe.Message, Err: err, Fix: "see /api/v1/openapi.json"}
	if fe.Code == http.StatusNotFound {
		e.Code = hotspare.CodeNotFound
	}
	return e
}

func (s *Server) logged(c *fiber.Ctx) error {
	start := time.Now()
	err := c.Next()
	s.log.Debug("request", "method", c.Method(), "path", c.Path(), "status", c.Response().StatusCode(), "took", time.Since(start))
	return err
}

// Serve answers on ln until Shutdown, which closes it; it may run on several
// listeners at once. After a Shutdown it closes ln and returns.
func (s *Server) Serve(ln net.Listener) error {
	s.mu.Lock()
	if s.shut() {
		s.mu.Unlock()
		return ln.Close()
	}
	s.listeners = append(s.listeners, ln)
	s.mu.Unlock()
	return s.app.Listener(ln)
}

func (s *Server) shut() bool {
	select {
	case <-s.done:
		return true
	default:
		return false
	}
}

// Shutdown ends the streams, waits for running requests within ctx and closes
// all listeners.
func (s *Server) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.shut() {
		close(s.done)
	}
	err := s.app.ShutdownWithContext(ctx)
	for _, ln := range s.listeners {
		_ = ln.Close() // one that fiber had not begun to serve; the others are closed
	}
	return err
}
