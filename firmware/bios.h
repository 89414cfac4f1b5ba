/*
 * What all files of the BIOS share: segments, the BIOS data area, ports, and how a service starts
 * and ends.
 *
 * Code and variables lie in segment F000, which is RAM here (pyvmm/boot/firmware.py). A service has
 * DS on the BIOS data area and its own variables behind CS.
 */
#define BIOS_SEGMENT 0xF000
#define BIOS_BASE 0xF0000
#define BDA_SEGMENT 0x0040
#define EBDA_SEGMENT 0x9FC0
#define EBDA_KIB 1
#define BASE_MEMORY_KIB 639
#define SCREEN_SEGMENT 0xB800
#define BOOT_SECTOR 0x7C00

/* The BIOS data area, by DS. */
#define BDA_COM_PORTS           ds:[0x00]
#define BDA_LPT_PORTS           ds:[0x08]
#define BDA_EBDA                ds:[0x0E]
#define BDA_EQUIPMENT           ds:[0x10]
#define BDA_MEMORY_KIB          ds:[0x13]
#define BDA_SHIFT_FLAGS         ds:[0x17]
#define BDA_SHIFT_FLAGS_2       ds:[0x18]
#define BDA_ALT_KEYPAD          ds:[0x19]
#define BDA_KEY_HEAD            ds:[0x1A]
#define BDA_KEY_TAIL            ds:[0x1C]
#define BDA_KEY_BUFFER          0x1E
#define BDA_KEY_BUFFER_END      0x3E
#define BDA_FLOPPY_CALIBRATED   ds:[0x3E]
#define BDA_FLOPPY_STATUS       0x41
#define BDA_VIDEO_MODE          ds:[0x49]
#define BDA_COLUMNS             ds:[0x4A]
#define BDA_PAGE_SIZE           ds:[0x4C]
#define BDA_PAGE_START          ds:[0x4E]
#define BDA_CURSOR              ds:[0x50]
#define BDA_CURSOR_SHAPE        ds:[0x60]
#define BDA_PAGE                ds:[0x62]
#define BDA_CRTC                ds:[0x63]
#define BDA_CRT_MODE            ds:[0x65]
#define BDA_CRT_PALETTE         ds:[0x66]
#define BDA_TICKS               ds:[0x6C]
#define BDA_MIDNIGHT            ds:[0x70]
#define BDA_BREAK               ds:[0x71]
#define BDA_WARM_BOOT           ds:[0x72]
#define BDA_DISK_STATUS         0x74
#define BDA_DISKS               ds:[0x75]
#define BDA_LPT_TIMEOUTS        ds:[0x78]
#define BDA_COM_TIMEOUTS        ds:[0x7C]
#define BDA_KEY_START           ds:[0x80]
#define BDA_KEY_END             ds:[0x82]
#define BDA_ROWS                ds:[0x84]
#define BDA_CHARACTER_HEIGHT    ds:[0x85]
#define BDA_FLOPPY_DRIVES       ds:[0x8F]
#define BDA_FLOPPY_MEDIA        ds:[0x90]       /* A:, then B: */
#define BDA_KEYBOARD_MODE       ds:[0x96]
#define BDA_KEYBOARD_LEDS       ds:[0x97]

#define COLUMNS 80
#define ROWS 25
#define BLANK 0x0720            /* a space, light grey on black */

/* Ports. */
#define PIC_MASTER 0x20
#define PIC_MASTER_DATA 0x21
#define PIC_SLAVE 0xA0
#define PIC_SLAVE_DATA 0xA1
#define PIC_EOI 0x20
#define PIT_CHANNEL_0 0x40
#define PIT_CONTROL 0x43
#define I8042_DATA 0x60
#define I8042_COMMAND 0x64
#define I8042_OUTPUT_FULL 0x01
#define I8042_INPUT_FULL 0x02
#define CMOS_INDEX 0x70
#define CMOS_DATA 0x71
#define POST_PORT 0x80
#define SYSTEM_CONTROL_A 0x92
#define CRTC_INDEX 0x3D4
#define CRTC_CURSOR_START 0x0A
#define CRTC_CURSOR_HIGH 0x0E
#define CRTC_CURSOR_LOW 0x0F
#define PM1A_CONTROL 0x604
#define PM1A_POWER_OFF (5 << 10 | 1 << 13)       /* the sleep type of S5, and go */
#define PM_TIMER 0x608
#define PM_TIMER_HZ 3579545
#define PCI_ADDRESS 0xCF8
#define PCI_DATA 0xCFC
#define RESET_CONTROL 0xCF9
#define RESET_VALUE 0x06

#define UART_DATA 0
#define UART_IER 1
#define UART_FCR 2
#define UART_LCR 3
#define UART_MCR 4
#define UART_LSR 5
#define UART_MSR 6
#define UART_SCR 7
#define LSR_DATA_READY 0x01
#define LSR_THR_EMPTY 0x20

/* What the VMM does for the BIOS: pyvmm/devices/bios_services.py. */
#define SERVICES_PORT 0x5A0
#define SERVICE_START 0
#define SERVICE_DISK 1
#define SERVICE_READ 2
#define SERVICE_WRITE 3
#define SERVICE_VERIFY 4
#define SERVICE_FLUSH 5
#define SERVICE_MEMORY 6
#define SERVICE_COPY 7
#define SERVICE_BOOT 8
#define SERVICE_GIVE_UP 9
#define SERVICE_FILL 10

/* The registers of whoever called a service, at [BP + …]. */
#define CALLER_DI 0
#define CALLER_SI 4
#define CALLER_BP 8
#define CALLER_BX 16
#define CALLER_DX 20
#define CALLER_CX 24
#define CALLER_AX 28
#define CALLER_AH 29
#define CALLER_ES 32
#define CALLER_DS 34
#define CALLER_IP 36
#define CALLER_CS 38
#define CALLER_FLAGS 40
#define CARRY 0x01
#define ZERO 0x40
#define INTERRUPTS_ON 0x0200

        .intel_syntax noprefix
        .code16
        .text

/* Save the caller's registers; BP points at them, and all but BP and DS still have their values. */
.macro  enter_service
        push    ds
        push    es
        pushad
        mov     bp, sp
        cld
        push    BDA_SEGMENT
        pop     ds
.endm

/* Jump by the function number in AH to one of the `count` entries of `table`, or to `otherwise`.
 * BX is lost. */
.macro  dispatch table, count, otherwise
        cmp     ah, \count
        jae     \otherwise
        movzx   bx, ah
        add     bx, bx
        jmp     word ptr cs:[bx + \table]
.endm

/* Read a register of the clock into AL. */
.macro  read_cmos index
        mov     al, \index
        out     CMOS_INDEX, al
        in      al, CMOS_DATA
.endm

/* Write AL to one; AH is lost. */
.macro  write_cmos index
        mov     ah, al
        mov     al, \index
        out     CMOS_INDEX, al
        mov     al, ah
        out     CMOS_DATA, al
.endm
