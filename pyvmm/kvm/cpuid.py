"""CPUID: from what the host's KVM supports to what this guest sees.

Intel SDM volume 2A, CPUID; AMD APM volume 3, appendix E; for the hypervisor leaves
Documentation/virt/kvm/x86/cpuid.rst. The topology is one package of N single-threaded cores whose
APIC IDs are the vCPUs' numbers; the MADT (:mod:`pyvmm.boot.acpi`) says the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from pyvmm.errors import ConfigError
from pyvmm.kvm._kvm import ffi, lib

SIGNIFICANT_INDEX: int = lib.KVM_CPUID_FLAG_SIGNIFCANT_INDEX
KVM_SIGNATURE: int = lib.KVM_CPUID_SIGNATURE
KVM_FEATURES: int = lib.KVM_CPUID_FEATURES


class Leaf:
    """The leaves by which a guest learns how many processors there are, and which one it is on."""

    VENDOR = 0x0
    FEATURES = 0x1
    CACHES = 0x4
    TOPOLOGY = 0xB
    TOPOLOGY_V2 = 0x1F
    AMD_FEATURES = 0x8000_0001
    AMD_SIZES = 0x8000_0008
    AMD_CACHES = 0x8000_001D
    AMD_TOPOLOGY = 0x8000_001E


LEVEL_SMT, LEVEL_CORE = 1, 2
"""Level types of the topology leaves."""

CACHE_TYPE = 0x1F
"""In EAX of a cache's leaf; 0 behind the last cache."""
CACHE_PROPERTIES = 0x3FFF
"""All of EAX but who shares the cache (bits 25:14) and, with Intel, a package's cores (31:26)."""
MOST_CACHE_CORES = 63

AMD_CORES = 0xF0FF
"""In ECX of AMD_SIZES: the cores but one, and how many bits of an APIC ID tell them apart."""

EDX_HTT = 1 << 28
ECX_TSC_DEADLINE = 1 << 24
ECX_HYPERVISOR = 1 << 31
ECX_CMP_LEGACY = 1 << 1

AMD_VENDORS = tuple(int.from_bytes(name, "little") for name in (b"Auth", b"Hygo"))
"""EBX of leaf 0: the first letters of AuthenticAMD and HygonGenuine."""

FEATURE_NAMES: dict[tuple[int, int, str], str] = {
    (0x1, 0, "edx"): "fpu vme de pse tsc msr pae mce cx8 apic - sep mtrr pge mca cmov pat pse36"
    " pn clflush - dts acpi mmx fxsr sse sse2 ss ht tm ia64 pbe",
    (0x1, 0, "ecx"): "pni pclmulqdq dtes64 monitor ds_cpl vmx smx est tm2 ssse3 cid sdbg fma cx16"
    " xtpr pdcm - pcid dca sse4_1 sse4_2 x2apic movbe popcnt tsc_deadline_timer aes xsave -"
    " avx f16c rdrand hypervisor",
    (0x7, 0, "ebx"): "fsgsbase tsc_adjust sgx bmi1 hle avx2 - smep bmi2 erms invpcid rtm cqm - mpx"
    " rdt_a avx512f avx512dq rdseed adx smap avx512ifma - clflushopt clwb intel_pt avx512pf"
    " avx512er avx512cd sha_ni avx512bw avx512vl",
    (0x7, 0, "ecx"): "- avx512vbmi umip pku ospke waitpkg avx512_vbmi2 shstk gfni vaes vpclmulqdq"
    " avx512_vnni avx512_bitalg tme avx512_vpopcntdq - la57 - - - - - rdpid - bus_lock_detect"
    " cldemote - movdiri movdir64b enqcmd sgx_lc pks",
    (0x7, 0, "edx"): "- - avx512_4vnniw avx512_4fmaps fsrm uintr - - avx512_vp2intersect - md_clear"
    " - - - serialize hybrid tsxldtrk - pconfig arch_lbr ibt - amx_bf16 avx512_fp16 amx_tile"
    " amx_int8 spec_ctrl intel_stibp flush_l1d arch_capabilities core_capabilities"
    " spec_ctrl_ssbd",
    (0x7, 1, "eax"): "- - - - avx_vnni avx512_bf16 - - - - fzrm fsrs fsrc",
    (0xD, 1, "eax"): "xsaveopt xsavec xgetbv1 xsaves xfd",
    (0x80000001, 0, "edx"): "- - - - - - - - - - - syscall - - - - - - - mp nx - mmxext - -"
    " fxsr_opt pdpe1gb rdtscp - lm 3dnowext 3dnow",
    (0x80000001, 0, "ecx"): "lahf_lm cmp_legacy svm extapic cr8_legacy abm sse4a misalignsse"
    " 3dnowprefetch osvw ibs xop skinit wdt - lwp fma4 tce - nodeid_msr - tbm topoext"
    " perfctr_core perfctr_nb - bpext ptsc perfctr_llc mwaitx",
    (0x80000007, 0, "edx"): "- - - - - - - - constant_tsc",
    (
        0x80000008,
        0,
        "ebx",
    ): "clzero irperf xsaveerptr rdpru - - - - - wbnoinvd - - ibpb - ibrs stibp",
    (KVM_FEATURES, 0, "eax"): "kvmclock_old kvm_nopiodelay kvm_mmu kvmclock kvm_asyncpf"
    " kvm_steal_time kvm_pv_eoi kvm_pv_unhalt - kvm_pv_tlb_flush kvm_asyncpf_vmexit"
    " kvm_pv_ipi kvm_poll_control kvm_pv_sched_yield kvm_asyncpf_int",
}
"""(leaf, subleaf, register) → the names of bits 0, 1, … as /proc/cpuinfo and QEMU spell them."""


