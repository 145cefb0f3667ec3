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
	"io"
	"log"
	"maps"
	"os"
	"regexp"
	"slices"
	"strconv"

	"github.com/serviceusers/caddy-service-users/bench/plot"
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

// measured holds the points by panel and series.
type measured map[[2]string][]plot.Point

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
			all[key] = append(all[key], plot.Point{X: size, Y: points[size]})
		}
	}
	return all, lines.Err()
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
	var drawn []plot.Panel
	for _, p := range panels {
		d := plot.Panel{Title: "ns per decision, by " + p.title, Label: "%s " + p.title + ": %.0f ns"}
		for _, s := range p.series {
			d.Curves = append(d.Curves, plot.Curve{Name: s, Points: all[[2]string{p.what, s}]})
		}
		drawn = append(drawn, d)
	}
	plot.Draw(os.Stdout, drawn)
}
