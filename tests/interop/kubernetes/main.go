// The API server's own code for secrets at rest, driven by lines of JSON: one request a line in, one answer a line out.
// It loads an EncryptionConfiguration as kube-apiserver does, and gives what kube-apiserver would put into etcd.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"sync/atomic"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/server/options/encryptionconfig"
	"k8s.io/apiserver/pkg/storage/value"
	"k8s.io/apiserver/pkg/storage/value/encrypt/envelope/kmsv2"
)

// The resource that the configuration encrypts.
var secrets = schema.GroupResource{Resource: "secrets"}

type request struct {
	Do      string  `json:"do"`
	Path    string  `json:"path"`    // where the object lies in etcd; it is authenticated with the data
	Data    []byte  `json:"data"`    // to write
	Stored  []byte  `json:"stored"`  // to read
	Seconds float64 `json:"seconds"` // to let pass
}

type answer struct {
	Data   []byte `json:"data,omitempty"`
	Stored []byte `json:"stored,omitempty"`
	Stale  bool   `json:"stale"`
	Error  string `json:"error,omitempty"`
}

// What a running kube-apiserver has: the transformer of secrets and the health checks.
type server struct {
	config *encryptionconfig.EncryptionConfiguration
	ahead  atomic.Int64
}

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: kubernetes CONFIGURATION PROVIDER")
		os.Exit(2)
	}
	s := &server{}
	// The clock by which the API server ends writes three minutes after the last good Status.
	kmsv2.SetNowFuncForTests(os.Args[2], func() time.Time { return time.Now().Add(time.Duration(s.ahead.Load())) })
	config, err := encryptionconfig.LoadEncryptionConfig(context.Background(), os.Args[1], true, "api-server-1")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	s.config = config
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 16<<20)
	out := json.NewEncoder(os.Stdout)
	for lines.Scan() {
		var asked request
		if err := json.Unmarshal(lines.Bytes(), &asked); err != nil {
			panic(err)
		}
		if err := out.Encode(s.answer(asked)); err != nil {
			panic(err)
		}
	}
}

func (s *server) answer(asked request) answer {
	found, err := s.do(asked)
	if err != nil {
		found.Error = err.Error()
	}
	return found
}

func (s *server) do(asked request) (answer, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	transformer := s.config.Transformers[secrets]
	switch asked.Do {
	case "write":
		stored, err := transformer.TransformToStorage(ctx, asked.Data, value.DefaultContext(asked.Path))
		return answer{Stored: stored}, err
	case "read":
		data, stale, err := transformer.TransformFromStorage(ctx, asked.Stored, value.DefaultContext(asked.Path))
		return answer{Data: data, Stale: stale}, err
	case "health":
		return answer{}, s.health(ctx)
	case "pass":
		s.ahead.Add(int64(asked.Seconds * float64(time.Second)))
		return answer{}, nil
	}
	return answer{}, fmt.Errorf("unknown request %q", asked.Do)
}

// What /healthz says of the plugin, as the kubelet or a load balancer asks it.
func (s *server) health(ctx context.Context) error {
	asked, err := http.NewRequestWithContext(ctx, http.MethodGet, "/healthz", nil)
	if err != nil {
		return err
	}
	for _, check := range s.config.HealthChecks {
		if err := check.Check(asked); err != nil {
			return err
		}
	}
	return nil
}
