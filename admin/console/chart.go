package console

import (
	"fmt"
	"strings"
	"time"

	"github.com/serviceusers/caddy-service-users/admin"
)

// chart shows the requests of one outcome over 24 hours.
type chart struct {
	Name   string
	Status string // the statuses of the answers
	Total  int64
	Peak   int64  // the requests of the busiest minute
	Path   string // the bars, for inline SVG of chartWidth by chartHeight
}

const (
	chartWidth  = 288 // one unit for chartStep
	chartHeight = 40
	chartStep   = 24 * time.Hour / chartWidth
)

// charts draws one chart for each outcome, with now at the right edge. Its height at a place is that
// of the busiest minute there, so that a short burst is seen.
func charts(minutes []admin.Minute, now time.Time) []chart {
	list := []chart{
		{Name: "Allowed"}, {Name: "Denied", Status: "403"}, {Name: "No login", Status: "401, 429"},
		{Name: "Refused as ambiguous", Status: "400, 405, 425, 501"}, {Name: "Not ready", Status: "503"},
	}
	most := make([][chartWidth]int64, len(list))
	for _, m := range minutes {
		// The clock may have been set since: only minutes of the last 24 hours have a place.
		x := chartWidth - 1 - int(now.Sub(m.At)/chartStep)
		if x < 0 || x >= chartWidth {
			continue
		}
		for i, n := range [...]int64{m.Allowed, m.Denied, m.NoLogin, m.Refused, m.NotReady} {
			c := &list[i]
			c.Total += n
			c.Peak = max(c.Peak, n)
			most[i][x] = max(most[i][x], n)
		}
	}
	for i := range list {
		list[i].Path = bars(most[i][:], list[i].Peak)
	}
	return list
}

// bars returns a path with a bar for each column, one unit wide. A bar can be seen, however small it is.
func bars(columns []int64, most int64) string {
	var path strings.Builder
	for x, n := range columns {
		if n > 0 {
			height := max(chartHeight*n/most, 2)
			fmt.Fprintf(&path, "M%d %dv-%dh1v%dz", x, chartHeight, height, height)
		}
	}
	return path.String()
}
