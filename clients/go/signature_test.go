package foreman

import (
	"encoding/base64"
	"encoding/hex"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"
)

// Of a delivery as foreman makes it, with the secrets "new" and "old".
const (
	signedBody      = `{"state":"done"}`
	signedTimestamp = 1795256645
)

func delivery() http.Header {
	h := http.Header{}
	h.Set("webhook-id", "01J8Z7N3V5X2Q4R6T8W0Y1A3C5-4")
	h.Set("webhook-timestamp", "1795256645")
	h.Set("webhook-signature", "v1,+4gB9n34r93XwuIdyIdnDxAM2tAEh1P1Hh2cwdFGeEQ= v1,YCpiLgSM0u0ZT0FPZYH28K194Qm48Ochs8eplEmD7uI=")
	h.Set("X-Foreman-Signature", "sha256=93ce78c4fad40f899af45d9a44c43197ad697ee5c6367477c076b1f649e56d53,sha256=8115f55669b9f8e1159109eb4024298059c3785ca46f7ca14c14128f66e93c1c")
	return h
}

func TestVerifySignature(t *testing.T) {
	at := time.Unix(signedTimestamp, 0)
	for _, test := range []struct {
		name     string
		change   func(http.Header)
		body     string
		secret   string
		now      time.Time
		standard bool
		plain    bool
	}{
		{name: "current secret", secret: "new", standard: true, plain: true},
		{name: "older secret", secret: "old", standard: true, plain: true},
		{name: "the same in base64", secret: "whsec_b2xk", standard: true, plain: true},
		{name: "other secret", secret: "other"},
		{name: "other body", secret: "new", body: signedBody + " "},
		{name: "just in time", secret: "new", now: at.Add(Tolerance), standard: true, plain: true},
		{name: "replayed", secret: "new", now: at.Add(Tolerance + time.Second), plain: true},
		{name: "from the future", secret: "new", now: at.Add(-Tolerance - time.Second), plain: true},
		{name: "other id", secret: "new", change: func(h http.Header) { h.Set("webhook-id", "x") }, plain: true},
		{name: "no id", secret: "new", change: func(h http.Header) { h.Del("webhook-id") }, plain: true},
		{name: "other time", secret: "new", change: func(h http.Header) { h.Set("webhook-timestamp", "1795256646") }, plain: true},
		{name: "no time", secret: "new", change: func(h http.Header) { h.Set("webhook-timestamp", "now") }, plain: true},
		{name: "end of time", secret: "new", change: func(h http.Header) { h.Set("webhook-timestamp", "-9223372036854775808") }, plain: true},
		{name: "unsigned", secret: "new", change: func(h http.Header) { h.Del("webhook-signature"); h.Del("X-Foreman-Signature") }},
		{name: "no fallback", secret: "new", change: func(h http.Header) { h.Del("webhook-signature") }, plain: true},
		{name: "halves", secret: "new", change: func(h http.Header) { h.Set("webhook-signature", "v1,"); h.Set("X-Foreman-Signature", "sha256=") }},
		{name: "other version", secret: "new", change: func(h http.Header) {
			h.Set("webhook-signature", strings.ReplaceAll(h.Get("webhook-signature"), "v1,", "v1a,"))
		}, plain: true},
	} {
		t.Run(test.name, func(t *testing.T) {
			header, body, now := delivery(), signedBody, at
			if test.change != nil {
				test.change(header)
			}
			if test.body != "" {
				body = test.body
			}
			if !test.now.IsZero() {
				now = test.now
			}
			err := verifySignature(header, []byte(body), test.secret, Tolerance, now)
			if (err == nil) != test.standard || err != nil && !errors.Is(err, ErrSignature) {
				t.Errorf("VerifySignature: %v", err)
			}
			err = VerifyBodySignature(header, []byte(body), test.secret)
			if (err == nil) != test.plain || err != nil && !errors.Is(err, ErrSignature) {
				t.Errorf("VerifyBodySignature: %v", err)
			}
		})
	}
}

// A secret that is none does not let everything through.
func TestVerifySignatureWithoutSecret(t *testing.T) {
	for _, secret := range []string{"", "whsec_", "whsec_not base64"} {
		h := delivery()
		h.Set("webhook-signature", "v1,"+base64.StdEncoding.EncodeToString(sum(nil, h.Get("webhook-id")+"."+h.Get("webhook-timestamp")+".", []byte(signedBody))))
		h.Set("X-Foreman-Signature", "sha256="+hex.EncodeToString(sum(nil, "", []byte(signedBody))))
		if verifySignature(h, []byte(signedBody), secret, Tolerance, time.Unix(signedTimestamp, 0)) == nil ||
			VerifyBodySignature(h, []byte(signedBody), secret) == nil {
			t.Errorf("%q verifies", secret)
		}
	}
}

func FuzzVerifySignature(f *testing.F) {
	good := delivery()
	f.Add(good.Get("webhook-id"), good.Get("webhook-timestamp"), good.Get("webhook-signature"), good.Get("X-Foreman-Signature"), signedBody)
	f.Add("", "", "", "", "")
	f.Add("a.b", "-1", "v1, v1 v1,=", "sha256=,sha256", "\x00")
	f.Add("x", "99999999999999999999", "v1,AAAA\nAAAA", "sha256=0", "x")
	f.Fuzz(func(t *testing.T, id, timestamp, standard, plain, body string) {
		h := http.Header{}
		h.Set("webhook-id", id)
		h.Set("webhook-timestamp", timestamp)
		h.Set("webhook-signature", standard)
		h.Set("X-Foreman-Signature", plain)
		signed := id == good.Get("webhook-id") && timestamp == good.Get("webhook-timestamp") && body == signedBody
		if verifySignature(h, []byte(body), "new", Tolerance, time.Unix(signedTimestamp, 0)) == nil && !signed {
			t.Errorf("forged: %q", h)
		}
		if VerifyBodySignature(h, []byte(body), "new") == nil && body != signedBody {
			t.Errorf("forged: %q of %q", h, body)
		}
	})
}
