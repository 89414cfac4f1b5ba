"""Guests that write to the text screen and read the keyboard: `pyvmm run --screen`."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from kvm.assembler import assemble
from kvm.command import PYVMM, STATUS_TIMEOUT, TIMEOUT, Ended, run_to_end
from kvm.screen import Screen
from kvm.terminal import COLUMNS, ROWS, Terminal

import pyvmm

PROJECT = Path(__file__).parent.parent.parent
HINT = "pyvmm: the guest has written to the text screen, which --screen shows"

POWER_OFF = "mov dx, 0x604; mov ax, 0x3400; out dx, ax; 9: hlt; jmp 9b;"

HELLO = """
    mov edi, 0xB8000
    mov esi, offset text
    mov ah, 0x1F
1:  lodsb
    test al, al
    jz 2f
    stosw
    jmp 1b
text: .asciz "Hello from 32 bits \\x01"
2:
"""

COUNT = """
    .equ ROW, 160
    .equ LINES, 300
    mov edi, 0xB8000            # the line that is written
    mov ebp, 1
line: push edi
    mov eax, ebp
    mov ecx, 3                  # three digits
    add edi, 4
1:  xor edx, edx
    mov ebx, 10
    div ebx
    add dl, '0'
    mov dh, 7
    mov [edi], dx
    sub edi, 2
    dec ecx
    jnz 1b
    pop edi
    add edi, ROW
    cmp edi, 0xB8000 + 25 * ROW
    jb 2f
    mov esi, 0xB8000 + ROW      # scroll
    mov edi, 0xB8000
    mov ecx, 24 * ROW / 4
    rep movsd
    mov eax, 0x07200720
    mov ecx, ROW / 4
    rep stosd
    mov edi, 0xB8000 + 24 * ROW
2:  mov ecx, edi                # the cursor to the beginning of the line
    sub ecx, 0xB8000
    shr ecx, 1
    mov dx, 0x3D4
    mov al, 0x0E
    mov ah, ch
    out dx, ax
    mov al, 0x0F
    mov ah, cl
    out dx, ax
    inc ebp
    cmp ebp, LINES
    jbe line
"""

ECHO = """
    mov edi, 0xB8000
    mov word ptr [edi], 0x0700 + '>'
    add edi, 2
key: in al, 0x64
    test al, 1
    jz key
    in al, 0x60
    cmp al, 0x01                # Esc
    je 3f
    test al, 0x80
    jnz key                     # released
    push eax
    shr al, 4
    call digit
    pop eax
    and al, 15
    call digit
    jmp key
digit: add al, '0'
    cmp al, '9'
    jbe 1f
    add al, 'a' - '9' - 1
1:  mov ah, 7
    stosw
    mov ecx, edi                # the cursor
    sub ecx, 0xB8000
    shr ecx, 1
    mov dx, 0x3D4
    mov al, 0x0F
    mov ah, cl
    out dx, ax
    ret
3:
"""

DOS = """
    xor ax, ax
    mov ds, ax
    call print
    .asciz "Hello from INT 10h\\r\\n"
    call print
    .asciz "A:\\\\> "
key: mov ah, 0
    int 0x16
    mov ah, 0x0e
    int 0x10
    cmp al, 13
    jne key
    mov al, 10
    int 0x10
    {end}
print: pop si
1:  lodsb
    test al, al
    jz 2f
    mov ah, 0x0e
    int 0x10
    jmp 1b
