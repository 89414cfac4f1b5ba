"""inspect's table: an image of every kind that it knows, made by hand, and what is said of it."""

from __future__ import annotations

import bz2
import gzip
import lzma
import random
import re
import struct
import sys
from pathlib import Path

import lz4.block
import lz4.frame
import pytest
import zstandard
from unit.images import Segment, bzimage, elf, note, pvh_note

from pyvmm import boot
from pyvmm.boot import compression, identify, signatures
from pyvmm.boot.kind import Kind
from pyvmm.errors import ImageError
from pyvmm.memory import KIB, MIB, GuestMemory

BASE = 0x10_0000


def at(*pieces: tuple[int, bytes], size: int = 0) -> bytes:
    """Zeros with these bytes at these offsets."""
    data = bytearray(max(size, *(offset + len(piece) for offset, piece in pieces)))
    for offset, piece in pieces:
        data[offset : offset + len(piece)] = piece
    return bytes(data)


def portable_executable(machine: int, subsystem: int, *sections: bytes) -> bytes:
    """An MZ file with a PE header, in the 64-bit form as far as it matters."""
    optional = at((68, struct.pack("<H", subsystem)), size=240)
    header = struct.pack("<4s2H12x2H", b"PE\0\0", machine, len(sections), len(optional), 0)
    table = b"".join(name.ljust(40, b"\0") for name in sections)
    start = at((0, b"MZ"), (0x3C, struct.pack("<I", 0x80)), (0x80, header + optional + table))
    return start.ljust(600, b"\0")


def multiboot(flags: int, *addresses: int) -> bytes:
    """A Multiboot header."""
    magic = 0x1BADB002
    return struct.pack(f"<3I{len(addresses)}I", magic, flags, -(magic + flags) % 2**32, *addresses)


def multiboot2(*tags: bytes) -> bytes:
    """A Multiboot 2 header."""
    magic, body = 0xE85250D6, b"".join(tags) + struct.pack("<HHI", 0, 0, 8)
    length = 16 + len(body)
    return struct.pack("<4I", magic, 0, length, -(magic + length) % 2**32) + body


def lz4_legacy(data: bytes) -> bytes:
    block = lz4.block.compress(data, store_size=False)
    return b"\x02\x21\x4c\x18" + len(block).to_bytes(4, "little") + block


def header(magic: bytes, size: int = 600) -> bytes:
    return magic.ljust(size, b"\xcc")


def partition_table(kind: int) -> bytes:
    entry = struct.pack("<B3xB3x2I", 0x80, kind, 2048, 4096)
    return at((446, entry), (510, b"\x55\xaa"))


BOOT_CODE = b"\xfa\x31\xc0"
BOOTABLE = (510, b"\x55\xaa")
CPIO = b"070701" + b"0" * 104
TAG_OF_AN_OS = Segment(0, note(b"GNU", 1, struct.pack("<4I", 0, 3, 2, 0)), kind=4)
DYNAMIC = Segment(0, bytes(16), kind=2)
ELF_64 = elf(Segment(BASE))

