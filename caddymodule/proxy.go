package caddymodule

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"slices"
	"strings"
	"sync"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/headers"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"go.uber.org/zap"
	"golang.org/x/net/http/httpguts"
)

func init() {
	caddy.RegisterModule(Proxy{})
}

// Proxy forwards requests to one upstream, at less cost than reverse_proxy. The upstream and the client
// get the same bytes as with reverse_proxy. Balancing, health checks, retries, handle_response, the
// placeholders {http.reverse_proxy.*} and TLS to the upstream are left to reverse_proxy.
//
// A failure of the upstream is an error for the error routes of the server. Without them Proxy answers
// with a problem (RFC 9457): 504 if the upstream is too slow, else 502.
type Proxy struct {
	// The upstream, as reverse_proxy spells it: "localhost:9000", "unix//run/api.sock",
	// "h2c://localhost:9000" for HTTP/2, or "unix+h2c//run/api.sock". Placeholders such as
	// "{env.UPSTREAM}" are replaced once, when the configuration is loaded.
	Address string `json:"address"`

	// Changes of the header that the upstream gets. Default: none.
	HeaderUp *headers.HeaderOps `json:"header_up,omitempty"`

	// The longest wait for the header of the answer, from the end of the request on. Default: no
	// limit.
	Timeout caddy.Duration `json:"timeout,omitempty"`

	// The largest number of connections to the upstream; further requests wait. Default: no limit.
	MaxConns int `json:"max_conns,omitempty"`

	// Pass each part of an answer on at once. Default: only for an answer of unknown length, or of
	// the type text/event-stream.
	Flush bool `json:"flush,omitempty"`

	log       *zap.Logger
	host      string                // the host in the URL of the requests to the upstream
	transport *http.Transport       // shared with full
	full      *reverseproxy.Handler // serves the requests that isSpecial picks
}

// CaddyModule returns the Caddy module information.
func (Proxy) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "http.handlers.service_users_proxy",
		New: func() caddy.Module { return new(Proxy) },
	}
}

// check checks the settings. It leaves a placeholder in the address to Provision.
func (p *Proxy) check() error {
	switch {
	case p.Timeout < 0 || p.MaxConns < 0:
		return errors.New("timeout and max_conns cannot be negative; without them there is no limit")
	case strings.Contains(configuration(p.HeaderUp), "{http.reverse_proxy."):
		return errors.New("header_up: only reverse_proxy sets the placeholders {http.reverse_proxy.*} " +
			"(short {rp.*} and {upstream_hostport}); write the value itself, or use reverse_proxy")
	case strings.Contains(p.Address, "{"):
		return nil
	}
	_, _, err := p.upstream()
	return err
}

// upstream returns the address of the upstream, and whether the upstream expects HTTP/2.
func (p *Proxy) upstream() (address caddy.NetworkAddress, h2c bool, err error) {
	text, err := caddy.NewReplacer().ReplaceOrErr(p.Address, true, true)
	if err != nil {
		return address, false, fmt.Errorf("address %q: %w; only placeholders such as {env.UPSTREAM} have a value "+
			"when the configuration is loaded; use reverse_proxy for an upstream that depends on the request",
			p.Address, err)
	}
	scheme, rest, isURL := strings.Cut(text, "://")
	if !isURL {
		scheme, rest = "http", text
	}
	if unix, ok := strings.CutPrefix(rest, "unix+h2c/"); ok {
		scheme, rest = "h2c", "unix/"+unix
	}
	address, err = caddy.ParseNetworkAddressWithDefaults(rest, "tcp", 80)
	switch {
	case scheme == "https" || address.StartPort == 443:
		return address, false, fmt.Errorf("address %q: TLS to the upstream is left to reverse_proxy; "+
			"write \"reverse_proxy %[1]s\"", p.Address)
	case err != nil || rest == "" || scheme != "http" && scheme != "h2c" || isURL && strings.ContainsAny(rest, "/?#@") ||
		address.PortRangeSize() != 1 || address.Network != "tcp" && address.Network != "unix":
		return address, false, fmt.Errorf("address %q: it is neither one TCP address, such as localhost:9000 or "+
			"h2c://localhost:9000, nor one unix socket, such as unix//run/api.sock; use reverse_proxy "+
			"for several upstreams, and \"rewrite\" or \"uri\" for another path", p.Address)
	}
	return address, scheme == "h2c", nil
}