2:  jmp si
"""


@pytest.fixture(scope="module", autouse=True)
def rom() -> None:
    subprocess.run([sys.executable, PROJECT / "firmware/build.py"], check=True)


def flat(directory: Path, source: str, end: str = POWER_OFF) -> list[str]:
    """The options for a guest in 32-bit protected mode."""
    path = directory / "guest"
    path.write_bytes(assemble(f"{source}\n{end}", address=0x100000, bits=32))
    return ["--flat", f"{path}@0x100000,bits=32"]


def disk(directory: Path, source: str) -> list[str]:
    """And for one in a boot sector."""
    path = directory / "disk.raw"
    path.write_bytes(
        assemble(source, address=0x7C00).ljust(510, b"\0") + b"\x55\xaa" + bytes(65024)
    )
    return ["-d", str(path)]


def command(*options: str) -> list[str]:
    timeout = () if "--timeout" in options else ("--timeout", str(TIMEOUT))
    return [*PYVMM, "run", *options, *timeout]


def run(*options: str, stdin: bytes = b"") -> Ended:
    return run_to_end(command(*options), stdin, TIMEOUT)


class TestLog:
    """Without a terminal."""

    def test_protected_mode(self, tmp_path: Path) -> None:
        ended = run(*flat(tmp_path, HELLO), "--screen")
        assert (ended.status, ended.lines) == (0, ["Hello from 32 bits ☺"])
        assert HINT not in ended.stderr

    def test_real_mode(self, tmp_path: Path) -> None:
        source = "mov ax, 0xB800; mov ds, ax; mov dword ptr [160], 0x07690748; " + POWER_OFF
        path = tmp_path / "guest"
        path.write_bytes(assemble(source, address=0x7C00))
        ended = run("--flat", str(path), "--screen")
        assert (ended.status, ended.lines) == (0, ["Hi"])

    def test_expect_sees_it(self, tmp_path: Path) -> None:
        ended = run(*flat(tmp_path, HELLO, "9: jmp 9b"), "--screen", "--expect", "from 3. bits")
        assert ended.status == 0, ended
        ended = run(*flat(tmp_path, HELLO, "9: jmp 9b"), "--screen=null", "--fail-on", "Hello")
        assert (ended.status, ended.console) == (5, b"")

    def test_of_a_guest_that_moves_its_cursor_no_line_is_lost(self, tmp_path: Path) -> None:
        ended = run(*flat(tmp_path, COUNT), "--screen")
        assert ended.lines == [f"{number:03}" for number in range(1, 301)]

    def test_at_a_timeout_the_screen_is_shown(self, tmp_path: Path) -> None:
        ended = run(*flat(tmp_path, HELLO, "9: jmp 9b"), "--screen", "--timeout", "1")
        assert ended.status == STATUS_TIMEOUT
        assert "the screen at that time:\n| Hello from 32 bits ☺\n" in ended.stderr
        assert 'last line "Hello from 32 bits ☺"' in ended.stderr.splitlines()[-1]

    def test_in_a_file_beside_the_serial_port(self, tmp_path: Path) -> None:
        log = tmp_path / "screen.log"
        serial = "mov dx, 0x3F8; mov al, '!'; out dx, al;"
        ended = run(*flat(tmp_path, HELLO, serial + POWER_OFF), f"--screen=file:{log}")
        assert ended.console == b"!"
        assert log.read_text() == "Hello from 32 bits ☺\n"

    def test_keys(self, tmp_path: Path) -> None:
        ended = run(*flat(tmp_path, ECHO), "--screen", stdin=b"Ab\x1b[A\n\x1b")
        assert ended.status == 0, ended
        assert ended.lines[-1] == ">2a1e30481c"

    def test_the_bios_shows_what_it_prints_once(self, tmp_path: Path) -> None:
        options = disk(tmp_path, DOS.format(end=POWER_OFF))
        ended = run(*options, "--screen", stdin=b"dir c:\\*.*\n")
        assert ended.status == 0, ended
        assert ended.lines == ["Booting from disk 1", "Hello from INT 10h", "A:\\> dir c:\\*.*"]

    def test_after_a_reset_it_begins_anew(self, tmp_path: Path) -> None:
        again = """
            mov al, 0x50; out 0x70, al; in al, 0x71     # a byte of the clock's RAM
            test al, al
            jnz 5f
            mov al, 1; out 0x71, al
            mov al, 0xFE; out 0x64, al
            6: jmp 6b
            5:
        """
        options = flat(tmp_path, HELLO, again + POWER_OFF)
        ended = run(*options, "--screen", "--on-reboot", "restart")
        assert ended.status == 0, ended
        assert ended.lines == ["Hello from 32 bits ☺"] * 2

    def test_json_has_its_lines(self, tmp_path: Path) -> None:
        result = tmp_path / "result.json"
        run(*flat(tmp_path, HELLO), "--screen=null", "--json", str(result))
        assert json.loads(result.read_text())["consoles"]["screen"] == ["Hello from 32 bits ☺"]


class TestWithout:
    def test_a_silent_guest_gets_a_hint(self, tmp_path: Path) -> None:
        ended = run(*flat(tmp_path, HELLO))
        assert (ended.status, ended.console) == (0, b"")
        assert HINT in ended.stderr.splitlines()

    def test_one_that_speaks_does_not(self, tmp_path: Path) -> None:
        serial = "mov dx, 0x3F8; mov al, '!'; out dx, al;"
        assert HINT not in run(*flat(tmp_path, HELLO, serial + POWER_OFF)).stderr
        assert HINT not in run(*flat(tmp_path, "")).stderr

    @pytest.mark.parametrize("options", [[], ["--screen=null"]])
    @pytest.mark.parametrize("start", [flat, disk])
    def test_there_is_an_adapter_for_who_counts_on_one(
        self, tmp_path: Path, start: Callable[[Path, str], list[str]], options: list[str]
    ) -> None:
        """xv6, say, looks for the cursor's place before it prints."""
        probe = """
            mov dx, 0x3D4; mov ax, 0x5A0F; out dx, ax; inc dx; in al, dx
            out 0xF4, al
        """
        ended = run(*start(tmp_path, probe), "--debug-exit", *options)
        assert ended.status == (0x5A << 1 | 1) & 0xFF, ended

    def test_a_kernel_that_is_told_what_there_is_has_none(self, guests: Path) -> None:
        words = [sys.executable, "-X", "importtime", *PYVMM[1:], "run", "--debug-exit"]
        said = run_to_end([*words, "-k", str(guests / "at_once")], b"", TIMEOUT).stderr
        assert "pyvmm.machine" in said
        assert "screen" not in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--screen=pty"], "--screen: 'pty' is not understood"),
        (["--screen", "--serial", "stdio"], "--screen: stdio can't serve two ports"),
        (["--screen", "--console", "stdio"], "--screen: stdio can't serve two ports"),
        (["--screen", "--trace", "-"], "--trace -: stdout is the screen's"),
        (["--screen", "--json", "-"], "--json -: stdout is the console's"),
        (["--screen=file:/nonexistent/log"], "/nonexistent/log"),
    ],
)
def test_what_does_not_go(tmp_path: Path, options: list[str], message: str) -> None:
    ended = run(*flat(tmp_path, HELLO), *options)
    assert ended.status in (1, 2)
    assert message in ended.stderr


