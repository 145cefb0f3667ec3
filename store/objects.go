package store

import (
	"context"
	"database/sql"
	"slices"
	"time"
)

// objects are the tables, indexes, views and triggers of a database.
type objects struct {
	tables  []string
	columns map[string][]string // by table
	others  []string            // indexes, views and triggers, such as "trigger tokens_added"
}

// newSchema returns the objects of a new store.
func newSchema(ctx context.Context) (o objects, err error) {
	db, err := sql.Open("sqlite", "file::memory:")
	if err != nil {
		return o, err
	}
	defer db.Close()
	// Each connection to ":memory:" has its own database.
	db.SetMaxOpenConns(1)
	if err := initSQLite(ctx, db, time.Time{}); err != nil {
		return o, err
	}
	sqlTx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return o, err
	}
	defer sqlTx.Rollback()
	return (&tx{Tx: sqlTx, ctx: ctx}).objects()
}

func (t *tx) objects() (o objects, err error) {
	names, columns := t.database().catalogue()
	list, err := all(t, "reading the schema", scanPair, names)
	if err != nil {
		return o, err
	}
	o.columns = make(map[string][]string)
	for _, v := range list {
		kind, name := v[0], v[1]
		if kind != "table" {
			o.others = append(o.others, kind+" "+name)
			continue
		}
		o.tables = append(o.tables, name)
		if o.columns[name], err = all(t, "reading the columns of "+name, scanString, columns, name); err != nil {
			return o, err
		}
	}
	return o, nil
}

// missing lists the objects of o that from does not have, each with its kind: "table x", "column
// x.y".
func (o objects) missing(from objects) (list []string) {
	for _, table := range o.tables {
		if from.columns[table] == nil {
			list = append(list, "table "+table)
			continue
		}
		for _, column := range o.columns[table] {
			if !slices.Contains(from.columns[table], column) {
				list = append(list, "column "+table+"."+column)
			}
		}
	}
	for _, other := range o.others {
		if !slices.Contains(from.others, other) {
			list = append(list, other)
		}
	}
	return list
}
