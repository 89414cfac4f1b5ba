"""CPUID as the guest sees it, made from what a host supports; here, from an invented host."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.boot import acpi
from pyvmm.config import MAX_CPUS
from pyvmm.errors import ConfigError
from pyvmm.kvm.cpuid import (
    ECX_CMP_LEGACY,
    ECX_HYPERVISOR,
    ECX_TSC_DEADLINE,
    EDX_HTT,
    FEATURE_NAMES,
    KVM_SIGNATURE,
    SIGNIFICANT_INDEX,
    CpuidEntry,
    find_feature,
    guest_cpuid,
)

AVX2 = 1 << 5
"""In EBX of leaf 7."""

HOST = [
    CpuidEntry(0x0, 0, 0, 0x1F, 0x6874_7541, 0x444D_4163, 0x6974_6E65),
    CpuidEntry(0x1, 0, 0, 0x800F12, 0x0508_0800, 0x0000_0201, 0x1000_0011 & ~EDX_HTT),
    CpuidEntry(0x4, 0, SIGNIFICANT_INDEX, 0x1C00_4121, 0x01C0_003F, 0x3F, 0),
    CpuidEntry(0x4, 1, SIGNIFICANT_INDEX, 0x1C03_C163, 0x03C0_003F, 0x3FFF, 6),
    CpuidEntry(0x4, 2, SIGNIFICANT_INDEX, 0, 0, 0, 0),
    CpuidEntry(0x7, 0, SIGNIFICANT_INDEX, 0, AVX2, 0, 0),
    CpuidEntry(0xB, 0, SIGNIFICANT_INDEX, 1, 2, 0x100, 7),
    CpuidEntry(0xB, 3, SIGNIFICANT_INDEX, 9, 9, 9, 9),
    CpuidEntry(0x8000_0001, 0, 0, 0x800F12, 0, 0x40_0001, 0x2000_0800),
    CpuidEntry(0x8000_0008, 0, 0, 0x3030, 0, 0x7F0F, 0),
    CpuidEntry(0x8000_001D, 0, SIGNIFICANT_INDEX, 0x4121, 0, 0, 0),
    CpuidEntry(0x8000_001E, 0, 0, 9, 0x109, 3, 0),
]

Table = dict[tuple[int, int], CpuidEntry]


def table(apic_id: int = 0, cpus: int = 1, features: tuple[tuple[str, bool], ...] = ()) -> Table:
    entries = guest_cpuid(HOST, apic_id=apic_id, cpus=cpus, tsc_deadline=False, features=features)
    return {(entry.function, entry.subleaf): entry for entry in entries}


def test_a_guest_can_see_that_it_is_one() -> None:
    leaves = table()
    assert leaves[1, 0].ecx & ECX_HYPERVISOR
    signature = leaves[KVM_SIGNATURE, 0]
    words = (signature.ebx, signature.ecx, signature.edx)
    assert b"".join(word.to_bytes(4, "little") for word in words) == b"KVMKVMKVM\0\0\0"


@pytest.mark.parametrize("wanted", [True, False])
def test_the_tsc_deadline_timer_is_what_kvm_says(wanted: bool) -> None:
    entries = guest_cpuid(HOST, apic_id=0, cpus=1, tsc_deadline=wanted)
    leaf = next(entry for entry in entries if entry.function == 1)
    assert bool(leaf.ecx & ECX_TSC_DEADLINE) == wanted


@given(st.integers(1, MAX_CPUS).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n - 1))))
def test_topology(size_and_id: tuple[int, int]) -> None:
    """One package of single-threaded cores, whichever leaf is asked."""
    cpus, apic_id = size_and_id
    leaves = table(apic_id, cpus)
    assert leaves[1, 0].ebx >> 24 == apic_id
    assert leaves[1, 0].ebx >> 16 & 0xFF == cpus
    assert bool(leaves[1, 0].edx & EDX_HTT) == (cpus > 1)
    assert leaves[1, 0].ebx & 0xFFFF == 0x0800  # CLFLUSH and brand are the host's
    for function in (0xB, 0x1F):
        smt, core, end = (leaves[function, index] for index in range(3))
        assert {smt.edx, core.edx, end.edx} == {apic_id}
        assert (smt.ecx, core.ecx, end.ecx) == (0x100, 0x201, 0x002)
        assert (smt.eax, smt.ebx) == (0, 1)
        assert core.ebx == cpus
        assert apic_id >> core.eax == 0, "all cores are in package 0"
        assert end.ebx == 0
        assert (function, 3) not in leaves
    assert leaves[0x8000_0008, 0].ecx & 0xFF == cpus - 1
    assert leaves[0x8000_0008, 0].ecx >> 12 & 0xF == core.eax
    assert leaves[0x8000_001E, 0][3:6] == (apic_id, apic_id & 0xFF, 0)


def test_caches() -> None:
    leaves = table(cpus=4)
    assert leaves[4, 0].eax >> 14 & 0xFFF == 0, "a core has its own first level"
    assert leaves[4, 1].eax >> 14 & 0xFFF == 3, "four share the third"
    assert leaves[4, 0].eax >> 26 == 3
    assert leaves[4, 2].eax == 0
    assert leaves[4, 0].ebx == HOST[2].ebx


def cmp_legacy(host: CpuidEntry, vendor: CpuidEntry, cpus: int) -> bool:
    entries = [vendor, host, *(e for e in HOST if e.function not in (0, 0x8000_0001))]
    guest = guest_cpuid(entries, apic_id=0, cpus=cpus, tsc_deadline=False)
    leaf = next(entry for entry in guest if entry.function == 0x8000_0001)
    assert leaf.ecx & ~ECX_CMP_LEGACY == host.ecx & ~ECX_CMP_LEGACY
    return bool(leaf.ecx & ECX_CMP_LEGACY)


def test_amds_word_for_cores_rather_than_threads() -> None:
    """HTT alone would mean threads of one core, and the host needn't have as many as the guest.
    On Intel's processors the bit is reserved."""
    one_core = CpuidEntry(0x8000_0001, 0, 0, 0x800F12, 0, 0x40_0001, 0x2000_0800)
    cores = one_core._replace(ecx=one_core.ecx | ECX_CMP_LEGACY)
    amd = HOST[0]
    intel = CpuidEntry(0x0, 0, 0, 0x1F, 0x756E_6547, 0x6C65_746E, 0x4965_6E69)
    assert cmp_legacy(one_core, amd, cpus=2)
    assert not cmp_legacy(cores, amd, cpus=1)
    assert not cmp_legacy(one_core, intel, cpus=2)


