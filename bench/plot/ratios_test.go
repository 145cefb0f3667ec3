package plot

import (
	"encoding/xml"
	"io"
	"math"
	"strings"
	"testing"
)

func TestRatios(t *testing.T) {
	var picture strings.Builder
	Ratios(&picture, Chart{Title: "peers", Columns: []string{"rate", "CPU"}, Rows: []Row{
		{Name: "a < b", Ratios: []float64{1, 1}}, {Name: "ours", Marked: true, Ratios: []float64{0.5, 2}},
		{Name: "without an answer", Ratios: []float64{math.NaN(), math.NaN()}}}})
	var widths []string
	for in := xml.NewDecoder(strings.NewReader(picture.String())); ; {
		token, err := in.Token()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if e, ok := token.(xml.StartElement); ok && e.Name.Local == "rect" {
			for _, a := range e.Attr {
				if a.Name.Local == "width" {
					widths = append(widths, a.Value)
				}
			}
		}
	}
	// the background, and for each column the bar of 1 and the other one
	if got, want := strings.Join(widths, " "), "100% 0.0 159.8 0.0 159.8"; got != want {
		t.Errorf("got rectangles of width %q, want %q", got, want)
	}
}
