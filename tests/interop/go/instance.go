package main

import (
	kp "github.com/IBM/keyprotect-go-client"
)

var instanceSteps = []step{
	{"rotation of an instance", rotationOfAnInstance},
	{"dual authorization of an instance", dualAuthorizationOfAnInstance},
	{"allowed network and address", allowedNetworkAndAddress},
	{"what may be created", whatMayBeCreated},
	{"metrics", metrics},
	{"instance policies at once", instancePoliciesAtOnce},
}

func rotationOfAnInstance(s *session) {
	months := 5
	done(s.admin.SetRotationInstancePolicy(s.ctx, true, &months))
	policy := must(s.admin.GetRotationInstancePolicy(s.ctx))
	same(policy.PolicyType, kp.RotationPolicy)
	check(policy.CreatedBy != "" && policy.CreatedAt != nil && policy.UpdatedBy != "" && policy.UpdatedAt != nil,
		"incomplete: %v", policy)
	same(*policy.PolicyData.Attributes.IntervalMonth, 5)
	key := must(s.admin.CreateRootKey(s.ctx, "go by instance", nil))
	same(must(s.admin.GetRotationPolicy(s.ctx, key.ID)).Rotation.Interval, 5)
	without := must(s.admin.CreateRootKeyWithPolicyOverrides(s.ctx, "go overridden", nil, nil, kp.Policy{}))
	check(must(s.admin.GetRotationPolicy(s.ctx, without.ID)) == nil, "not overridden")
	done(s.admin.SetRotationInstancePolicy(s.ctx, false, nil))
	check(!*must(s.admin.GetRotationInstancePolicy(s.ctx)).PolicyData.Enabled, "not disabled")
	key = must(s.admin.CreateRootKey(s.ctx, "go by instance", nil))
	check(must(s.admin.GetRotationPolicy(s.ctx, key.ID)) == nil, "still a policy")
	same(must(s.admin.GetKey(s.ctx, without.ID)).State, int(kp.Active))
}

func dualAuthorizationOfAnInstance(s *session) {
	done(s.admin.SetDualAuthInstancePolicy(s.ctx, true))
	check(*must(s.admin.GetDualAuthInstancePolicy(s.ctx)).PolicyData.Enabled, "not enabled")
	check(*must(s.admin.CreateRootKey(s.ctx, "go dual", nil)).DualAuthDelete.Enabled, "not on a new key")
	done(s.admin.SetDualAuthInstancePolicy(s.ctx, false))
	check(!*must(s.admin.CreateRootKey(s.ctx, "go dual", nil)).DualAuthDelete.Enabled, "still on a new key")
}

func allowedNetworkAndAddress(s *session) {
	for _, network := range []string{"private-only", "public-and-private"} {
		done(s.admin.SetAllowedNetworkInstancePolicy(s.ctx, true, network))
		same(*must(s.admin.GetAllowedNetworkInstancePolicy(s.ctx)).PolicyData.Attributes.AllowedNetwork, network)
	}
	done(s.admin.SetAllowedNetworkInstancePolicy(s.ctx, false, ""))
	check(!*must(s.admin.GetAllowedNetworkInstancePolicy(s.ctx)).PolicyData.Enabled, "not disabled")
	home := []string{"127.0.0.0/8", "::1/128"}
	done(s.admin.SetAllowedIPInstancePolicy(s.ctx, true, home))
	same([]string(*must(s.admin.GetAllowedIPInstancePolicy(s.ctx)).PolicyData.Attributes.AllowedIP), home)
	refused(s.admin.SetAllowedIPInstancePolicy(s.ctx, true, []string{"nowhere"}), 400, "INVALID_FIELD_ERR")
	done(s.admin.SetAllowedIPInstancePolicy(s.ctx, false, nil))
	check(!*must(s.admin.GetAllowedIPInstancePolicy(s.ctx)).PolicyData.Enabled, "not disabled")
}

func whatMayBeCreated(s *session) {
	done(s.admin.SetKeyCreateImportAccessInstancePolicy(s.ctx, true, map[string]bool{
		kp.CreateRootKey: true, kp.CreateStandardKey: false, kp.ImportRootKey: false, kp.ImportStandardKey: true,
		kp.EnforceToken: true,
	}))
	attributes := must(s.admin.GetKeyCreateImportAccessInstancePolicy(s.ctx)).PolicyData.Attributes
	check(*attributes.CreateRootKey && !*attributes.CreateStandardKey && !*attributes.ImportRootKey &&
		*attributes.ImportStandardKey && *attributes.EnforceToken, "got %v", attributes)
	_, err := s.admin.CreateStandardKey(s.ctx, "go not allowed", nil)
	refused(err, 409, "KEY_CREATE_IMPORT_ACCESS_ERR")
	must(s.admin.CreateRootKey(s.ctx, "go allowed", nil))
	done(s.admin.SetKeyCreateImportAccessInstancePolicy(s.ctx, false, nil))
	must(s.admin.CreateStandardKey(s.ctx, "go allowed", nil))
}

func metrics(s *session) {
	for _, enabled := range []bool{true, false} {
		done(s.admin.SetMetricsInstancePolicy(s.ctx, enabled))
		same(*must(s.admin.GetMetricsInstancePolicy(s.ctx)).PolicyData.Enabled, enabled)
	}
}

func instancePoliciesAtOnce(s *session) {
	no, months := false, 7
	done(s.admin.SetInstancePolicies(s.ctx, kp.MultiplePolicies{
		DualAuthDelete: &kp.BasicPolicyData{Enabled: true},
		AllowedNetwork: &kp.AllowedNetworkPolicyData{Enabled: true, Network: "public-and-private"},
		AllowedIP:      &kp.AllowedIPPolicyData{Enabled: true, IPAddresses: &kp.IPAddresses{"127.0.0.1/32"}},
		Metrics:        &kp.BasicPolicyData{Enabled: true},
		KeyCreateImportAccess: &kp.KeyCreateImportAccessInstancePolicy{
			Enabled:    true,
			Attributes: &kp.KeyCreateImportAccessInstancePolicyAttributes{ImportStandardKey: &no},
		},
		Rotation: &kp.RotationPolicyData{Enabled: true, IntervalMonth: &months},
	}))
	policies := must(s.admin.GetInstancePolicies(s.ctx))
	same(len(policies), 6)
	for _, policy := range policies {
		check(*policy.PolicyData.Enabled, "not enabled: %v", policy)
	}
	done(s.admin.SetInstancePolicies(s.ctx, kp.MultiplePolicies{
		DualAuthDelete:        &kp.BasicPolicyData{},
		AllowedNetwork:        &kp.AllowedNetworkPolicyData{Network: "public-and-private"},
		AllowedIP:             &kp.AllowedIPPolicyData{},
		Metrics:               &kp.BasicPolicyData{},
		KeyCreateImportAccess: &kp.KeyCreateImportAccessInstancePolicy{},
		Rotation:              &kp.RotationPolicyData{},
	}))
	for _, policy := range must(s.admin.GetInstancePolicies(s.ctx)) {
		check(!*policy.PolicyData.Enabled, "not disabled: %v", policy)
	}
}
