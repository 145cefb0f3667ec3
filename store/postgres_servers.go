package store

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"net"
	"sync"
	"sync/atomic"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
)

// servers connects to the servers of a URL. All connections of a node lead to one of them until that one cannot
// be used. A server that is gone must not delay each connection, and two servers must not be mixed while
// a primary runs on after a failover.
type servers struct {
	configs []*pgx.ConnConfig // in the order of the URL
	at      atomic.Int64      // the index of the next one to try
	reached atomic.Int64      // the index of the one in use
	mu      sync.Mutex
	open    map[net.Conn]int // the connections, with the index of their server
}

// newServers splits the configuration of a URL. Fallbacks to the same server differ in TLS.
func newServers(config *pgx.ConnConfig) *servers {
	s := &servers{open: make(map[net.Conn]int)}
	for _, f := range append([]*pgconn.FallbackConfig{{
		Host: config.Host, Port: config.Port, TLSConfig: config.TLSConfig,
	}}, config.Fallbacks...) {
		if n := len(s.configs); n > 0 && s.configs[n-1].Host == f.Host && s.configs[n-1].Port == f.Port {
			s.configs[n-1].Fallbacks = append(s.configs[n-1].Fallbacks, f)
			continue
		}
		one := config.Copy()
		one.Host, one.Port, one.TLSConfig, one.Fallbacks = f.Host, f.Port, f.TLSConfig, nil
		one.DialFunc = s.dialer(len(s.configs), config.DialFunc)
		s.configs = append(s.configs, one)
	}
	return s
}

// openDB opens the servers as one database, and sets alone at each warning of errAlone. A connection that is used
// again is checked first.
func (s *servers) openDB(alone *atomic.Bool, check func(context.Context, *pgx.Conn) error) *sql.DB {
	p := pool{servers: s}
	for n, config := range s.configs {
		config := config.Copy()
		config.OnNotice = func(_ *pgconn.PgConn, note *pgconn.Notice) {
			if note.File == "syncrep.c" { // the text is in the language of the server
				alone.Store(true)
			}
		}
		p.connectors = append(p.connectors, stdlib.GetConnector(*config,
			stdlib.OptionResetSession(func(ctx context.Context, conn *pgx.Conn) error {
				if s.reached.Load() != int64(n) {
					return driver.ErrBadConn // closes it
				}
				return check(ctx, conn)
			})))
	}
	return sql.OpenDB(p)
}

func unchecked(context.Context, *pgx.Conn) error { return nil }

// leave makes the next server the one to try, unless another one is already.
func (s *servers) leave(at int64) { s.at.CompareAndSwap(at, (at+1)%int64(len(s.configs))) }

type connecting struct{}

func (s *servers) dialer(n int, dial pgconn.DialFunc) pgconn.DialFunc {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		// After an error pgx dials to cancel the statement. A commit that waits for a standby is in force then, and
		// other nodes would load a change that the next primary does not have.
		if ctx.Value(connecting{}) == nil && s.reached.Load() != int64(n) {
			return nil, errors.New("the server is not in use any more")
		}
		c, err := dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		open := &serverConn{c, s}
		s.open[open] = n
		return open, nil
	}
}

// use makes a server the one in use, and ends the connections to the others. A statement there may wait for a server
// that is gone, or a commit for a standby.
func (s *servers) use(at int64) {
	s.reached.Store(at)
	s.mu.Lock()
	defer s.mu.Unlock()
	for c, n := range s.open {
		if int64(n) != at {
			delete(s.open, c)
			_ = c.(*serverConn).Conn.Close()
		}
	}
}

type serverConn struct {
	net.Conn
	servers *servers
}

// Close closes the connection, unless closeOthers has.
func (c *serverConn) Close() error {
	c.servers.mu.Lock()
	_, open := c.servers.open[c]
	delete(c.servers.open, c)
	c.servers.mu.Unlock()
	if !open {
		return nil
	}
	return c.Conn.Close()
}

// pool makes the connections of one [sql.DB].
type pool struct {
	*servers
	connectors []driver.Connector
}

// Connect tries the servers one after another, until one accepts it.
func (p pool) Connect(ctx context.Context) (driver.Conn, error) {
	ctx = context.WithValue(ctx, connecting{}, true)
	var faults []error
	for range p.connectors {
		at := p.at.Load()
		conn, err := p.connectors[at].Connect(ctx)
		if err == nil {
			p.use(at)
			return conn, nil
		}
		faults = append(faults, err)
		p.leave(at)
		if ctx.Err() != nil { // the next attempt begins with the next server
			break
		}
	}
	return nil, errors.Join(faults...)
}

func (p pool) Driver() driver.Driver { return stdlib.GetDefaultDriver() }
