"""Load and launch the compiled GPU kernels: CUDA's driver interface by ctypes."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor

from kebiolm.kernels.knn_entity_attention.build_cache import BuildError
from kebiolm.kernels.knn_entity_attention.build_cuda import Kernels, build

Argument = Tensor | int | float | None
DRIVER = "libcuda.so.1"
MAX_DYNAMIC_SHARED_SIZE_BYTES = 8
"""CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES: without it a kernel gets no more than 48 KB."""


class Launcher(Protocol):
    """What `cuda.py` needs of a device."""

    tile: int
    """Rows of a tile, as the kernels were compiled."""
    multiprocessors: int
    """Of the device."""

    def launch(
        self, name: str, grid: tuple[int, int], block: int, shared_bytes: int, arguments: list[Argument]
    ) -> None:
        """Start a kernel with grid[0] * grid[1] blocks of `block` threads, after what was started before.

        Tensors go as pointers, None as a null pointer, integers in 64 bits, other numbers in fp32.
        """


def pack(arguments: list[Argument]) -> tuple[ctypes.Array, list[ctypes._SimpleCData]]:
    """Return pointers to the arguments, as the driver wants them, and what must live until the launch."""
    ready: list[ctypes._SimpleCData] = []
    for argument in arguments:
        if isinstance(argument, float):
            ready.append(ctypes.c_float(argument))
        elif isinstance(argument, int):
            ready.append(ctypes.c_int64(argument))
        else:
            ready.append(ctypes.c_void_p(None if argument is None else argument.data_ptr()))
    return (ctypes.c_void_p * len(ready))(*(ctypes.addressof(value) for value in ready)), ready


class CudaLauncher:
    """The kernels on one device."""

    def __init__(self, device: torch.device, size: int, width: int) -> None:
        """Compile or find, and load, the kernels for rows of `size` dimensions, read `width` halves at a time.

        Raises:
            BuildError: they cannot be had; says why in one line.
        """
        properties = torch.cuda.get_device_properties(device)
        kernels = Kernels((properties.major, properties.minor), size, width)
        self.tile, self.multiprocessors = kernels.tile, properties.multi_processor_count
        self._device, self._functions = device, {}
        self._context, self._module = ctypes.c_void_p(), ctypes.c_void_p()
        code = build(kernels)
        try:
            number = ctypes.c_int()
            _call("cuDeviceGet", ctypes.byref(number), device.index)
            # The context that torch uses; it need not be current in a thread of the backward pass.
            _call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), number)
            with self._current_context():
                _call("cuModuleLoadData", ctypes.byref(self._module), code)
        except (OSError, RuntimeError) as error:
            raise BuildError(f"the driver refuses the kernel for {kernels.arch}: {error}") from error

    def launch(
        self, name: str, grid: tuple[int, int], block: int, shared_bytes: int, arguments: list[Argument]
    ) -> None:
        """Start a kernel on torch's current stream; see `Launcher`."""
        pointers, kept = pack(arguments)
        stream = ctypes.c_void_p(torch.cuda.current_stream(self._device).cuda_stream)
        with self._current_context():
            function = self._function(name, shared_bytes)
            _call("cuLaunchKernel", function, *grid, 1, block, 1, 1, shared_bytes, stream, pointers, None)
        del kept

    def _function(self, name: str, shared_bytes: int) -> ctypes.c_void_p:
        function, allowed = self._functions.get(name, (None, 0))
        if function is None:
            function = ctypes.c_void_p()
            _call("cuModuleGetFunction", ctypes.byref(function), self._module, name.encode())
        if shared_bytes > allowed:
            _call("cuFuncSetAttribute", function, MAX_DYNAMIC_SHARED_SIZE_BYTES, shared_bytes)
        self._functions[name] = function, max(shared_bytes, allowed)
        return function

    @contextmanager
    def _current_context(self) -> Iterator[None]:
        _call("cuCtxPushCurrent_v2", self._context)
        try:
            yield
        finally:
            _call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))


def _call(name: str, *arguments: object) -> None:
    driver = _driver()
    if status := getattr(driver, name)(*arguments):
        message = ctypes.c_char_p()
        driver.cuGetErrorString(status, ctypes.byref(message))
        raise RuntimeError(f"{name}: {(message.value or b'unknown error').decode()} ({status})")


@functools.cache
def _driver() -> ctypes.CDLL:
    return ctypes.CDLL(DRIVER)


@functools.cache
def launcher_for(device: torch.device, size: int, width: int) -> Launcher:
    """The kernels for rows of `size` dimensions, read `width` halves at a time, on a CUDA device.

    Raises:
        BuildError: they cannot be had; says why in one line.
    """
    return CudaLauncher(device, size, width)
