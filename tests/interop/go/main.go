// Conformance calls the methods of IBM's keyprotect-go-client and says of each step whether the service answered as
// Key Protect would. The last line is a JSON object: the methods that the client has.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"reflect"
	"slices"

	kp "github.com/IBM/keyprotect-go-client"
)

// session is what every step works with: one instance, called by its administrator and by a second manager, who may
// also purge.
type session struct {
	ctx           context.Context
	admin, second *kp.Client
	// A key that protects a resource, and that resource.
	registeredKey, resourceCRN string
}

type step struct {
	name string
	run  func(*session)
}

func main() {
	s := &session{
		ctx:           context.Background(),
		admin:         client("KP_API_KEY", ""),
		second:        client("KP_SECOND_API_KEY", ""),
		registeredKey: os.Getenv("KP_REGISTERED_KEY"),
		resourceCRN:   os.Getenv("KP_RESOURCE_CRN"),
	}
	failed := false
	for _, step := range slices.Concat(keySteps, cryptoSteps, importSteps, lifecycleSteps, policySteps, instanceSteps) {
		if problem := attempt(step, s); problem != "" {
			failed = true
			fmt.Printf("FAIL %s: %s\n", step.name, problem)
		} else {
			fmt.Printf("ok %s\n", step.name)
		}
	}
	methods := []string{}
	for method := range reflect.TypeFor[*kp.Client]().Methods() {
		methods = append(methods, method.Name)
	}
	fmt.Println(string(must(json.Marshal(map[string][]string{"methods": methods}))))
	if failed {
		os.Exit(1)
	}
}

func client(apiKey, ring string) *kp.Client {
	url := os.Getenv("KP_URL")
	return must(kp.New(kp.ClientConfig{
		BaseURL:    url,
		TokenURL:   url + "/identity/token",
		APIKey:     os.Getenv(apiKey),
		InstanceID: os.Getenv("KP_INSTANCE"),
		KeyRing:    ring,
	}, kp.DefaultTransport()))
}

// attempt runs one step; what it complained about, if anything.
func attempt(step step, s *session) (problem string) {
	defer func() {
		if found := recover(); found != nil {
			problem = fmt.Sprint(found)
		}
	}()
	step.run(s)
	return ""
}

func must[T any](value T, err error) T {
	done(err)
	return value
}

func done(err error) {
	if err != nil {
		panic(err)
	}
}

func check(holds bool, format string, arguments ...any) {
	if !holds {
		panic(fmt.Sprintf(format, arguments...))
	}
}

func same[T any](got, wanted T) {
	check(reflect.DeepEqual(got, wanted), "got %v, wanted %v", got, wanted)
}

// refused wants this status and reason code; an empty code: no reasons at all.
func refused(err error, status int, code string) {
	var answer *kp.Error
	check(errors.As(err, &answer), "not refused by the service: %v", err)
	check(answer.StatusCode == status, "got %d %v, wanted %d", answer.StatusCode, answer, status)
	if code == "" {
		check(len(answer.Reasons) == 0, "unwanted reasons: %v", answer)
		return
	}
	check(len(answer.Reasons) == 1 && answer.Reasons[0].Code == code, "got %v, wanted %s", answer, code)
}
