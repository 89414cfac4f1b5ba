"""The first vCPU's state when a guest is entered, and what that state points at in memory.

A boot protocol says in which mode a kernel is entered (Intel SDM volume 3, chapters 3 to 5 and
10; AMD APM volume 2, chapters 4, 5 and 14). There are three here:

* long mode, flat, with the first 4 GiB identity-mapped: the Linux 64-bit boot protocol;
* protected mode, flat, without paging: the Linux 32-bit boot protocol and PVH;
* real mode: flat binaries.

Interrupts are off in all of them and there is no IDT (except real mode's, which lies at 0), so a
guest that faults before it has loaded its own ends in a triple fault. Other vCPUs have no entry
state: they wait for INIT and SIPI.
"""

from __future__ import annotations

from typing import NamedTuple

from pyvmm import layout
from pyvmm.memory import GIB, MIB, PAGE_SIZE, GuestMemory


class Cr0:
    PE = 1 << 0
    ET = 1 << 4
    NW = 1 << 29
    CD = 1 << 30
    PG = 1 << 31


class Cr4:
    PAE = 1 << 5


class Efer:
    LME = 1 << 8
    LMA = 1 << 10


class PageFlags:
    PRESENT = 1 << 0
    WRITABLE = 1 << 1
    PAGE_SIZE = 1 << 7


RFLAGS_RESERVED = 1 << 1
"""The bit of RFLAGS that always reads as one."""

BOOT_CS = 0x10
BOOT_DS = 0x18
"""The selectors that the Linux boot protocol asks for."""

GDT_SIZE = 4 * 8
IDENTITY_MAP_SIZE = 4 * GIB
PAGE_TABLES_SIZE = 6 * PAGE_SIZE
"""A PML4, a page-directory-pointer table and four page directories."""

REAL_MODE_IDT_LIMIT = 0x3FF

_CODE = 0xB
"""Segment type: code, readable, accessed."""
_DATA = 0x3
"""Segment type: data, writable, accessed."""
_LDT = 0x2
_BUSY_TSS = 0xB


class Segment(NamedTuple):
    """A segment register with its hidden part, field by field as KVM has it: ``type`` to ``avl``
    are the descriptor's bits, ``limit`` counts bytes whatever ``g`` says."""

    base: int
    limit: int
    selector: int
    type: int
    present: int = 1
    dpl: int = 0
    db: int = 0
    s: int = 1
    l: int = 0  # noqa: E741 (the name in the manuals)
    g: int = 0
    avl: int = 0
    unusable: int = 0

    def descriptor(self) -> int:
        """The segment as a GDT entry."""
        limit = self.limit >> 12 if self.g else self.limit
        attributes = (
            self.type | self.s << 4 | self.dpl << 5 | self.present << 7
            | self.avl << 12 | self.l << 13 | self.db << 14 | self.g << 15
        )  # fmt: skip
        return (
            limit & 0xFFFF
            | (self.base & 0xFF_FFFF) << 16
            | attributes << 40
            | (limit >> 16 & 0xF) << 48
            | (self.base >> 24 & 0xFF) << 56
        )


class DescriptorTable(NamedTuple):
    """GDTR or IDTR."""

    base: int
    limit: int


_FLAT_LIMIT = 0xFFFF_FFFF
_NO_LDT = Segment(0, 0xFFFF, 0, _LDT, present=0, s=0, unusable=1)
_TSS_16 = Segment(0, 0xFFFF, 0, _BUSY_TSS, s=0)
_TSS_32 = Segment(0, 0x67, 0, _BUSY_TSS, s=0)
_FLAT_CODE_64 = Segment(0, _FLAT_LIMIT, BOOT_CS, _CODE, l=1, g=1)
_FLAT_CODE_32 = Segment(0, _FLAT_LIMIT, BOOT_CS, _CODE, db=1, g=1)
_FLAT_DATA = Segment(0, _FLAT_LIMIT, BOOT_DS, _DATA, db=1, g=1)
_NO_IDT = DescriptorTable(0, 0)


class RealModeKernel(NamedTuple):
    """A kernel in memory that the BIOS enters once it has started: its code begins 0x20 paragraphs
    behind ``segment``, which all segment registers but CS have then."""

    segment: int
    sp: int


