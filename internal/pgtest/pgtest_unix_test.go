//go:build unix

package pgtest

import (
	"testing"

	"github.com/jackc/pgx/v5"
)

// Two schemas of one server do not see each other, and text has an order that is not that of bytes.
func TestURL(t *testing.T) {
	t.Parallel()
	for range 2 {
		conn, err := pgx.Connect(t.Context(), URL(t))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close(t.Context())
		var user string
		var english bool
		if _, err := conn.Exec(t.Context(), `CREATE TABLE things (id TEXT)`); err != nil {
			t.Fatal(err)
		}
		if err := conn.QueryRow(t.Context(), `SELECT current_user, 'a' < 'B'`).Scan(&user, &english); err != nil {
			t.Fatal(err)
		}
		if user != Role {
			t.Errorf("the role: got %s, want %s", user, Role)
		}
		if !english {
			t.Log("this PostgreSQL orders text by bytes, so tests cannot find a comparison in another order")
		}
	}
}

// The password counts by TCP.
func TestTCP(t *testing.T) {
	conn, err := pgx.Connect(t.Context(), Shared(t).TCPURL(Role, "public"))
	if err != nil {
		t.Fatal(err)
	}
	conn.Close(t.Context())
}
