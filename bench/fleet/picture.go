//go:build linux

package main

import (
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/serviceusers/caddy-service-users/bench/plot"
)

// picture collects what was measured.
type picture struct{ everywhere, rates []plot.Panel }

// short are the names of rows in the picture.
var short = map[string]string{
	arrive: "arrive", lost: "lost", unnoticed: "lost, unnoticed", pooled: "pgbouncer",
}

// add adds a row of revocations. A point of its curve is a time that one revocation in X exceeds; the first is the
// fastest.
func (p *picture) add(nodes, users int, name string, everywhere []time.Duration) {
	title := fmt.Sprintf("ms until in force: %d nodes, %s users", nodes, plot.Short(float64(users)))
	i := slices.IndexFunc(p.everywhere, func(p plot.Panel) bool { return p.Title == title })
	if i < 0 {
		i = len(p.everywhere)
		p.everywhere = append(p.everywhere, plot.Panel{Title: title, Label: "one in %s takes more than %.1f ms"})
	}
	curve := plot.Curve{Name: short[name]}
	sorted := slices.Sorted(slices.Values(everywhere))
	for _, one := range []int{1, 2, 5, 10, 20, 50, 100} {
		if place := max(len(sorted)-len(sorted)/one-1, 0); one <= len(sorted) {
			curve.Points = append(curve.Points, plot.Point{X: float64(one), Y: float64(sorted[place]) / 1e6})
		}
	}
	p.everywhere[i].Curves = append(p.everywhere[i].Curves, curve)
}

// addRate adds a row of changes a second.
func (p *picture) addRate(nodes, writers int, rate float64) {
	if len(p.rates) == 0 {
		p.rates = []plot.Panel{{Title: "changes a second, by nodes", Label: "%s nodes: %.0f a second",
			Curves: []plot.Curve{{Name: "1 makes changes"}, {Name: fmt.Sprint(manyWriters, " make changes")}}}}
	}
	c := &p.rates[0].Curves[min(writers-1, 1)]
	c.Points = append(c.Points, plot.Point{X: float64(nodes), Y: rate})
}

func (p *picture) write(file string) error {
	out, err := os.Create(file)
	if err != nil {
		return err
	}
	plot.Draw(out, p.everywhere, p.rates)
	return out.Close()
}
