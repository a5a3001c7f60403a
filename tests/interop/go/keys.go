package main

import (
	"slices"
	"time"

	kp "github.com/IBM/keyprotect-go-client"
)

var keySteps = []step{
	{"create with everything", createWithEverything},
	{"create every way", createEveryWay},
	{"create with policies", createWithPolicies},
	{"list and page", listAndPage},
	{"search", search},
	{"filter and sort", filterAndSort},
	{"aliases", aliases},
	{"rings", rings},
	{"registrations", registrations},
}

func createWithEverything(s *session) {
	expiration := time.Now().Add(time.Hour).UTC().Truncate(time.Second)
	key := must(s.admin.CreateKeyWithOptions(s.ctx, "go everything", false,
		kp.WithExpiration(&expiration),
		kp.WithDescription("what it is for"),
		kp.WithTags([]string{"one", "two"}),
		kp.WithAliases([]string{"go-everything"})))
	same(key.State, int(kp.Active))
	same(key.KeyRingID, "default")
	same(*key.Expiration, expiration)
	same(key.Description, "what it is for")
	same(key.Tags, []string{"one", "two"})
	same(key.Aliases, []string{"go-everything"})
	check(!*key.Deleted && !*key.DualAuthDelete.Enabled, "a fresh key is deleted or has dual authorization")
	check(key.LastUpdateDate == nil && key.LastRotateDate == nil, "a fresh key was changed")
	check(key.KeyVersion.ID != "" && key.Payload == "", "a root key has a version and no payload")
	for _, reference := range []string{key.ID, "go-everything"} {
		read := must(s.admin.GetKey(s.ctx, reference))
		described := must(s.admin.GetKeyMetadata(s.ctx, reference))
		same(read.CRN, key.CRN)
		same(*described, *read)
	}
}

func createEveryWay(s *session) {
	root := must(s.admin.CreateKey(s.ctx, "go create", nil, false))
	check(!root.Extractable && root.KeyVersion != nil, "not a root key")
	root = must(s.admin.CreateRootKey(s.ctx, "go root", nil))
	check(!root.Extractable, "not a root key")
	aliased := must(s.admin.CreateKeyWithAliases(s.ctx, "go aliased", nil, false, []string{"go-first", "go-second"}))
	slices.Sort(aliased.Aliases)
	same(aliased.Aliases, []string{"go-first", "go-second"})
	standard := must(s.admin.CreateStandardKey(s.ctx, "go standard", nil))
	check(standard.Extractable && standard.KeyVersion == nil, "not a standard key")
	same(must(s.admin.GetKey(s.ctx, standard.ID)).Payload, standard.Payload)
	check(standard.Payload != "", "a standard key has a payload")
	same(must(s.admin.GetKeyMetadata(s.ctx, standard.ID)).Payload, "")
	past := time.Now().Add(-time.Hour)
	_, err := s.admin.CreateRootKey(s.ctx, "go expired", &past)
	refused(err, 400, "INVALID_FIELD_ERR")
	_, err = s.admin.CreateRootKey(s.ctx, "x", nil)
	refused(err, 400, "INVALID_FIELD_ERR")
}

func createWithPolicies(s *session) {
	on := true
	both := kp.Policy{Rotation: &kp.Rotation{Enabled: &on, Interval: 4}, DualAuth: &kp.DualAuth{Enabled: &on}}
	for _, key := range []*kp.Key{
		must(s.admin.CreateKeyWithPolicyOverridesWithOptions(s.ctx, "go both", false, both, kp.WithTags([]string{"p"}))),
		must(s.admin.CreateKeyWithPolicyOverrides(s.ctx, "go both", nil, false, []string{"go-both"}, both)),
		must(s.admin.CreateRootKeyWithPolicyOverrides(s.ctx, "go both", nil, nil, both)),
	} {
		same(key.Rotation.Interval, 4)
		check(*key.DualAuthDelete.Enabled, "no dual authorization")
		same(len(must(s.admin.GetPolicies(s.ctx, key.ID))), 2)
	}
	dual := kp.Policy{DualAuth: &kp.DualAuth{Enabled: &on}}
	standard := must(s.admin.CreateStandardKeyWithPolicyOverrides(s.ctx, "go standard", nil, nil, dual))
	check(*standard.DualAuthDelete.Enabled, "no dual authorization")
	// The client sends -1 for 0, on purpose.
	_, err := s.admin.CreateRootKeyWithPolicyOverrides(s.ctx, "go zero", nil, nil, kp.Policy{Rotation: &kp.Rotation{}})
	refused(err, 400, "INVALID_FIELD_ERR")
}

