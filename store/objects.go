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
	indexes []string
	others  []string // views and triggers, such as "trigger tokens_added"
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
	rows, err := t.query(`
		SELECT type, name FROM sqlite_schema WHERE name NOT LIKE 'sqlite\_%' ESCAPE '\' ORDER BY name`)
	if err != nil {
		return o, err
	}
	all, err := collect(rows, func(rows *sql.Rows) (v [2]string, err error) {
		err = rows.Scan(&v[0], &v[1])
		return v, err
	})
	if err != nil {
		return o, err
	}
	o.columns = make(map[string][]string)
	for _, v := range all {
		switch name := v[1]; v[0] {
		case "table":
			rows, err := t.query(`SELECT name FROM pragma_table_info($1)`, name)
			if err != nil {
				return o, err
			}
			if o.columns[name], err = collect(rows, scanString); err != nil {
				return o, err
			}
			o.tables = append(o.tables, name)
		case "index":
			o.indexes = append(o.indexes, name)
		default:
			o.others = append(o.others, v[0]+" "+name)
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
	for _, index := range o.indexes {
		if !slices.Contains(from.indexes, index) {
			list = append(list, "index "+index)
		}
	}
	for _, other := range o.others {
		if !slices.Contains(from.others, other) {
			list = append(list, other)
		}
	}
	return list
}