// Provision prepares the connections to the upstream.
func (p *Proxy) Provision(ctx caddy.Context) error {
	if err := p.check(); err != nil {
		return err
	}
	address, h2c, err := p.upstream()
	if err != nil {
		return err
	}
	p.log, p.host = moduleLog(ctx.Logger()), address.JoinHostPort(0)
	noCompression := false // of its own: the upstream sees the client's Accept-Encoding or none
	settings := &reverseproxy.HTTPTransport{
		Compression:     &noCompression,
		KeepAlive:       &reverseproxy.KeepAlive{MaxIdleConnsPerHost: 512}, // one upstream gets all requests
		MaxConnsPerHost: p.MaxConns, ResponseHeaderTimeout: p.Timeout,
	}
	if h2c {
		settings.Versions = []string{"h2c", "2"}
	}
	if err := settings.Provision(ctx); err != nil {
		return err
	}
	p.transport = settings.Transport
	p.transport.Proxy = nil
	dial := p.transport.DialContext
	p.transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
		return dial(ctx, address.Network, p.host)
	}
	full := &reverseproxy.Handler{
		Transport: settings,
		Upstreams: reverseproxy.UpstreamPool{{Dial: address.String()}},
		Headers:   &headers.Handler{Request: p.HeaderUp},
	}
	if p.Flush {
		full.FlushInterval = -1
	}
	if err := full.Provision(ctx); err != nil {
		return err
	}
	p.full = full
	return nil
}

// Cleanup closes the WebSockets and the idle connections to the upstream.
func (p *Proxy) Cleanup() error {
	if p.full == nil {
		return nil
	}
	p.transport.CloseIdleConnections()
	return p.full.Cleanup()
}

// ServeHTTP forwards a request and its answer.
func (p *Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	var err error
	if isSpecial(r) {
		err = p.full.ServeHTTP(w, r, next)
	} else {
		err = p.exchange(w, r)
	}
	if err != nil {
		err = p.fail(w, r, err)
	}
	return err
}

// isSpecial reports whether reverse_proxy serves a request. Such a request may turn into a WebSocket, may
// have trailers, is early data of TLS, asks for incremental forwarding (RFC 10036), or comes through a
// unix socket.
func isSpecial(r *http.Request) bool {
	return r.Header["Upgrade"] != nil || r.Method == http.MethodConnect ||
		len(r.Trailer) > 0 || r.ProtoMajor == 1 && r.ContentLength < 0 ||
		r.TLS != nil && !r.TLS.HandshakeComplete || r.Header["Incremental"] != nil || r.RemoteAddr == "@"
}

// fail answers a request that the upstream has not answered.
func (p *Proxy) fail(w http.ResponseWriter, r *http.Request, err error) error {
	if errors.Is(r.Context().Err(), context.Canceled) {
		w.WriteHeader(499) // for the access log, as in reverse_proxy: the client has gone
		return nil
	}
	status := http.StatusBadGateway
	if timeout, ok := errors.AsType[net.Error](err); ok && timeout.Timeout() {
		status = http.StatusGatewayTimeout
	}
	failure := caddyhttp.Error(status, err) // keeps the status of another handler, such as request_body
	server, _ := r.Context().Value(caddyhttp.ServerCtxKey).(*caddyhttp.Server)
	if status = failure.StatusCode; status != http.StatusBadGateway && status != http.StatusGatewayTimeout ||
		server != nil && server.Errors != nil {
		limitUnread(w, r)
		return failure
	}
	p.log.Error("the upstream failed", zap.Error(err), zap.String("upstream", p.Address), zap.Int("status", status))
	body := newProblem(status, "the upstream gave no valid answer")
	describeProblem(w, r, body)
	return writeProblem(w, r, body, true)
}

