// Package foreman is a client of foreman, the daemon that keeps a durable
// queue in front of one Ollama.
//
// [Client.Run] is the plain way to have something done: it submits a job and
// waits for its end, over dropped connections and restarts of foreman, and the
// job runs once however often a request had to be repeated. [Client.Submit]
// and [Client.Wait] are its two halves, for programs that do not want to wait
// in between; [VerifySignature] is for those that are told by webhook.
//
// On every other path foreman is an Ollama server. [Client.Chat],
// [Client.Embed] and [Client.Tags] call it as such, and [Client.HTTPClient]
// gives any other Ollama library the token it needs.
package foreman

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// A Client talks to one foreman. It is safe for concurrent use.
type Client struct {
	base        *url.URL // without a slash at its end
	http        *http.Client
	own         *http.Client  // http, but that it follows no redirects
	silence     time.Duration // that is too long where something should come
	token       string
	patience    time.Duration
	cancelsJobs bool
}

// An Option changes how a [Client] works.
type Option func(*Client)

// WithToken has each request carry the token that foreman was started with
// (FOREMAN_TOKEN).
func WithToken(token string) Option {
	return func(c *Client) { c.token = token }
}

// WithHTTPClient has requests go through h, for instance to trust a private
// authority or to dial a Unix socket. Its Timeout, if there is one, also
// bounds how long a single long poll is, but not how long [Client.Wait] waits.
func WithHTTPClient(h *http.Client) Option {
	return func(c *Client) { c.http = h }
}

// WithPatience sets how long a submission is tried while foreman cannot be
// reached or has no room: a minute unless set. Waiting for a job that is
// accepted has no such bound, only that of its context.
func WithPatience(d time.Duration) Option {
	return func(c *Client) { c.patience = d }
}

// WithCancel has [Client.Run] cancel its job when its context ends before the
// job does. Without it the job stays with foreman and runs.
func WithCancel() Option {
	return func(c *Client) { c.cancelsJobs = true }
}

// New returns a Client of the foreman at baseURL, such as
// "http://127.0.0.1:8080". It does not connect.
func New(baseURL string, options ...Option) (*Client, error) {
	base, err := url.Parse(strings.TrimRight(baseURL, "/"))
	if err != nil {
		return nil, fmt.Errorf("foreman: %w", err)
	}
	if base.Scheme != "http" && base.Scheme != "https" || base.Host == "" {
		return nil, fmt.Errorf("foreman: %q is not an http URL", baseURL)
	}
	if base.User != nil || base.RawQuery != "" || base.Fragment != "" {
		return nil, errors.New("foreman: the URL has more than a scheme, a host and a path")
	}
	c := &Client{base: base, http: http.DefaultClient, patience: time.Minute, silence: silence}
	for _, option := range options {
		option(c)
	}
	if c.token != "" {
		authorized := *c.http
		authorized.Transport = &bearer{base: base, token: c.token, next: c.http.Transport}
		c.http = &authorized
	}
	// A POST that is redirected may become a GET, which submits nothing.
	own := *c.http
	own.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	c.own = &own
	return c, nil
}

// HTTPClient returns an http.Client whose requests to foreman carry the token;
// requests to other hosts go as they are. It is what to hand to a library that
// speaks Ollama and takes a client of one's own.
func (c *Client) HTTPClient() *http.Client { return c.http }

// bearer adds the token to requests that go to foreman.
type bearer struct {
	base  *url.URL
	token string
	next  http.RoundTripper
}

func (b *bearer) RoundTrip(r *http.Request) (*http.Response, error) {
	next := b.next
	if next == nil {
		next = http.DefaultTransport
	}
	// A redirect may lead elsewhere, where the token is nobody's business.
	if r.URL.Host == b.base.Host && r.URL.Scheme == b.base.Scheme {
		r = r.Clone(r.Context())
		r.Header.Set("Authorization", "Bearer "+b.token)
	}
	return next.RoundTrip(r)
}
