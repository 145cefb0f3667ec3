package store

import (
	"context"
	"database/sql"
	"time"
)

// engine is the seam between a store and its database. [sqliteEngine] and [postgresEngine] implement
// it. The rest of the package has one SQL text for both.
type engine interface {
	// open opens the connections of the store. It creates a missing store,
	// unless Options.Existing is set, upgrades an older schema, and rejects a database that is
	// not a store.
	open(ctx context.Context) error
	// advise adds the next steps to an error of opening or loading the store.
	advise(err error) error
	// inPlace returns an error if the open database is not the one at its place any more.
	inPlace() error
	// version returns the version of the schema.
	version(ctx context.Context, q *sql.Tx) (int, error)
	// beginWrite begins a transaction that writes.
	beginWrite(ctx context.Context) (*sql.Tx, error)
	// beginChange begins the transaction of a change. It sees all earlier changes, and no other process
	// can make a change before the end of the transaction.
	beginChange(ctx context.Context) (*sql.Tx, error)
	// passing reports whether a change that failed with an error was not made, and may succeed if
	// it is tried again at once.
	passing(err error) bool
	// join makes this process a node of the store, before it answers a request. asOf is an instant
	// of the machine's clock at which the directory in force was up to date.
	join(ctx context.Context) (asOf time.Time, err error)
	// nodes lists the nodes; forgetNode removes one.
	nodes(ctx context.Context) ([]Node, error)
	forgetNode(ctx context.Context, id string) error
	// arguments returns the arguments of a statement as the database takes them.
	arguments(args []any) []any
	// lockRows is the end of a query that takes its rows for the transaction. The query leaves out
	// rows that another transaction has.
	lockRows() string
	// commit commits a change. The error is [ErrUncertain] if the change may have been made.
	commit(t *tx) error
	// older returns the next steps for a database that was replaced by an older one on purpose.
	older() string
	// catalogue returns a query for the kinds and names of all objects, and one for the columns of
	// the table $1.
	catalogue() (objects, columns string)
	// canCopy returns an error if [Store.Backup] cannot copy the database.
	canCopy() error
	// checkPages checks the database below its rows.
	checkPages(c *checker)
	// forms has conditions for values that are never written into a COLUMN. Those of "id" have the
	// prefix KIND.
	forms() map[string]string
	// readers is the most transactions that one load may have open for reading.
	readers() int
	// work returns the work that runs while the store is open. Part of it notices the changes of
	// other processes.
	work() []func(context.Context)
	// end is called when the store closes, after the last change.
	end()
}

// database returns the engine of a transaction. A transaction without a store is on a SQLite file that
// is not open.
func (t *tx) database() engine {
	if t.store == nil {
		return new(sqliteEngine)
	}
	return t.store.engine
}

// snapshot are the options of a transaction that reads: all its queries see the same state. SQLite
// has no other transactions, and its driver ignores the level.
var snapshot = &sql.TxOptions{ReadOnly: true, Isolation: sql.LevelRepeatableRead}
