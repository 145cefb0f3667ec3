package store

import (
	"context"
	"errors"
	"fmt"
	"syscall"

	"modernc.org/sqlite"
)

// What can be wrong with a call. Every error that the caller can do something
// about is an [*Error] of one of these kinds; anything else means that the
// machinery broke.
var (
	ErrInvalid    = errors.New("invalid value")
	ErrNotFound   = errors.New("not found")
	ErrConflict   = errors.New("conflict")    // the value is taken, or the state forbids it
	ErrChanged    = errors.New("changed")     // somebody else changed it since it was read
	ErrNotAllowed = errors.New("not allowed") // the actor's role does not reach this far
)

// Two kinds of ErrInvalid that clients tell apart.
var (
	ErrEmpty   = fmt.Errorf("%w: empty", ErrInvalid)
	ErrTooLong = fmt.Errorf("%w: too long", ErrInvalid)
)

// Two kinds of ErrConflict that clients tell apart.
var (
	ErrReplaced = fmt.Errorf("%w: replaced", ErrConflict) // the token has a successor that stays
	ErrTooOften = fmt.Errorf("%w: too often", ErrConflict)
)

// Error is a fault in what was asked for. It says what to do next.
type Error struct {
	Kind  error  // one of the Err… values
	Field string // the field at fault, in the names of the REST API; "" is none
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
	return &Error{Kind: ErrNotFound, Msg: fmt.Sprintf("there is no %s %q", what, id)}
}

func notAllowed(format string, args ...any) error {
	return &Error{Kind: ErrNotAllowed, Msg: fmt.Sprintf(format, args...)}
}

// within says in which part of the request a fault lies.
func within(err error, part string) error {
	var e *Error
	if !errors.As(err, &e) {
		return err
	}
	inner := *e
	if inner.Field != "" {
		part += "." + inner.Field
	}
	inner.Field = part
	return &inner
}

var (
	errGone = errors.New("the database was taken away while it was open")
	errBusy = errors.New("too many are before this one; try again later")
)

// ErrUncertain is in an error when the end of a change has failed: it may have been
// made all the same, and the directory shows it in a moment if it was.
var ErrUncertain = errors.New("whether the change was made is not known")

// Trouble says, of an error that is no [*Error], what is wrong with the store, in
// words that tell nothing else, and whether it is the disk that is full. "" is
// anything.
func Trouble(err error) (reason string, full bool) {
	code := 0
	var e *sqlite.Error
	if errors.As(err, &e) {
		code = e.Code() & 0xff
	}
	switch {
	case code == sqliteFull || errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT):
		return "its disk is full", true
	case errors.Is(err, errGone):
		return "its database was taken away", false
	case errors.Is(err, ErrOlder):
		return "its database is an older one than before", false
	case code == sqliteBusy || code == sqliteLocked || errors.Is(err, errBusy) || errors.Is(err, context.DeadlineExceeded):
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

// isIO reports whether a read or a write failed.
func isIO(err error) bool {
	var e *sqlite.Error
	return errors.As(err, &e) && e.Code()&0xff == sqliteIOErr || errors.Is(err, syscall.EIO)
}
