package foreman

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// Tolerance is by how much a webhook's time may usually differ from ours.
const Tolerance = 5 * time.Minute

// ErrSignature is wrapped by the errors of webhooks that do not prove where
// they come from, or when they were sent.
var ErrSignature = errors.New("foreman: bad webhook signature")

// VerifySignature checks that a webhook was made by foreman for this secret
// (FOREMAN_WEBHOOK_SECRET), and sent no longer than tolerance ago. It takes the
// headers of Standard Webhooks; body is the very bytes that came. What does
// not pass is [ErrSignature].
func VerifySignature(header http.Header, body []byte, secret string, tolerance time.Duration) error {
	return verifySignature(header, body, secret, tolerance, time.Now())
}

func verifySignature(header http.Header, body []byte, secret string, tolerance time.Duration, now time.Time) error {
	key, err := signingKey(secret)
	if err != nil {
		return err
	}
	id, timestamp := header.Get("webhook-id"), header.Get("webhook-timestamp")
	unix, err := strconv.ParseInt(timestamp, 10, 64)
	if id == "" || err != nil {
		return fmt.Errorf("%w: no webhook-id, or no webhook-timestamp in seconds", ErrSignature)
	}
	if age := now.Sub(time.Unix(unix, 0)).Abs(); age > tolerance {
		return fmt.Errorf("%w: its time is off by %s", ErrSignature, age.Round(time.Second))
	}
	expected := sum(key, id+"."+timestamp+".", body)
	for _, signature := range strings.Fields(header.Get("webhook-signature")) {
		text, ok := strings.CutPrefix(signature, "v1,")
		if given, err := base64.StdEncoding.DecodeString(text); ok && err == nil && hmac.Equal(given, expected) {
			return nil
		}
	}
	return fmt.Errorf("%w: none of this secret's in webhook-signature", ErrSignature)
}

// VerifyBodySignature checks a webhook by its X-Foreman-Signature header. That
// one covers the body alone: whoever has seen a delivery can repeat it. For
// the same reason [VerifySignature] does not fall back on it.
func VerifyBodySignature(header http.Header, body []byte, secret string) error {
	key, err := signingKey(secret)
	if err != nil {
		return err
	}
	expected := sum(key, "", body)
	for _, signature := range strings.Split(header.Get("X-Foreman-Signature"), ",") {
		text, ok := strings.CutPrefix(strings.TrimSpace(signature), "sha256=")
		if given, err := hex.DecodeString(text); ok && err == nil && hmac.Equal(given, expected) {
			return nil
		}
	}
	return fmt.Errorf("%w: none of this secret's in X-Foreman-Signature", ErrSignature)
}

// signingKey is the key of a secret: whsec_ and base64, else its own bytes.
func signingKey(secret string) ([]byte, error) {
	key := []byte(secret)
	if text, ok := strings.CutPrefix(secret, "whsec_"); ok {
		var err error
		if key, err = base64.StdEncoding.DecodeString(text); err != nil {
			return nil, errors.New("foreman: the secret begins with whsec_ and is not base64")
		}
	}
	if len(key) == 0 {
		return nil, errors.New("foreman: there is no webhook secret")
	}
	return key, nil
}

func sum(key []byte, prefix string, body []byte) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(prefix))
	h.Write(body)
	return h.Sum(nil)
}
