//go:build linux

package main

import (
	"math"
	"slices"
)

// quartiles are the median of some figures, and the bounds between which half of them lie.
type quartiles struct{ low, median, high float64 }

// spread returns the quartiles of figures, by linear interpolation between the
// closest ranks; of none they are NaN.
func spread(figures []float64) quartiles {
	if len(figures) == 0 {
		return quartiles{math.NaN(), math.NaN(), math.NaN()}
	}
	sorted := slices.Sorted(slices.Values(figures))
	at := func(part float64) float64 {
		place := part * float64(len(sorted)-1)
		below := int(place)
		above := min(below+1, len(sorted)-1)
		return sorted[below] + (place-float64(below))*(sorted[above]-sorted[below])
	}
	return quartiles{at(0.25), at(0.5), at(0.75)}
}

// ratios divides each figure by the one of the same turn. It leaves out turns in which one of them
// is not a positive number, for example without any answer.
func ratios(figures, of []float64) (list []float64) {
	for i := range min(len(figures), len(of)) {
		if ratio := figures[i] / of[i]; ratio > 0 && !math.IsInf(ratio, 1) && of[i] > 0 && !math.IsInf(of[i], 1) {
			list = append(list, ratio)
		}
	}
	return list
}