def test_sgx_needs_memory_that_no_guest_has_here() -> None:
    sgx, sgx_lc = 1 << 2, 1 << 30
    leaf = CpuidEntry(0x7, 0, SIGNIFICANT_INDEX, 0, AVX2 | sgx, sgx_lc, 0)
    host = [leaf, *(entry for entry in HOST if entry.function != 7)]
    entries = guest_cpuid(host, apic_id=0, cpus=1, tsc_deadline=False)
    found = next(entry for entry in entries if entry.function == 7)
    assert (found.ebx, found.ecx) == (AVX2, 0)


def test_a_feature_can_be_hidden() -> None:
    assert table()[7, 0].ebx & AVX2
    assert not table(features=(("avx2", False),))[7, 0].ebx & AVX2


def test_a_feature_that_is_missing_can_be_hidden() -> None:
    assert table(features=(("smap", False), ("clzero", False)))[7, 0].ebx == AVX2


def test_a_feature_that_the_host_has_can_be_wanted() -> None:
    assert table(features=(("avx2", True),)) == table()


@pytest.mark.parametrize("name", ["smap", "constant_tsc"])
def test_a_feature_that_the_host_lacks_can_not(name: str) -> None:
    with pytest.raises(ConfigError, match=f"don't support '{name}'"):
        table(features=((name, True),))


