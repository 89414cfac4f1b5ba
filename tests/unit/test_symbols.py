"""Symbol tables, against pyelftools and against damaged files."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyvmm.errors import ImageError
from pyvmm.symbols import Symbol, Symbols

SOURCE = """
        .globl  _start, main, table
        .text
_start: nop
        nop
label:  nop
        .type   main, @function
main:   nop
        ret
        .size   main, . - main
        .skip   64
        .data
        .type   table, @object
table:  .quad   0
        .size   table, 8
        .set    absolute, 0x1234
"""


@pytest.fixture(scope="module", params=["-m64", "-m32"])
def elf(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("symbols") / "guest"
    subprocess.run(
        ["gcc", "-x", "assembler", "-", request.param, "-nostdlib", "-static", "-no-pie",
         "-Wl,-Ttext=0x100000", "-o", path],
        input=SOURCE, text=True, check=True,
    )  # fmt: skip
    return path


class TestElf:
    def test_as_pyelftools_has_it(self, elf: Path) -> None:
        symbols = Symbols.load(elf)
        with elf.open("rb") as file:
            table = ELFFile(file).get_section_by_name(".symtab")
            expected = {symbol.name: symbol["st_value"] for symbol in table.iter_symbols()}
        for name in ("_start", "label", "main", "table"):
            assert symbols.address(name) == expected[name]
            assert symbols.name(expected[name]) == name
        assert symbols.address("absolute") is None
        assert symbols.address("nobody") is None

    def test_addresses_within(self, elf: Path) -> None:
        symbols = Symbols.load(elf)
        assert symbols.name(0x10_0001) == "_start+0x1"
        assert symbols.name(0x10_0002) == "label"
        assert symbols.name(0x10_0004) == "main+0x1"
        assert symbols.name(0x0F_FFFF) == ""
        assert symbols.name(0x10_0040) == ""  # behind a function whose size is known

    def test_of_a_kernel(self, elf: Path, tmp_path: Path) -> None:
        """A kernel needs none, and there may be no kernel."""
        assert Symbols.of_kernel(elf).address("main")
        assert not len(Symbols.of_kernel(tmp_path / "nothing"))
        assert not len(Symbols.of_kernel(None))

    def test_stripped(self, elf: Path, tmp_path: Path) -> None:
        stripped = tmp_path / "stripped"
        subprocess.run(["strip", "-o", stripped, elf], check=True)
        with pytest.raises(ImageError, match="no symbols"):
            Symbols.load(stripped)

    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(data=st.data())
    def test_damaged(self, elf: Path, tmp_path: Path, data: st.DataObject) -> None:
        """There are symbols, or an error for the user."""
        content = bytearray(elf.read_bytes())
        for _ in range(data.draw(st.integers(1, 8))):
            at = data.draw(st.integers(4, 127) | st.integers(4, len(content) - 1))
            content[at] = data.draw(st.integers(0, 255))
        damaged = tmp_path / "damaged"
        damaged.write_bytes(content[: data.draw(st.integers(4, len(content)))])
        try:
            symbols = Symbols.load(damaged)
        except ImageError:
            return
        symbols.name(0x10_0000)


class TestMap:
    def test_system_map(self, tmp_path: Path) -> None:
        path = tmp_path / "System.map"
        path.write_text(
            "0000000000000000 A fixed_percpu\n"
            "                 w weak_undefined\n"
            "ffffffff81000000 T _text\n"
            "ffffffff81000000 T startup_64\n"
            "ffffffff81000060 t verify_cpu\n"
        )
        symbols = Symbols.load(path)
        assert symbols.name(0xFFFF_FFFF_8100_0010) == "_text+0x10"
        assert symbols.address("startup_64") == 0xFFFF_FFFF_8100_0000
        assert symbols.name(0xFFFF_FFFF_8100_0060) == "verify_cpu"

    @pytest.mark.parametrize("content", [b"nothing to see here\n", b"\0\1\2" * 100, b"zz T name\n"])
    def test_other_files(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "file"
        path.write_bytes(content)
        with pytest.raises(ImageError, match=str(path)):
            Symbols.load(path)

    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(ImageError, match="does not exist"):
            Symbols.load(tmp_path / "nothing")


class TestSymbols:
    def test_the_first_of_several_is_shown_and_all_are_found(self) -> None:
        symbols = Symbols([Symbol(16, 4, "one"), Symbol(16, 0, "another")])
        assert symbols.name(17) == "one+0x1"
        assert symbols.address("another") == 16

    def test_none(self) -> None:
        assert Symbols([]).name(0) == ""
        assert len(Symbols([])) == 0