func listAndPage(s *session) {
	all := must(s.admin.GetKeys(s.ctx, 0, 0))
	same(all.Metadata.NumberOfKeys, len(all.Keys))
	for number, key := range all.Keys {
		page := must(s.admin.GetKeys(s.ctx, 1, number))
		same([]string{page.Keys[0].ID, page.Keys[0].Payload}, []string{key.ID, ""})
	}
	limit, offset, standard := uint32(5000), uint32(1), true
	options := &kp.ListKeysOptions{Limit: &limit, Offset: &offset, State: []kp.KeyState{kp.Active, kp.Destroyed}}
	same(len(must(s.admin.ListKeys(s.ctx, options)).Keys), len(all.Keys)-1)
	for _, key := range must(s.admin.ListKeys(s.ctx, &kp.ListKeysOptions{Extractable: &standard})).Keys {
		check(key.Extractable, "%s is a root key", key.ID)
	}
	none := must(s.admin.ListKeys(s.ctx, &kp.ListKeysOptions{State: []kp.KeyState{kp.Deactivated}}))
	check(none.Keys != nil && len(none.Keys) == 0, "an empty list has to be one: %v", none)
	limit = 5001
	_, err := s.admin.ListKeys(s.ctx, &kp.ListKeysOptions{Limit: &limit})
	refused(err, 400, "INVALID_QUERY_PARAM_ERR")
}

func search(s *session) {
	key := must(s.admin.CreateKeyWithAliases(s.ctx, "go Needle", nil, false, []string{"go-haystack"}))
	found := func(term string, options ...kp.SearchOpts) []string {
		return ids(must(s.admin.ListKeys(s.ctx, &kp.ListKeysOptions{Search: must(kp.GetKeySearchQuery(&term, options...))})))
	}
	for _, term := range []string{"needle", "haystack", "go-haystack", key.ID} {
		same(found(term), []string{key.ID})
	}
	same(found("go needle", kp.WithExactMatch()), []string{key.ID})
	same(found("needle", kp.WithExactMatch()), []string{})
	same(found("needle", kp.AddKeyNameScope()), []string{key.ID})
	same(found("haystack", kp.AddKeyNameScope()), []string{})
	same(found("haystack", kp.AddAliasScope()), []string{key.ID})
	// Each option goes in front of the earlier ones, and what is behind `escape:` is text.
	same(found("haystack", kp.AddEscape(), kp.AddAliasScope(), kp.AddKeyNameScope()), []string{key.ID})
	check(!slices.Contains(found("needle", kp.ApplyNot()), key.ID), "`not` found it")
}

func filterAndSort(s *session) {
	// A filter compares with what the service stores, whole seconds.
	before := time.Now().Add(-2 * time.Second)
	expiration := time.Now().Add(2 * time.Hour).Truncate(time.Second)
	root := must(s.admin.CreateRootKey(s.ctx, "go filtered", &expiration))
	standard := must(s.admin.CreateStandardKey(s.ctx, "go filtered", nil))
	term := "go filtered"
	found := func(filter string, order ...kp.SortByOpts) []string {
		options := &kp.ListKeysOptions{Search: &term, Filter: &filter, Sort: kp.GetKeySortStr(order...)}
		return ids(must(s.admin.ListKeys(s.ctx, options)))
	}
	query := kp.GetFilterQueryBuilder
	same(found(query().ExpirationDate().Equal(expiration).Build()), []string{root.ID})
	same(found(query().ExpirationDate().LessThan(expiration).Build()), []string{})
	same(found(query().ExpirationDate().LessThanOrEqual(expiration).Build()), []string{root.ID})
	same(found(query().ExpirationDate().None().Build()), []string{standard.ID})
	same(found(query().CreationDate().GreaterThanOrEqual(before).Extractable(true).Build()), []string{standard.ID})
	same(found(query().CreationDate().GreaterThan(time.Now().Add(time.Hour)).Build()), []string{})
	same(found(query().State([]kp.KeyState{kp.Destroyed}).Build()), []string{})
	same(found(query().LastRotationDate().None().Extractable(false).Build()), []string{root.ID})
	same(found(query().DeletionDate().None().LastUpdateDate().LessThan(expiration).Build(), kp.WithExtractable()),
		[]string{root.ID, standard.ID})
	same(found("", kp.WithExtractableDesc(), kp.WithIDDesc()), []string{standard.ID, root.ID})
	for _, order := range []kp.SortByOpts{
		kp.WithID(), kp.WithCreationDate(), kp.WithCreationDateDesc(), kp.WithDeletionDate(), kp.WithDeletionDateDesc(),
		kp.WithExpirationDate(), kp.WithExpirationDateDesc(), kp.WithImported(), kp.WithImportedDesc(),
		kp.WithLastRotateDate(), kp.WithLastRotateDateDesc(), kp.WithLastUpdateDate(), kp.WithLastUpdateDateDesc(),
		kp.WithState(), kp.WithStateDesc(),
	} {
		same(len(found("", order)), 2)
	}
	nonsense := "nonsense"
	_, err := s.admin.ListKeys(s.ctx, &kp.ListKeysOptions{Filter: &nonsense})
	refused(err, 400, "INVALID_QUERY_PARAM_ERR")
}

