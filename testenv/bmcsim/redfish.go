package bmcsim

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/bougou/go-ipmi/pkg/types"
)

const (
	rfRoot     = "/redfish/v1/"
	rfSystem   = "/redfish/v1/Systems/1"
	rfSessions = "/redfish/v1/SessionService/Sessions"
	maxBody    = 64 << 10
	maxTokens  = 32
)

// redfishServer is the HTTPS side: service root, sessions and basic
// authentication, one system with power, boot override and reset (DSP0266,
// DSP2046). What it does not have answers 404, as any BMC may.
type redfishServer struct {
	chassis  *controller
	opts     Options
	listener net.Listener
	server   *http.Server

	mu     sync.Mutex
	nextID int
	tokens map[string]string // token -> session id
}

func newRedfish(c *controller, opts Options) (*redfishServer, error) {
	cert, err := selfSigned()
	if err != nil {
		return nil, fmt.Errorf("bmcsim: redfish: %w", err)
	}
	sock, err := net.Listen("tcp", opts.RedfishListen)
	if err != nil {
		return nil, fmt.Errorf("bmcsim: redfish: %w", err)
	}
	r := &redfishServer{chassis: c, opts: opts, tokens: map[string]string{},
		listener: tls.NewListener(sock, &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12})}
	r.server = &http.Server{Handler: r.faults(r.routes()), ReadTimeout: 10 * time.Second, IdleTimeout: time.Minute,
		ErrorLog: slog.NewLogLogger(opts.Log.Handler(), slog.LevelDebug)}
	return r, nil
}

func selfSigned() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	now := time.Now()
	t := &x509.Certificate{SerialNumber: big.NewInt(now.UnixNano()), Subject: pkix.Name{CommonName: "bmcsim"},
		NotBefore: now.Add(-time.Hour), NotAfter: now.AddDate(10, 0, 0), DNSNames: []string{"bmcsim"}}
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}

func (r *redfishServer) serve() error {
	if err := r.server.Serve(r.listener); err != nil && !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("bmcsim: redfish: %w", err)
	}
	return nil
}

func (r *redfishServer) close() {
	_ = r.server.Close() // also ends requests that a fault holds
	_ = r.listener.Close()
}

func (r *redfishServer) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /redfish", func(w http.ResponseWriter, _ *http.Request) { reply(w, 200, object{"v1": rfRoot}) })
	mux.HandleFunc("GET /redfish/v1", r.root)
	mux.HandleFunc("GET /redfish/v1/{$}", r.root)
	mux.HandleFunc("POST "+rfSessions, r.login)
	mux.HandleFunc("DELETE "+rfSessions+"/{id}", r.user(r.logout))
	mux.HandleFunc("GET /redfish/v1/Systems", r.user(func(w http.ResponseWriter, _ *http.Request) {
		reply(w, 200, object{"@odata.id": "/redfish/v1/Systems", "Name": "Systems",
			"Members": []object{{"@odata.id": rfSystem}}, "Members@odata.count": 1})
	}))
	mux.HandleFunc("GET "+rfSystem, r.user(r.system))
	mux.HandleFunc("PATCH "+rfSystem, r.user(r.operator(r.setBoot)))
	mux.HandleFunc("POST "+rfSystem+"/Actions/ComputerSystem.Reset", r.user(r.operator(r.reset)))
	return mux
}

// faults applies those that concern every answer.
func (r *redfishServer) faults(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if r.chassis.silent() {
			<-req.Context().Done() // the client gives up, or the BMC is switched off
			panic(http.ErrAbortHandler)
		}
		sleepUntil(req.Context(), time.Now().Add(r.chassis.getFault().Stall))
		next.ServeHTTP(w, req)
	})
}

type object map[string]any

func reply(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("OData-Version", "4.0")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // the client may be gone
}

func refuse(w http.ResponseWriter, status int, message string) {
	reply(w, status, object{"error": object{"code": "Base.1.8.GeneralError", "message": message,
		"@Message.ExtendedInfo": []object{{"MessageId": "Base.1.8.GeneralError", "Message": message}}}})
}