TABLE = {
    # Kernels.
    "bzImage": (bzimage(), "bzImage", "64-bit entry of the Linux .* at 0x1000200"),
    "a 32-bit bzImage": (bzimage(xloadflags=0), "bzImage", "32-bit entry of .* at 0x1000000"),
    "old bzImage": (bzimage(version=0x202), "bzImage", "32-bit entry of the .* at 0x100000"),
    "zImage": (bzimage(loadflags=0), "bzImage", "16-bit entry of .* at 0x90200, through the BIOS"),
    "lkrn": (bzimage(syssize=0), "bzImage", "16-bit entry"),
    "protocol 2.00": (bzimage(version=0x200), "bzImage", "boot protocol 2.00; 2.02 is the oldest"),
    "cut bzImage": (bzimage()[:-99], "bzImage", "truncated"),
    "ELF64": (ELF_64, "ELF", "the 64-bit entry at 0x100000"),
    "ELF32": (elf(Segment(BASE), bits=32), "ELF", "the 32-bit entry at 0x100000"),
    "PVH": (elf(Segment(BASE), pvh_note(BASE)), "ELF", "the PVH entry at 0x100000"),
    "Multiboot": (
        elf(Segment(BASE, multiboot(3))), "ELF", "Multiboot, in 32-bit protected mode at 0x100000"
    ),
    "Multiboot 2": (
        elf(Segment(BASE, bytes(8) + multiboot2())), "ELF", "Multiboot 2, in 32-bit .* at 0x100000"
    ),
    "flat Multiboot": (
        multiboot(1 << 16, BASE, BASE, 0, 0, BASE) + bytes(600), "Multiboot", "Multiboot, in 32-bit"
    ),
    "flat Multiboot 2": (
        multiboot2(struct.pack("<HHI4I", 2, 0, 24, BASE, BASE, 0, 0),
                   struct.pack("<HHI2I", 3, 0, 12, BASE, 0)) + bytes(600),
        "Multiboot", "Multiboot 2, in 32-bit",
    ),
    "FreeBSD": (  # whose PT_INTERP is a red herring
        elf(Segment(BASE), pvh_note(BASE), Segment(0, b"/red/herring\0", kind=3)), "ELF", "PVH"
    ),
    # ELF files that are none.
    "program": (elf(Segment(BASE), Segment(0, b"/lib/ld.so\0", kind=3)), "ELF", "PT_INTERP"),
    "static program": (elf(Segment(BASE), TAG_OF_AN_OS), "ELF", "program for .* GNU ABI tag"),
    "library": (elf(Segment(0), DYNAMIC, entry=0, elf_type=3), "ELF", "a shared library, not a"),
    "object": (elf(elf_type=1), "ELF", "a relocatable object"),
    "core dump": (elf(elf_type=4), "ELF", "a core dump, not a kernel"),
    "x32": (elf(Segment(BASE), bits=32, machine=62), "ELF", "ELF32 for x86-64; no kernel is that"),
    "arm64 ELF": (elf(Segment(BASE), machine=183), "ELF", "an ELF for AArch64; PyVMM runs x86"),
    "big-endian ELF": (
        b"\x7fELF\2\2\1".ljust(16, b"\0") + struct.pack(">2H", 2, 22) + bytes(44),
        "ELF", "a big-endian ELF for S/390; PyVMM runs x86",
    ),
    "low ELF": (elf(Segment(0x7000)), "ELF", "where the zero page .* must go"),
    "high ELF": (elf(Segment(0xC000_0000)), "ELF", "which is not all RAM"),
    # Kernels for others.
    "arm64 Image": (at((0x38, b"ARM\x64"), size=600), "arm64 Image", "a kernel for arm64; PyVMM"),
    "RISC-V Image": (at((0x38, b"RSC\x05"), size=600), "RISC-V Image", "for RISC-V; PyVMM boots"),
    "arm zImage": (at((0x24, b"\x18\x28\x6f\x01"), size=600), "arm zImage", "for 32-bit Arm;"),
    "big-endian zImage": (at((0x24, b"\x01\x6f\x28\x18"), size=600), "arm zImage", "32-bit Arm;"),
    "s390 Image": (at((0x10008, b"S390EP"), size=70_000), "s390 Image", "for S/390; PyVMM boots"),
    "EFI zboot": (at((0, b"MZ\0\0zimg"), size=600), "EFI zboot", r"kernel \(EFI zboot\); PyVMM"),
    "EFI zboot for LoongArch": (
        at((0, portable_executable(0x6264, 10)), (0, b"MZ\0\0zimg")), "EFI zboot",
        r"a Linux kernel for LoongArch \(EFI zboot\); PyVMM boots kernels for x86",
    ),
    "uImage": (header(b"\x27\x05\x19\x56"), "uImage", r"a U-Boot image \(uImage\)"),
    "FIT": (
        at((0, b"\xd0\x0d\xfe\xed"), (60, b"\0\0\0\1images\0")), "FIT", r"a U-Boot image \(FIT\)"
    ),
    "device tree": (header(b"\xd0\x0d\xfe\xed"), "device tree", "a device tree, not a kernel"),
    "Android": (header(b"ANDROID!"), "Android boot image", "an Android boot image"),
    # Programs.
    "EFI": (portable_executable(0x8664, 10), "EFI", "EFI program for x86-64; PyVMM has no EFI"),
    "cut EFI": (
        portable_executable(0x8664, 10)[:512], "truncated",
        "only the first 512 bytes of a kernel or a program",
    ),
    "UKI": (
        portable_executable(0x8664, 10, b".text", b".linux"), "UKI",
        r"a unified kernel image \(EFI\) for x86-64; .*objcopy -O binary -j \.linux FILE vmlinuz",
    ),
    "Windows": (portable_executable(0x14C, 3), "Windows program", "a Windows program for i386"),
    "DOS": (header(b"MZ"), "DOS program", "a DOS program, not a kernel"),
    "a.out OMAGIC": (header(b"\x07\x01\x64\0"), "a.out", "an a.out program; PyVMM boots"),
    "a.out NMAGIC": (header(b"\x08\x01\x64\0"), "a.out", "an a.out program"),
    "a.out ZMAGIC": (header(b"\x0b\x01\x64\0"), "a.out", "an a.out program"),
    "a.out QMAGIC": (header(b"\xcc\0\x64\0"), "a.out", "an a.out program"),
    "Java": (header(b"\xca\xfe\xba\xbe\0\0\0\x3d"), "Java class", "a Java class, not a kernel"),
    "fat Mach-O": (header(b"\xca\xfe\xba\xbe\0\0\0\2"), "Mach-O", "a macOS program"),
    "Mach-O 64": (header(b"\xcf\xfa\xed\xfe"), "Mach-O", "a macOS program"),
    "Mach-O 32": (header(b"\xce\xfa\xed\xfe"), "Mach-O", "a macOS program"),
    "wasm": (header(b"\0asm"), "WebAssembly", "a WebAssembly module"),
    "script": (b"#!/bin/sh\n", "script", "a script, not a kernel"),
    "bitcode": (header(b"BC\xc0\xde"), "LLVM bitcode", "LLVM bitcode, .*compile and link"),
    "deb": (header(b"!<arch>\ndebian-binary"), "deb", "a Debian package.*dpkg-deb -x"),
    "ar": (header(b"!<arch>\nx.o/"), "ar", "a library of object files"),
    # Compressed.
    "bzip2": (bz2.compress(CPIO), "bzip2", "a cpio archive compressed with bzip2, .*--initrd"),
    "xz": (lzma.compress(CPIO), "xz", "a cpio archive compressed with xz, .*--initrd takes it"),
    "lzma": (lzma.compress(CPIO, lzma.FORMAT_ALONE), "lzma", "archive compressed with lzma, "),
    "zstd": (zstandard.compress(CPIO), "zstd", "a cpio archive compressed with zstd, .*--initrd"),
    "lz4": (lz4.frame.compress(CPIO), "lz4", "a cpio archive compressed with lz4, .*--initrd"),
    "legacy lz4": (lz4_legacy(CPIO), "lz4", "a cpio archive compressed with lz4, .*--initrd"),
    "lzo": (header(b"\x89LZO\0\r\n\x1a\n"), "lzo", "compressed with lzo; what is in it is unknown"),
    "initrd.gz": (gzip.compress(CPIO), "gzip", "a cpio archive compressed with gzip, .*--initrd"),
    "arm64.gz": (
        gzip.compress(at((0x38, b"ARM\x64"), size=600)), "gzip",
        "a kernel for arm64 compressed with gzip; PyVMM boots kernels for x86",
    ),
    "disk.gz": (
        gzip.compress(at((0, BOOT_CODE), (0, partition_table(0x83)), size=9999)), "gzip",
        "a disk image with partitions.* compressed with gzip, .*gunzip it first; --disk",
    ),
    "twice": (gzip.compress(gzip.compress(ELF_64)), "gzip", "what is in it is unknown .gunzip it"),
    "damaged": (gzip.compress(ELF_64)[:5] + b"\xff" * 99, "gzip", "with gzip, and damaged"),
    # Archives.
    "cpio": (CPIO, "cpio", "a cpio archive, not a kernel.*--initrd takes it"),
    "cpio with checksums": (b"070702" + CPIO[6:], "cpio", "a cpio archive, .*--initrd takes it"),
    "odc": (b"070707" + b"0" * 70, "cpio", "an old cpio archive, .*cpio -H newc"),
    "binary cpio": (header(b"\xc7\x71"), "cpio", "an old cpio archive"),
    "tar": (at((0x101, b"ustar"), size=600), "tar", "a tar archive, not a kernel .unpack it"),
    "tar of a kernel": (  # whose Multiboot header is not the archive's
        at((0x101, b"ustar"), (512, multiboot(3)), size=9999), "tar", "a tar archive"
    ),
    "zip": (header(b"PK\3\4"), "zip", "a zip archive, not a kernel .unzip it"),
    "7z": (header(b"7z\xbc\xaf\x27\x1c"), "7z", "a 7z archive"),
    "rpm": (header(b"\xed\xab\xee\xdb"), "rpm", "an RPM package"),
    # Disk images.
    "qcow": (header(b"QFI\xfb\0\0\0\1"), "qcow", "a qcow disk image, .*qemu-img convert -O raw"),
    "qcow2": (header(b"QFI\xfb\0\0\0\3"), "qcow2", "a qcow2 disk image, .*qemu-img convert"),
    "VMDK": (header(b"KDMV"), "VMDK", "a VMDK disk image"),
    "old VMDK": (header(b"COWD"), "VMDK", "a VMDK disk image"),
    "VMDK text": (b"# Disk DescriptorFile\n", "VMDK", "the descriptor of a VMDK disk image"),
    "VHDX": (header(b"vhdxfile"), "VHDX", "a VHDX disk image"),
    "VHD": (header(b"conectix"), "VHD", "a VHD disk image"),
    "fixed VHD": (at((8192, b"conectix"), size=8704), "VHD", "a VHD disk image"),
    "VDI": (at((0x40, b"\x7f\x10\xda\xbe"), size=600), "VDI", "a VDI disk image"),
    "QED": (header(b"QED\0"), "QED", "a QED disk image"),
    "Parallels": (header(b"WithoutFreeSpace"), "Parallels", "a Parallels disk image"),
    "Parallels 2": (header(b"WithouFreSpacExt"), "Parallels", "a Parallels disk image"),
    "MBR": (
        at((0, partition_table(0x83)), (0, BOOT_CODE), size=9999), "MBR",
        "a disk image with partitions, not a kernel .--disk boots it",
    ),
    "MBR of data": (
        at((0, partition_table(0x83)), size=9999), "MBR",
        "a disk image with partitions, without a boot loader, .*--disk takes it, beside a --kernel",
    ),
    "GPT": (
        at((0, partition_table(0xEE)), (512, b"EFI PART"), size=9999), "GPT",
        "a GUID partition table, without a boot loader",
    ),
    "FAT": (
        at((0, b"\xeb\x3c\x90"), (54, b"FAT16   "), BOOTABLE, size=9999), "FAT", "a FAT or NTFS"
    ),
    "floppy": (at((0, BOOT_CODE), BOOTABLE, size=1440 * KIB), "floppy", "a floppy image"),
    "boot sector": (
        at((0, BOOT_CODE), BOOTABLE), "boot sector", "a boot sector, not a kernel .--flat runs it"
    ),
    "boot sectors": (at((0, BOOT_CODE), BOOTABLE, size=999), "boot sector", "with more behind it"),
    "hybrid ISO": (
        at((0, BOOT_CODE), BOOTABLE, (0x8001, b"CD001")), "ISO 9660", "ISO 9660.*--disk boots it"
    ),
    "ISO": (at((0x8001, b"CD001")), "ISO 9660", "an ISO 9660 image.* out of it"),
    "zeros": (bytes(64 * KIB), "zeros", "nothing but zeros .*--disk takes it"),
    # File systems.
    "ext4": (at((0x438, b"\x53\xef"), size=4096), "ext4", "ext4 file system, .*--disk takes it"),
    "ext4 with a loader": (
        at((0x438, b"\x53\xef"), (0, BOOT_CODE), BOOTABLE, size=4096), "ext4", "--disk boots it"
    ),
    "ext4 by chance": (
        at((0x418, b"\xff"), (0x438, b"\x53\xef"), BOOTABLE, size=4096), "boot sector", "boot sec"
    ),
    "squashfs": (header(b"hsqs"), "squashfs", "a squashfs file system, .*--disk takes it"),
    "erofs": (at((0x400, b"\xe2\xe1\xf5\xe0")), "erofs", "an EROFS file system"),
    "f2fs": (at((0x400, b"\x10\x20\xf5\xf2")), "f2fs", "an F2FS file system"),
    "xfs": (header(b"XFSB"), "xfs", "an XFS file system"),
    "btrfs": (at((0x10040, b"_BHRfS_M")), "btrfs", "a Btrfs file system"),
    "cramfs": (header(b"\x45\x3d\xcd\x28"), "cramfs", "a cramfs file system"),
    "romfs": (header(b"-rom1fs-"), "romfs", "a romfs file system"),
    "LVM": (at((0x218, b"LVM2 001"), size=1024), "LVM", "a physical volume of LVM"),
    "LUKS": (header(b"LUKS\xba\xbe"), "LUKS", "an encrypted volume"),
    "swap": (at((0xFF6, b"SWAPSPACE2")), "swap", "swap space, not a kernel"),
    # Firmware.
    "option ROM": (header(b"\x55\xaa\x02"), "option ROM", "an option ROM, not a kernel"),
    "ACPI table": (header(b"DSDT\0"), "ACPI table", "an ACPI table"),
    "OVMF": (at((0x28, b"_FVH"), size=600), "EFI firmware", "EFI firmware; PyVMM starts a BIOS"),
    "AAVMF": (at((0x1028, b"_FVH"), size=4608), "EFI firmware", "EFI firmware; PyVMM starts a"),
    "BIOS": (
        at((64 * KIB - 16, b"\xea\x5b\xe0\0\xf0"), size=64 * KIB), "ROM", "BIOS .*--firmware starts"
    ),
    "large ROM": (
        at((MIB - 16, b"\x90\x90\xe9"), size=MIB), "ROM", "ROM of 1024 KiB; .*at most 256 KiB"
    ),
    # Others.
    "SYSLINUX": (header(b"\r\nSYSLINUX 6.04"), "SYSLINUX", "a part of SYSLINUX"),
    "LFS": (b"version https://git-lfs.github.com/spec/v1\n", "LFS", "LFS pointer.*git lfs pull"),
    "page": (b"<!DOCTYPE html>\n<title>404", "HTML", "a web page, .*has the download failed"),
    "page without a type": (b"<html><title>404", "HTML", "a web page"),
    "PDF": (b"%PDF-1.4\n", "PDF", "a PDF document"),
    "text": ("Bücher\n".encode() * 99, "text", "a text file, not a kernel"),
    "data": (b"\xf4\xcc" * 99, "data", "no kernel that PyVMM knows .*--flat FILE"),
    "a byte": (b"\xf4", "data", "no kernel that PyVMM knows"),
}  # fmt: skip