def test_from_python(tmp_path: Path) -> None:
    _, place = flat(tmp_path, ECHO)
    with pyvmm.Machine(flat=place, console="screen", timeout=TIMEOUT) as vm:
        vm.console.expect(">")
        vm.console.send("xy")
        vm.console.expect("2d15$")
        assert vm.screen() == [">2d15"]
        vm.console.send("\x1b")
        assert vm.wait().status == 0
    assert vm.screen() == [">2d15"]


class ShownTerminal(Terminal):
    """A terminal that shows what it gets."""

    def __init__(self, arguments: Sequence[str], timeout: float) -> None:
        super().__init__(arguments, timeout)
        self.screen = Screen(ROWS, COLUMNS, onlcr=True)
        self.output = b""

    def wait_for(self, text: str, cursor: tuple[int, int] | None = None) -> None:
        """Until it is on the screen, and the cursor there."""
        deadline = time.monotonic() + TIMEOUT
        while text not in "\n".join(self.screen.lines) or cursor not in (None, self.cursor):
            ready, _, _ = select.select([self._master], [], [], deadline - time.monotonic())
            assert ready, self.screen.lines
            self._read()

    @property
    def cursor(self) -> tuple[int, int]:
        return self.screen.row, self.screen.column

    def finish(self) -> int:
        deadline = time.monotonic() + TIMEOUT
        while self.process.poll() is None or select.select([self._master], [], [], 0)[0]:
            assert time.monotonic() < deadline
            if select.select([self._master], [], [], 0.05)[0]:
                self._read()
        assert 1049 not in self.screen.modes
        assert self.screen.modes >= {7, 25}
        return super().finish()

    def _read(self) -> None:
        data = os.read(self._master, 1 << 16)
        self.output += data
        self.screen.feed(data)


