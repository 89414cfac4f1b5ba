"""What files are that are no kernels for us: a table of signatures, and a closer look where the
signature alone doesn't say what to do.

People hand a VMM all sorts of things for a kernel. Each that is likely gets its own sentence and
the one best piece of advice. Where a signature has a document of its own it is named; the others
are those of file(1).

Left out: telling apart what needs the same advice (archives, Windows programs, kinds of FAT).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import NamedTuple

from pyvmm import layout
from pyvmm.boot import compression
from pyvmm.boot.image import Image, ImageBytes
from pyvmm.boot.kind import Kind, kernel_kind
from pyvmm.errors import PyvmmError
from pyvmm.memory import KIB, MIB, PAGE_SIZE

SECTOR_SIZE = 512

_NO_KERNEL = ", not a kernel"
_OTHER_KERNEL = "; PyVMM boots kernels for x86: bzImage, ELF, Multiboot"
_NO_EFI = "; PyVMM has no EFI firmware"

_AS_DISK = "--disk boots it"
_AS_FLOPPY = "--floppy boots it"
_AS_DATA_DISK = "--disk takes it, beside a --kernel"
_CONVERT = "for --disk, convert it: qemu-img convert -O raw FILE FILE.raw"
_RIGHT_FILE = "is it the right file?"

TEXT = Kind("text", "a text file", _NO_KERNEL)
DATA = Kind("data", "no kernel", " that PyVMM knows", "if it is a flat binary: --flat FILE")
EMPTY = Kind("zeros", "nothing but zeros at its beginning", _NO_KERNEL, _AS_DATA_DISK)


def _no_kernel(name: str, noun: str, hint: str = "") -> Kind:
    return Kind(name, noun, _NO_KERNEL, hint)


def _other_kernel(name: str, noun: str, hint: str = "") -> Kind:
    return Kind(name, noun, _OTHER_KERNEL, hint)


def _disk_format(name: str, noun: str) -> Kind:
    return Kind(name, f"{noun} disk image", _NO_KERNEL, _CONVERT)


def _file_system(name: str, noun: str) -> Kind:
    return Kind(name, noun, _NO_KERNEL, _AS_DATA_DISK)


# Closer looks: what it is; None if it isn't that after all.

_PE = struct.Struct("<4s2H12xH2x")
"""Signature, Machine, NumberOfSections, SizeOfOptionalHeader."""
_PE_OFFSET = 0x3C
_PE_SUBSYSTEM = 68
"""In the optional header."""
_PE_SECTION_SIZE = 40
_PE_MAX_SECTIONS = 96
_PE_EFI_SUBSYSTEMS = (10, 11, 12, 13)
_PE_MACHINES = {
    0x014C: "i386", 0x8664: "x86-64", 0x01C0: "32-bit Arm", 0x01C2: "32-bit Arm",
    0xAA64: "arm64", 0x5032: "RISC-V", 0x5064: "RISC-V", 0x6264: "LoongArch", 0x0200: "Itanium",
}  # fmt: skip


class _PeHeader(NamedTuple):
    """What counts of a PE file's headers."""

    cpu: str
    is_efi: bool
    sections: bytes


def _pe_header(image: Image) -> _PeHeader | None:
    """Microsoft's "PE Format". None if there is no such header."""
    offset = int.from_bytes(image.read(_PE_OFFSET, 4), "little")
    raw = image.read(offset, _PE.size)
    if len(raw) < _PE.size or not raw.startswith(b"PE\0\0"):
        return None
    _, machine, sections, optional_size = _PE.unpack(raw)
    optional = offset + _PE.size
    subsystem = int.from_bytes(image.read(optional + _PE_SUBSYSTEM, 2), "little")
    size = _PE_SECTION_SIZE * min(sections, _PE_MAX_SECTIONS)
    return _PeHeader(
        _PE_MACHINES.get(machine, f"machine {machine:#x}"),
        subsystem in _PE_EFI_SUBSYSTEMS,
        image.read(optional + optional_size, size),
    )


