package foreman

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"time"
)

// An APIError is an error that foreman, or the Ollama behind it, has answered.
type APIError struct {
	// StatusCode is that of the answer. It is 200 if the error came in the
	// body of an answer that had begun already.
	StatusCode int
	// Message is the error's text.
	Message string
	// Lines are the bad ones of a batch, counted from 1; at most 100.
	Lines []LineError
	// RetryAfter is how long the answer asks to wait, zero if it does not say.
	RetryAfter time.Duration
}

// A LineError tells what was wrong with one request of a batch.
type LineError struct {
	Line    int    `json:"line"`
	Message string `json:"error"`
}

func (e *APIError) Error() string {
	if len(e.Lines) > 0 {
		return fmt.Sprintf("foreman: %d: %s (line %d: %s)", e.StatusCode, e.Message, e.Lines[0].Line, e.Lines[0].Message)
	}
	return fmt.Sprintf("foreman: %d: %s", e.StatusCode, e.Message)
}

// A JobError says that a job has failed.
type JobError struct {
	// Job is the whole job; its Error tells why it failed, and a "partial"
	// artifact holds the text that had come.
	Job *Job
}

func (e *JobError) Error() string {
	if e.Job.Error == nil {
		return fmt.Sprintf("foreman: job %s failed", e.Job.ID)
	}
	return fmt.Sprintf("foreman: job %s failed: %s (%s)", e.Job.ID, e.Job.Error.Message, e.Job.Error.Code)
}

// lost is an exchange that has not brought a whole answer.
type lost struct{ error }

func (e lost) Unwrap() error { return e.error }

// passes reports whether what went wrong may be right in a moment.
func passes(err error) bool {
	var answer *APIError
	if errors.As(err, &answer) {
		switch answer.StatusCode {
		case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
			return true
		}
		return false
	}
	var untrusted *tls.CertificateVerificationError
	var broken lost
	return errors.As(err, &broken) && !errors.As(err, &untrusted)
}

// answered makes an error of an answer's status and body: of foreman's and
// Ollama's {"error": "text"}, else of the text itself.
func answered(status int, header http.Header, body []byte) *APIError {
	e := &APIError{StatusCode: status, RetryAfter: retryAfter(header.Get("Retry-After"))}
	var document struct {
		Error string      `json:"error"`
		Lines []LineError `json:"lines"`
	}
	if json.Unmarshal(body, &document) == nil && document.Error != "" {
		e.Message, e.Lines = document.Error, document.Lines
	} else if e.Message = excerpt(body); e.Message == "" {
		e.Message = http.StatusText(status)
	}
	return e
}

// retryAfter reads the header of that name, in seconds or as a date.
func retryAfter(text string) time.Duration {
	if seconds, err := strconv.Atoi(text); err == nil {
		return time.Duration(max(0, min(seconds, math.MaxInt32))) * time.Second
	}
	if at, err := http.ParseTime(text); err == nil {
		return max(0, time.Until(at))
	}
	return 0
}
