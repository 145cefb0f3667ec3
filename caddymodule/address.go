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

// addressVar is the variable of a request that holds the client's address where
// Caddy's client_ip can be another one.
const addressVar = "service_users.client_ip"

// clientAddress returns the address of the client of a request, for every purpose:
// allowed_ips, conditions, the throttle, the log and the counts of use. A request
// has one address; the first call decides, before headers are removed.
//
// A peer that is not one of the server's trusted_proxies is itself the client. Of
// what a trusted one forwards, the last address that is not a trusted proxy's is
// the client's, as in Caddy's own trusted_proxies_strict mode. Without that mode
// Caddy believes the first address, which the client can write.
//
// IPv4 addresses are never in their IPv6 form. The zero address, that of a Unix
// socket, is in no list.
func (h *storeHandle) clientAddress(r *http.Request, vars variables) netip.Addr {
	if vars.fromTrustedProxy() {
		if address, known := vars[addressVar].(netip.Addr); known {
			return address
		}
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
	address := lastUntrusted(r, server)
	vars[addressVar] = address
	if address != seen {
		h.warnOfAddress.Do(func() {
			h.shared.opts.Log.Warn("Caddy's logs and matchers take another client_ip than service users do, one that a client can choose; set trusted_proxies_strict in the global option servers",
				zap.Stringer("client_ip", address), zap.String("caddy_client_ip", text))
		})
	}
	return address
}

// maxHops bounds the work for one request: each hop costs some microseconds.
const maxHops = 32

// lastUntrusted reads the client_ip_headers of a server as Caddy does in strict mode
// (strictUntrustedClientIp in caddyhttp). Where all addresses are trusted, the
// peer's is returned; where more than maxHops are, none.
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

// trusts reports whether an address is one of a server's trusted_proxies. Only the
// server knows them: it is asked by a request that comes from there.
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

// isPrivate reports whether nobody on the way could read a request: it came
// encrypted, from this machine, or through a trusted proxy that says so.
func isPrivate(r *http.Request, vars variables) bool {
	if r.TLS != nil || vars.fromTrustedProxy() && r.Header.Get("X-Forwarded-Proto") == "https" {
		return true
	}
	peer := peerAddress(r)
	return !peer.IsValid() || peer.IsLoopback() // no address: a Unix socket
}

// peerAddress returns the address at the other end of the connection.
func peerAddress(r *http.Request) netip.Addr {
	peer, _ := netip.ParseAddrPort(r.RemoteAddr)
	return plainAddress(peer.Addr())
}

// plainAddress makes two spellings of an address equal.
func plainAddress(a netip.Addr) netip.Addr { return a.Unmap().WithZone("") }