def _mz(image: Image) -> Kind:
    """A program for DOS, Windows or EFI; the UAPI Group's "Unified Kernel Image"."""
    header = _pe_header(image)
    if header is None:
        return _no_kernel("DOS program", "a DOS program", _RIGHT_FILE)
    if image.size <= SECTOR_SIZE:  # a bzImage's second sector tells it from an EFI program
        noun = f"only the first {image.size} bytes of a kernel or a program"
        return Kind("truncated", noun, ", not the whole of it", "copy it again")
    if not header.is_efi:
        return _no_kernel("Windows program", f"a Windows program for {header.cpu}", _RIGHT_FILE)
    starts = range(0, len(header.sections), _PE_SECTION_SIZE)
    if any(header.sections.startswith(b".linux\0\0", at) for at in starts):
        take_out = "objcopy -O binary -j .linux FILE vmlinuz takes the kernel out, .initrd likewise"
        return Kind("UKI", f"a unified kernel image (EFI) for {header.cpu}", _NO_EFI, take_out)
    return Kind("EFI", f"an EFI program for {header.cpu}", _NO_EFI)


def _zboot(image: Image) -> Kind:
    """Linux: drivers/firmware/efi/libstub/zboot-header.S. There is none for x86."""
    header = _pe_header(image)
    cpu = f" for {header.cpu}" if header else ""
    return _other_kernel("EFI zboot", f"a Linux kernel{cpu} (EFI zboot)")


_PACKED, _UNPACKED = 9 * MIB, 128 * KIB
"""How much of a compressed file is read (a block of LZ4 has to be whole), and unpacked."""


def _compressed(image: Image) -> Kind | None:
    packed = image.read(0, _PACKED)
    found = compression.compression_of(packed)
    assert found is not None  # the table's rows are those of COMPRESSIONS
    name, tool = found.name, found.tool
    try:
        start = compression.unpack(image.name, found, packed, _UNPACKED)
    except ValueError:
        if name == "lzma":  # three bytes are little to go by
            return None
        return Kind(name, f"compressed with {name}", ", and damaged")
    except PyvmmError:
        start = b""
    # What is compressed twice is left at that: there are files that unpack to themselves.
    inside = ImageBytes(image.name, start)
    inner = kernel_kind(inside) or _first(inside, nested=True) or DATA
    if not inner.verdict:
        return Kind(name, inner.noun, f", compressed with {name}", f"{tool} it first", inner.name)
    if inner is DATA:
        hint = f"{tool} it first, or is it the initrd?"
        return Kind(name, f"compressed with {name}", "; what is in it is unknown", hint)
    hint = inner.hint
    if hint in (_AS_DISK, _AS_FLOPPY, _AS_DATA_DISK, _CONVERT):
        hint = f"{tool} it first; {hint}"
    return Kind(name, f"{inner.noun} compressed with {name}", inner.verdict, hint, inner.name)


_BOOTABLE = b"\x55\xaa"
_BOOT_CODE_SIZE = 440
_PARTITIONS = struct.Struct("<B3xB3x2I")
"""Status, type, first sector, number of sectors."""
_PARTITION_TABLE = 446
_FLOPPY_SIZES = tuple(kib * KIB for kib in (160, 180, 320, 360, 720, 1200, 1440, 2880))


def _boot_sector(image: Image) -> Kind:
    """A sector that ends in 55 AA: the master boot record of a disk, the first sector of a FAT or
    NTFS file system, or whatever a PC's BIOS can boot."""
    sector = image.read(0, SECTOR_SIZE)
    empty = not any(sector[:_BOOT_CODE_SIZE])
    if image.size <= SECTOR_SIZE:
        return _no_kernel("boot sector", "a boot sector", "--flat runs it")
    if image.read(SECTOR_SIZE, 8) == b"EFI PART":  # UEFI specification, section 5.3
        name, noun = "GPT", "a disk image with a GUID partition table"
    elif sector[3:7] == b"NTFS" or sector[54:57] == b"FAT" or sector[82:87] == b"FAT32":
        name, noun = "FAT", "a FAT or NTFS file system"
    elif _has_partitions(sector):
        name, noun = "MBR", "a disk image with partitions"
    elif image.size in _FLOPPY_SIZES:
        name, noun = "floppy", "a floppy image"
    else:
        name, noun = "boot sector", "a boot sector with more behind it"
    if empty:
        return _no_kernel(name, f"{noun}, without a boot loader", _AS_DATA_DISK)
    return _no_kernel(name, noun, _AS_FLOPPY if image.size in _FLOPPY_SIZES else _AS_DISK)


