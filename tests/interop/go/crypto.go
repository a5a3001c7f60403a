package main

import (
	"encoding/base64"

	kp "github.com/IBM/keyprotect-go-client"
)

var cryptoSteps = []step{
	{"wrap and unwrap", wrapAndUnwrap},
	{"rotate", rotate},
	{"wrap by the wrong key", wrapByTheWrongKey},
}

func wrapAndUnwrap(s *session) {
	key := must(s.admin.CreateKeyWithAliases(s.ctx, "go wrap", nil, false, []string{"go-wrap"}))
	dek := []byte(base64.StdEncoding.EncodeToString([]byte("a key of 32 bytes for some data.")))
	for _, aad := range []*[]string{nil, {"volume", "7"}} {
		wrapped := must(s.admin.Wrap(s.ctx, key.ID, dek, aad))
		same(string(must(s.admin.Unwrap(s.ctx, "go-wrap", wrapped, aad))), string(dek))
		versioned := must(s.admin.WrapV2(s.ctx, "go-wrap", dek, aad))
		same([]string{versioned.PlainText, versioned.KeyVersion.ID}, []string{"", key.KeyVersion.ID})
		opened, rewrapped, err := s.admin.UnwrapV2(s.ctx, key.ID, []byte(versioned.CipherText), aad)
		done(err)
		same([]string{string(opened), string(rewrapped)}, []string{string(dek), ""})
		plaintext, ciphertext, err := s.admin.WrapCreateDEK(s.ctx, key.ID, aad)
		done(err)
		same(len(must(base64.StdEncoding.DecodeString(string(plaintext)))), 32)
		same(string(must(s.admin.Unwrap(s.ctx, key.ID, ciphertext, aad))), string(plaintext))
		made := must(s.admin.WrapCreateDEKV2(s.ctx, key.ID, aad))
		same(made.KeyVersion.ID, key.KeyVersion.ID)
		same(string(must(s.admin.Unwrap(s.ctx, key.ID, []byte(made.CipherText), aad))), made.PlainText)
		_, err = s.admin.Unwrap(s.ctx, key.ID, wrapped, &[]string{"another"})
		refused(err, 422, "UNPROCESSABLE_CIPHERTEXT_ERR")
	}
	_, err := s.admin.Unwrap(s.ctx, key.ID, []byte("no base64!"), nil)
	refused(err, 400, "INVALID_FIELD_ERR")
}

func rotate(s *session) {
	key := must(s.admin.CreateRootKey(s.ctx, "go rotate", nil))
	first := must(s.admin.WrapCreateDEKV2(s.ctx, key.ID, nil))
	done(s.admin.Rotate(s.ctx, key.ID, ""))
	plaintext, second, err := s.admin.UnwrapV2(s.ctx, key.ID, []byte(first.CipherText), nil)
	done(err)
	same(string(plaintext), first.PlainText)
	check(len(second) > 0, "not wrapped again by the new version")
	done(s.admin.RotateV2(s.ctx, key.ID, nil))
	done(s.admin.RotateV2(s.ctx, key.ID, &kp.KeyPayload{}))
	for _, ciphertext := range []string{first.CipherText, string(second)} {
		same(string(must(s.admin.Unwrap(s.ctx, key.ID, []byte(ciphertext), nil))), first.PlainText)
	}
	read := must(s.admin.GetKey(s.ctx, key.ID))
	check(read.LastRotateDate != nil && read.LastUpdateDate != nil, "not changed by a rotation: %v", read)
	total, limit, offset := true, uint32(2), uint32(1)
	versions := must(s.admin.ListKeyVersions(s.ctx, key.ID, &kp.ListKeyVersionsOptions{TotalCount: &total}))
	same([]uint32{*versions.Metadata.CollectionTotal, *versions.Metadata.TotalCount}, []uint32{4, 4})
	same([]string{versions.KeyVersion[0].ID, versions.KeyVersion[3].ID}, []string{read.KeyVersion.ID, key.KeyVersion.ID})
	page := must(s.admin.ListKeyVersions(s.ctx, key.ID, &kp.ListKeyVersionsOptions{Limit: &limit, Offset: &offset}))
	same(page.KeyVersion, versions.KeyVersion[1:3])
	must(s.admin.DeleteKey(s.ctx, key.ID, kp.ReturnMinimal))
	_, err = s.admin.ListKeyVersions(s.ctx, key.ID, nil)
	refused(err, 409, "KEY_ACTION_INVALID_STATE_ERR")
	same(len(must(s.admin.ListKeyVersions(s.ctx, key.ID, &kp.ListKeyVersionsOptions{AllKeyStates: &total})).KeyVersion), 4)
}

func wrapByTheWrongKey(s *session) {
	standard := must(s.admin.CreateStandardKey(s.ctx, "go standard", nil))
	_, err := s.admin.Wrap(s.ctx, standard.ID, nil, nil)
	refused(err, 400, "KEY_ROOT_REQ_ERR")
	key := must(s.admin.CreateRootKey(s.ctx, "go one", nil))
	other := must(s.admin.CreateRootKey(s.ctx, "go other", nil))
	wrapped := must(s.admin.WrapCreateDEKV2(s.ctx, key.ID, nil))
	_, err = s.admin.Unwrap(s.ctx, other.ID, []byte(wrapped.CipherText), nil)
	refused(err, 422, "UNPROCESSABLE_CIPHERTEXT_ERR")
	_, err = s.admin.Unwrap(s.ctx, standard.ID, []byte("wdek"), nil)
	refused(err, 400, "KEY_ROOT_REQ_ERR")
}
