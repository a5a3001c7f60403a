package main

import (
	kp "github.com/IBM/keyprotect-go-client"
)

var lifecycleSteps = []step{
	{"disable and enable", disableAndEnable},
	{"delete, restore, purge", deleteRestorePurge},
	{"delete by two", deleteByTwo},
}

func disableAndEnable(s *session) {
	key := must(s.admin.CreateRootKey(s.ctx, "go disable", nil))
	wrapped := must(s.admin.WrapCreateDEKV2(s.ctx, key.ID, nil))
	done(s.admin.DisableKey(s.ctx, key.ID))
	same(must(s.admin.GetKeyMetadata(s.ctx, key.ID)).State, int(kp.Suspended))
	_, err := s.admin.Unwrap(s.ctx, key.ID, []byte(wrapped.CipherText), nil)
	refused(err, 409, "KEY_ACTION_INVALID_STATE_ERR")
	refused(s.admin.DisableKey(s.ctx, key.ID), 409, "KEY_ACTION_INVALID_STATE_ERR")
	done(s.admin.EnableKey(s.ctx, key.ID))
	same(string(must(s.admin.Unwrap(s.ctx, key.ID, []byte(wrapped.CipherText), nil))), wrapped.PlainText)
	refused(s.admin.EnableKey(s.ctx, key.ID), 409, "KEY_ACTION_INVALID_STATE_ERR")
}

func deleteRestorePurge(s *session) {
	key := must(s.admin.CreateRootKey(s.ctx, "go delete", nil))
	wrapped := must(s.admin.WrapCreateDEKV2(s.ctx, key.ID, nil))
	_, err := s.second.PurgeKey(s.ctx, key.ID, kp.ReturnMinimal)
	refused(err, 409, "KEY_ACTION_INVALID_STATE_ERR")
	deleted := must(s.admin.DeleteKey(s.ctx, key.ID, kp.ReturnRepresentation))
	same(deleted.State, int(kp.Destroyed))
	check(*deleted.Deleted && deleted.DeletionDate != nil && *deleted.DeletedBy == key.CreatedBy, "not deleted: %v", deleted)
	check(deleted.PurgeAllowed != nil && deleted.PurgeAllowedFrom != nil && deleted.PurgeScheduledOn != nil,
		"no word about the purge: %v", deleted)
	_, err = s.admin.Unwrap(s.ctx, key.ID, []byte(wrapped.CipherText), nil)
	refused(err, 410, "KEY_DELETED_ERR")
	_, err = s.admin.DeleteKey(s.ctx, key.ID, kp.ReturnMinimal)
	refused(err, 410, "KEY_DELETED_ERR")
	same(must(s.admin.RestoreKey(s.ctx, key.ID)).State, int(kp.Active))
	same(string(must(s.admin.Unwrap(s.ctx, key.ID, []byte(wrapped.CipherText), nil))), wrapped.PlainText)
	check(must(s.admin.DeleteKey(s.ctx, key.ID, kp.ReturnMinimal)) == nil, "return=minimal answers nothing")
	_, err = s.admin.PurgeKey(s.ctx, key.ID, kp.ReturnMinimal)
	refused(err, 401, "")
	same(must(s.second.PurgeKey(s.ctx, key.ID, kp.ReturnRepresentation)).ID, key.ID)
	_, err = s.admin.GetKey(s.ctx, key.ID)
	refused(err, 404, "KEY_NOT_FOUND_ERR")
	standard := must(s.admin.CreateStandardKey(s.ctx, "go delete", nil))
	must(s.admin.DeleteKey(s.ctx, standard.ID, kp.ReturnMinimal))
	same(must(s.admin.RestoreKey(s.ctx, standard.ID)).State, int(kp.Active))
	must(s.admin.DeleteKey(s.ctx, standard.ID, kp.ReturnMinimal))
	check(must(s.second.PurgeKey(s.ctx, standard.ID, kp.ReturnMinimal)) == nil, "return=minimal answers nothing")
}

func deleteByTwo(s *session) {
	key := must(s.admin.CreateRootKey(s.ctx, "go two", nil))
	refused(s.admin.InitiateDualAuthDelete(s.ctx, key.ID), 409, "NOT_DUAL_AUTH_ERR")
	must(s.admin.SetDualAuthDeletePolicy(s.ctx, key.ID, true))
	_, err := s.admin.DeleteKey(s.ctx, key.ID, kp.ReturnMinimal)
	refused(err, 409, "AUTHORIZATIONS_NOT_MET")
	done(s.admin.InitiateDualAuthDelete(s.ctx, key.ID))
	done(s.admin.CancelDualAuthDelete(s.ctx, key.ID))
	_, err = s.second.DeleteKey(s.ctx, key.ID, kp.ReturnMinimal)
	refused(err, 409, "AUTHORIZATIONS_NOT_MET")
	done(s.admin.InitiateDualAuthDelete(s.ctx, key.ID))
	_, err = s.admin.DeleteKey(s.ctx, key.ID, kp.ReturnMinimal)
	refused(err, 409, "AUTHORIZATIONS_NOT_MET")
	same(must(s.second.DeleteKey(s.ctx, key.ID, kp.ReturnRepresentation)).State, int(kp.Destroyed))
}
