/* A PKCS#11 module in front of another one, which fails, waits or hangs where a control file says so.
 *
 * INJECT_MODULE names the module behind, INJECT_CONTROL the control file: a line for each fault,
 *
 *     FUNCTION CKR EVERY MILLISECONDS
 *
 * FUNCTION as "C_WrapKey", or "*"; each EVERY-th call of it first waits MILLISECONDS and then returns CKR (hexadecimal)
 * without calling the module behind; with CKR 0 it goes on to it. The file is read at every call, so that a test
 * cures a fault by emptying it. A call that waits says so first: it makes the file INJECT_CONTROL.waits. How often each
 * function was called by all processes together stands in INJECT_CONTROL.calls, if that file is there: 64-bit numbers in
 * the order below. INJECT_CONTROL.flags, if there, holds a hexadecimal number that is added to the flags of each token
 * (CK_TOKEN_INFO). With INJECT_PARAMETERS set C_Initialize passes it on as NSS softoken wants it: as a member of its own
 * before pReserved.
 */
#include <dlfcn.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

typedef unsigned long U;

/* Every member of CK_FUNCTION_LIST in its order (PKCS#11 2.40, section 3.6), and how many arguments it takes. All of them
 * are passed as words. */
#define FUNCTIONS(X) \
  X(Initialize, 1) X(Finalize, 1) X(GetInfo, 1) X(GetFunctionList, 1) X(GetSlotList, 3) X(GetSlotInfo, 2) \
  X(GetTokenInfo, 2) X(GetMechanismList, 3) X(GetMechanismInfo, 3) X(InitToken, 4) X(InitPIN, 3) X(SetPIN, 5) \
  X(OpenSession, 5) X(CloseSession, 1) X(CloseAllSessions, 1) X(GetSessionInfo, 2) X(GetOperationState, 3) \
  X(SetOperationState, 5) X(Login, 4) X(Logout, 1) X(CreateObject, 4) X(CopyObject, 5) X(DestroyObject, 2) \
  X(GetObjectSize, 3) X(GetAttributeValue, 4) X(SetAttributeValue, 4) X(FindObjectsInit, 3) X(FindObjects, 4) \
  X(FindObjectsFinal, 1) X(EncryptInit, 3) X(Encrypt, 5) X(EncryptUpdate, 5) X(EncryptFinal, 3) X(DecryptInit, 3) \
  X(Decrypt, 5) X(DecryptUpdate, 5) X(DecryptFinal, 3) X(DigestInit, 2) X(Digest, 5) X(DigestUpdate, 3) \
  X(DigestKey, 2) X(DigestFinal, 3) X(SignInit, 3) X(Sign, 5) X(SignUpdate, 3) X(SignFinal, 3) \
  X(SignRecoverInit, 3) X(SignRecover, 5) X(VerifyInit, 3) X(Verify, 5) X(VerifyUpdate, 3) X(VerifyFinal, 3) \
  X(VerifyRecoverInit, 3) X(VerifyRecover, 5) X(DigestEncryptUpdate, 5) X(DecryptDigestUpdate, 5) \
  X(SignEncryptUpdate, 5) X(DecryptVerifyUpdate, 5) X(GenerateKey, 5) X(GenerateKeyPair, 8) X(WrapKey, 6) \
  X(UnwrapKey, 8) X(DeriveKey, 6) X(SeedRandom, 3) X(GenerateRandom, 3) X(GetFunctionStatus, 1) \
  X(CancelFunction, 1) X(WaitForSlotEvent, 3)

enum {
#define X(name, count) AT_##name,
  FUNCTIONS(X)
#undef X
  COUNT
};

struct list { unsigned char version[2]; void *member[COUNT]; };

static struct list *behind;
static struct list ours;
static atomic_ulong calls[COUNT];
static atomic_ulong *counted; /* shared by all processes */

