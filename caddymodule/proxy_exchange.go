package caddymodule

import (
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"slices"
	"strings"
	"sync"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"
	"golang.org/x/net/http/httpguts"
)

// exchange forwards a request that is not special, and its answer. It returns an error only before the
// answer has begun.
func (p *Proxy) exchange(w http.ResponseWriter, r *http.Request) error {
	hints := &hints{w: w}
	trace := &httptrace.ClientTrace{Got1xxResponse: hints.forward}
	out := r.WithContext(httptrace.WithClientTrace(r.Context(), trace))
	p.direct(out)
	answer, err := p.transport.RoundTrip(out)
	hints.end()
	if err != nil {
		return err
	}
	if answer.StatusCode == http.StatusSwitchingProtocols {
		answer.Body.Close()
		return errUnasked
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
	header := out.Header.Clone()
	out.Header = header
	removeNamed(header)
	trailers := httpguts.HeaderValuesContainsToken(header["Te"], "trailers")
	removeHopByHop(header)
	if trailers {
		header["Te"] = []string{"trailers"}
	}
	if _, ok := header["User-Agent"]; !ok {
		header["User-Agent"] = []string{""} // or net/http sends its own
	}
	addForwarded(out, varsOf(out).fromTrustedProxy())
	header["Via"] = append(header["Via"], via(out.Proto))
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
	header["Via"] = append(header["Via"], via(answer.Proto))
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

// hints forwards the informational answers (1xx), such as 103 Early Hints.
type hints struct {
	mu    sync.Mutex
	w     http.ResponseWriter
	ended bool
}

func (h *hints) forward(status int, header textproto.MIMEHeader) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.ended {
		return nil
	}
	all := h.w.Header()
	own := all.Clone()
	removeHopByHop(http.Header(header))
	addHeader(all, http.Header(header))
	h.w.WriteHeader(status)
	clear(all)
	maps.Copy(all, own)
	return nil
}

// end stops the forwarding: from now on the header belongs to the answer.
func (h *hints) end() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ended = true
}

// hopByHop lists the header fields that belong to one connection (RFC 9110, section 7.6.1).
var hopByHop = []string{
	"Alt-Svc", "Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Proxy-Connection",
	"Te", "Trailer", "Transfer-Encoding", "Upgrade",
}

func removeHopByHop(header http.Header) {
	removeNamed(header)
	for _, name := range hopByHop {
		delete(header, name)
	}
}

// removeNamed removes the fields that Connection names.
func removeNamed(header http.Header) {
	for _, value := range header["Connection"] {
		for name := range strings.SplitSeq(value, ",") {
			header.Del(textproto.TrimString(name))
		}
	}
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

// via returns this proxy's entry of the header Via, for a message that came by a protocol such as
// "HTTP/1.1".
func via(protocol string) string {
	if protocol == "HTTP/1.1" {
		return "1.1 Caddy"
	}
	return strings.TrimPrefix(protocol, "HTTP/") + " Caddy"
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
	for _, field := range [...]struct{ name, value string }{
		{"X-Forwarded-For", address}, {"X-Forwarded-Proto", scheme}, {"X-Forwarded-Host", out.Host},
	} {
		values, ok := out.Header[field.name]
		switch n := len(values); {
		case err != nil:
			delete(out.Header, field.name)
			continue
		case ok && values == nil:
			continue
		case !trusted || n == 0:
		case field.name == "X-Forwarded-For" && strings.Join(values, ", ") != "":
			field.value = strings.Join(values, ", ") + ", " + address
		case field.name != "X-Forwarded-For" && values[n-1] != "":
			field.value = values[n-1]
		}
		out.Header[field.name] = []string{field.value}
	}
}