class EntryState(NamedTuple):
    """Registers at a guest's entry. ``registers`` has the general registers, ``rip`` and
    ``rflags`` under KVM's names; one that is missing is zero. With a ``kernel``, the entry is that
    of a BIOS, which has to be there. With ``fw_cfg`` the guest may look for that device. ``remark``
    is a line for the user, of what the guest wants and isn't there."""

    registers: dict[str, int]
    cs: Segment
    ds: Segment
    es: Segment
    fs: Segment
    gs: Segment
    ss: Segment
    tr: Segment
    ldt: Segment
    gdt: DescriptorTable
    idt: DescriptorTable
    cr0: int
    cr3: int = 0
    cr4: int = 0
    efer: int = 0
    kernel: RealModeKernel | None = None
    fw_cfg: bool = False
    remark: str = ""

    @classmethod
    def long_mode(cls, memory: GuestMemory, rip: int, **registers: int) -> EntryState:
        """Flat 64-bit mode at ``rip``; writes the GDT and the page tables."""
        write_identity_page_tables(memory)
        return cls._flat(
            memory,
            _FLAT_CODE_64,
            {"rip": rip, **registers},
            cr0=Cr0.PE | Cr0.ET | Cr0.PG,
            cr3=layout.BOOT_PAGE_TABLES,
            cr4=Cr4.PAE,
            efer=Efer.LME | Efer.LMA,
        )

    @classmethod
    def protected_mode(
        cls,
        memory: GuestMemory,
        eip: int,
        selectors: tuple[int, int] = (BOOT_CS, BOOT_DS),
        **registers: int,
    ) -> EntryState:
        """Flat 32-bit mode without paging at ``eip``; writes the GDT. ``selectors`` are those of
        code and data."""
        cs, ds = selectors
        return cls._flat(
            memory,
            _FLAT_CODE_32._replace(selector=cs),
            {"rip": eip, **registers},
            data=_FLAT_DATA._replace(selector=ds),
            cr0=Cr0.PE | Cr0.ET,
        )

    @classmethod
    def real_mode(cls, cs: int, ip: int, **registers: int) -> EntryState:
        """Real mode at ``cs:ip``; the other segments are zero."""
        data = Segment(0, 0xFFFF, 0, _DATA)
        return cls(
            registers={"rip": ip, "rflags": RFLAGS_RESERVED, **registers},
            cs=Segment(cs << 4, 0xFFFF, cs, _CODE),
            ds=data,
            es=data,
            fs=data,
            gs=data,
            ss=data,
            tr=_TSS_16,
            ldt=_NO_LDT,
            gdt=DescriptorTable(0, 0xFFFF),
            idt=DescriptorTable(0, REAL_MODE_IDT_LIMIT),
            cr0=Cr0.ET,
        )

    @classmethod
    def reset_vector(cls) -> EntryState:
        """What RESET leaves (SDM volume 3, table 10-1): real mode, but for the base of CS."""
        state = cls.real_mode(0xF000, 0xFFF0)
        return state._replace(
            cs=state.cs._replace(base=0xFFFF_0000),
            gdt=DescriptorTable(0, 0xFFFF),
            idt=DescriptorTable(0, 0xFFFF),
            cr0=Cr0.ET | Cr0.CD | Cr0.NW,
        )

    @classmethod
    def _flat(
        cls,
        memory: GuestMemory,
        code: Segment,
        registers: dict[str, int],
        data: Segment = _FLAT_DATA,
        *,
        cr0: int,
        cr3: int = 0,
        cr4: int = 0,
        efer: int = 0,
    ) -> EntryState:
        write_gdt(memory, code, data)
        return cls(
            registers={"rflags": RFLAGS_RESERVED, **registers},
            cs=code,
            ds=data,
            es=data,
            fs=data,
            gs=data,
            ss=data,
            tr=_TSS_32,
            ldt=_NO_LDT,
            gdt=DescriptorTable(layout.BOOT_GDT, GDT_SIZE - 1),
            idt=_NO_IDT,
            cr0=cr0,
            cr3=cr3,
            cr4=cr4,
            efer=efer,
        )


def entry_name(entry: str) -> str:
    """An entry point's name in a sentence."""
    return {
        "64": "64-bit",
        "16": "16-bit",
        "32": "32-bit",
        "pvh": "PVH",
        "real": "real-mode",
        "multiboot": "Multiboot",
        "multiboot2": "Multiboot 2",
    }.get(entry, entry)


def write_gdt(memory: GuestMemory, code: Segment, data: Segment) -> None:
    """The boot GDT: the two flat segments, and otherwise unused entries."""
    memory.fill(layout.BOOT_GDT, GDT_SIZE)
    memory.write_u64(layout.BOOT_GDT + code.selector, code.descriptor())
    memory.write_u64(layout.BOOT_GDT + data.selector, data.descriptor())


def write_identity_page_tables(memory: GuestMemory) -> None:
    """Map the first 4 GiB one to one with 2 MiB pages, for the supervisor only."""
    pml4 = layout.BOOT_PAGE_TABLES
    pdpt = pml4 + PAGE_SIZE
    directories = pdpt + PAGE_SIZE
    table = PageFlags.PRESENT | PageFlags.WRITABLE
    leaf = table | PageFlags.PAGE_SIZE

    memory.fill(pml4, 2 * PAGE_SIZE)
    memory.write_u64(pml4, pdpt | table)
    for gigabyte in range(IDENTITY_MAP_SIZE // GIB):
        memory.write_u64(pdpt + 8 * gigabyte, directories + gigabyte * PAGE_SIZE | table)
    entries = b"".join(
        (address | leaf).to_bytes(8, "little") for address in range(0, IDENTITY_MAP_SIZE, 2 * MIB)
    )
    memory.write(directories, entries)
