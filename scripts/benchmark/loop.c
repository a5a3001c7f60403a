/* The limit of one process: CKM_AES_KEY_WRAP of a 72-byte frame (a 32-byte DEK), or its inverse, in a C loop.
 *
 * usage: loop MODULE TOKEN-LABEL PIN-FILE CKA_ID-HEX wrap|unwrap SECONDS PRIVATE(0|1)
 * prints operations per second and the 50th and 99th percentile in microseconds.
 */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef unsigned long number;
typedef struct { number type; void *value; number length; } attribute;
typedef struct { number kind; void *parameter; number length; } mechanism;
typedef struct { void *create, *destroy, *lock, *unlock; number flags; void *reserved; } initialization;
typedef void (*unused)(void);

/* CK_FUNCTION_LIST (PKCS#11 2.40, section 3.6), with what is called here by name. */
typedef struct {
  unsigned char version[2];
  number (*initialize)(void *);
  unused a[3];
  number (*get_slot_list)(unsigned char, number *, number *);
  unused b[1];
  number (*get_token_info)(number, void *);
  unused c[5];
  number (*open_session)(number, number, void *, void *, number *);
  unused d[5];
  number (*login)(number, number, char *, number);
  unused e[1];
  number (*create_object)(number, attribute *, number, number *);
  unused f[1];
  number (*destroy_object)(number, number);
  unused g[1];
  number (*get_attribute_value)(number, number, attribute *, number);
  unused h[1];
  number (*find_objects_init)(number, attribute *, number);
  number (*find_objects)(number, number *, number, number *);
  number (*find_objects_final)(number);
  unused i[31];
  number (*wrap_key)(number, mechanism *, number, number, unsigned char *, number *);
  number (*unwrap_key)(number, mechanism *, number, unsigned char *, number, attribute *, number, number *);
} functions;

enum { CKA_CLASS = 0x0, CKA_TOKEN = 0x1, CKA_PRIVATE = 0x2, CKA_VALUE = 0x11, CKA_KEY_TYPE = 0x100, CKA_ID = 0x102,
       CKA_SENSITIVE = 0x103, CKA_EXTRACTABLE = 0x162, CKM_AES_KEY_WRAP = 0x2109,
       CKF_OS_LOCKING_OK = 2, CKF_RW_SERIAL_SESSION = 6, CKU_USER = 1, FRAME = 72, MOST_TIMES = 4000000 };

static functions *p11;
static number session;
static number secret_key = 4, generic_secret = 0x10;

static void must(const char *what, number returned) {
  if (!returned) return;
  fprintf(stderr, "loop: %s: 0x%lx\n", what, returned);
  exit(1);
}