@pytest.fixture
def write(tmp_path: Path):
    def write(data: bytes) -> Path:
        path = tmp_path / "image"
        path.write_bytes(data)
        return path

    return write


@pytest.mark.parametrize("name", TABLE)
def test_inspect_and_run_say_what_an_image_is(write, name: str) -> None:
    data, kind, says = TABLE[name]
    path = write(data)
    facts = identify.describe(path)
    assert facts["kind"] == kind
    text = identify.format_description(facts)
    assert re.search(f"  run would (use|refuse) .*{says}", text), text
    memory = GuestMemory(facts.get("minimum_memory", 4 * MIB))
    if facts["boots"]:
        boot.load(path, memory)
    else:
        with pytest.raises(ImageError) as raised:
            boot.load(path, memory)
        if "not all RAM" not in facts["problem"]:  # of another size
            assert str(raised.value) == facts["problem"]
        assert str(path) in facts["problem"]
        assert "\n" not in facts["problem"]


def test_every_signature_is_in_the_table() -> None:
    images = [data for data, _, _ in TABLE.values()]
    for offset, magic, _ in signatures.SIGNATURES:
        assert any(image.startswith(magic, offset) for image in images), magic
    kinds = {kind.name for *_, kind in signatures.SIGNATURES if isinstance(kind, Kind)}
    kinds |= {c.name for c in compression.COMPRESSIONS}
    assert kinds <= {kind for _, kind, _ in TABLE.values()}