func (r *redfishServer) root(w http.ResponseWriter, _ *http.Request) {
	reply(w, 200, object{"@odata.id": rfRoot, "Id": "RootService", "Name": "bmcsim", "RedfishVersion": "1.11.0",
		"UUID": r.opts.Machine.UUID(), "Systems": object{"@odata.id": "/redfish/v1/Systems"},
		"SessionService": object{"@odata.id": "/redfish/v1/SessionService"},
		"Links":          object{"Sessions": object{"@odata.id": rfSessions}}})
}

func (r *redfishServer) allowed(user, password string) bool {
	ok := subtle.ConstantTimeCompare([]byte(user), []byte(r.opts.User)) &
		subtle.ConstantTimeCompare([]byte(password), []byte(r.opts.Password))
	return ok == 1 && !r.chassis.getFault().WrongPassword
}

func (r *redfishServer) login(w http.ResponseWriter, req *http.Request) {
	var in struct{ UserName, Password string }
	if !decode(w, req, &in) {
		return
	}
	if !r.allowed(in.UserName, in.Password) {
		refuse(w, http.StatusUnauthorized, "user name or password is wrong")
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.tokens) >= maxTokens {
		refuse(w, http.StatusServiceUnavailable, "too many sessions")
		return
	}
	r.nextID++
	id, token := fmt.Sprint(r.nextID), rand.Text()
	r.tokens[token] = id
	w.Header().Set("X-Auth-Token", token)
	w.Header().Set("Location", rfSessions+"/"+id)
	reply(w, http.StatusCreated, object{"@odata.id": rfSessions + "/" + id, "Id": id, "Name": "session", "UserName": in.UserName})
}

func (r *redfishServer) logout(w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for token, id := range r.tokens {
		if id == req.PathValue("id") {
			delete(r.tokens, token)
			w.WriteHeader(http.StatusNoContent)
			return
		}
	}
	refuse(w, http.StatusNotFound, "no such session")
}

// forgetSessions is what a restart of the BMC does.
func (r *redfishServer) forgetSessions() {
	r.mu.Lock()
	defer r.mu.Unlock()
	clear(r.tokens)
}

func (r *redfishServer) user(next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, req *http.Request) {
		r.mu.Lock()
		_, ok := r.tokens[req.Header.Get("X-Auth-Token")]
		r.mu.Unlock()
		if name, password, basic := req.BasicAuth(); basic {
			ok = r.allowed(name, password)
		}
		if !ok {
			w.Header().Set("WWW-Authenticate", `Basic realm="bmcsim"`)
			refuse(w, http.StatusUnauthorized, "log in first")
			return
		}
		next(w, req)
	}
}

func (r *redfishServer) operator(next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, req *http.Request) {
		if r.opts.Privilege == User {
			refuse(w, http.StatusForbidden, "the role ReadOnly may not do this")
			return
		}
		next(w, req)
	}
}

func decode(w http.ResponseWriter, req *http.Request, v any) bool {
	raw, err := io.ReadAll(http.MaxBytesReader(w, req.Body, maxBody))
	if err == nil {
		err = json.NewDecoder(bytes.NewReader(raw)).Decode(v)
	}
	if err != nil {
		refuse(w, http.StatusBadRequest, "the body is not the JSON that is expected")
		return false
	}
	return true
}

var resetTypes = []string{"On", "ForceOff", "GracefulShutdown", "ForceRestart", "PowerCycle"}

// bootTargets pairs the words of Redfish with the selectors of IPMI.
var bootTargets = []struct {
	target   string
	selector types.BootDeviceSelector
}{
	{"None", types.BootDeviceSelectorNoOverride},
	{"Pxe", types.BootDeviceSelectorForcePXE},
	{"Hdd", types.BootDeviceSelectorForceHardDrive},
	{"Cd", types.BootDeviceSelectorForceCDROM},
	{"BiosSetup", types.BootDeviceSelectorForceBIOSSetup},
}

