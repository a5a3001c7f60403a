// Calls the methods of IBM's Node SDK and says of each step whether the service answered as Key Protect would. The last
// line is a JSON object: the methods that the SDK has, and those that were called.
'use strict';

const assert = require('node:assert/strict');
const crypto = require('node:crypto');
const IbmKeyProtectApiV2 = require('@ibm-cloud/ibm-key-protect/ibm-key-protect-api/v2');
const { IamAuthenticator } = require('@ibm-cloud/ibm-key-protect/auth');

const { KP_URL, KP_INSTANCE, KP_API_KEY, KP_SECOND_API_KEY, KP_REGISTERED_KEY, KP_RESOURCE_CRN } = process.env;
const KEY = 'application/vnd.ibm.kms.key+json';
const POLICY = 'application/vnd.ibm.kms.policy+json';
const DEK = Buffer.from('a key of 32 bytes for some data.').toString('base64');

const called = new Set();

/** The SDK's client with the instance filled in; each method's answer. */
function clientOf(apikey) {
  const authenticator = new IamAuthenticator({ apikey, url: KP_URL });
  const sdk = IbmKeyProtectApiV2.newInstance({ authenticator, serviceUrl: KP_URL });
  return new Proxy(sdk, {
    get: (_, method) => (params) => {
      called.add(method);
      return sdk[method]({ bluemixInstance: KP_INSTANCE, ...params });
    },
  });
}

const admin = clientOf(KP_API_KEY);
const second = clientOf(KP_SECOND_API_KEY);

const json = (value) => Buffer.from(JSON.stringify(value));
const collection = (type, ...resources) => ({
  metadata: { collectionType: type, collectionTotal: resources.length },
  resources,
});
const resource = (answer) => answer.result.resources[0];

async function create(name, members = {}, params = {}) {
  const body = json(collection(KEY, { type: KEY, name, extractable: false, ...members }));
  const answer = await admin.createKey({ body, prefer: 'return=representation', ...params });
  assert.equal(answer.status, 201);
  return resource(answer);
}

const crypt = {
  wrap: async (id, body) => (await admin.wrapKey({ id, keyActionWrapBody: json(body) })).result,
  unwrap: async (id, body) => (await admin.unwrapKey({ id, keyActionUnwrapBody: json(body) })).result,
  rewrap: async (id, body) => (await admin.rewrapKey({ id, keyActionRewrapBody: json(body) })).result,
};

/** Wants this status and reason code of a call. */
async function refused(call, status, code) {
  await assert.rejects(call, (error) => {
    const found = JSON.parse(typeof error.body === 'string' ? error.body : JSON.stringify(error.body));
    assert.deepEqual([error.status, found.resources[0].reasons[0].code], [status, code]);
    return true;
  });
}

/** An import token's public key and nonce. */
async function importToken() {
  const made = await admin.postImportToken({ expiration: 600, maxAllowedRetrievals: 2 });
  assert.deepEqual([made.status, made.result.remainingRetrievals], [200, 2]);
  const { payload, nonce, remainingRetrievals } = (await admin.getImportToken()).result;
  assert.equal(remainingRetrievals, 1);
  return { publicKey: Buffer.from(payload, 'base64').toString(), nonce: Buffer.from(nonce, 'base64') };
}

/** The members of a body that bring this key under that import token. */
function wrapped(key, { publicKey, nonce }) {
  const payload = crypto.publicEncrypt({ key: publicKey, oaepHash: 'sha256' }, key);
  const iv = crypto.randomBytes(12);
  const cipher = crypto.createCipheriv(`aes-${key.length * 8}-gcm`, key, iv);
  const encryptedNonce = Buffer.concat([cipher.update(nonce), cipher.final(), cipher.getAuthTag()]);
  const text = Object.entries({ payload, encryptedNonce, iv }).map(([name, bytes]) => [name, bytes.toString('base64')]);
  return { ...Object.fromEntries(text), encryptionAlgorithm: 'RSAES_OAEP_SHA_256' };
}