func aliases(s *session) {
	key := must(s.admin.CreateRootKey(s.ctx, "go alias", nil))
	alias := must(s.admin.CreateKeyAlias(s.ctx, "go-alias", key.ID))
	same([]string{alias.KeyID, alias.Alias}, []string{key.ID, "go-alias"})
	check(alias.CreationDate != nil && alias.CreatedBy == key.CreatedBy, "incomplete: %v", alias)
	same(must(s.admin.GetKeyMetadata(s.ctx, "go-alias")).ID, key.ID)
	same(must(s.admin.CreateKeyAlias(s.ctx, "go-alias-2", "go-alias")).KeyID, key.ID)
	other := must(s.admin.CreateRootKey(s.ctx, "go other", nil))
	_, err := s.admin.CreateKeyAlias(s.ctx, "go-alias", other.ID)
	refused(err, 409, "KEY_ALIAS_NOT_UNIQUE_ERR")
	_, err = s.admin.CreateKeyAlias(s.ctx, "versions", other.ID)
	refused(err, 400, "INVALID_FIELD_ERR")
	done(s.admin.DeleteKeyAlias(s.ctx, "go-alias", "go-alias"))
	_, err = s.admin.GetKey(s.ctx, "go-alias")
	refused(err, 404, "KEY_NOT_FOUND_ERR")
	same(must(s.admin.GetKey(s.ctx, key.ID)).Aliases, []string{"go-alias-2"})
}

func rings(s *session) {
	done(s.admin.CreateKeyRing(s.ctx, "go-ring"))
	listed := must(s.admin.GetKeyRings(s.ctx))
	same(listed.Metadata.NumberOfKeys, len(listed.KeyRings))
	check(slices.ContainsFunc(listed.KeyRings, func(ring kp.KeyRing) bool {
		return ring.ID == "go-ring" && ring.CreationDate != nil && ring.CreatedBy != ""
	}), "the ring is not listed: %v", listed)
	inRing := client("KP_API_KEY", "go-ring")
	born := must(inRing.CreateRootKey(s.ctx, "go in ring", nil))
	moved := must(s.admin.CreateRootKey(s.ctx, "go moved", nil))
	_, err := inRing.GetKey(s.ctx, moved.ID)
	refused(err, 404, "KEY_NOT_FOUND_ERR")
	same(must(s.admin.SetKeyRing(s.ctx, moved.ID, "go-ring")).KeyRingID, "go-ring")
	there := ids(must(inRing.GetKeys(s.ctx, 0, 0)))
	check(len(there) == 2 && slices.Contains(there, born.ID) && slices.Contains(there, moved.ID), "in the ring: %v", there)
	_, err = s.admin.SetKeyRing(s.ctx, moved.ID, "go-no-ring")
	refused(err, 404, "KEY_RING_NOT_FOUND_ERR")
	refused(s.admin.DeleteKeyRing(s.ctx, "go-ring"), 409, "KEY_RING_NOT_EMPTY_ERR")
	for _, id := range there {
		must(s.admin.DeleteKey(s.ctx, id, kp.ReturnMinimal))
	}
	refused(s.admin.DeleteKeyRing(s.ctx, "go-ring", kp.WithForce(false)), 409, "KEY_RING_NOT_EMPTY_ERR")
	done(s.admin.DeleteKeyRing(s.ctx, "go-ring", kp.WithForce(true)))
	same(must(s.admin.GetKeyMetadata(s.ctx, born.ID)).KeyRingID, "default")
}

func registrations(s *session) {
	for _, listed := range [][2]string{{s.registeredKey, ""}, {s.registeredKey, s.resourceCRN}, {"", ""}, {"", s.resourceCRN}} {
		found := must(s.admin.ListRegistrations(s.ctx, listed[0], listed[1])).Registrations
		same(len(found), 1)
		same([]string{found[0].KeyID, found[0].ResourceCrn}, []string{s.registeredKey, s.resourceCRN})
		check(found[0].CreationDate != nil && found[0].KeyVersion.ID != "", "incomplete: %v", found[0])
	}
	key := must(s.admin.CreateRootKey(s.ctx, "go unregistered", nil))
	same(len(must(s.admin.ListRegistrations(s.ctx, key.ID, "")).Registrations), 0)
	done(s.admin.SyncAssociatedResources(s.ctx, s.registeredKey))
	done(s.admin.SyncAssociatedResources(s.ctx, key.ID))
	_, err := s.admin.DeleteKey(s.ctx, s.registeredKey, kp.ReturnMinimal)
	refused(err, 409, "PROTECTED_RESOURCE_ERR")
	same(*must(s.admin.DeleteKey(s.ctx, s.registeredKey, kp.ReturnRepresentation, kp.ForceOpt{Force: true})).Deleted, true)
}

func ids(keys *kp.Keys) []string {
	found := []string{}
	for _, key := range keys.Keys {
		found = append(found, key.ID)
	}
	return found
}