@pytest.mark.parametrize("name", ["", "-", "_", "warp_drive", "fpu vme"])
def test_a_feature_that_does_not_exist(name: str) -> None:
    with pytest.raises(ConfigError, match="no CPU feature is called"):
        table(features=((name, False),))


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("fpu", ((0x1, 0), "edx", 1 << 0)),
        ("x2apic", ((0x1, 0), "ecx", 1 << 21)),
        ("hypervisor", ((0x1, 0), "ecx", 1 << 31)),
        ("sse4.1", ((0x1, 0), "ecx", 1 << 19)),
        ("smap", ((0x7, 0), "ebx", 1 << 20)),
        ("avx512vl", ((0x7, 0), "ebx", 1 << 31)),
        ("la57", ((0x7, 0), "ecx", 1 << 16)),
        ("spec-ctrl", ((0x7, 0), "edx", 1 << 26)),
        ("arch_capabilities", ((0x7, 0), "edx", 1 << 29)),
        ("nx", ((0x8000_0001, 0), "edx", 1 << 20)),
        ("LM", ((0x8000_0001, 0), "edx", 1 << 29)),
        ("svm", ((0x8000_0001, 0), "ecx", 1 << 2)),
        ("topoext", ((0x8000_0001, 0), "ecx", 1 << 22)),
        ("xsaves", ((0xD, 1), "eax", 1 << 3)),
        ("constant_tsc", ((0x8000_0007, 0), "edx", 1 << 8)),
        ("ibpb", ((0x8000_0008, 0), "ebx", 1 << 12)),
        ("kvmclock", ((0x4000_0001, 0), "eax", 1 << 3)),
        ("kvm_pv_unhalt", ((0x4000_0001, 0), "eax", 1 << 7)),
    ],
)
def test_names_are_those_of_the_manuals(name: str, place: object) -> None:
    """Bits as in the SDM's and the APM's tables and in cpuid.rst."""
    assert find_feature(name) == place


def test_no_register_has_more_than_32_bits() -> None:
    for place, names in FEATURE_NAMES.items():
        assert len(names.split()) <= 32, place


@pytest.mark.parametrize("cpus", range(1, MAX_CPUS + 1))
def test_every_leaf_names_the_apic_ids_of_the_madt(cpus: int) -> None:
    """A kernel that wakes the CPUs of the MADT finds each to be the one it is told."""
    blob = acpi.build(cpus=cpus).tables["APIC"]
    listed, offset = [], 44
    while offset < len(blob):
        kind, length = blob[offset : offset + 2]
        if kind == 0 and blob[offset + 4] & 1:
            listed.append(blob[offset + 3])
        offset += length
    found = []
    for apic_id in listed:
        leaves = table(apic_id, cpus)
        ids = {leaves[function, index].edx for function in (0xB, 0x1F) for index in range(3)}
        ids |= {leaves[1, 0].ebx >> 24, leaves[0x8000_001E, 0].eax}
        (only,) = ids
        found.append(only)
        core_bits = leaves[0xB, 1].eax
        assert leaves[0x1F, 1].eax == leaves[0x8000_0008, 0].ecx >> 12 & 0xF == core_bits
        assert (leaves[4, 0].eax >> 26) + 1 == 1 << core_bits, "IDs that a package has room for"
        assert only >> core_bits == 0, "one package"
        assert leaves[0xB, 1].ebx == leaves[0x1F, 1].ebx == len(listed)
        assert (leaves[0x8000_0008, 0].ecx & 0xFF) + 1 == len(listed)
        assert (leaves[4, 1].eax >> 14 & 0xFFF) + 1 == 1 << core_bits, "all share the third level"
    assert found == listed == list(range(cpus))