def _has_partitions(sector: bytes) -> bool:
    table = sector[_PARTITION_TABLE : _PARTITION_TABLE + 4 * _PARTITIONS.size]
    entries = list(_PARTITIONS.iter_unpack(table))
    return all(status in (0, 0x80) for status, *_ in entries) and any(
        kind and start and size for _, kind, start, size in entries
    )


def _iso(image: Image) -> Kind:
    """ECMA-119. With a boot sector it can be a disk as well."""
    noun = "an ISO 9660 image"
    if image.read(SECTOR_SIZE - 2, 2) == _BOOTABLE:
        return _no_kernel("ISO 9660", noun, _AS_DISK)
    return _no_kernel("ISO 9660", noun, "take kernel and initrd out of it: 7z x FILE")


def _ext(image: Image) -> Kind | None:
    """Linux: Documentation/filesystems/ext4/super.rst. The magic has two bytes only."""
    log_block_size = int.from_bytes(image.read(0x418, 4), "little")
    revision = int.from_bytes(image.read(0x44C, 4), "little")
    if log_block_size > 6 or revision > 1:
        return None
    if image.read(SECTOR_SIZE - 2, 2) == _BOOTABLE:
        return _no_kernel("ext4", "an ext2, ext3 or ext4 file system with a boot sector", _AS_DISK)
    return _file_system("ext4", "an ext2, ext3 or ext4 file system")


def _device_tree(image: Image) -> Kind:
    """Devicetree Specification, section 5; a FIT image is one with a node "images"."""
    if b"\0\0\0\1images\0" in image.read(0, _UNPACKED):
        return _other_kernel("FIT", "a U-Boot image (FIT)")
    return _no_kernel("device tree", "a device tree", "this machine needs none")


def _fat_binary_or_class(image: Image) -> Kind:
    """Mach-O and Java share a magic; then comes a number of architectures or a version."""
    if int.from_bytes(image.read(4, 4), "big") < 45:
        return _no_kernel("Mach-O", "a macOS program", _RIGHT_FILE)
    return _no_kernel("Java class", "a Java class", _RIGHT_FILE)


def _fixed_vhd(image: Image) -> Kind | None:
    """Microsoft's "Virtual Hard Disk Image Format Specification": a footer is all it has."""
    footer = image.size - SECTOR_SIZE
    if footer < 0 or image.read(footer, 8) != b"conectix":
        return None
    return _disk_format("VHD", "a VHD")


_FAR_JUMP, _NEAR_JUMP = 0xEA, 0xE9
_RESET_VECTOR = 16
"""The CPU's first instruction is that far from the end of 4 GiB, and of a ROM."""


def _rom(image: Image) -> Kind | None:
    """No signature: a size that ROMs have, and a jump where the CPU starts."""
    if image.size % PAGE_SIZE or not 0 < image.size <= 16 * MIB:
        return None
    last = image.read(image.size - _RESET_VECTOR, _RESET_VECTOR)
    far = last[0] == _FAR_JUMP and last[4] >= 0x80
    if not far and _NEAR_JUMP not in last[:4]:
        return None
    if image.size > layout.ROM_MAX_SIZE:
        limit = f"; PyVMM's --firmware takes at most {layout.ROM_MAX_SIZE // KIB} KiB"
        return Kind("ROM", f"a ROM of {image.size // KIB} KiB", limit)
    return _no_kernel("ROM", "a BIOS or other firmware", "--firmware starts it")


_Look = Callable[[Image], Kind | None]