@contextmanager
def terminal(*options: str) -> Iterator[ShownTerminal]:
    opened = ShownTerminal(command(*options), TIMEOUT)
    try:
        yield opened
    finally:
        opened.close()


class TestTerminal:
    def test_a_session(self, tmp_path: Path) -> None:
        with terminal(*disk(tmp_path, DOS.format(end="jmp key")), "--screen") as term:
            term.wait_for("A:\\>", cursor=(2, 5))
            assert 1049 in term.screen.modes
            assert term.screen.lines[:3] == ["Booting from disk 1", "Hello from INT 10h", "A:\\>"]
            assert term.screen.colours[1][0] == (37, 40, False)
            term.type(b"echo")
            term.wait_for("A:\\> echo")
            term.type(b"\x01h")
            term.wait_for("press Ctrl-Alt-Del")
            term.type(b" ")
            term.wait_for("Booting")
            term.type(b"\x01x")
            assert term.finish() == 130
        assert term.output.count(b"interrupted from the terminal") == 1
        assert b"A:\\> echo\r\n" in term.output, "what was on the screen last stays"

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
    def test_a_signal_restores_the_terminal(self, tmp_path: Path, number: int) -> None:
        with terminal(*flat(tmp_path, HELLO, "9: jmp 9b"), "--screen") as term:
            term.wait_for("Hello from 32 bits ☺")
            term.process.send_signal(number)
            assert term.finish() == 128 + number

    def test_a_run_that_does_not_start_leaves_it_alone(self, tmp_path: Path) -> None:
        with terminal(*flat(tmp_path, HELLO), "--screen", "-d", "/nonexistent") as term:
            assert term.finish() == 1
        assert b"\x1b" not in term.output

    def test_the_window_changes_its_size(self, tmp_path: Path) -> None:
        with terminal(*flat(tmp_path, HELLO, "9: jmp 9b"), "--screen") as term:
            term.wait_for("Hello from 32 bits")
            term.screen = Screen(20, 10)
            term.screen.modes = {25, 1049}
            term.resize(20, 10)
            term.wait_for("Hello from")
            assert term.screen.lines[1] == ""

    def test_what_there_is_to_say_comes_at_the_end(self, tmp_path: Path) -> None:
        bad = "mov al, 0xC5; out 0x64, al;"  # a command that the keyboard controller hasn't
        with terminal(*flat(tmp_path, HELLO, bad + "9: jmp 9b"), "--screen") as term:
            term.wait_for("Hello")
            term.type(b"\x01x")
            assert term.finish() == 130
        _, _, after = term.output.partition(b"\x1b[?1049l")
        assert b"i8042 command that doesn't exist" in after


@pytest.mark.skipif(shutil.which("tmux") is None, reason="there is no tmux")
def test_in_a_terminal_emulator(tmp_path: Path) -> None:
    socket = str(tmp_path / "tmux")

    def tmux(*words: str) -> str:
        done = subprocess.run(
            ["tmux", "-S", socket, "-f", "/dev/null", "-u", *words],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        return done.stdout

    def wait_for(text: str) -> str:
        deadline = time.monotonic() + TIMEOUT
        while text not in (shown := tmux("capture-pane", "-p")):
            assert time.monotonic() < deadline, shown
            time.sleep(0.1)
        return shown

    words = command(*flat(tmp_path, ECHO), "--screen")
    shell = f"{' '.join(words)}; echo status $?; sleep {TIMEOUT}"
    tmux("new-session", "-d", "-x", "80", "-y", "26", shell)
    try:
        wait_for(">")
        tmux("send-keys", "a", "Up", "F5", "C-c", "M-x", "PageDown")
        wait_for(">1e483f1d2e382d51")
        assert tmux("display", "-p", "#{alternate_on} #{cursor_x}").split() == ["1", "17"]
        tmux("send-keys", "Escape")
        shown = wait_for("status 0")
        assert "guest powered off" in shown
        assert tmux("display", "-p", "#{alternate_on}").strip() == "0"
    finally:
        tmux("kill-server")