const steps = {
  async 'create, get and list'() {
    const root = await create('node root', { description: 'what it is for', tags: ['one'], aliases: ['node-root'] });
    assert.deepEqual([root.state, root.extractable, root.keyRingID, root.deleted], [1, false, 'default', false]);
    for (const id of [root.id, 'node-root']) {
      for (const call of ['getKey', 'getKeyMetadata']) {
        const read = resource(await admin[call]({ id }));
        assert.equal(read.payload, undefined);
        for (const [member, value] of Object.entries(root)) assert.deepEqual(read[member], value);
      }
    }
    const standard = await create('node standard', { extractable: true });
    assert.equal(Buffer.from(standard.payload, 'base64').length, 32);
    assert.equal(resource(await admin.getKey({ id: standard.id })).payload, standard.payload);
    const listed = (await admin.getKeys({ limit: 5000, offset: 0, state: [1, 5], extractable: true })).result;
    assert.deepEqual(listed.resources.map((key) => key.id), [standard.id]);
    assert.equal(listed.resources[0].payload, undefined);
    const total = await admin.getKeyCollectionMetadata({ state: [0, 1, 2, 3], extractable: true });
    assert.equal(total.headers['key-total'], '1');
    assert.deepEqual((await admin.getKeys({ state: [3] })).result.resources, []);
    await refused(create('x'), 400, 'INVALID_FIELD_ERR');
    await refused(admin.getKey({ id: 'node-nothing' }), 404, 'KEY_NOT_FOUND_ERR');
  },

  async 'wrap, unwrap, rewrap and rotate'() {
    const { id, keyVersion } = await create('node wrap');
    const given = await crypt.wrap(id, { plaintext: DEK, aad: ['volume', '7'] });
    assert.equal(given.plaintext, undefined);
    assert.equal(given.keyVersion.id, keyVersion.id);
    assert.equal((await crypt.unwrap(id, { ciphertext: given.ciphertext, aad: ['volume', '7'] })).plaintext, DEK);
    await refused(crypt.unwrap(id, { ciphertext: given.ciphertext }), 422, 'UNPROCESSABLE_CIPHERTEXT_ERR');
    await refused(crypt.unwrap(id, { ciphertext: 'no base64!' }), 400, 'INVALID_FIELD_ERR');
    const made = (await admin.wrapKey({ id })).result;
    assert.equal(Buffer.from(made.plaintext, 'base64').length, 32);
    assert.equal((await admin.rotateKey({ id, prefer: 'return=representation' })).status, 204);
    const opened = await crypt.unwrap(id, { ciphertext: made.ciphertext });
    assert.deepEqual([opened.plaintext, opened.keyVersion.id], [made.plaintext, keyVersion.id]);
    assert.notEqual(opened.rewrappedKeyVersion.id, keyVersion.id);
    const rewrapped = await crypt.rewrap(id, { ciphertext: made.ciphertext });
    assert.equal(rewrapped.plaintext, undefined);
    assert.equal(rewrapped.rewrappedKeyVersion.id, opened.rewrappedKeyVersion.id);
    for (const { ciphertext } of [opened, rewrapped]) {
      assert.equal((await crypt.unwrap(id, { ciphertext })).plaintext, made.plaintext);
    }
    const versions = (await admin.getKeyVersions({ id, limit: 5000, offset: 0 })).result;
    assert.deepEqual(
      versions.resources.map((version) => version.id),
      [opened.rewrappedKeyVersion.id, keyVersion.id],
    );
    const standard = await create('node standard', { extractable: true });
    await refused(crypt.wrap(standard.id, {}), 400, 'KEY_ROOT_REQ_ERR');
  },

  async 'import and rotate with import tokens'() {
    const token = await importToken();
    const root = await create('node imported', wrapped(crypto.randomBytes(32), token));
    assert.deepEqual([root.imported, root.extractable, root.payload], [true, false, undefined]);
    const old = (await admin.wrapKey({ id: root.id })).result;
    await refused(admin.rotateKey({ id: root.id }), 400, 'KEY_PAYLOAD_REQ_ERR');
    const rotate = (members) => admin.rotateKey({ id: root.id, keyActionRotateBody: json(members) });
    assert.equal((await rotate(wrapped(crypto.randomBytes(16), await importToken()))).status, 204);
    const opened = await crypt.unwrap(root.id, { ciphertext: old.ciphertext });
    assert.deepEqual([opened.plaintext, opened.keyVersion.id], [old.plaintext, root.keyVersion.id]);
    assert.notEqual(opened.rewrappedKeyVersion.id, root.keyVersion.id);
    // The first token is gone, and what was wrapped to it with it.
    await refused(create('node late', wrapped(crypto.randomBytes(32), token)), 400, 'INCORRECT_NONCE_IV_ERR');
    const payload = crypto.randomBytes(32).toString('base64');
    assert.equal((await rotate({ payload })).status, 204);
    assert.equal((await crypt.unwrap(root.id, { ciphertext: opened.ciphertext })).plaintext, old.plaintext);
    const standard = await create('node brought', { extractable: true, payload });
    assert.equal(resource(await admin.getKey({ id: standard.id })).payload, payload);
  },

  async 'policies of a key'() {
    const { id } = await create('node policies');
    const none = (await admin.getPolicy({ id })).result;
    assert.deepEqual([none.metadata.collectionTotal, none.resources ?? []], [0, []]);
    const set = async (members, policy) =>
      (await admin.putPolicy({ id, policy, setKeyPoliciesOneOf: collection(POLICY, ...members) })).result.resources;
    const rotation = { type: POLICY, rotation: { enabled: true, interval_month: 3 } };
    assert.deepEqual((await set([rotation], 'rotation'))[0].rotation, { enabled: true, interval_month: 3 });
    const off = { type: POLICY, dualAuthDelete: { enabled: false } };
    assert.deepEqual((await set([off], 'dualAuthDelete'))[0].dualAuthDelete, { enabled: false });
    const on = { type: POLICY, dualAuthDelete: { enabled: true } };
    assert.equal((await set([rotation, on])).length, 2);
    const both = (await admin.getPolicy({ id })).result;
    assert.equal(both.metadata.collectionTotal, 2);
    const [one] = (await admin.getPolicy({ id, policy: 'rotation' })).result.resources;
    assert.deepEqual(one.rotation, { enabled: true, interval_month: 3 });
    assert.ok(one.createdBy && one.creationDate && one.crn && one.lastUpdateDate && one.updatedBy);
    await refused(set([off], 'dualAuthDelete'), 400, 'INVALID_FIELD_ERR');
    await refused(set([on], 'rotation'), 400, 'BODY_QUERY_PARAM_MISMATCH_ERR');
    rotation.rotation.interval_month = 13;
    await refused(set([rotation], 'rotation'), 400, 'INVALID_FIELD_ERR');
  },

  async 'policies of the instance'() {
    const set = (policy_type, policy_data) =>
      admin.putInstancePolicy({
        policy: policy_type,
        setInstancePoliciesOneOf: collection(POLICY, { policy_type, policy_data }),
      });
    const wanted = {
      allowedNetwork: { enabled: true, attributes: { allowed_network: 'public-and-private' } },
      allowedIP: { enabled: true, attributes: { allowed_ip: ['127.0.0.0/8', '::1/128'] } },
      dualAuthDelete: { enabled: true },
      keyCreateImportAccess: { enabled: true, attributes: { create_standard_key: false } },
      metrics: { enabled: true },
    };
    for (const [type, data] of Object.entries(wanted)) {
      assert.equal((await set(type, data)).status, 204);
      const policy = resource(await admin.getInstancePolicy({ policy: type }));
      assert.deepEqual([policy.policy_type, policy.policy_data.enabled], [type, true]);
      for (const [name, value] of Object.entries(data.attributes ?? {})) {
        assert.deepEqual(policy.policy_data.attributes[name], value);
      }
    }
    assert.equal((await create('node dual')).dualAuthDelete.enabled, true);
    await refused(create('node standard', { extractable: true }), 409, 'KEY_CREATE_IMPORT_ACCESS_ERR');
    for (const type of Object.keys(wanted)) await set(type, { enabled: false });
    const { resources } = (await admin.getInstancePolicy()).result;
    assert.deepEqual(new Set(resources.map((policy) => policy.policy_data.enabled)), new Set([false]));
  },

  async 'delete by two'() {
    const { id } = await create('node two');
    await refused(admin.setKeyForDeletion({ id }), 409, 'NOT_DUAL_AUTH_ERR');
    const on = collection(POLICY, { type: POLICY, dualAuthDelete: { enabled: true } });
    await admin.putPolicy({ id, policy: 'dualAuthDelete', setKeyPoliciesOneOf: on });
    await refused(admin.deleteKey({ id }), 409, 'AUTHORIZATIONS_NOT_MET');
    assert.equal((await admin.setKeyForDeletion({ id })).status, 204);
    assert.equal(resource(await admin.getKeyMetadata({ id })).dualAuthDelete.keySetForDeletion, true);
    assert.equal((await admin.unsetKeyForDeletion({ id })).status, 204);
    await admin.setKeyForDeletion({ id });
    await refused(admin.deleteKey({ id }), 409, 'AUTHORIZATIONS_NOT_MET');
    assert.equal(resource(await second.deleteKey({ id, prefer: 'return=representation' })).state, 5);
  },

  async aliases() {
    const { id } = await create('node alias');
    const made = await admin.createKeyAlias({ id, alias: 'node-alias' });
    assert.equal(made.status, 201);
    assert.deepEqual([resource(made).keyId, resource(made).alias], [id, 'node-alias']);
    assert.equal(resource(await admin.getKey({ id: 'node-alias' })).id, id);
    const other = await create('node other');
    await refused(admin.createKeyAlias({ id: other.id, alias: 'node-alias' }), 409, 'KEY_ALIAS_NOT_UNIQUE_ERR');
    assert.equal((await admin.deleteKeyAlias({ id, alias: 'node-alias' })).status, 204);
    await refused(admin.getKey({ id: 'node-alias' }), 404, 'KEY_NOT_FOUND_ERR');
  },

  async rings() {
    assert.equal((await admin.createKeyRing({ keyRingId: 'node-ring' })).status, 201);
    const { resources } = (await admin.listKeyRings()).result;
    assert.deepEqual(resources.map((ring) => ring.id).sort(), ['default', 'node-ring']);
    const { id, keyRingID } = await create('node in ring', {}, { xKmsKeyRing: 'node-ring' });
    assert.equal(keyRingID, 'node-ring');
    const there = (await admin.getKeys({ xKmsKeyRing: 'node-ring' })).result.resources;
    assert.deepEqual(there.map((key) => key.id), [id]);
    await refused(admin.getKey({ id, xKmsKeyRing: 'default' }), 404, 'KEY_NOT_FOUND_ERR');
    await refused(admin.deleteKeyRing({ keyRingId: 'node-ring' }), 409, 'KEY_RING_NOT_EMPTY_ERR');
    assert.equal((await admin.createKeyRing({ keyRingId: 'node-empty' })).status, 201);
    assert.equal((await admin.deleteKeyRing({ keyRingId: 'node-empty' })).status, 204);
  },

  async 'disable and enable'() {
    const { id } = await create('node disable');
    const { ciphertext, plaintext } = await crypt.wrap(id, {});
    assert.equal((await admin.disableKey({ id })).status, 204);
    assert.equal(resource(await admin.getKeyMetadata({ id })).state, 2);
    await refused(crypt.unwrap(id, { ciphertext }), 409, 'KEY_ACTION_INVALID_STATE_ERR');
    assert.equal((await admin.enableKey({ id })).status, 204);
    assert.equal((await crypt.unwrap(id, { ciphertext })).plaintext, plaintext);
  },

  async 'delete and restore'() {
    const { id } = await create('node delete');
    const { ciphertext, plaintext } = await crypt.wrap(id, {});
    const deleted = resource(await admin.deleteKey({ id, prefer: 'return=representation' }));
    assert.deepEqual([deleted.state, deleted.deleted, deleted.restoreAllowed], [5, true, true]);
    await refused(crypt.unwrap(id, { ciphertext }), 410, 'KEY_DELETED_ERR');
    const restored = await admin.restoreKey({ id, prefer: 'return=representation' });
    assert.equal(restored.status, 201);
    assert.equal((await crypt.unwrap(id, { ciphertext })).plaintext, plaintext);
    assert.equal((await admin.deleteKey({ id, prefer: 'return=minimal', force: false })).status, 204);
  },

  async registrations() {
    const urlEncodedResourceCrnQuery = encodeURIComponent(KP_RESOURCE_CRN);
    for (const answer of [
      await admin.getRegistrations({ id: KP_REGISTERED_KEY, totalCount: true }),
      await admin.getRegistrations({ id: KP_REGISTERED_KEY, urlEncodedResourceCrnQuery }),
      await admin.getRegistrationsAllKeys({ urlEncodedResourceCrnQuery }),
      await admin.getRegistrationsAllKeys(),
    ]) {
      const { keyId, resourceCrn } = resource(answer);
      assert.deepEqual([keyId, resourceCrn], [KP_REGISTERED_KEY, KP_RESOURCE_CRN]);
    }
    assert.equal((await admin.syncAssociatedResources({ id: KP_REGISTERED_KEY })).status, 204);
    await refused(admin.deleteKey({ id: KP_REGISTERED_KEY }), 409, 'PROTECTED_RESOURCE_ERR');
    assert.equal((await admin.deleteKey({ id: KP_REGISTERED_KEY, force: true })).status, 204);
  },
};

async function main() {
  for (const [name, run] of Object.entries(steps)) {
    try {
      await run();
      console.log(`ok ${name}`);
    } catch (error) {
      process.exitCode = 1;
      console.log(`FAIL ${name}: ${error.stack}`);
    }
  }
  const methods = Object.getOwnPropertyNames(IbmKeyProtectApiV2.prototype).filter((name) => name !== 'constructor');
  console.log(JSON.stringify({ methods, called: [...called] }));
}

main();