func (r *redfishServer) system(w http.ResponseWriter, _ *http.Request) {
	boot := r.boot()
	w.Header().Set("ETag", etag(boot))
	reply(w, 200, object{"@odata.id": rfSystem, "@odata.type": "#ComputerSystem.v1_13_0.ComputerSystem",
		"Id": "1", "Name": "System", "SystemType": "Virtual", "UUID": r.opts.Machine.UUID(),
		"PowerState": r.chassis.redfishPower(), "Boot": boot,
		"Actions": object{"#ComputerSystem.Reset": object{"target": rfSystem + "/Actions/ComputerSystem.Reset",
			"ResetType@Redfish.AllowableValues": resetTypes}}})
}

func (r *redfishServer) boot() object {
	f := r.chassis.bootFlags()
	enabled, target, mode := "Disabled", "None", "Legacy"
	if f.BootFlagsValid && f.BootDeviceSelector != types.BootDeviceSelectorNoOverride {
		enabled = "Once"
		if f.Persist {
			enabled = "Continuous"
		}
	}
	targets := make([]string, 0, len(bootTargets))
	for _, t := range bootTargets {
		targets = append(targets, t.target)
		if t.selector == f.BootDeviceSelector {
			target = t.target
		}
	}
	if f.BIOSBootType == types.BIOSBootTypeEFI {
		mode = "UEFI"
	}
	enables := []string{"Disabled", "Once", "Continuous"}
	if r.chassis.getFault().OnceOnly {
		enables = enables[:2]
	}
	return object{"BootSourceOverrideEnabled": enabled, "BootSourceOverrideEnabled@Redfish.AllowableValues": enables, "BootSourceOverrideTarget": target,
		"BootSourceOverrideMode": mode, "BootSourceOverrideTarget@Redfish.AllowableValues": targets}
}

func etag(boot object) string {
	return fmt.Sprintf(`W/"%s-%s-%s"`, boot["BootSourceOverrideEnabled"], boot["BootSourceOverrideTarget"], boot["BootSourceOverrideMode"])
}

func (r *redfishServer) setBoot(w http.ResponseWriter, req *http.Request) {
	var in struct {
		Boot struct{ BootSourceOverrideEnabled, BootSourceOverrideTarget, BootSourceOverrideMode string }
	}
	if !decode(w, req, &in) {
		return
	}
	if m := req.Header.Get("If-Match"); m != "" && m != "*" && m != etag(r.boot()) {
		refuse(w, http.StatusPreconditionFailed, "the resource has changed")
		return
	}
	flags := types.BootOptionParam_BootFlags{BootFlagsValid: in.Boot.BootSourceOverrideEnabled != "Disabled",
		Persist: in.Boot.BootSourceOverrideEnabled == "Continuous"}
	if in.Boot.BootSourceOverrideMode == "UEFI" {
		flags.BIOSBootType = types.BIOSBootTypeEFI
	}
	for _, t := range bootTargets {
		if t.target == in.Boot.BootSourceOverrideTarget {
			flags.BootDeviceSelector = t.selector
			if r.chassis.setBoot(flags, false) {
				refuse(w, http.StatusBadRequest, "no such boot override")
				return
			}
			w.WriteHeader(http.StatusNoContent)
			return
		}
	}
	refuse(w, http.StatusBadRequest, "no such boot target")
}

func (r *redfishServer) reset(w http.ResponseWriter, req *http.Request) {
	var in struct{ ResetType string }
	if !decode(w, req, &in) {
		return
	}
	kind, ok := map[string]actionKind{"On": actOn, "ForceOff": actOff, "GracefulShutdown": actSoft,
		"ForceRestart": actCycle, "PowerCycle": actCycle}[in.ResetType]
	if !ok {
		refuse(w, http.StatusBadRequest, "no such reset type")
		return
	}
	if cc := r.chassis.accept(kind); cc != types.CodeOK {
		refuse(w, http.StatusConflict, "not possible in the present state")
		return
	}
	r.opts.Log.LogAttrs(context.WithoutCancel(req.Context()), slog.LevelInfo, "redfish reset", slog.String("type", in.ResetType))
	w.WriteHeader(http.StatusNoContent)
}
