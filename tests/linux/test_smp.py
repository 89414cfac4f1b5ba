"""Several CPUs as Linux sees them, and takes them offline."""

from __future__ import annotations

from linux.boot import Images, boot, job


def test_four_cpus(images: Images) -> None:
    cpu1 = "/sys/devices/system/cpu/cpu1/online"
    ended = boot(
        images.bzimage,
        *("--initrd", str(images.initrd), "--cpus", "4", "--cpu-affinity", "0=0,3=0"),
        *job(
            "echo cpus: $(nproc); grep -E '^(siblings|core id|cpu cores|physical id|apicid)'"
            " /proc/cpuinfo; cd /sys/devices/system/cpu/cpu2/topology;"
            " echo threads: $(cat thread_siblings_list); echo package: $(cat core_siblings_list);"
            f" echo 0 > {cpu1}; echo without: $(nproc) $(cat /sys/devices/system/cpu/online);"
            f" echo 1 > {cpu1}; echo again: $(nproc);"
            " taskset 2 sh -c 'read -r a < /proc/self/stat; set -- $a; shift 38; echo on: $1'"
        ),
    )
    assert ended.status == 0, ended

    def per_cpu(name: str) -> list[str]:
        found = [line.partition(":") for line in ended.lines if line.startswith(f"{name}\t")]
        return [value.strip() for _, _, value in found]

    assert ended.value("cpus") == "4"
    assert per_cpu("siblings") == per_cpu("cpu cores") == ["4"] * 4
    assert per_cpu("physical id") == ["0"] * 4
    assert per_cpu("core id") == per_cpu("apicid") == ["0", "1", "2", "3"]
    assert (ended.value("threads"), ended.value("package")) == ("2", "0-3")
    assert ended.value("without") == "3 0,2-3"
    assert ended.value("again") == "4"
    assert ended.value("on") == "1", "CPU 1 runs something again"
