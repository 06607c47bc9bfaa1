package foreman

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net/http"
	"strings"
	"time"
)

const (
	// silence is how long an exchange may take beyond the time that it takes
	// by its nature. Without a bound a connection whose other end is gone
	// would be waited on for ever.
	silence = 30 * time.Second
	// slowest is the pace, in bytes a second, at which a body still goes out
	// in time.
	slowest = 64 << 10

	// forever is the patience of one who waits for a job that is accepted.
	forever = math.MaxInt64

	firstPause   = 200 * time.Millisecond
	longestPause = 10 * time.Second
)

// exchange is one request and the whole body of its answer.
type exchange struct {
	method, path string
	contentType  string // of the body
	body         []byte
	key          string        // the idempotency key
	takes        time.Duration // bounds the time; zero leaves it to the context
}

// send opens the exchange; the answer's status is below 300.
func (c *Client) send(ctx context.Context, x exchange) (*http.Response, error) {
	request, err := http.NewRequestWithContext(ctx, x.method, c.base.String()+x.path, bytes.NewReader(x.body))
	if err != nil {
		return nil, fmt.Errorf("foreman: %w", err)
	}
	if x.contentType != "" {
		request.Header.Set("Content-Type", x.contentType)
	}
	if x.key != "" {
		request.Header.Set("Idempotency-Key", x.key)
	}
	response, err := c.http.Do(request)
	if err != nil {
		return nil, lost{fmt.Errorf("foreman: %w", err)}
	}
	if response.StatusCode < 300 {
		return response, nil
	}
	defer response.Body.Close()
	body, _ := io.ReadAll(io.LimitReader(response.Body, 1<<20))
	return nil, answered(response.StatusCode, response.Header, body)
}

// once carries out the exchange and returns the answer's body.
func (c *Client) once(ctx context.Context, x exchange) ([]byte, error) {
	if x.takes > 0 {
		var done context.CancelFunc
		ctx, done = context.WithTimeout(ctx, x.takes)
		defer done()
	}
	response, err := c.send(ctx, x)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return nil, lost{fmt.Errorf("foreman: %s %s: %w", x.method, x.path, err)}
	}
	return body, nil
}

// decode carries out the exchange and reads the answer into v.
func (c *Client) decode(ctx context.Context, x exchange, v any) error {
	body, err := c.once(ctx, x)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(body, v); err != nil {
		return fmt.Errorf("foreman: %s %s: the answer %q: %w", x.method, x.path, excerpt(body), err)
	}
	return nil
}

// persist tries until it succeeds, fails for good, or the context or the
// patience ends.
func persist(ctx context.Context, patience time.Duration, try func() error) error {
	begun := time.Now()
	for pause := firstPause; ; pause = min(2*pause, longestPause) {
		err := try()
		if err == nil {
			return nil
		}
		if cause := ctx.Err(); cause != nil {
			return fmt.Errorf("foreman: %w", cause)
		}
		if !passes(err) {
			return err
		}
		rest := pause
		var answer *APIError
		if errors.As(err, &answer) && answer.RetryAfter > 0 {
			rest = answer.RetryAfter
		}
		rest += rand.N(rest/4 + 1) // so that not all come back at once
		if time.Since(begun)+rest > patience {
			return err
		}
		timer := time.NewTimer(rest)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return fmt.Errorf("foreman: %w", ctx.Err())
		}
	}
}

// excerpt is the beginning of a body, for people.
func excerpt(body []byte) string {
	const length = 200
	text := strings.TrimSpace(string(body))
	if len(text) > length {
		text = strings.ToValidUTF8(text[:length], "") + "…"
	}
	return text
}