SIGNATURES: tuple[tuple[int, bytes, Kind | _Look], ...] = (
    # Kernels for others. Linux: Documentation/arch/arm64/booting.rst, arch/riscv/boot-image-
    # header.rst, arch/loongarch/booting.rst, arch/arm/booting.rst, drivers/firmware/efi/libstub.
    (0x038, b"ARM\x64", _other_kernel("arm64 Image", "a kernel for arm64")),
    (0x038, b"RSC\x05", _other_kernel("RISC-V Image", "a Linux kernel for RISC-V")),
    (0x024, b"\x18\x28\x6f\x01", _other_kernel("arm zImage", "a Linux kernel for 32-bit Arm")),
    (0x024, b"\x01\x6f\x28\x18", _other_kernel("arm zImage", "a Linux kernel for 32-bit Arm")),
    (0x004, b"zimg", _zboot),
    (0x10008, b"S390EP", _other_kernel("s390 Image", "a Linux kernel for S/390")),
    (0x000, b"\x27\x05\x19\x56", _other_kernel("uImage", "a U-Boot image (uImage)")),
    (0x000, b"ANDROID!", _other_kernel("Android boot image", "an Android boot image")),
    (0x000, b"\xd0\x0d\xfe\xed", _device_tree),
    # Programs. a.out: Linux's include/uapi/linux/a.out.h, with the machine M_386 or none.
    (0x000, b"MZ", _mz),
    (0x000, b"\x07\x01\x64\x00", _other_kernel("a.out", "an a.out program")),
    (0x000, b"\x08\x01\x64\x00", _other_kernel("a.out", "an a.out program")),
    (0x000, b"\x0b\x01\x64\x00", _other_kernel("a.out", "an a.out program")),
    (0x000, b"\xcc\x00\x64\x00", _other_kernel("a.out", "an a.out program")),
    (0x000, b"\xca\xfe\xba\xbe", _fat_binary_or_class),
    (0x000, b"\xcf\xfa\xed\xfe", _no_kernel("Mach-O", "a macOS program", _RIGHT_FILE)),
    (0x000, b"\xce\xfa\xed\xfe", _no_kernel("Mach-O", "a macOS program", _RIGHT_FILE)),
    (0x000, b"\0asm", _no_kernel("WebAssembly", "a WebAssembly module", _RIGHT_FILE)),
    (0x000, b"#!", _no_kernel("script", "a script", _RIGHT_FILE)),
    (0x000, b"BC\xc0\xde", _no_kernel("LLVM bitcode", "LLVM bitcode", "compile and link it")),
    (0x000, b"!<arch>\ndebian", _no_kernel("deb", "a Debian package", "dpkg-deb -x unpacks it")),
    (0x000, b"!<arch>\n", _no_kernel("ar", "a library of object files", "link it into a kernel")),
    # Compressed.
    *((0x000, c.magic, _compressed) for c in compression.COMPRESSIONS),
    # Archives. cpio: Linux's Documentation/driver-api/early-userspace/buffer-format.rst.
    (0x000, b"070701", _no_kernel("cpio", "a cpio archive", "as an initrd: --initrd takes it")),
    (0x000, b"070702", _no_kernel("cpio", "a cpio archive", "as an initrd: --initrd takes it")),
    (0x000, b"070707", _no_kernel("cpio", "an old cpio archive", "Linux wants cpio -H newc")),
    (0x000, b"\xc7\x71", _no_kernel("cpio", "an old cpio archive", "Linux wants cpio -H newc")),
    (0x101, b"ustar", _no_kernel("tar", "a tar archive", "unpack it first: tar xf")),
    (0x000, b"PK\x03\x04", _no_kernel("zip", "a zip archive", "unzip it first")),
    (0x000, b"7z\xbc\xaf\x27\x1c", _no_kernel("7z", "a 7z archive", "7z x unpacks it")),
    (0x000, b"\xed\xab\xee\xdb", _no_kernel("rpm", "an RPM package", "rpm2cpio unpacks it")),
    # Formats of disk images, as far as qemu-img reads them.
    (0x000, b"QFI\xfb\0\0\0\1", _disk_format("qcow", "a qcow")),
    (0x000, b"QFI\xfb", _disk_format("qcow2", "a qcow2")),
    (0x000, b"KDMV", _disk_format("VMDK", "a VMDK")),
    (0x000, b"COWD", _disk_format("VMDK", "a VMDK")),
    (0x000, b"# Disk Descriptor", _disk_format("VMDK", "the descriptor of a VMDK")),
    (0x000, b"vhdxfile", _disk_format("VHDX", "a VHDX")),
    (0x000, b"conectix", _disk_format("VHD", "a VHD")),
    (0x040, b"\x7f\x10\xda\xbe", _disk_format("VDI", "a VDI")),
    (0x000, b"QED\0", _disk_format("QED", "a QED")),
    (0x000, b"WithoutFreeSpace", _disk_format("Parallels", "a Parallels")),
    (0x000, b"WithouFreSpacExt", _disk_format("Parallels", "a Parallels")),
    # Disks and file systems. 55 AA comes late: it says least.
    (0x8001, b"CD001", _iso),
    (0x438, b"\x53\xef", _ext),
    (0x000, b"hsqs", _file_system("squashfs", "a squashfs file system")),
    (0x400, b"\xe2\xe1\xf5\xe0", _file_system("erofs", "an EROFS file system")),
    (0x400, b"\x10\x20\xf5\xf2", _file_system("f2fs", "an F2FS file system")),
    (0x000, b"XFSB", _file_system("xfs", "an XFS file system")),
    (0x10040, b"_BHRfS_M", _file_system("btrfs", "a Btrfs file system")),
    (0x000, b"\x45\x3d\xcd\x28", _file_system("cramfs", "a cramfs file system")),
    (0x000, b"-rom1fs-", _file_system("romfs", "a romfs file system")),
    (0x218, b"LVM2 001", _file_system("LVM", "a physical volume of LVM")),
    (0x000, b"LUKS\xba\xbe", _file_system("LUKS", "an encrypted volume (LUKS)")),
    (0xFF6, b"SWAPSPACE2", _file_system("swap", "swap space")),
    # Firmware. PCI Firmware Specification, section 5.1; ACPI, section 5.2; UEFI PI, volume 3.
    (0x000, _BOOTABLE, _no_kernel("option ROM", "an option ROM", "--firmware is for a BIOS")),
    (0x000, b"DSDT", _no_kernel("ACPI table", "an ACPI table", _RIGHT_FILE)),
    (0x028, b"_FVH", Kind("EFI firmware", "EFI firmware", "; PyVMM starts a BIOS only")),
    (0x1028, b"_FVH", Kind("EFI firmware", "EFI firmware", "; PyVMM starts a BIOS only")),  # Arm's
    # Others that are seen in the place of kernels.
    (0x000, b"\r\nSYSLINUX", _no_kernel("SYSLINUX", "a part of SYSLINUX", "--disk boots a disk")),
    (0x000, b"version https://git-lfs", _no_kernel("LFS", "a Git LFS pointer", "git lfs pull")),
    (0x000, b"<!DOCTYPE", _no_kernel("HTML", "a web page", "has the download failed?")),
    (0x000, b"<html", _no_kernel("HTML", "a web page", "has the download failed?")),
    (0x000, b"%PDF", _no_kernel("PDF", "a PDF document", _RIGHT_FILE)),
    (0x1FE, _BOOTABLE, _boot_sector),
)  # fmt: skip
"""Offset, bytes there, what that means; the first that fits counts."""

