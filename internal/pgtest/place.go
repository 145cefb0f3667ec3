package pgtest

import (
	"database/sql"
	"flag"
	"path/filepath"
	"testing"
)

// On says that tests make their stores in PostgreSQL.
var On = flag.Bool("postgres", false, "run the tests on PostgreSQL, without those of SQLite alone")

// Place names a store that does not exist yet: a file or, with On, an address in PostgreSQL.
func Place(t testing.TB) string {
	t.Helper()
	if *On {
		return URL(t)
	}
	return filepath.Join(t.TempDir(), "store.db")
}

// DB opens a place as a database, with the driver that package store has registered.
func DB(t testing.TB, place string) *sql.DB {
	t.Helper()
	driver := "sqlite"
	if *On {
		driver = "pgx"
	} else {
		place = "file:" + place
	}
	db, err := sql.Open(driver, place)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

// SQLiteOnly skips a test with On. why says what the test is about.
func SQLiteOnly(t testing.TB, why string) {
	t.Helper()
	if *On {
		t.Skip("SQLite alone: " + why)
	}
}