// exchange forwards a request that is not special, and its answer. It returns an error only before the
// answer has begun.
func (p *Proxy) exchange(w http.ResponseWriter, r *http.Request) error {
	var hints struct { // one allocation
		sync.Mutex // of the header of the answer
		over       bool
		trace      httptrace.ClientTrace
	}
	hints.trace.Got1xxResponse = func(status int, hint textproto.MIMEHeader) error {
		hints.Lock()
		defer hints.Unlock()
		if hints.over {
			return nil
		}
		header := w.Header()
		own := header.Clone()
		removeHopByHop(http.Header(hint))
		addHeader(header, http.Header(hint))
		w.WriteHeader(status)
		clear(header)
		maps.Copy(header, own)
		return nil
	}
	out := r.WithContext(httptrace.WithClientTrace(r.Context(), &hints.trace))
	p.direct(out)
	answer, err := p.transport.RoundTrip(out)
	hints.Lock()
	hints.over = true
	hints.Unlock()
	if err != nil {
		return err
	}
	if answer.StatusCode == http.StatusSwitchingProtocols {
		answer.Body.Close()
		return errors.New("the upstream switched to another protocol, unasked")
	}
	p.answer(w, answer)
	return nil
}

// direct turns a copy of a request into the request to the upstream.
func (p *Proxy) direct(out *http.Request) {
	url := *out.URL
	url.Scheme, url.Host = "http", p.host
	out.URL, out.Close = &url, false
	if out.ContentLength == 0 {
		out.Body = nil // so that the transport may send the request again on another connection
	} else if out.Body != nil {
		out.Body = io.NopCloser(out.Body) // the server closes it
	}
	header, all := make(http.Header, len(out.Header)+5), make([]string, 0, len(out.Header))
	for name, values := range out.Header { // as Clone does, with room for the fields below
		all = append(all, values...)
		header[name] = all[len(all)-len(values) : len(all) : len(all)]
	}
	out.Header = header
	if removeHopByHop(header) {
		header["Te"] = []string{"trailers"}
	}
	if _, ok := header["User-Agent"]; !ok {
		header["User-Agent"] = []string{""} // or net/http sends its own
	}
	addForwarded(out, varsOf(out).fromTrustedProxy())
	header["Via"] = append(header["Via"], strings.TrimPrefix(out.Proto, "HTTP/")+" Caddy")
	if p.HeaderUp != nil {
		p.HeaderUp.ApplyToRequest(out)
	}
}

// answer forwards the answer of the upstream. It aborts the connection to the client if the body breaks
// off.
func (p *Proxy) answer(w http.ResponseWriter, answer *http.Response) {
	removeHopByHop(answer.Header)
	header := w.Header()
	delete(header, "Server") // Via names Caddy
	header["Via"] = append(header["Via"], strings.TrimPrefix(answer.Proto, "HTTP/")+" Caddy")
	addHeader(header, answer.Header)
	announced := len(answer.Trailer)
	if announced > 0 {
		header.Add("Trailer", strings.Join(slices.Sorted(maps.Keys(answer.Trailer)), ", "))
	}
	w.WriteHeader(answer.StatusCode)

	err := copyBody(w, answer.Body, p.flushes(answer))
	answer.Body.Close() // which also fills the trailers
	if err != nil {
		p.log.Warn("the answer broke off", zap.Error(err), zap.String("upstream", p.Address))
		_ = http.NewResponseController(w).Flush() // the client gets the part that is there
		panic(http.ErrAbortHandler)
	}
	if len(answer.Trailer) == 0 {
		return
	}
	_ = http.NewResponseController(w).Flush() // trailers need an answer without Content-Length
	if len(answer.Trailer) == announced {
		addHeader(header, answer.Trailer)
		return
	}
	for name, values := range answer.Trailer {
		header[http.TrailerPrefix+name] = append(header[http.TrailerPrefix+name], values...)
	}
}

