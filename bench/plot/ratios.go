package plot

import (
	"fmt"
	"html"
	"io"
	"math"
)

// Chart is a table of ratios, drawn as bars that begin at 1. Each column has a logarithmic scale of its own.
type Chart struct {
	Title   string
	Columns []string
	Rows    []Row
}

// Row is a line of a chart.
type Row struct {
	Name   string
	Marked bool
	Ratios []float64 // one for each column; NaN where nothing was measured
}

// The measures of a chart, in pixels.
const (
	namesW, columnW, barsW = 320.0, 215.0, 160.0
	headH, rowH            = 36.0, 15.0
)

// Ratios draws charts with the same columns, one below the other.
func Ratios(out io.Writer, charts ...Chart) {
	w, h := namesW+columnW*float64(len(charts[0].Columns)), 8.0
	for _, c := range charts {
		h += headH + rowH*float64(len(c.Rows))
	}
	fmt.Fprintf(out, `<svg xmlns="http://www.w3.org/2000/svg" width="%g" height="%g" viewBox="0 0 %[1]g %[2]g" font-family="system-ui, sans-serif" font-size="11">`+"\n", w, h)
	fmt.Fprintln(out, `<rect width="100%" height="100%" fill="#ffffff"/>`)
	y := 0.0
	for _, c := range charts {
		fmt.Fprintf(out, `<g transform="translate(0 %g)">`+"\n", y)
		c.draw(out)
		fmt.Fprintln(out, "</g>")
		y += headH + rowH*float64(len(c.Rows))
	}
	fmt.Fprintln(out, "</svg>")
}

func (c Chart) draw(out io.Writer) {
	text := func(x, y float64, style, s string) {
		fmt.Fprintf(out, `<text x="%.1f" y="%.1f" %s>%s</text>`+"\n", x, y, style, html.EscapeString(s))
	}
	text(8, 22, `fill="#222222" font-weight="bold"`, c.Title)
	for i, title := range c.Columns {
		left, low, high := namesW+columnW*float64(i), 1.0, 1.0
		for _, r := range c.Rows {
			if !math.IsNaN(r.Ratios[i]) {
				low, high = min(low, r.Ratios[i]), max(high, r.Ratios[i])
			}
		}
		x := func(ratio float64) float64 { return left + barsW*math.Log(ratio/low)/math.Log(high/low*1.001) }
		text(left, 22, `fill="#222222"`, title)
		for j, r := range c.Rows {
			y, bar, name := headH+rowH*float64(j), "#b9b9b9", `fill="#444444"`
			if r.Marked {
				bar, name = "#1f5fa8", `fill="#1f5fa8" font-weight="bold"`
			}
			if i == 0 {
				text(8, y+11, name, r.Name)
			}
			if math.IsNaN(r.Ratios[i]) {
				text(left+barsW+8, y+11, `fill="#444444"`, "–")
				continue
			}
			fmt.Fprintf(out, `<rect x="%.1f" y="%.1f" width="%.1f" height="%g" fill="%s"/>`+"\n",
				min(x(1), x(r.Ratios[i])), y+2, math.Abs(x(r.Ratios[i])-x(1)), rowH-4, bar)
			value := fmt.Sprintf("%.3g", r.Ratios[i])
			if r.Ratios[i] >= 1000 {
				value = fmt.Sprintf("%.0f", r.Ratios[i])
			}
			text(left+barsW+8, y+11, `fill="#444444"`, value)
		}
		fmt.Fprintf(out, `<path d="M%.1f %gV%g" stroke="#666666"/>`+"\n", x(1), headH-2, headH+rowH*float64(len(c.Rows)))
		text(x(1), headH-4, `text-anchor="middle" fill="#666666" font-size="9"`, "1")
	}
}
