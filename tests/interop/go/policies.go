package main

import (
	kp "github.com/IBM/keyprotect-go-client"
)

var policySteps = []step{
	{"rotation policy", rotationPolicy},
	{"dual authorization policy", dualAuthorizationPolicy},
	{"policies at once", policiesAtOnce},
}

func rotationPolicy(s *session) {
	key := must(s.admin.CreateRootKey(s.ctx, "go rotation policy", nil))
	check(must(s.admin.GetRotationPolicy(s.ctx, key.ID)) == nil, "a policy that nobody set")
	same(len(must(s.admin.GetPolicies(s.ctx, key.ID))), 0)
	set := must(s.admin.SetPolicy(s.ctx, key.ID, kp.ReturnRepresentation, 2))
	check(*set.Rotation.Enabled && set.CreatedBy != "" && set.CRN != "", "incomplete: %v", set)
	same(must(s.admin.GetPolicy(s.ctx, key.ID)).Rotation.Interval, 2)
	set = must(s.admin.SetRotationPolicy(s.ctx, key.ID, 3, false))
	check(!*set.Rotation.Enabled && set.Rotation.Interval == 3, "got %v", set.Rotation)
	set = must(s.admin.EnableRotationPolicy(s.ctx, key.ID))
	check(*set.Rotation.Enabled && set.Rotation.Interval == 3, "got %v", set.Rotation)
	check(!*must(s.admin.DisableRotationPolicy(s.ctx, key.ID)).Rotation.Enabled, "not disabled")
	read := must(s.admin.GetRotationPolicy(s.ctx, key.ID))
	check(!*read.Rotation.Enabled && read.Rotation.Interval == 3 && read.UpdatedAt != nil, "got %v", read)
	same(must(s.admin.SetRotationPolicy(s.ctx, key.ID, 12)).Rotation.Interval, 12)
	// The client sends -1 for 0, on purpose.
	for _, months := range []int{0, 13} {
		_, err := s.admin.SetRotationPolicy(s.ctx, key.ID, months)
		refused(err, 400, "INVALID_FIELD_ERR")
	}
	standard := must(s.admin.CreateStandardKey(s.ctx, "go rotation policy", nil))
	_, err := s.admin.SetRotationPolicy(s.ctx, standard.ID, 1)
	refused(err, 400, "KEY_ROOT_REQ_ERR")
}

func dualAuthorizationPolicy(s *session) {
	key := must(s.admin.CreateRootKey(s.ctx, "go dual policy", nil))
	check(must(s.admin.GetDualAuthDeletePolicy(s.ctx, key.ID)) == nil, "a policy that nobody set")
	check(!*must(s.admin.SetDualAuthDeletePolicy(s.ctx, key.ID, false)).DualAuth.Enabled, "enabled by false")
	check(*must(s.admin.SetDualAuthDeletePolicy(s.ctx, key.ID, true)).DualAuth.Enabled, "not enabled")
	check(*must(s.admin.GetDualAuthDeletePolicy(s.ctx, key.ID)).DualAuth.Enabled, "not enabled")
	check(*must(s.admin.GetKeyMetadata(s.ctx, key.ID)).DualAuthDelete.Enabled, "not enabled")
}

func policiesAtOnce(s *session) {
	key := must(s.admin.CreateRootKey(s.ctx, "go policies", nil))
	same(len(must(s.admin.SetPolicies(s.ctx, key.ID, true, 6, true, true, false))), 2)
	for _, policy := range must(s.admin.GetPolicies(s.ctx, key.ID)) {
		switch {
		case policy.Rotation != nil:
			check(!*policy.Rotation.Enabled && policy.Rotation.Interval == 6, "got %v", policy.Rotation)
		default:
			check(*policy.DualAuth.Enabled, "got %v", policy.DualAuth)
		}
	}
}