// flushes reports whether each part of an answer is passed on at once.
func (p *Proxy) flushes(answer *http.Response) bool {
	if p.Flush || answer.ContentLength < 0 || caddyhttp.IsIncremental(answer.Header) {
		return answer.Body != http.NoBody
	}
	kind, _, _ := strings.Cut(answer.Header.Get("Content-Type"), ";")
	return strings.EqualFold(strings.TrimSpace(kind), "text/event-stream")
}

// bodyBuffers contains the buffers of copyBody.
var bodyBuffers = sync.Pool{New: func() any { return new([32 << 10]byte) }}

// copyBody copies the body of an answer, and flushes each part if flush is set.
func copyBody(w http.ResponseWriter, body io.Reader, flush bool) error {
	buffer := bodyBuffers.Get().(*[32 << 10]byte)
	defer bodyBuffers.Put(buffer)
	for n, err := 0, error(nil); ; n, err = body.Read(buffer[:]) {
		if n > 0 {
			if _, err := w.Write(buffer[:n]); err != nil {
				return err
			}
		}
		if flush && err == nil { // also before the first part, which may take long
			_ = http.NewResponseController(w).Flush()
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// hopByHop lists the header fields that belong to one connection (RFC 9110, section 7.6.1).
var hopByHop = []string{
	"Alt-Svc", "Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Proxy-Connection",
	"Te", "Trailer", "Transfer-Encoding", "Upgrade",
}

// removeHopByHop removes these fields, and those that Connection names. It reports whether Te contained
// "trailers".
func removeHopByHop(header http.Header) (trailers bool) {
	for _, value := range header["Connection"] {
		for name := range strings.SplitSeq(value, ",") {
			header.Del(textproto.TrimString(name))
		}
	}
	trailers = httpguts.HeaderValuesContainsToken(header["Te"], "trailers")
	for _, name := range hopByHop {
		delete(header, name)
	}
	return trailers
}

// addHeader adds the values of from to those of to. Both may share them afterwards.
func addHeader(to, from http.Header) {
	for name, values := range from {
		if to[name] == nil {
			to[name] = values
		} else {
			to[name] = append(to[name], values...)
		}
	}
}

// addForwarded sets X-Forwarded-For, -Proto and -Host, as reverse_proxy does. The values of a trusted
// proxy are kept. A handler before this one may have set a field to nil, which leaves the field out.
func addForwarded(out *http.Request, trusted bool) {
	address, _, err := net.SplitHostPort(out.RemoteAddr)
	address, _, _ = strings.Cut(address, "%") // the zone of an IPv6 address
	scheme := "http"
	if out.TLS != nil {
		scheme = "https"
	}
	var written [3]string
	for i, field := range [...]struct{ name, value string }{
		{"X-Forwarded-For", address}, {"X-Forwarded-Proto", scheme}, {"X-Forwarded-Host", out.Host},
	} {
		values, ok := out.Header[field.name]
		switch n := len(values); {
		case err != nil:
			delete(out.Header, field.name)
			continue
		case ok && n == 0:
			continue
		case !trusted || n == 0:
		case field.name == "X-Forwarded-For" && strings.Join(values, ", ") != "":
			field.value = strings.Join(values, ", ") + ", " + address
		case field.name != "X-Forwarded-For" && values[n-1] != "":
			field.value = values[n-1]
		}
		written[i] = field.value
		out.Header[field.name] = written[i : i+1 : i+1]
	}
}

// Interface guards
var (
	_ caddy.Provisioner           = (*Proxy)(nil)
	_ caddy.CleanerUpper          = (*Proxy)(nil)
	_ caddyhttp.MiddlewareHandler = (*Proxy)(nil)
)
