/*
 * INT 15h, 53h: Advanced Power Management (APM BIOS Interface Specification 1.2), by which programs
 * of DOS's time switch a machine off, and idle.
 *
 * Left out are the interfaces for protected mode, standby and suspend, and events: nothing happens
 * that there would be one for. Whether somebody has connected makes no difference.
 */
#include "bios.h"

        .globl  apm

#define APM_SIGNATURE 0x504D            /* PM */
#define APM_VERSION 0x0102
#define DEVICE_BIOS 0x0000              /* BX */
#define DEVICE_ALL 0x0001
#define STATE_OFF 3                     /* CX; 1 and 2 are standby and suspend */
#define POWER_UNKNOWN 0xFF
#define NO_BATTERY 0x80
#define ON_LINE 0x01

/* What AH says. */
#define APM_NO_16_BITS 0x06
#define APM_NO_32_BITS 0x08
#define APM_NO_SUCH_DEVICE 0x09
#define APM_BAD_PARAMETER 0x0A
#define APM_NOT_SUPPORTED 0x0C
#define APM_STATE_REFUSED 0x60
#define APM_NO_EVENT 0x80

        .section .rodata
apm_services:
        .word   apm_present, nothing_to_do, apm_no_16_bits, apm_no_32_bits
        .word   nothing_to_do, apm_idle, nothing_to_do, apm_set_state   // 04h: disconnect; 06h: busy
        .word   nothing_to_do, nothing_to_do, apm_power_status, apm_no_event
        .word   apm_get_state, nothing_to_do, apm_driver_version, nothing_to_do
#define APM_SERVICES 0x10
        .text

apm:    movzx   bx, al
        cmp     bl, APM_SERVICES
        mov     ah, APM_NOT_SUPPORTED
        jae     return_error
        add     bx, bx
        jmp     word ptr cs:[bx + apm_services]

/* 00h: APM is there, for real mode. */
apm_present:
        cmp     word ptr [bp + CALLER_BX], DEVICE_BIOS
        jne     apm_no_such_device
        mov     word ptr [bp + CALLER_BX], APM_SIGNATURE
        mov     word ptr [bp + CALLER_CX], 0
        mov     word ptr [bp + CALLER_AX], APM_VERSION
        jmp     return_ok

/* 02h, 03h: connect from protected mode. */
apm_no_16_bits:
        mov     ah, APM_NO_16_BITS
        jmp     return_error
apm_no_32_bits:
        mov     ah, APM_NO_32_BITS
        jmp     return_error

/* 05h: nothing to do until an interrupt. */
apm_idle:
        call    sleep
        jmp     nothing_to_do

/* 07h: device BX, which is all of them, to the state CX. */
apm_set_state:
        cmp     word ptr [bp + CALLER_BX], DEVICE_ALL
        jne     apm_no_such_device
        cmp     cx, STATE_OFF
        mov     ah, APM_STATE_REFUSED
        jb      return_error
        mov     ah, APM_BAD_PARAMETER
        ja      return_error
        mov     dx, PM1A_CONTROL
        mov     ax, PM1A_POWER_OFF
        out     dx, ax
1:      cli
        hlt
        jmp     1b

/* 0Ah: on line, and without a battery. */
apm_power_status:
        cmp     word ptr [bp + CALLER_BX], DEVICE_ALL
        jne     apm_no_such_device
        mov     word ptr [bp + CALLER_BX], ON_LINE << 8 | POWER_UNKNOWN
        mov     word ptr [bp + CALLER_CX], NO_BATTERY << 8 | POWER_UNKNOWN
        mov     word ptr [bp + CALLER_DX], -1           // minutes left
        jmp     nothing_to_do

/* 0Bh */
apm_no_event:
        mov     ah, APM_NO_EVENT
        jmp     return_error

/* 0Ch: it is on. */
apm_get_state:
        mov     word ptr [bp + CALLER_CX], 0
        jmp     nothing_to_do

/* 0Eh: the driver speaks version CX, and both go on with the lower one. */
apm_driver_version:
        mov     ax, APM_VERSION
        cmp     cx, ax
        jae     1f
        mov     ax, cx
1:      mov     [bp + CALLER_AX], ax
        jmp     return_ok

apm_no_such_device:
        mov     ah, APM_NO_SUCH_DEVICE
        jmp     return_error
