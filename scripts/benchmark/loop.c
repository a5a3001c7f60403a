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

typedef unsigned long ulong_t;
typedef struct { ulong_t type; void *value; ulong_t length; } attribute_t;
typedef struct { ulong_t mechanism; void *parameter; ulong_t length; } mechanism_t;
typedef struct { void *create, *destroy, *lock, *unlock; ulong_t flags; void *reserved; } initialize_t;
typedef ulong_t (*function_t)();

/* Places in CK_FUNCTION_LIST (PKCS#11 2.40, section 3.6) behind the version. */
enum { INITIALIZE = 0, GET_SLOT_LIST = 4, GET_TOKEN_INFO = 6, OPEN_SESSION = 12, LOGIN = 18, CREATE_OBJECT = 20,
       DESTROY_OBJECT = 22, GET_ATTRIBUTE_VALUE = 24, FIND_INIT = 26, FIND = 27, FIND_FINAL = 28, WRAP_KEY = 60,
       UNWRAP_KEY = 61 };

static function_t *f;

#define MUST(call) do { ulong_t rv = (call); if (rv) { fprintf(stderr, "%s: 0x%lx\n", #call, rv); exit(1); } } while (0)

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static int ascending(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

static ulong_t slot_of(const char *label) {
  ulong_t slots[64], count = 64;
  MUST(f[GET_SLOT_LIST]((unsigned char)1, slots, &count));
  for (ulong_t i = 0; i < count; i++) {
    unsigned char info[512] = {0};
    if (f[GET_TOKEN_INFO](slots[i], info) == 0 && !strncmp((char *)info, label, strlen(label)) &&
        info[strlen(label)] == ' ')
      return slots[i];
  }
  fprintf(stderr, "no token %s\n", label);
  exit(1);
}

int main(int argc, char **argv) {
  if (argc != 8) return 2;
  void *library = dlopen(argv[1], RTLD_NOW);
  if (!library) return fprintf(stderr, "%s\n", dlerror()), 1;
  void *list;
  MUST(((function_t)dlsym(library, "C_GetFunctionList"))(&list));
  f = (function_t *)((char *)list + sizeof(void *));
  initialize_t arguments = {.flags = 2};
  MUST(f[INITIALIZE](&arguments));
  ulong_t slot = slot_of(argv[2]), session, key = 0, found = 0;
  MUST(f[OPEN_SESSION](slot, (ulong_t)6, NULL, NULL, &session));
  char pin[256] = {0};
  FILE *file = fopen(argv[3], "r");
  if (!file || !fgets(pin, sizeof pin, file)) return 1;
  fclose(file);
  pin[strcspn(pin, "\n")] = 0;
  MUST(f[LOGIN](session, (ulong_t)1, pin, (ulong_t)strlen(pin)));

  unsigned char id[16];
  for (int i = 0; i < 16; i++) sscanf(argv[4] + 2 * i, "%2hhx", &id[i]);
  ulong_t secret = 4, generic = 0x10;
  attribute_t query[] = {{0x102, id, 16}, {0, &secret, sizeof secret}};
  MUST(f[FIND_INIT](session, query, (ulong_t)2));
  MUST(f[FIND](session, &key, (ulong_t)1, &found));
  MUST(f[FIND_FINAL](session));
  if (!found) return fprintf(stderr, "no such key\n"), 1;

  unsigned char yes = 1, no = 0, private = (unsigned char)atoi(argv[7]), frame[72] = {1}, sealed[128], out[128];
  attribute_t dek[] = {{0, &secret, sizeof secret}, {0x100, &generic, sizeof generic}, {1, &no, 1},
                       {2, &private, 1}, {0x103, &no, 1}, {0x162, &yes, 1}, {0x11, frame, sizeof frame}};
  mechanism_t wrap = {0x2109, NULL, 0};
  ulong_t object, length = sizeof sealed, n = 0, room = 4000000;
  MUST(f[CREATE_OBJECT](session, dek, (ulong_t)7, &object));
  MUST(f[WRAP_KEY](session, &wrap, key, object, sealed, &length));
  MUST(f[DESTROY_OBJECT](session, object));
  ulong_t sealed_length = length;
  int unwrap = !strcmp(argv[5], "unwrap");
  double *times = malloc(room * sizeof *times), started = now(), end = started + atof(argv[6]), before = started;
  while (before < end && n < room) {
    if (unwrap) {
      attribute_t value = {0x11, out, sizeof out};
      MUST(f[UNWRAP_KEY](session, &wrap, key, sealed, sealed_length, dek, (ulong_t)6, &object));
      MUST(f[GET_ATTRIBUTE_VALUE](session, object, &value, (ulong_t)1));
    } else {
      length = sizeof out;
      MUST(f[CREATE_OBJECT](session, dek, (ulong_t)7, &object));
      MUST(f[WRAP_KEY](session, &wrap, key, object, out, &length));
    }
    MUST(f[DESTROY_OBJECT](session, object));
    double after = now();
    times[n++] = after - before;
    before = after;
  }
  qsort(times, n, sizeof *times, ascending);
  printf("%.0f %.1f %.1f\n", (double)n / (before - started), times[n / 2] * 1e6, times[n * 99 / 100] * 1e6);
  return 0;
}