class CpuidEntry(NamedTuple):
    """What one leaf (``function``) and subleaf returns."""

    function: int
    subleaf: int
    flags: int
    eax: int
    ebx: int
    ecx: int
    edx: int


def guest_cpuid(
    supported: Iterable[CpuidEntry],
    *,
    apic_id: int,
    cpus: int,
    tsc_deadline: bool,
    features: Sequence[tuple[str, bool]] = (),
) -> list[CpuidEntry]:
    """The CPUID of vCPU ``apic_id`` of ``cpus``.

    ``features`` are (name, wanted) pairs: the ``+name`` and ``-name`` of ``--cpu``. Raises
    ConfigError for a feature that doesn't exist, or that is wanted and not supported.
    """
    table = {(entry.function, entry.subleaf): entry for entry in supported}
    _set_topology(table, apic_id, cpus)
    leaf = table[Leaf.FEATURES, 0]
    ecx = leaf.ecx | ECX_HYPERVISOR | (ECX_TSC_DEADLINE if tsc_deadline else 0)
    table[Leaf.FEATURES, 0] = leaf._replace(ecx=ecx)
    _set_hypervisor_leaf(table)
    for name in ("sgx", "sgx_lc"):
        _set_feature(table, name, False)  # there is no enclave memory
    for name, wanted in features:
        _set_feature(table, name, wanted)
    return [table[key] for key in sorted(table)]


def _set_topology(table: dict[tuple[int, int], CpuidEntry], apic_id: int, cpus: int) -> None:
    core_bits = (cpus - 1).bit_length()
    vendor = table[Leaf.VENDOR, 0]
    amd = vendor.ebx in AMD_VENDORS
    for key, entry in list(table.items()):
        match entry.function:
            case Leaf.FEATURES:
                ebx = entry.ebx & 0x0000_FFFF | min(cpus, 255) << 16 | (apic_id & 0xFF) << 24
                edx = entry.edx | EDX_HTT if cpus > 1 else entry.edx & ~EDX_HTT
                table[key] = entry._replace(ebx=ebx, edx=edx)
            case Leaf.CACHES if entry.eax & CACHE_TYPE:
                cores = min((1 << core_bits) - 1, MOST_CACHE_CORES)
                table[key] = entry._replace(eax=_shared_cache(entry, cpus) | cores << 26)
            case Leaf.AMD_CACHES if entry.eax & CACHE_TYPE:
                table[key] = entry._replace(eax=_shared_cache(entry, cpus))
            case Leaf.TOPOLOGY | Leaf.TOPOLOGY_V2:
                del table[key]
            case Leaf.AMD_FEATURES if amd:
                legacy = ECX_CMP_LEGACY if cpus > 1 else 0  # what HTT announces are no threads
                table[key] = entry._replace(ecx=entry.ecx & ~ECX_CMP_LEGACY | legacy)
            case Leaf.AMD_SIZES:
                ecx = entry.ecx & ~AMD_CORES | core_bits << 12 | (cpus - 1)
                table[key] = entry._replace(ecx=ecx)
            case Leaf.AMD_TOPOLOGY:
                table[key] = entry._replace(eax=apic_id, ebx=apic_id & 0xFF, ecx=0)
    levels = ((0, 1, LEVEL_SMT), (core_bits, cpus, LEVEL_CORE), (0, 0, 0))
    for function in (Leaf.TOPOLOGY, Leaf.TOPOLOGY_V2):
        if function > vendor.eax:  # the highest leaf
            continue
        for index, (shift, count, kind) in enumerate(levels):
            table[function, index] = CpuidEntry(
                function, index, SIGNIFICANT_INDEX, shift, count, kind << 8 | index, apic_id
            )


