/* What the first CPU and the others' start agree on. */
#define TRAMPOLINE 0x2000
#define STACK_SHIFT 12
#define MAX_CPUS 64
