// Command curves draws the time of a decision as users, groups, rules and paths grow, from the
// output of benchmarks:
//
//	go test ./access -run '^$' -bench 'Size|PathLength' -count 5 | go run ./bench/curves > docs/growth.svg
//
// Of several runs the fastest counts: other work of the machine makes a run slower, and nothing
// makes it faster.
package main

import (
	"bufio"
	"fmt"
	"io"
	"log"
	"maps"
	"math"
	"os"
	"regexp"
	"slices"
	"strconv"
)

// panel is one of the pictures, side by side.
type panel struct {
	what   string // the word before "=" in the names of benchmarks
	title  string
	series []string // the suffixes behind the number in them; "" for none
}

var panels = []panel{
	{"users", "service users", []string{"one path", "any path"}},
	{"groups", "permission groups", []string{"one path", "any path"}},
	{"rules", "rules of a group", []string{"one path", "any path"}},
	{"segments", "segments of the path", []string{""}},
}

// point is a size with its time in nanoseconds.
type point struct{ size, ns float64 }

// measured holds the points by panel and series.
type measured map[[2]string][]point

var line = regexp.MustCompile(`^Benchmark\w+/(\w+)=(\d+)(?:/(.+?))?(?:-\d+)?\s+\d+\s+([0-9.]+) ns/op`)

// read takes the fastest run of each benchmark.
func read(in io.Reader) (measured, error) {
	fastest := make(map[[2]string]map[float64]float64)
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		m := line.FindStringSubmatch(lines.Text())
		if m == nil {
			continue
		}
		size, err := strconv.ParseFloat(m[2], 64)
		if err != nil {
			return nil, err
		}
		ns, err := strconv.ParseFloat(m[4], 64)
		if err != nil {
			return nil, err
		}
		key := [2]string{m[1], regexp.MustCompile("_").ReplaceAllString(m[3], " ")}
		if fastest[key] == nil {
			fastest[key] = make(map[float64]float64)
		}
		if known, ok := fastest[key][size]; !ok || ns < known {
			fastest[key][size] = ns
		}
	}
	all := make(measured)
	for key, points := range fastest {
		for _, size := range slices.Sorted(maps.Keys(points)) {
			all[key] = append(all[key], point{size, points[size]})
		}
	}
	return all, lines.Err()
}

// The measures of a panel, in pixels.
const (
	width, height = 250.0, 190.0
	left, top     = 44.0, 34.0
	plotW, plotH  = 176.0, 110.0
)

// draw writes the picture. Both axes are logarithmic, and the time has the same one
// in each panel.
func draw(out io.Writer, all measured) {
	low, high := math.Inf(1), math.Inf(-1)
	for _, points := range all {
		for _, p := range points {
			low, high = math.Min(low, p.ns), math.Max(high, p.ns)
		}
	}
	low, high = math.Pow(10, math.Floor(math.Log10(low))), math.Pow(10, math.Ceil(math.Log10(high)))
	fmt.Fprintf(out, `<svg xmlns="http://www.w3.org/2000/svg" width="%g" height="%g" viewBox="0 0 %g %g" font-family="system-ui, sans-serif" font-size="11">`+"\n",
		2*width, 2*height, 2*width, 2*height)
	fmt.Fprintln(out, `<rect width="100%" height="100%" fill="#ffffff"/>`)
	for i, p := range panels {
		fmt.Fprintf(out, `<g transform="translate(%g %g)">`+"\n", width*float64(i%2), height*float64(i/2))
		p.draw(out, all, low, high)
		fmt.Fprintln(out, "</g>")
	}
	fmt.Fprintln(out, "</svg>")
}

var colors = []string{"#1f5fa8", "#c2571a"}

func (p panel) draw(out io.Writer, all measured, low, high float64) {
	first, last := math.Inf(1), math.Inf(-1)
	for _, s := range p.series {
		for _, at := range all[[2]string{p.what, s}] {
			first, last = math.Min(first, at.size), math.Max(last, at.size)
		}
	}
	x := func(size float64) float64 { return left + plotW*math.Log(size/first)/math.Log(last/first) }
	y := func(ns float64) float64 { return top + plotH*(1-math.Log(ns/low)/math.Log(high/low)) }
	text := func(x, y float64, anchor, color, s string) {
		fmt.Fprintf(out, `<text x="%.1f" y="%.1f" text-anchor="%s" fill="%s">%s</text>`+"\n", x, y, anchor, color, s)
	}
	text(8, top-16, "start", "#222222", "ns per decision, by "+p.title)
	for ns := low; ns <= high; ns *= 10 {
		fmt.Fprintf(out, `<path d="M%.1f %.1fh%g" stroke="#dddddd"/>`+"\n", left, y(ns), plotW)
		text(left-6, y(ns)+4, "end", "#666666", short(ns))
	}
	step := 10.0
	if last/first < 100 {
		step = 2
	}
	for size := first; size <= last; size *= step {
		text(x(size), top+plotH+16, "middle", "#666666", short(size))
	}
	for i, s := range p.series {
		path := "M"
		points := all[[2]string{p.what, s}]
		for j, at := range points {
			if j > 0 {
				path += "L"
			}
			path += fmt.Sprintf("%.1f %.1f", x(at.size), y(at.ns))
			fmt.Fprintf(out, `<circle cx="%.1f" cy="%.1f" r="2.5" fill="%s"><title>%s %s: %.0f ns</title></circle>`+"\n", x(at.size), y(at.ns), colors[i], short(at.size), p.title, at.ns)
		}
		fmt.Fprintf(out, `<path d="%s" fill="none" stroke="%s" stroke-width="1.5"/>`+"\n", path, colors[i])
		if s != "" && len(points) > 0 {
			text(left+plotW, top+12+13*float64(i), "end", colors[i], s)
		}
	}
}

// short writes a round number.
func short(n float64) string {
	switch {
	case n >= 1e6:
		return fmt.Sprintf("%g M", n/1e6)
	case n >= 1e3:
		return fmt.Sprintf("%g k", n/1e3)
	default:
		return fmt.Sprintf("%g", n)
	}
}

func main() {
	log.SetFlags(0)
	all, err := read(os.Stdin)
	if err != nil {
		log.Fatal(err)
	}
	for _, p := range panels {
		for _, s := range p.series {
			if len(all[[2]string{p.what, s}]) < 2 {
				log.Fatalf("no two measurements of %s %s; run go test ./access -run '^$' -bench 'Size|PathLength'", p.what, s)
			}
		}
	}
	draw(os.Stdout, all)
}
