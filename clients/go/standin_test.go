package foreman_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
)

// baseURL and token are those of the foreman that the examples speak to: the
// real one of FOREMAN_TEST_URL, else a stand-in that knows their answers only.
var baseURL, token = place()

func place() (string, string) {
	if url := os.Getenv("FOREMAN_TEST_URL"); url != "" {
		return url, os.Getenv("FOREMAN_TEST_TOKEN")
	}
	return httptest.NewServer(http.HandlerFunc(standIn)).URL, ""
}

func standIn(w http.ResponseWriter, r *http.Request) {
	const answer = `{"model":"tiny-a","message":{"role":"assistant","content":" alpha bravo charlie"},"done":true}`
	switch {
	case r.URL.Path == "/api/chat":
		for _, word := range strings.SplitAfter(" alpha| bravo| charlie", "|") {
			fmt.Fprintf(w, `{"message":{"role":"assistant","content":%q},"done":false}`+"\n", strings.Trim(word, "|"))
		}
		fmt.Fprintln(w, `{"message":{"role":"assistant","content":""},"done":true}`)
	case strings.HasSuffix(r.URL.Path, "/stream"):
		fmt.Fprintln(w, answer)
	case r.Method == "GET":
		fmt.Fprintf(w, `{"job_id":"J1","state":"done","result":%s}`, answer)
	case strings.HasSuffix(r.Header.Get("Content-Type"), "ndjson"):
		body, _ := io.ReadAll(r.Body)
		jobs := strings.Repeat(`{"job_id":"J1","state":"queued"},`, strings.Count(string(body), "\n"))
		fmt.Fprintf(w, `{"jobs":[%s]}`, strings.TrimSuffix(jobs, ","))
	default:
		fmt.Fprint(w, `{"job_id":"J1","state":"queued"}`)
	}
}
