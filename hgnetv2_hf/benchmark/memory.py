"""The peak memory of this process."""

import resource


def peak_memory():
    """Bytes that were resident at most since the program started (Linux; elsewhere since its parent was forked)."""
    try:
        with open("/proc/self/status", encoding="ascii") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
