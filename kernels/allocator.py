"""The C library's memory, as operators on the CPU need it: what one of them frees is what the next one gets.

glibc gives memory at the end of its heap back to the system when more of it is free than a bound that it keeps low. A
forward pass allocates and frees the same few tensors in every layer, so each layer can find its memory gone, and the
system clears every page anew when it is touched: 250 to 330 MB for a prompt of 512 tokens of a model of 130 million
parameters, in some processes and not in others.
"""

import ctypes
import platform

# Numbers of malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
KEPT_BYTES = 256 << 20  # free at the end of the heap; the tensors of a step are fewer
MAPPED_BYTES = 32 << 20  # tensors from here on come from the system each time: glibc's own upper limit


def keep_freed_memory() -> None:
    """Gives back what is free now, and from then on keeps up to `KEPT_BYTES`; for the whole process. With another C
    library than glibc, nothing is done.

    Source: mallopt(3) and malloc_trim(3) of the Linux manual.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    library = ctypes.CDLL(None)
    library.malloc_trim(0)
    # Either alone would leave the other at what it happens to be.
    library.mallopt(_M_MMAP_THRESHOLD, MAPPED_BYTES)
    library.mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)
