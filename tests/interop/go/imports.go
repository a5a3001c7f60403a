package main

import (
	"crypto/rand"
	"encoding/base64"

	kp "github.com/IBM/keyprotect-go-client"
)

var importSteps = []step{
	{"import under an import token", importUnderToken},
	{"import every way", importEveryWay},
	{"import what does not fit", importWhatDoesNotFit},
	{"import with SHA-1 is off", importWithSHA1},
}

// brought is a key as the client's own functions wrap it for an import token.
type brought struct {
	payload, nonce, iv string
}

func importToken(s *session) *kp.ImportTokenKeyResponse {
	made := must(s.admin.CreateImportToken(s.ctx, 600, 2))
	same([]int{made.MaxAllowedRetrievals, made.RemainingRetrievals}, []int{2, 2})
	token := must(s.admin.GetImportTokenTransportKey(s.ctx))
	same(token.ID, made.ID)
	same(*token.ExpirationDate, *made.ExpirationDate)
	return token
}

func material(length int) string {
	key := make([]byte, length)
	must(rand.Read(key))
	return base64.StdEncoding.EncodeToString(key)
}

func wrapFor(token *kp.ImportTokenKeyResponse, key string) brought {
	nonce, iv, err := kp.EncryptNonce(key, token.Nonce, "")
	done(err)
	return brought{must(kp.EncryptKey(key, token.Payload)), nonce, iv}
}

func importUnderToken(s *session) {
	token := importToken(s)
	first := wrapFor(token, material(32))
	key := must(s.admin.CreateImportedRootKey(s.ctx, "go imported", nil, first.payload, first.nonce, first.iv))
	check(key.Imported && !key.Extractable && key.Payload == "", "not an imported root key: %v", key)
	old := must(s.admin.WrapCreateDEKV2(s.ctx, key.ID, nil))
	refused(s.admin.RotateV2(s.ctx, key.ID, nil), 400, "KEY_PAYLOAD_REQ_ERR")
	second := wrapFor(importToken(s), material(16))
	payload := kp.NewKeyPayload(second.payload, second.nonce, second.iv).WithRSA256()
	done(s.admin.RotateV2(s.ctx, key.ID, &payload))
	opened, again, err := s.admin.UnwrapV2(s.ctx, key.ID, []byte(old.CipherText), nil)
	done(err)
	same(string(opened), old.PlainText)
	check(len(again) > 0, "not wrapped again by the new version")
	done(s.admin.Rotate(s.ctx, key.ID, material(24)))
	same(string(must(s.admin.Unwrap(s.ctx, key.ID, again, nil))), old.PlainText)
}

func importEveryWay(s *session) {
	token := importToken(s)
	on := true
	dual := kp.Policy{DualAuth: &kp.DualAuth{Enabled: &on}}
	one, clear := wrapFor(token, material(32)), material(32)
	for _, root := range []*kp.Key{
		must(s.admin.CreateImportedKey(s.ctx, "go imported", nil, one.payload, one.nonce, one.iv, false)),
		must(s.admin.CreateImportedKey(s.ctx, "go imported", nil, clear, "", "", false)),
		must(s.admin.CreateImportedRootKey(s.ctx, "go imported", nil, clear, "", "")),
		must(s.admin.CreateImportedKeyWithAliases(s.ctx, "go imported", nil, one.payload, one.nonce, one.iv, false,
			[]string{"go-imported"})),
		must(s.admin.CreateImportedKeyWithPolicyOverrides(s.ctx, "go imported", nil, one.payload, one.nonce, one.iv, false,
			nil, dual)),
		must(s.admin.CreateImportedRootKeyWithPolicyOverrides(s.ctx, "go imported", nil, one.payload, one.nonce, one.iv,
			[]string{"go-overridden"}, dual)),
	} {
		check(root.Imported && !root.Extractable, "not an imported root key: %v", root)
		same(must(s.admin.GetKey(s.ctx, root.ID)).Imported, true)
		made := must(s.admin.WrapCreateDEKV2(s.ctx, root.ID, nil))
		same(string(must(s.admin.Unwrap(s.ctx, root.ID, []byte(made.CipherText), nil))), made.PlainText)
	}
	check(*must(s.admin.GetDualAuthDeletePolicy(s.ctx, "go-overridden")).DualAuth.Enabled, "no dual authorization")
	for _, standard := range []*kp.Key{
		must(s.admin.CreateImportedStandardKey(s.ctx, "go imported", nil, clear)),
		must(s.admin.CreateImportedStandardKeyWithPolicyOverrides(s.ctx, "go imported", nil, clear, nil, dual)),
	} {
		check(standard.Imported && standard.Extractable, "not an imported standard key: %v", standard)
		same(must(s.admin.GetKey(s.ctx, standard.ID)).Payload, clear)
	}
}

func importWhatDoesNotFit(s *session) {
	token, key := importToken(s), material(32)
	create := func(payload, nonce, iv string) error {
		_, err := s.admin.CreateImportedRootKey(s.ctx, "go imported", nil, payload, nonce, iv)
		return err
	}
	good := wrapFor(token, key)
	other, iv, err := kp.EncryptNonce(key, base64.StdEncoding.EncodeToString([]byte("another one.")), "")
	done(err)
	refused(create(good.payload, other, iv), 400, "INCORRECT_NONCE_ERR")
	refused(create(good.payload, good.nonce, iv), 400, "INCORRECT_NONCE_IV_ERR")
	// The client gives an IV of the caller's own back as it came, which is not base64 of the IV that it used.
	nonce, iv, err := kp.EncryptNonce(key, token.Nonce, "abcdefghijkl")
	done(err)
	refused(create(good.payload, nonce, iv), 400, "INCORRECT_NONCE_IV_ERR")
	must(s.admin.GetImportTokenTransportKey(s.ctx))
	_, err = s.admin.GetImportTokenTransportKey(s.ctx)
	refused(err, 409, "IMPORT_TOKEN_EXPIRED_ERR")
	// Read as often as it may, it still takes keys.
	done(create(good.payload, good.nonce, good.iv))
	_, err = s.admin.CreateImportToken(s.ctx, 299, 1)
	refused(err, 400, "INVALID_FIELD_ERR")
}

func importWithSHA1(s *session) {
	token, key := importToken(s), material(32)
	payload := must(kp.EncryptKeyWithSHA1(key, token.Payload))
	nonce, iv, err := kp.EncryptNonceWithCBCPAD(key, token.Nonce, "")
	done(err)
	_, err = s.admin.CreateImportedKeyWithSHA1(s.ctx, "go SHA-1", nil, payload, nonce, iv, false, nil)
	refused(err, 403, "FEATURE_RESTRICTED_ERR")
	_, err = s.admin.CreateImportedKeyWithPolicyOverridesWithSHA1(s.ctx, "go SHA-1", nil, payload, nonce, iv, false, nil,
		kp.Policy{})
	refused(err, 403, "FEATURE_RESTRICTED_ERR")
}
