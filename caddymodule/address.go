package caddymodule

import (
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"
)

// addressVar is the name of the request variable that keeps the result of clientAddress where
// Caddy's client_ip can differ from it.
const addressVar = "service_users.client_ip"

// clientAddress returns the address of a request's client. It is used for allowed_ips, conditions,
// the throttle, the log, the counts of use and X-Real-IP.
//
// A peer that is not one of the server's trusted_proxies is the client. A trusted peer forwards
// addresses; the client is the last one that is not a trusted proxy, as with Caddy's option
// trusted_proxies_strict. Without that option Caddy takes the first address, which clients can
// write.
//
// An IPv4 address never has its IPv6 form. The zero address means that the client has no address,
// as on a Unix socket. No list of addresses contains it.
func (h *storeHandle) clientAddress(r *http.Request, vars variables) netip.Addr {
	if _, unix := r.Context().Value(http.LocalAddrContextKey).(*net.UnixAddr); unix && r.RemoteAddr != "@" {
		// The peer has given its own socket a name, which Caddy would read as an address.
		vars[caddyhttp.TrustedProxyVarKey], vars[caddyhttp.ClientIPVarKey] = false, ""
	}
	text, _ := vars[caddyhttp.ClientIPVarKey].(string)
	seen, _ := netip.ParseAddr(text)
	seen = plainAddress(seen)
	if !vars.fromTrustedProxy() {
		return seen
	}
	server, _ := r.Context().Value(caddyhttp.ServerCtxKey).(*caddyhttp.Server)
	if server == nil || server.TrustedProxiesStrict > 0 {
		return seen
	}
	// The first handler decides: this handler and others remove headers.
	address, known := vars[addressVar].(netip.Addr)
	if !known {
		address = lastUntrusted(r, server)
		vars[addressVar] = address
		if address != seen {
			h.warnOfAddress.Do(func() {
				h.shared.opts.Log.Warn("Caddy uses an address that clients can write as the "+
					"client's; service_users uses client_ip, Caddy's own logs and "+
					"matchers use caddy_client_ip; set trusted_proxies_strict in the "+
					"global option servers",
					zap.Stringer("client_ip", address), zap.String("caddy_client_ip", text))
			})
		}
	}
	return address
}

// maxHops bounds the work for one request: each address costs some microseconds.
const maxHops = 32

// lastUntrusted reads the client_ip_headers of a server as caddyhttp does with
// trusted_proxies_strict (strictUntrustedClientIp in its server.go). It returns the peer's address
// if all other addresses are trusted, and the zero address after more than maxHops of them.
func lastUntrusted(r *http.Request, server *caddyhttp.Server) netip.Addr {
	hops := 0
	for _, name := range server.ClientIPHeaders {
		for _, entry := range slices.Backward(strings.Split(strings.Join(r.Header.Values(name), ","), ",")) {
			host, _, err := net.SplitHostPort(entry)
			if err != nil {
				host = entry
			}
			host, _, _ = strings.Cut(strings.TrimSpace(host), "%")
			hop, err := netip.ParseAddr(host)
			if err != nil {
				continue
			}
			if hops++; hops > maxHops {
				return netip.Addr{}
			}
			if !trusts(server, r, hop) {
				return plainAddress(hop)
			}
		}
	}
	return peerAddress(r)
}

// trusts reports whether an address is one of a server's trusted_proxies. The server does not
// export them, but it applies them to each request that it prepares.
func trusts(server *caddyhttp.Server, r *http.Request, hop netip.Addr) bool {
	probe := *r
	probe.RemoteAddr, probe.Header = netip.AddrPortFrom(hop, 0).String(), nil
	return varsOf(caddyhttp.PrepareRequest(&probe, caddy.NewEmptyReplacer(), nil, server)).fromTrustedProxy()
}

// fromTrustedProxy reports whether the peer is one of the server's trusted_proxies.
func (vars variables) fromTrustedProxy() bool {
	trusted, _ := vars[caddyhttp.TrustedProxyVarKey].(bool)
	return trusted
}

// isPrivate reports whether a request could not be read on its way: it came encrypted, from this
// machine, or from a trusted proxy that received it encrypted. client is the client's address. A trusted
// proxy on this machine that received the request of another machine by http makes it readable.
func isPrivate(r *http.Request, vars variables, client netip.Addr) bool {
	proto := ""
	if vars.fromTrustedProxy() {
		proto = r.Header.Get("X-Forwarded-Proto")
	}
	if r.TLS != nil || proto == "https" {
		return true
	}
	peer := peerAddress(r)
	local := !peer.IsValid() || peer.IsLoopback() // a Unix socket has no address
	return local && (proto != "http" || client == peer || client.IsLoopback())
}

// peerAddress returns the address of the other end of the connection.
func peerAddress(r *http.Request) netip.Addr {
	peer, _ := netip.ParseAddrPort(r.RemoteAddr)
	return plainAddress(peer.Addr())
}

// plainAddress returns an address in the form that comparisons use: IPv4 without its IPv6 form,
// IPv6 without a zone.
func plainAddress(a netip.Addr) netip.Addr { return a.Unmap().WithZone("") }
