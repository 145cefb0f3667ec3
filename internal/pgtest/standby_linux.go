//go:build linux

package pgtest

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

// Pair is two servers of one test. Each commit of the primary waits until the standby has it on its disk.
type Pair struct {
	Primary, Standby *Server
	ports            [2]int
}

// NewPair starts a pair. It skips or fails the test as [URL] does.
func NewPair(t testing.TB) *Pair {
	t.Helper()
	p := &Pair{Primary: Own(t, "wal_keep_size=64MB")}
	var err error
	p.Standby, err = start(&Server{own: true, primary: p.Primary, settings: slices.Clone(p.Primary.settings)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Standby.end.Close() })
	p.ports = [2]int{p.Primary.Port, p.Standby.Port}
	if err := p.Synchronous(); err != nil {
		t.Fatal(err)
	}
	return p
}

// TCPURL returns the URL of a schema on either server, the first primary before the other one.
func (p *Pair) TCPURL(role, schema string) string {
	return fmt.Sprintf("postgres://%s:%s@127.0.0.1:%d,127.0.0.1:%d/test?sslmode=disable&search_path=%s",
		role, Password, p.ports[0], p.ports[1], schema)
}

// Synchronous lets commits of the primary wait for the standby, and returns when the standby has everything.
func (p *Pair) Synchronous() error {
	if err := p.Primary.set("synchronous_standby_names", "*"); err != nil {
		return err
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		var ready bool
		if err := p.Primary.QueryRow(`SELECT EXISTS (SELECT 1 FROM pg_stat_replication
			WHERE sync_state = 'sync' AND flush_lsn = pg_current_wal_flush_lsn())`, nil, &ready); err != nil || ready {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the standby does not follow:\n%s", p.Standby.Log())
		}
	}
}

// Promote makes the standby the primary, whose commits wait for no other server. The primary before, which may still
// run, is the standby from then on: [Pair.Rebuild] starts it as such.
func (p *Pair) Promote() error {
	if err := p.Standby.set("synchronous_standby_names", ""); err != nil {
		return err
	}
	var done bool
	if err := p.Standby.QueryRow(`SELECT pg_promote()`, nil, &done); err != nil || !done {
		return fmt.Errorf("the standby was not promoted: %w\n%s", err, p.Standby.Log())
	}
	p.Primary, p.Standby = p.Standby, p.Primary
	return nil
}

// Rebuild ends the standby if it runs, and starts it with a copy of the primary.
func (p *Pair) Rebuild() error {
	if p.Standby.server.ProcessState == nil {
		if err := p.Standby.Kill(); err != nil {
			return err
		}
	}
	p.Standby.primary = p.Primary
	if err := p.Standby.copyPrimary(); err != nil {
		return err
	}
	if err := p.Standby.Start(); err != nil {
		return err
	}
	return p.Synchronous()
}

// set changes a setting of the running server.
func (s *Server) set(name, value string) error {
	if err := s.Exec(fmt.Sprintf(`ALTER SYSTEM SET %s = '%s'`, name, value)); err != nil {
		return err
	}
	return s.Exec(`SELECT pg_reload_conf()`)
}
