// Package other has a string type.
package other

// Color is a color.
type Color string

const (
	Red   Color = "red"
	Green Color = "green"
)
