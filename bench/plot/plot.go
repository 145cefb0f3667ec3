// Package plot draws panels of curves as SVG. Both axes are logarithmic.
package plot

import (
	"fmt"
	"io"
	"math"
)

// Panel is one of the pictures, side by side.
type Panel struct {
	Title  string
	Label  string // of a point, with a verb for its size as text and one for its value
	Curves []Curve
}

// Curve is a line through points, by their X.
type Curve struct {
	Name   string // "" for the only one
	Points []Point
}

// Point is a value Y of a size X.
type Point struct{ X, Y float64 }

// The measures of a panel, in pixels.
const (
	width, height = 250.0, 190.0
	left, top     = 44.0, 34.0
	plotW, plotH  = 176.0, 110.0
)

// Draw writes the picture. The panels of a group have the same axis of values.
func Draw(out io.Writer, groups ...[]Panel) {
	var count int
	for _, panels := range groups {
		count += len(panels)
	}
	rows := float64((count + 1) / 2)
	fmt.Fprintf(out, `<svg xmlns="http://www.w3.org/2000/svg" width="%g" height="%g" viewBox="0 0 %g %g" font-family="system-ui, sans-serif" font-size="11">`+"\n",
		2*width, rows*height, 2*width, rows*height)
	fmt.Fprintln(out, `<rect width="100%" height="100%" fill="#ffffff"/>`)
	i := 0
	for _, panels := range groups {
		low, high := span(panels, func(p Point) float64 { return p.Y })
		low, high = math.Pow(10, math.Floor(math.Log10(low))), math.Pow(10, math.Ceil(math.Log10(high)))
		for _, p := range panels {
			fmt.Fprintf(out, `<g transform="translate(%g %g)">`+"\n", width*float64(i%2), height*float64(i/2))
			p.draw(out, low, high)
			fmt.Fprintln(out, "</g>")
			i++
		}
	}
	fmt.Fprintln(out, "</svg>")
}

// span returns the least and the greatest of the values of some panels.
func span(panels []Panel, of func(Point) float64) (low, high float64) {
	low, high = math.Inf(1), math.Inf(-1)
	for _, p := range panels {
		for _, c := range p.Curves {
			for _, at := range c.Points {
				low, high = math.Min(low, of(at)), math.Max(high, of(at))
			}
		}
	}
	return low, high
}

var colors = []string{"#1f5fa8", "#c2571a", "#3f7f3f", "#7a4fa0"}

func (p Panel) draw(out io.Writer, low, high float64) {
	first, last := span([]Panel{p}, func(p Point) float64 { return p.X })
	x := func(size float64) float64 { return left + plotW*math.Log(size/first)/math.Log(last/first) }
	y := func(value float64) float64 { return top + plotH*(1-math.Log(value/low)/math.Log(high/low)) }
	text := func(x, y float64, anchor, color, s string) {
		fmt.Fprintf(out, `<text x="%.1f" y="%.1f" text-anchor="%s" fill="%s">%s</text>`+"\n", x, y, anchor, color, s)
	}
	text(8, top-16, "start", "#222222", p.Title)
	for value := low; value <= high; value *= 10 {
		fmt.Fprintf(out, `<path d="M%.1f %.1fh%g" stroke="#dddddd"/>`+"\n", left, y(value), plotW)
		text(left-6, y(value)+4, "end", "#666666", Short(value))
	}
	step := 10.0
	if last/first < 100 {
		step = 2
	}
	for size := first; size <= last; size *= step {
		text(x(size), top+plotH+16, "middle", "#666666", Short(size))
	}
	for i, c := range p.Curves {
		path := "M"
		for j, at := range c.Points {
			if j > 0 {
				path += "L"
			}
			path += fmt.Sprintf("%.1f %.1f", x(at.X), y(at.Y))
			fmt.Fprintf(out, `<circle cx="%.1f" cy="%.1f" r="2.5" fill="%s"><title>`+p.Label+`</title></circle>`+"\n", x(at.X), y(at.Y), colors[i], Short(at.X), at.Y)
		}
		fmt.Fprintf(out, `<path d="%s" fill="none" stroke="%s" stroke-width="1.5"/>`+"\n", path, colors[i])
		switch {
		case c.Name == "" || len(c.Points) == 0:
		case len(p.Curves) > 2: // they would hide the curves
			text(left+plotW*float64(i%2), top+plotH+30+13*float64(i/2), []string{"start", "end"}[i%2], colors[i], c.Name)
		default:
			text(left+plotW, top+12+13*float64(i), "end", colors[i], c.Name)
		}
	}
}

// Short writes a round number.
func Short(n float64) string {
	switch {
	case n >= 1e6:
		return fmt.Sprintf("%g M", n/1e6)
	case n >= 1e3:
		return fmt.Sprintf("%g k", n/1e3)
	default:
		return fmt.Sprintf("%g", n)
	}
}
