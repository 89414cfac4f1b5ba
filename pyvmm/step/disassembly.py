"""What an instruction is, and which memory it is about to write; by way of capstone.

Documents: Intel SDM volume 1, section 3.7 (operand addressing), and volume 2. capstone is wanted
by nothing else here, so it is an optional dependency, the extra ``step``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from pyvmm.errors import HostError
from pyvmm.step.cpu_state import CpuState

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_INSTRUCTION = 15
"""Bytes; the CPU refuses longer ones."""

MAX_WRITE = 64
"""Of what one instruction writes, this much is looked at (a ``rep stos`` may write gigabytes)."""

PUSHES = ("push", "call", "lcall", "int", "enter")
"""How instructions begin that write below the stack pointer without saying so."""


class Instruction(NamedTuple):
    """``address`` is linear, ``offset`` the one in the code segment. ``target`` is where a direct
    jump or call leads, as an offset."""

    address: int
    offset: int
    code: bytes
    mnemonic: str
    operands: str
    target: int | None = None
    jumps: bool = False
    """Whether it may lead anywhere: a jump, call or return."""

    @property
    def text(self) -> str:
        return f"{self.mnemonic} {self.operands}".strip()

    @property
    def next_address(self) -> int:
        return self.address + len(self.code)

    @property
    def calls(self) -> bool:
        """Whether it goes somewhere and comes back, or repeats: what one steps over."""
        name = self.mnemonic.split()[0]
        return name in ("call", "lcall", "int", "loop", "loope", "loopne") or name.startswith("rep")


class Disassembler:
    """Raises HostError if capstone isn't there."""

    def __init__(self) -> None:
        try:
            import capstone
            from capstone import x86
        except ImportError as error:
            raise HostError(
                "--step needs the disassembler capstone, which is not installed",
                "pip install 'pyvmm[step]'",
            ) from error
        self._capstone, self._x86 = capstone, x86
        modes = {16: capstone.CS_MODE_16, 32: capstone.CS_MODE_32, 64: capstone.CS_MODE_64}
        self._engines = {}
        for bits, mode in modes.items():
            engine = self._engines[bits] = capstone.Cs(capstone.CS_ARCH_X86, mode)
            engine.detail = True

    def decode(self, code: bytes, address: int, offset: int, bits: int) -> Instruction | None:
        """The instruction that ``code`` begins with; None if it is none that capstone knows."""
        found = self._decode(code, offset, bits)
        if found is None:
            return None
        target = None
        groups = self._capstone
        jumps = any(
            found.group(group)
            for group in (groups.CS_GRP_JUMP, groups.CS_GRP_CALL, groups.CS_GRP_RET)
        )
        jumps = jumps or found.mnemonic.startswith(("iret", "sys", "loop", "j"))
        if jumps:
            operand = found.operands[-1] if found.operands else None
            if operand is not None and operand.type == self._x86.X86_OP_IMM:
                target = operand.imm & (1 << bits) - 1
        mnemonic, operands = found.mnemonic, found.op_str
        return Instruction(address, offset, bytes(found.bytes), mnemonic, operands, target, jumps)

    def _decode(self, code: bytes, offset: int, bits: int) -> Any:
        return next(self._engines[bits].disasm(code, offset, 1), None)

    def writes(self, instruction: Instruction, state: CpuState) -> list[tuple[int, int]]:
        """(linear address, size) of the memory that ``instruction`` would write in ``state``, as
        far as its operands tell. What a push, a call or a software interrupt writes comes without
        a size: everything from the address, which is the top of the stack, down."""
        found = self._decode(instruction.code, instruction.offset, state.bits)
        if found is None:
            return []
        ranges = list(self._operand_writes(found, state))
        if instruction.mnemonic.startswith(PUSHES):
            ranges.append((stack_top(state), 0))
        return ranges

    def _operand_writes(self, found: Any, state: CpuState) -> Iterator[tuple[int, int]]:
        repeated = found.prefix[0] in (0xF2, 0xF3) and found.mnemonic.startswith("rep")
        for operand in found.operands:
            if operand.type != self._x86.X86_OP_MEM:
                continue
            if not operand.access & self._capstone.CS_AC_WRITE:
                continue
            size = operand.size
            if repeated:
                mask = (1 << 8 * found.addr_size) - 1
                size *= min(state.registers["rcx"] & mask, MAX_WRITE)
            if size:
                yield self._linear(found, operand.mem, state), min(size, MAX_WRITE)

    def _linear(self, found: Any, memory: Any, state: CpuState) -> int:
        base = found.reg_name(memory.base) or ""
        index = found.reg_name(memory.index) or ""
        address: int = memory.disp + self._register(base, found, state)
        address += self._register(index, found, state) * memory.scale
        address &= (1 << 8 * found.addr_size) - 1
        segment = found.reg_name(memory.segment) or ""
        if not segment:
            segment = "ss" if base[-2:] in ("bp", "sp") else "ds"
        if state.bits == 64:
            if segment in ("fs", "gs"):
                address += int(state.system[segment]["base"])
            return address & (1 << 64) - 1
        return int(address + state.system[segment]["base"]) & 0xFFFF_FFFF

    def _register(self, name: str, found: Any, state: CpuState) -> int:
        if not name or name.endswith("iz"):
            return 0
        if name.endswith("ip"):
            return int(found.address + found.size)
        return register_value(name, state) or 0


def register_value(name: str, state: CpuState) -> int | None:
    """What the register ``name`` holds, by any of its names (``eax``, ``al``, ``r8d``, ``cs``,
    ``cr3``); None if there is none."""
    values = state.values
    if name in values:
        return values[name]
    if name.startswith("r") and name[:-1] in values and name[-1] in "dwb":
        return values[name[:-1]] & (1 << {"d": 32, "w": 16, "b": 8}[name[-1]]) - 1
    if name in ("eip", "ip", "eflags", "flags"):
        wide = values["rip" if name.endswith("ip") else "rflags"]
        return wide & (0xFFFF_FFFF if name.startswith("e") else 0xFFFF)
    if name[:1] == "e" and f"r{name[1:]}" in values:
        return values[f"r{name[1:]}"] & 0xFFFF_FFFF
    if f"r{name}" in values:
        return values[f"r{name}"] & 0xFFFF
    if len(name) == 2 and name[1] in "lh" and f"r{name[0]}x" in values:
        return values[f"r{name[0]}x"] >> (8 if name[1] == "h" else 0) & 0xFF
    if name[-1:] == "l" and f"r{name[:-1]}" in values:
        return values[f"r{name[:-1]}"] & 0xFF
    return None


def stack_top(state: CpuState) -> int:
    """The linear address that the stack pointer points at."""
    if state.bits == 64:
        return state.registers["rsp"]
    stack = state.system["ss"]
    wide = stack["db"] and not state.real_mode
    pointer = state.registers["rsp"] & (0xFFFF_FFFF if wide else 0xFFFF)
    return int(pointer + stack["base"]) & 0xFFFF_FFFF
