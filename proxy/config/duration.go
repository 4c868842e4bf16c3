package config

import (
	"encoding/json"
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"
)

// Duration is written as in 1h30m. What is no duration is remembered until the check: only there the field is known.
type Duration struct {
	time.Duration
	wrong string
}

// MarshalJSON writes it as upstream does.
func (d Duration) MarshalJSON() ([]byte, error) { return json.Marshal(d.String()) }

// UnmarshalJSON never fails; see Duration.
func (d *Duration) UnmarshalJSON(b []byte) error {
	var text string
	if string(b) == "null" {
		return nil
	}
	err := json.Unmarshal(b, &text)
	if err == nil {
		d.Duration, err = time.ParseDuration(text)
	}
	if err != nil {
		*d = Duration{wrong: string(b)}
	}
	return nil
}

// FlushFrequency is a duration that may also be written as a number of nanoseconds.
type FlushFrequency struct {
	Duration
	number bool // and it was
}

// MarshalJSON writes it as it was read.
func (f FlushFrequency) MarshalJSON() ([]byte, error) {
	if f.number {
		return json.Marshal(f.Duration.Duration.Nanoseconds())
	}
	return f.Duration.MarshalJSON()
}

// UnmarshalJSON takes both forms.
func (f *FlushFrequency) UnmarshalJSON(b []byte) error {
	*f = FlushFrequency{}
	var n int64
	if json.Unmarshal(b, &n) == nil && string(b) != "null" {
		f.Duration.Duration, f.number = time.Duration(n), true
		return nil
	}
	return f.Duration.UnmarshalJSON(b)
}

// quantity is a flag that takes a quantity such as 64Ki.
type quantity struct{ at *Output }

func (q quantity) String() string {
	if q.at == nil {
		return "0"
	}
	return q.at.InfoBufferSize.String()
}

func (q quantity) Set(text string) error {
	v, err := resource.ParseQuantity(text)
	if err != nil {
		return fmt.Errorf("want a size such as 64Ki: %w", err)
	}
	q.at.InfoBufferSize = v
	return nil
}

func (quantity) Type() string { return "quantity" }