_WITHOUT_SIGNATURE: tuple[_Look, ...] = (_fixed_vhd, _rom)
_SNIFFED = 4096
_ZEROS_LOOKED_AT = 64 * KIB


def look(image: Image) -> Kind:
    """What ``image`` is, which is neither a bzImage nor an ELF file."""
    kind = _first(image)
    if kind is not None:
        return kind
    start = image.read(0, _SNIFFED)
    if _is_text(start):
        return TEXT
    for closer_look in _WITHOUT_SIGNATURE:
        kind = closer_look(image)
        if kind is not None:
            return kind
    if image.size >= _ZEROS_LOOKED_AT and not any(image.read(0, _ZEROS_LOOKED_AT)):
        return EMPTY
    return DATA


def _first(image: Image, *, nested: bool = False) -> Kind | None:
    for offset, magic, kind in SIGNATURES:
        if image.read(offset, len(magic)) != magic:
            continue
        if not callable(kind):
            return kind
        if nested and kind is _compressed:
            return None
        found = kind(image)
        if found is not None:
            return found
    return None


def _is_text(start: bytes) -> bool:
    if any(byte < 0x20 and byte not in b"\t\n\f\r\x1b" for byte in start):
        return False
    try:
        # A character may be cut in two at the end of what was read.
        start[: max(len(start) - 3, 1)].decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