static void fail(const char *what) {
  fprintf(stderr, "loop: %s\n", what);
  exit(1);
}

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static int ascending(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

static void load(const char *path) {
  void *library = dlopen(path, RTLD_NOW);
  if (!library) fail(dlerror());
  number (*get_function_list)(functions **);
  *(void **)&get_function_list = dlsym(library, "C_GetFunctionList");
  if (!get_function_list) fail("no PKCS#11 library");
  must("C_GetFunctionList", get_function_list(&p11));
  initialization arguments = {.flags = CKF_OS_LOCKING_OK};
  must("C_Initialize", p11->initialize(&arguments));
}

static number slot_of(const char *label) {
  number slots[64], count = 64;
  must("C_GetSlotList", p11->get_slot_list(1, slots, &count));
  for (number i = 0; i < count; i++) {
    char info[512] = {0}; /* CK_TOKEN_INFO; it begins with the label, padded by blanks to 32 bytes */
    size_t length = strlen(label);
    if (p11->get_token_info(slots[i], info) == 0 && !strncmp(info, label, length) && info[length] == ' ')
      return slots[i];
  }
  fail("no such token");
  return 0;
}

static void login(number slot, const char *pin_file) {
  char pin[256] = {0};
  FILE *file = fopen(pin_file, "r");
  if (!file || !fgets(pin, sizeof pin, file)) fail("the PIN file cannot be read");
  fclose(file);
  pin[strcspn(pin, "\n")] = 0;
  must("C_OpenSession", p11->open_session(slot, CKF_RW_SERIAL_SESSION, NULL, NULL, &session));
  must("C_Login", p11->login(session, CKU_USER, pin, strlen(pin)));
}

static number root_key(const char *hex) {
  unsigned char id[16];
  for (int i = 0; i < 16; i++)
    if (sscanf(hex + 2 * i, "%2hhx", &id[i]) != 1) fail("CKA_ID is not 32 hexadecimal digits");
  attribute query[] = {{CKA_ID, id, sizeof id}, {CKA_CLASS, &secret_key, sizeof secret_key}};
  number key, found;
  must("C_FindObjectsInit", p11->find_objects_init(session, query, 2));
  must("C_FindObjects", p11->find_objects(session, &key, 1, &found));
  must("C_FindObjectsFinal", p11->find_objects_final(session));
  if (found != 1) fail("no such key");
  return key;
}

static number wrap(number key, attribute *dek, unsigned char *out, number room) {
  mechanism key_wrap = {CKM_AES_KEY_WRAP, NULL, 0};
  number object, length = room;
  must("C_CreateObject", p11->create_object(session, dek, 7, &object));
  must("C_WrapKey", p11->wrap_key(session, &key_wrap, key, object, out, &length));
  must("C_DestroyObject", p11->destroy_object(session, object));
  return length;
}

static void unwrap(number key, attribute *dek, unsigned char *sealed, number length) {
  mechanism key_wrap = {CKM_AES_KEY_WRAP, NULL, 0};
  unsigned char out[FRAME];
  attribute value = {CKA_VALUE, out, sizeof out};
  number object;
  must("C_UnwrapKey", p11->unwrap_key(session, &key_wrap, key, sealed, length, dek, 6, &object));
  must("C_GetAttributeValue", p11->get_attribute_value(session, object, &value, 1));
  must("C_DestroyObject", p11->destroy_object(session, object));
  if (memcmp(out, dek[6].value, FRAME)) fail("the frame did not come back");
}

int main(int count, char **words) {
  if (count != 8) fail("usage: loop MODULE TOKEN-LABEL PIN-FILE CKA_ID-HEX wrap|unwrap SECONDS PRIVATE");
  load(words[1]);
  login(slot_of(words[2]), words[3]);
  number key = root_key(words[4]);
  int unwraps = !strcmp(words[5], "unwrap");
  unsigned char yes = 1, no = 0, private = words[7][0] == '1', frame[FRAME] = {1}, sealed[FRAME + 8];
  attribute dek[] = {{CKA_CLASS, &secret_key, sizeof secret_key}, {CKA_KEY_TYPE, &generic_secret, sizeof generic_secret},
                     {CKA_TOKEN, &no, 1}, {CKA_PRIVATE, &private, 1}, {CKA_SENSITIVE, &no, 1}, {CKA_EXTRACTABLE, &yes, 1},
                     {CKA_VALUE, frame, sizeof frame}};
  number length = wrap(key, dek, sealed, sizeof sealed), done = 0;
  double *times = malloc(MOST_TIMES * sizeof *times);
  if (!times) fail("no memory");
  double started = now(), before = started, end = started + atof(words[6]);
  while (before < end && done < MOST_TIMES) {
    if (unwraps)
      unwrap(key, dek, sealed, length);
    else
      wrap(key, dek, sealed, sizeof sealed);
    double after = now();
    times[done++] = after - before;
    before = after;
  }
  qsort(times, done, sizeof *times, ascending);
  printf("%.0f %.1f %.1f\n", (double)done / (before - started), times[done / 2] * 1e6, times[done * 99 / 100] * 1e6);
  return 0;
}
