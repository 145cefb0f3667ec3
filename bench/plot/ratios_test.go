package plot

import (
	"encoding/xml"
	"io"
	"math"
	"slices"
	"strings"
	"testing"
)

func TestTicks(t *testing.T) {
	for _, test := range []struct{ ratios, want []float64 }{
		{[]float64{1, 1.17, math.NaN()}, []float64{1, 1.1, 1.2}},
		{[]float64{0.88, 1.04}, []float64{0.8, 0.9, 1, 1.1}},
		{[]float64{0.02, 3.9}, []float64{0.01, 0.1, 1, 10}},
		{[]float64{0.0002, 12000}, []float64{0.0001, 0.01, 1, 100, 10000, 1e6}},
	} {
		var c Chart
		for _, ratio := range test.ratios {
			c.Rows = append(c.Rows, Row{Ratios: []float64{ratio}})
		}
		got := c.ticks(0)
		same := func(a, b float64) bool { return math.Abs(a/b-1) < 1e-9 }
		if !slices.EqualFunc(got, test.want, same) {
			t.Errorf("ticks for %v: got %v, want %v", test.ratios, got, test.want)
		}
	}
}

func TestRatios(t *testing.T) {
	var picture strings.Builder
	Ratios(&picture, Chart{Title: "peers", Columns: []string{"rate", "CPU"}, Rows: []Row{
		{Name: "a < b", Ratios: []float64{1, math.NaN()}}, {Name: "ours", Marked: true, Ratios: []float64{0.9, 1.1}}}})
	bars := 0
	for in := xml.NewDecoder(strings.NewReader(picture.String())); ; {
		token, err := in.Token()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if e, ok := token.(xml.StartElement); ok && e.Name.Local == "rect" {
			bars++
		}
	}
	if want := 1 + 3; bars != want { // the background, and a bar of each ratio
		t.Errorf("got %d rectangles, want %d", bars, want)
	}
}
