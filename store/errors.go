package store

import (
	"errors"
	"fmt"
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
