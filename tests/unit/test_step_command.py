"""What is typed at the prompt of `pyvmm run --step`."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.step import command
from pyvmm.step.command import Command, CommandError, evaluate, parse, unescape

NAMES = {"rsp": 0x8000, "eax": 7, "_start": 0x10_0000, "si": 0x20, "Main": 5}
BASES = {"ds": 0x1_0000, "cs": 0, "es": 0, "fs": 0, "gs": 0, "ss": 0}


def value_of(text: str) -> int:
    return evaluate(text, NAMES.get, BASES.__getitem__)


class TestParse:
    @pytest.mark.parametrize(
        ("line", "expected"),
        [
            ("s", Command("step")),
            ("  s 12 ", Command("step", 12)),
            ("step 3", Command("step", 3)),
            ("n", Command("exit")),
            ("e", Command("exit")),
            ("o", Command("over")),
            ("c", Command("continue")),
            ("c 0.5", Command("continue", seconds=0.5)),
            ("b", Command("break")),
            ("b main + 4", Command("break", address="main + 4")),
            ("u 0x7c00", Command("until", address="0x7c00")),
            ("r", Command("registers")),
            ("r all", Command("registers", text="all")),
            ("x rsp", Command("examine", address="rsp")),
            ("x/16xb rsp", Command("examine", 16, "rsp", unit=1)),
            ("x/4g 0:7c00", Command("examine", 4, "0:7c00", unit=8)),
            ("xp/s 0x20000", Command("xp", None, "0x20000", format="s")),
            ("x/5i rip", Command("examine", 5, "rip", format="i")),
            ("d", Command("disassemble")),
            ("d main 3", Command("disassemble", 3, "main")),
            ("d 0x100", Command("disassemble", address="0x100")),
            ("i  two words ", Command("input", text=" two words ")),
            ("i", Command("input")),
            ("v 2", Command("vcpu", 2)),
            ("irq on", Command("irq", text="on")),
            ("h x", Command("help", text="x")),
            ("?", Command("help")),
            ("q", Command("quit")),
        ],
    )
    def test_understood(self, line: str, expected: Command) -> None:
        assert parse(line) == expected

    @pytest.mark.parametrize(
        ("line", "words"),
        [
            ("bogus", "no command 'bogus'"),
            ("s many", "up to 1000000"),
            ("s 1000001", "up to 1000000"),
            ("s -1", "number"),
            ("s ²", "number"),
            ("q now", "takes nothing"),
            ("c soon", "seconds"),
            ("c nan", "seconds"),
            ("c 0", "seconds"),
            ("u", "takes an address"),
            ("x", "takes an address"),
            ("p", "takes an address"),
            ("x/16q rsp", "x/16xb"),
            ("x/9999 rsp", "up to 1024"),
            ("s/4", "only x and xp"),
            ("r some", "takes all"),
            ("irq maybe", "on or off"),
            ("S", "no command 'S'"),
        ],
    )
    def test_refused_with_a_hint(self, line: str, words: str) -> None:
        with pytest.raises(CommandError) as refusal:
            parse(line)
        assert words in str(refusal.value)

    @given(st.text())
    def test_any_line_is_understood_or_refused(self, line: str) -> None:
        try:
            found = parse(line)
        except CommandError:
            return
        assert found.kind in command.BY_NAME

    def test_help_fits_a_terminal(self) -> None:
        lines = [line for kind in command.KINDS for line in kind.details.splitlines()]
        lines += command.ADDRESSES.splitlines()
        lines += [f"{', '.join(k.names):15} {k.arguments:12} {k.summary}" for k in command.KINDS]
        assert [line for line in lines if len(line) > 80] == []

    def test_names_are_unique(self) -> None:
        names = [name for kind in command.KINDS for name in kind.names]
        assert len(names) == len(set(names))


class TestEvaluate:
    @pytest.mark.parametrize(
        ("text", "value"),
        [
            ("0x7c00", 0x7C00),
            ("31744", 31744),
            ("rsp", 0x8000),
            ("$rsp", 0x8000),
            ("%RSP", 0x8000),
            ("rsp+8", 0x8008),
            ("rsp - 0x10 + eax", 0x7FF7),
            ("-1", (1 << 64) - 1),
            ("_start+4", 0x10_0004),
            ("Main", 5),
            ("ds:si", 0x1_0020),
            ("0000:7c00", 0x7C00),
            ("f000:fff0", 0xF_FFF0),
            ("ds:10", 0x1_0010),
            ("cs:0x10", None),
        ],
    )
    def test_values(self, text: str, value: int | None) -> None:
        if value is None:
            with pytest.raises(CommandError):
                value_of(text)
        else:
            assert value_of(text) == value

    @pytest.mark.parametrize(
        "text", ["", "+", "rsp 8", "rsp+", "7c00", "0x", "a:b:c", "1*2", "(1)"]
    )
    def test_refused(self, text: str) -> None:
        with pytest.raises(CommandError):
            value_of(text)

    def test_a_hint_for_hexadecimal(self) -> None:
        with pytest.raises(CommandError, match="did you mean 0x7c00"):
            value_of("7c00")

    @given(st.text(alphabet=string.printable) | st.text())
    def test_anything_is_a_number_or_refused(self, text: str) -> None:
        try:
            value = value_of(text)
        except CommandError:
            return
        assert 0 <= value < 1 << 64

    @given(st.integers(0, (1 << 64) - 1), st.integers(0, (1 << 64) - 1))
    def test_sums(self, a: int, b: int) -> None:
        assert value_of(f"{a:#x}+{b}") == (a + b) % (1 << 64)


class TestUnescape:
    @pytest.mark.parametrize(
        ("text", "sent"),
        [
            ("", b"\n"),
            ("ls -l", b"ls -l\n"),
            (r"\x04\c", b"\x04"),
            (r"a\tb\r\c", b"a\tb\r"),
            (r"\\n", b"\\n\n"),
            ("ä", "ä\n".encode()),
        ],
    )
    def test_sent(self, text: str, sent: bytes) -> None:
        assert unescape(text) == sent

    @pytest.mark.parametrize("text", [r"\q", r"\x1", "\\", r"\c more"])
    def test_refused(self, text: str) -> None:
        with pytest.raises(CommandError):
            unescape(text)

    @given(st.text(st.characters(exclude_categories=["Cs"])))
    def test_text_without_a_backslash_is_sent_as_it_is(self, text: str) -> None:
        text = text.replace("\\", "")
        assert unescape(text) == text.encode() + b"\n"

    @given(st.text())
    def test_anything_is_sent_or_refused(self, text: str) -> None:
        try:
            unescape(text)
        except CommandError:
            pass
