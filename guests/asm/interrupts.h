/* The interrupt descriptor table, and handlers in C. */
#ifndef INTERRUPTS_H
#define INTERRUPTS_H

#include "pc.h"

/* What the CPU pushes before it calls a handler. */
struct interrupt_frame {
    uintptr_t ip, cs, flags, sp, ss;
};

/*
 * INTERRUPT_HANDLER(name) { … } defines one, which has its `frame`; EXCEPTION_HANDLER(name) one for
 * an exception with an error code, which has its `error` too.
 *
 * In 32-bit mode they don't end with IRET, which software KVM lacks there, but with instructions
 * that amount to it as long as the privilege level stays.
 */
#ifdef __x86_64__

#define INTERRUPT_HANDLER(name)                                                                    \
    static __attribute__((interrupt)) void name(                                                   \
        __attribute__((unused)) struct interrupt_frame *frame)
#define EXCEPTION_HANDLER(name)                                                                    \
    static __attribute__((interrupt)) void name(                                                   \
        __attribute__((unused)) struct interrupt_frame *frame, uintptr_t error)

#else

#define INTERRUPT_HANDLER(name)                                                                    \
    void name(void);                                                                               \
    __attribute__((used)) static void name##_body(struct interrupt_frame *frame);                  \
    __asm__(".text; " #name ": pushad; cld; lea eax, [esp + 32]; push eax; call " #name "_body; "  \
            "pop eax; popad; push dword ptr [esp + 8]; popfd; retf 4");                            \
    static void name##_body(__attribute__((unused)) struct interrupt_frame *frame)
#define EXCEPTION_HANDLER(name)                                                                    \
    void name(void);                                                                               \
    __attribute__((used)) static void name##_body(struct interrupt_frame *frame, uintptr_t error); \
    __asm__(".text; " #name ": pushad; cld; push dword ptr [esp + 32]; lea eax, [esp + 40]; "      \
            "push eax; call " #name "_body; add esp, 8; popad; add esp, 4; "                       \
            "push dword ptr [esp + 8]; popfd; retf 4");                                            \
    static void name##_body(__attribute__((unused)) struct interrupt_frame *frame, uintptr_t error)

#endif

/* Load a table in which every exception prints itself and powers off. */
void interrupts_init(void);
void load_interrupt_table(void); /* on a further CPU */
void set_handler(unsigned vector, void *handler);

#endif