static void open_counters(void) {
  const char *path = getenv("INJECT_CONTROL");
  char name[4096];
  snprintf(name, sizeof name, "%s.calls", path == NULL ? "" : path);
  int file = open(name, O_RDWR | O_CLOEXEC);
  if (file < 0) return;
  void *place = mmap(NULL, sizeof calls, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  close(file);
  if (place != MAP_FAILED) counted = place;
}

static void say_that_one_waits(const char *path) {
  char name[4096];
  snprintf(name, sizeof name, "%s.waits", path);
  FILE *file = fopen(name, "we");
  if (file != NULL) fclose(file);
}

static U fault(int place, const char *name) {
  U number = atomic_fetch_add(&calls[place], 1) + 1, result = 0;
  if (counted != NULL) atomic_fetch_add(&counted[place], 1);
  const char *path = getenv("INJECT_CONTROL");
  FILE *file = path == NULL ? NULL : fopen(path, "re");
  if (file == NULL) return 0;
  char function[40];
  U code, every, milliseconds;
  while (fscanf(file, "%39s %lx %lu %lu", function, &code, &every, &milliseconds) == 4) {
    if ((strcmp(function, "*") != 0 && strcmp(function, name) != 0) || number % every != 0) continue;
    struct timespec wait = {(time_t)(milliseconds / 1000), (long)(milliseconds % 1000) * 1000000};
    if (milliseconds != 0) say_that_one_waits(path);
    nanosleep(&wait, NULL);
    result = code;
    break;
  }
  fclose(file);
  return result;
}

/* CK_TOKEN_INFO begins with label, manufacturer, model and serial number: 96 bytes. */
static void add_flags(U result, U info) {
  char name[4096];
  const char *path = getenv("INJECT_CONTROL");
  snprintf(name, sizeof name, "%s.flags", path == NULL ? "" : path);
  FILE *file = fopen(name, "re");
  U flags;
  if (file == NULL) return;
  if (result == 0 && fscanf(file, "%lx", &flags) == 1) *(U *)(info + 96) |= flags;
  fclose(file);
}

#define P1 U a
#define P2 P1, U b
#define P3 P2, U c
#define P4 P3, U d
#define P5 P4, U e
#define P6 P5, U f
#define P8 P6, U g, U h
#define V1 a
#define V2 V1, b
#define V3 V2, c
#define V4 V3, d
#define V5 V4, e
#define V6 V5, f
#define V8 V6, g, h

U C_GetFunctionList(struct list **result);

#define X(name, count) \
  static U our_##name(P##count) { \
    U injected = fault(AT_##name, "C_" #name); \
    return injected != 0 ? injected : ((U(*)(P##count))behind->member[AT_##name])(V##count); \
  }
FUNCTIONS(X)
#undef X

static U token_info(U slot, U info) {
  U result = our_GetTokenInfo(slot, info);
  add_flags(result, info);
  return result;
}

struct nss_arguments { void *create, *destroy, *lock, *unlock; U flags; const char *parameters; void *reserved; };

static U initialize(U arguments) {
  const char *parameters = getenv("INJECT_PARAMETERS");
  struct nss_arguments nss = {NULL, NULL, NULL, NULL, 2 /* CKF_OS_LOCKING_OK */, parameters, NULL};
  return our_Initialize(parameters == NULL ? arguments : (U)&nss);
}

U C_GetFunctionList(struct list **result) {
  if (behind == NULL) {
    const char *path = getenv("INJECT_MODULE");
    void *library = path == NULL ? NULL : dlopen(path, RTLD_NOW | RTLD_LOCAL);
    U (*get)(struct list **) = library == NULL ? NULL : (U(*)(struct list **))dlsym(library, "C_GetFunctionList");
    if (get == NULL || get(&behind) != 0) return 5;
    open_counters();
    memcpy(ours.version, behind->version, sizeof ours.version);
#define X(name, count) ours.member[AT_##name] = (void *)our_##name;
    FUNCTIONS(X)
#undef X
    ours.member[AT_Initialize] = (void *)initialize;
    ours.member[AT_GetTokenInfo] = (void *)token_info;
    ours.member[AT_GetFunctionList] = (void *)C_GetFunctionList;
  }
  *result = &ours;
  return 0;
}