@pytest.mark.parametrize("tool", ["lz4.frame", "zstandard"])
def test_without_a_package_what_is_compressed_is_still_named(write, monkeypatch, tool) -> None:
    monkeypatch.setitem(sys.modules, tool, None)
    data, kind, _ = TABLE[{"lz4.frame": "lz4", "zstandard": "zstd"}[tool]]
    facts = identify.describe(write(data))
    assert facts["kind"] == kind
    assert "what is in it is unknown" in facts["problem"]


@pytest.mark.parametrize(
    ("image", "best", "why", "others"),
    [
        (bzimage(), "64", "a bzImage is entered as Linux, in 64-bit mode", ["32", "16"]),
        (bzimage(bytes(64) + multiboot(3)), "64", "as Linux", ["32", "16"]),
        (elf(Segment(BASE, multiboot(3)), pvh_note(BASE)), "pvh", "PVH", ["64", "multiboot"]),
        (elf(Segment(BASE, bytes(8) + multiboot(3) + bytes(4) + multiboot2())), "multiboot",
         "Multiboot comes first", ["multiboot2", "64"]),
        (elf(Segment(BASE, bytes(4) + multiboot2()), bits=32), "multiboot2",
         "before the ELF entry", ["32"]),
        (elf(Segment(0x9000, multiboot(3)), bits=32), "multiboot", "comes first", []),
        (ELF_64, "64", "", []),
    ],
)  # fmt: skip
def test_where_several_entries_fit_inspect_says_why_and_boot_forces_one(
    write, image: bytes, best: str, why: str, others: list[str]
) -> None:
    path = write(image)
    facts = identify.describe(path)
    assert facts["boot_options"] == [best, *others]
    assert why in facts.get("why", "")
    text = identify.format_description(facts)
    assert ("others by" in text) == bool(others)
    addresses = facts["entry_points"]
    memory = GuestMemory(facts["minimum_memory"])
    for entry in facts["boot_options"]:
        state = boot.load(path, memory, entry=entry)
        if entry != "16":  # which is the BIOS's to enter
            assert state.registers["rip"] == addresses[entry]