def _shared_cache(entry: CpuidEntry, cpus: int) -> int:
    """EAX of a cache's leaf: L3 belongs to all cores, lower levels to one."""
    level = entry.eax >> 5 & 7
    sharing = (1 << (cpus - 1).bit_length()) - 1 if level >= 3 else 0
    return entry.eax & CACHE_PROPERTIES | sharing << 14


def _set_hypervisor_leaf(table: dict[tuple[int, int], CpuidEntry]) -> None:
    """KVM's own leaves, which its paravirtual clock and the like are found by."""
    words = [int.from_bytes(b"KVMKVMKVM\0\0\0"[i : i + 4], "little") for i in (0, 4, 8)]
    table[KVM_SIGNATURE, 0] = CpuidEntry(KVM_SIGNATURE, 0, 0, KVM_FEATURES, *words)
    table.setdefault((KVM_FEATURES, 0), CpuidEntry(KVM_FEATURES, 0, 0, 0, 0, 0, 0))


def find_feature(name: str) -> tuple[tuple[int, int], str, int]:
    """((leaf, subleaf), register, mask) of a feature. ConfigError if nothing is called that."""
    wanted = name.lower().replace("-", "_").replace(".", "_")
    for (function, index, register), names in FEATURE_NAMES.items():
        bits = names.split()
        if wanted in bits and wanted != "_":
            return (function, index), register, 1 << bits.index(wanted)
    raise ConfigError(
        f"--cpu: no CPU feature is called {name!r}", "names are those of the flags in /proc/cpuinfo"
    )


def _set_feature(table: dict[tuple[int, int], CpuidEntry], name: str, wanted: bool) -> None:
    key, register, mask = find_feature(name)
    entry = table.get(key)
    value = getattr(entry, register) if entry is not None else 0
    if wanted and not value & mask:
        raise ConfigError(f"--cpu: this host's CPU and KVM don't support {name!r}")
    if entry is not None:
        table[key] = entry._replace(**{register: value & ~mask if not wanted else value})


def new_table(size: int) -> Any:
    """An empty ``struct kvm_cpuid2`` with room for ``size`` entries."""
    table = ffi.new("struct kvm_cpuid2 *", {"entries": size})
    table.nent = size
    return table


def entries_from(table: Any) -> list[CpuidEntry]:
    """The entries of a filled ``struct kvm_cpuid2``."""
    return [
        CpuidEntry(e.function, e.index, e.flags, e.eax, e.ebx, e.ecx, e.edx)
        for e in table.entries[0 : table.nent]
    ]


def table_from(entries: Sequence[CpuidEntry]) -> Any:
    """A ``struct kvm_cpuid2`` of ``entries``."""
    table = new_table(len(entries))
    for slot, entry in zip(table.entries, entries, strict=True):
        slot.function, slot.index, slot.flags = entry.function, entry.subleaf, entry.flags
        slot.eax, slot.ebx, slot.ecx, slot.edx = entry.eax, entry.ebx, entry.ecx, entry.edx
    return table
