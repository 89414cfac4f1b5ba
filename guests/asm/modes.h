/* Where modes.S puts things. */
#define PML4 0x10000
#define PDPT 0x11000
#define PAGE_DIRECTORIES 0x12000 /* four */
#define SUPERVISOR_PAGE 0x200000 /* 2 MiB that ring 3 has no right to */

#define KERNEL_CODE_32 0x08
#define KERNEL_CODE 0x10
#define KERNEL_DATA 0x18
#define USER_DATA 0x23
#define USER_CODE 0x2B
#define TASK 0x30

#define RFLAGS_IF 0x0200

#ifndef __ASSEMBLER__
extern unsigned char io_permissions[]; /* a bit a port; 1: not for ring 3 */
#endif