def test_what_a_file_says_can_not_control_the_terminal(write) -> None:
    banner = b"Linux version 6.1\x1b[2J\nline two\0"
    text = identify.format_description(identify.describe(write(elf(Segment(BASE, banner)))))
    assert "6.1\ufffd[2J\ufffdline two" in text


PACKERS = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "lzma": lambda data: lzma.compress(data, lzma.FORMAT_ALONE),
    "zstd": zstandard.compress,
    "lz4": lz4.frame.compress,
}


@pytest.mark.parametrize("name", PACKERS)
@pytest.mark.parametrize("kernel", [ELF_64, bzimage()], ids=["ELF", "bzImage"])
def test_a_compressed_kernel_is_unpacked(write, name: str, kernel: bytes) -> None:
    """As GRUB does it, with xen.gz and the like."""
    plain = identify.describe(write(kernel))
    path = write(PACKERS[name](kernel))
    facts = identify.describe(path)
    assert facts == plain | {"packed": name, "size": path.stat().st_size}
    assert f", compressed with {name}, " in identify.format_description(facts)
    memory = GuestMemory(facts["minimum_memory"])
    state = boot.load(path, memory)
    assert state.registers["rip"] == facts["entry_points"][facts["boot_options"][0]]


@pytest.mark.parametrize("name", PACKERS)
def test_a_damaged_compressed_kernel(write, name: str) -> None:
    data = bytearray(PACKERS[name](elf(Segment(BASE, random.Random(1).randbytes(300 * KIB)))))
    data[200 * KIB : 300 * KIB] = bytes(100 * KIB)
    path = write(data)
    facts = identify.describe(path)
    assert (facts["kind"], facts["boots"]) == (name, False)
    assert "packed" not in facts
    with pytest.raises(ImageError, match=re.escape(str(path))):
        boot.load(path, GuestMemory(4 * MIB))
