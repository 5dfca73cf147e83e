"""The bubblewrap command line around a job: what it sees of the host, and what it does not.

Called after the privileges are dropped, so that bwrap itself holds none. Standard library only.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence

# Read-only; every one of them may be missing or be a link, depending on the distribution.
SYSTEM_DIRS = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/opt", "/nix/store")
# From /etc only what programs need to run, resolve names and check certificates.
ETC_ENTRIES = (
    "alternatives", "ca-certificates", "ca-certificates.conf", "crypto-policies", "gai.conf", "group", "host.conf",
    "hosts", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "localtime", "magic", "mime.types", "nsswitch.conf",
    "OpenCL", "passwd", "pki", "protocols", "resolv.conf", "services", "ssl", "terminfo", "timezone", "vulkan",
)  # fmt: skip
GPU_SHARED_NODES = ("/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", "/dev/nvidia-caps")
_DRIVER_GPUS = "/proc/driver/nvidia/gpus"


def namespace_options(network: str = "host") -> list[str]:
    """Return the options that take the job out of the host's namespaces; the network stays unless "none"."""
    options = [
        "--unshare-user", "--disable-userns", "--unshare-pid", "--unshare-ipc", "--unshare-uts",
        "--unshare-cgroup-try", "--die-with-parent", "--new-session", "--cap-drop", "ALL", "--hostname", "job",
    ]  # fmt: skip
    return [*options, "--unshare-net"] if network == "none" else options


def bubblewrap_argv(
    bwrap: str,
    *,
    work: str,
    executable: str | None = None,
    hide: Iterable[str] = (),
    gpus: Sequence[str] = (),
    network: str = "host",
    files: str | None = None,
    driver: str = _DRIVER_GPUS,
) -> list[str]:
    """Return the command line up to and including `--`; the program and its arguments follow.

    `work`, `executable` and the directory `files` have the same paths inside as outside, so that the environment and
    arguments made for a job hold in both. `hide` are directories of the fabric: what would be visible is covered.
    `driver` is where the NVIDIA driver tells of its GPUs.
    """
    argv = [bwrap, *namespace_options(network)]
    for folder in SYSTEM_DIRS:
        argv += ["--ro-bind-try", folder, folder]
    for name in ETC_ENTRIES:
        argv += ["--ro-bind-try", f"/etc/{name}", f"/etc/{name}"]
    argv += ["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--tmpfs", "/var/tmp", "--tmpfs", "/run"]
    for node in device_nodes(gpus, driver):
        argv += ["--dev-bind-try", node, node]
    if gpus:
        argv += ["--ro-bind-try", "/sys", "/sys"]
    for folder in visible_among(hide):
        argv += ["--tmpfs", folder]
    if executable is not None:
        argv += ["--ro-bind", executable, executable]
    if files is not None:
        argv += ["--ro-bind", files, files]
    argv += ["--bind", work, work, "--chdir", work, "--remount-ro", "/"]
    return [*argv, "--"]


def visible_among(hide: Iterable[str]) -> list[str]:
    """Return those existing directories of `hide` that lie below a directory the job sees."""
    shown = [os.path.realpath(folder) for folder in SYSTEM_DIRS if os.path.isdir(folder)]
    found = []
    for folder in hide:
        real = os.path.realpath(folder)
        if os.path.isdir(real) and any(real.startswith(f"{top}/") for top in shown):
            found.append(real)
    return found


def device_nodes(gpus: Sequence[str], driver: str = _DRIVER_GPUS) -> list[str]:
    """Return the device nodes for the given GPU UUIDs and no others.

    Where the driver does not tell which node is whose (containers, WSL), all GPU nodes are returned: the
    environment's CUDA_VISIBLE_DEVICES then does the choosing.
    """
    if not gpus:
        return []
    minors = gpu_minors(driver)
    own = [f"/dev/nvidia{minors[uuid]}" for uuid in gpus if uuid in minors]
    if len(own) < len(gpus):
        own = sorted(f"/dev/{name}" for name in os.listdir("/dev") if re.fullmatch(r"nvidia\d+", name))
    return [*GPU_SHARED_NODES, *own]


def gpu_minors(driver: str = _DRIVER_GPUS) -> dict[str, str]:
    """Return the device minor number of each GPU UUID, as the driver's /proc files tell."""
    minors = {}
    for name in os.listdir(driver) if os.path.isdir(driver) else ():
        try:
            with open(f"{driver}/{name}/information", encoding="ascii", errors="replace") as file:
                text = file.read()
        except OSError:
            continue
        uuid = re.search(r"GPU UUID:\s*(\S+)", text)
        minor = re.search(r"Device Minor:\s*(\d+)", text)
        if uuid and minor:
            minors[uuid[1]] = minor[1]
    return minors
