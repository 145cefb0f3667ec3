//go:build linux

package pgtest

import "testing"

// A failover loses no row, and can be repeated, whether the primary before has ended, is paused, or runs on.
func TestPair(t *testing.T) {
	t.Parallel()
	p := NewPair(t)
	if err := p.Primary.Exec(`CREATE TABLE things (n INT)`); err != nil {
		t.Fatal(err)
	}
	for i, before := range []func() error{
		func() error { return p.Primary.Kill() },
		func() error { _, err := p.Primary.Pause(); return err },
		func() error { return nil },
	} {
		if err := p.Primary.Exec(`INSERT INTO things VALUES (1)`); err != nil {
			t.Fatal(err)
		}
		if err := before(); err != nil {
			t.Fatal(err)
		}
		if err := p.Promote(); err != nil {
			t.Fatal(err)
		}
		var n int
		if err := p.Primary.QueryRow(`SELECT count(*) FROM things`, nil, &n); err != nil || n != i+1 {
			t.Errorf("failover %d: got %d rows, %v, want %d", i, n, err, i+1)
		}
		if err := p.Rebuild(); err != nil {
			t.Fatal(err)
		}
	}
}
