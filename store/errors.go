package store

import (
	"context"
	"errors"
	"fmt"
	"syscall"
)

// The kinds of error that a caller can correct. Each such error is an [*Error] of one of these
// kinds. Any other error means that the machinery failed, for example the disk.
var (
	ErrInvalid    = errors.New("invalid value")
	ErrNotFound   = errors.New("not found")
	ErrConflict   = errors.New("conflict")    // the value is taken, or the state forbids it
	ErrChanged    = errors.New("changed")     // the record was changed since the caller read it
	ErrNotAllowed = errors.New("not allowed") // the actor's role does not allow it
	ErrKeyUsed    = errors.New("key used")    // the idempotency key belongs to another request
	ErrReadOnly   = errors.New("read-only")   // this node never changes the store, see Options.ReadOnly
)

// Two kinds of ErrInvalid that clients distinguish.
var (
	ErrEmpty   = fmt.Errorf("%w: empty", ErrInvalid)
	ErrTooLong = fmt.Errorf("%w: too long", ErrInvalid)
)

// Kinds of ErrConflict that callers distinguish.
var (
	ErrReplaced = fmt.Errorf("%w: replaced", ErrConflict) // the token has a successor that is in use or was changed
	ErrTaken    = fmt.Errorf("%w: taken", ErrConflict)    // another service user has the name or the alias
	ErrTooOften = fmt.Errorf("%w: too often", ErrConflict)
)

// Error is a fault in the caller's request. Its message says how to correct it.
type Error struct {
	Kind  error  // one of the Err… values
	Field string // the field at fault, by its name in the REST API; "" for none
	Msg   string
}

func (e *Error) Error() string {
	if e.Field == "" {
		return e.Msg
	}
	return e.Field + ": " + e.Msg
}

func (e *Error) Unwrap() error { return e.Kind }

func invalid(field, format string, args ...any) error {
	return &Error{ErrInvalid, field, fmt.Sprintf(format, args...)}
}

func conflict(field, format string, args ...any) error {
	return &Error{ErrConflict, field, fmt.Sprintf(format, args...)}
}

func notFound(what, id string) error {
	msg := fmt.Sprintf("there is no %s %q", what, id)
	if what != "permission" && !idForm.MatchString(id) { // a permission has a key, and no id
		msg += "; it is named by its id"
	}
	return &Error{Kind: ErrNotFound, Msg: msg}
}

func notAllowed(format string, args ...any) error {
	return &Error{Kind: ErrNotAllowed, Msg: fmt.Sprintf(format, args...)}
}

// within puts the part of the request that has the fault before the field of an [*Error]: the part
// "permissions.2" and the field "rules" give "permissions.2.rules". It adds the part to an [InUse], and
// returns other errors unchanged.
func within(err error, part string) error {
	var e *Error
	var used *InUse
	switch {
	case errors.As(err, &used):
		inner := *used
		inner.Part = part
		return &inner
	case !errors.As(err, &e):
		return err
	}
	// A copy: the caller may still use the original.
	inner := *e
	if inner.Field != "" {
		part += "." + inner.Field
	}
	inner.Field = part
	return &inner
}

var (
	errGone   = errors.New("the database was taken away while it was open")
	errNoFile = errors.New("a store in PostgreSQL has no file: Caddy makes it at its first start, " +
		"a running Caddy checks it, pg_dump and pg_restore are for backups, and \"copy\" makes a file of it")
	errAway = errors.New("the database has not answered since the start of this node")
	errBusy = errors.New("too many changes are waiting before this one; try again later")
)

// ErrUncertain is in the chain of an error when a commit failed. The change may have been made all
// the same. If it was, the directory shows it a moment later.
var ErrUncertain = errors.New("whether the change was made is not known")

// FaultReason describes an error that is not an [*Error]: the fault of the store, in words that
// reveal no path or other detail, and whether the disk is full. reason is "" for an unknown fault.
func FaultReason(err error) (reason string, full bool) {
	code := sqliteCode(err)
	switch answer := postgresCode(err); {
	case answer == "53100":
		return "its disk is full", true
	case answer == "42501":
		return "the role of this node lacks a right to its database", false
	case answer == "25006":
		return "its database cannot be written", false
	case answer == "40001" || answer == "40P01" || answer == "55P03" || answer == "57014" || answer == "53300":
		return "it is busy", false
	case answer == "28P01" || answer == "28000" || answer == "3D000" || answer == "42501":
		return "its database does not let it in", false
	case isLost(err) || errors.Is(err, errAway):
		return "its database cannot be reached", false
	case code == sqliteFull || errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT):
		return "its disk is full", true
	case errors.Is(err, errGone):
		return "its database was taken away", false
	case errors.Is(err, ErrOlder):
		return "its database is an older one than before", false
	case code == sqliteBusy || code == sqliteLocked || errors.Is(err, errBusy) ||
		errors.Is(err, context.DeadlineExceeded):
		return "it is busy", false
	case isIO(err):
		return "its disk has an error", false
	case code == sqliteReadOnly:
		return "its database cannot be written", false
	case code == sqliteCantOpen:
		return "its database cannot be opened", false
	case code == sqliteCorrupt || code == sqliteNotADB || errors.Is(err, ErrDamaged):
		return "its database is damaged", false
	}
	return "", false
}

// isIO reports whether a read from or a write to the disk failed.
func isIO(err error) bool {
	return sqliteCode(err) == sqliteIOErr || errors.Is(err, syscall.EIO)
}
