package admin

import "strconv"

// newestFirst returns one page of a list in the default order. read gets up to limit records from
// the store that are older than the id before, and reports whether there are more. With total_count
// newestFirst then reads all records, countedAtOnce in each call with count. show converts a record into
// its form in the API, and returns its id. kind is the prefix of the ids.
func newestFirst[R, T any](
	c *call, q ListQuery, kind string,
	read func(before string, limit int, count bool) ([]R, bool, error),
	show func(R) (T, string),
) ([]T, Page, error) {
	limit, err := q.limit()
	if err != nil {
		return nil, Page{}, err
	}
	before, err := q.before(kind)
	if err != nil {
		return nil, Page{}, err
	}
	records, more, err := read(before, limit, false)
	if err != nil {
		return nil, Page{}, err
	}
	list := make([]T, len(records))
	last := ""
	for i, r := range records {
		list[i], last = show(r)
	}
	links := page(c, more, last, limit)
	if links.TotalCount, err = total(q.TotalCount); links.TotalCount == nil {
		return list, links, err
	}
	for before, more := "", true; more; {
		if records, more, err = read(before, countedAtOnce, true); err != nil {
			return nil, Page{}, err
		}
		*links.TotalCount += len(records)
		if len(records) > 0 {
			_, before = show(records[len(records)-1])
		}
	}
	return list, links, nil
}

// countedAtOnce is the number of records that are read together to count a list.
const countedAtOnce = 1000

// page returns the links of a list in the default order. last is the id of the last entry; more
// means that there is a page behind it.
func page(c *call, more bool, last string, limit int) Page {
	if !more {
		return lastPage(c)
	}
	return nextPage(c, "before_id", last, limit)
}

func lastPage(c *call) Page { return Page{URI: c.URL.Path} }

// nextPage returns a link to the next page, which begins at the given parameter. The link is a path
// without a host, because the client controls the header Host.
func nextPage(c *call, param, value string, limit int) Page {
	query := c.URL.Query()
	query.Del("before_id")
	query.Del("cursor")
	query.Set(param, value)
	query.Set("limit", strconv.Itoa(limit))
	next := c.URL.Path + "?" + query.Encode()
	return Page{URI: c.URL.Path, NextPageURI: &next}
}
