package plot

import (
	"encoding/xml"
	"fmt"
	"io"
	"math"
	"strings"
)

// Chart is a table of ratios, drawn as bars that begin at 1. Each column has a logarithmic axis of its own.
type Chart struct {
	Title   string
	Columns []string
	Rows    []Row
}

// Row is a line of a chart. A ratio that is NaN has no bar.
type Row struct {
	Name   string
	Marked bool
	Ratios []float64 // one for each column
}

// The measures of a chart, in pixels.
const (
	namesW, columnW, barsW = 320.0, 215.0, 160.0
	headH, rowH            = 46.0, 15.0
)

// Ratios draws charts, one below the other.
func Ratios(out io.Writer, charts ...Chart) {
	w, h := namesW, 0.0
	for _, c := range charts {
		w, h = max(w, namesW+columnW*float64(len(c.Columns))), h+headH+rowH*float64(len(c.Rows))+8
	}
	fmt.Fprintf(out, `<svg xmlns="http://www.w3.org/2000/svg" width="%g" height="%g" viewBox="0 0 %g %g" font-family="system-ui, sans-serif" font-size="11">`+"\n", w, h, w, h)
	fmt.Fprintln(out, `<rect width="100%" height="100%" fill="#ffffff"/>`)
	y := 0.0
	for _, c := range charts {
		fmt.Fprintf(out, `<g transform="translate(0 %g)">`+"\n", y)
		c.draw(out)
		fmt.Fprintln(out, "</g>")
		y += headH + rowH*float64(len(c.Rows)) + 8
	}
	fmt.Fprintln(out, "</svg>")
}

func (c Chart) draw(out io.Writer) {
	text := func(x, y float64, style, s string) {
		var escaped strings.Builder
		_ = xml.EscapeText(&escaped, []byte(s))
		fmt.Fprintf(out, `<text x="%.1f" y="%.1f" %s>%s</text>`+"\n", x, y, style, &escaped)
	}
	text(8, 18, `fill="#222222" font-weight="bold"`, c.Title)
	bottom := headH + rowH*float64(len(c.Rows))
	for i, r := range c.Rows {
		style := `fill="#444444"`
		if r.Marked {
			style = `fill="#1f5fa8" font-weight="bold"`
		}
		text(8, headH+rowH*float64(i)+11, style, r.Name)
	}
	for i, title := range c.Columns {
		left := namesW + columnW*float64(i)
		ticks := c.ticks(i)
		low, high := ticks[0], ticks[len(ticks)-1]
		x := func(ratio float64) float64 { return left + barsW*math.Log(ratio/low)/math.Log(high/low) }
		text(left, 18, `fill="#222222"`, title)
		for _, tick := range ticks {
			color := "#dddddd"
			if tick == 1 {
				color = "#888888"
			}
			fmt.Fprintf(out, `<path d="M%.1f %gV%g" stroke="%s"/>`+"\n", x(tick), headH-4, bottom, color)
			text(x(tick), headH-8, `text-anchor="middle" fill="#666666" font-size="9"`, fmt.Sprintf("%.6g", tick))
		}
		for j, r := range c.Rows {
			ratio := r.Ratios[i]
			if math.IsNaN(ratio) {
				continue
			}
			color := "#b9b9b9"
			if r.Marked {
				color = "#1f5fa8"
			}
			y := headH + rowH*float64(j)
			fmt.Fprintf(out, `<rect x="%.1f" y="%.1f" width="%.1f" height="%g" fill="%s"/>`+"\n",
				min(x(1), x(ratio)), y+2, max(1, math.Abs(x(ratio)-x(1))), rowH-4, color)
			text(left+barsW+8, y+11, `fill="#444444"`, fmt.Sprintf("%.3g", ratio))
		}
	}
}

// ticks are the marks of the axis of a column: powers of ten, or tenths on a narrow axis.
func (c Chart) ticks(column int) (list []float64) {
	low, high := 1.0, 1.0
	for _, r := range c.Rows {
		if ratio := r.Ratios[column]; !math.IsNaN(ratio) {
			low, high = min(low, ratio), max(high, ratio)
		}
	}
	if high/low > 4 {
		decades := math.Ceil(math.Log10(high/low) / 6)
		for n := math.Floor(math.Log10(low) / decades); ; n++ {
			tick := math.Pow(10, n*decades)
			if list = append(list, tick); tick >= high {
				return list
			}
		}
	}
	step := math.Ceil((high-low)/0.5) / 10
	for n := math.Floor(low/step + 1e-9); ; n++ {
		tick := math.Round(n*step*10) / 10
		if list = append(list, tick); tick > high {
			return list
		}
	}
}
