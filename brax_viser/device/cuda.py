"""Reaches the CUDA driver by ctypes, as Warp does: no compiler and no further package."""

import ctypes
from typing import Any

_RELAXED = 2  # CU_STREAM_CAPTURE_MODE_RELAXED
_BLOCKING_SYNC = 1  # CU_EVENT_BLOCKING_SYNC: the waiting thread sleeps
_NOT_READY = 600  # CUDA_ERROR_NOT_READY
_PORTABLE = 1  # CU_MEMHOSTALLOC_PORTABLE: all contexts see the memory as pinned


class CudaError(RuntimeError):
    """A call to the driver that failed."""


class CudaDriver:
    """`driver.Driver` by the driver's own functions, see the CUDA Driver API reference.

    Raises:
        OSError: this machine has no CUDA driver.
    """

    def __init__(self) -> None:
        # Python's lock is kept, unless a call waits: XLA's thread would have to fight for it.
        self._library: ctypes.CDLL = ctypes.PyDLL("libcuda.so.1")
        self._waiting = ctypes.CDLL("libcuda.so.1")
        devices = ctypes.c_int()
        self._call("cuDeviceGetCount", ctypes.byref(devices))
        self.devices = devices.value
        if self.devices > 1:
            # A stream whose queue is full makes the call wait: for a collective, perhaps, and so
            # for the thread of another device, which needs the lock to come to it.
            self._library = self._waiting

    def address(self, buffer: Any) -> int:
        buffer = getattr(buffer, "buffer", buffer)
        return int(buffer.__cuda_array_interface__["data"][0])

    def context(self) -> tuple[int, int]:
        context, device = ctypes.c_void_p(), ctypes.c_int()
        self._call("cuCtxGetCurrent", ctypes.byref(context))
        self._call("cuCtxGetDevice", ctypes.byref(device))
        return context.value or 0, device.value

    def enter(self, context: int) -> None:
        self._call("cuCtxSetCurrent", ctypes.c_void_p(context))
        # While another thread captures a graph, as Warp does, the driver refuses to let threads in
        # any other mode wait for an event.
        self._exchange_capture_mode(_RELAXED)

    def allocate(self, nbytes: int) -> int:
        address = ctypes.c_void_p()
        before = self._exchange_capture_mode(_RELAXED)
        try:
            size, flags = ctypes.c_size_t(nbytes), ctypes.c_uint(_PORTABLE)
            status = self._waiting.cuMemHostAlloc(ctypes.byref(address), size, flags)
            _check("cuMemHostAlloc", status)
        finally:
            self._exchange_capture_mode(before)
        return address.value or 0

    def copy(self, target: int, source: int, nbytes: int, stream: int) -> None:
        self._call(
            "cuMemcpyDtoHAsync_v2",
            ctypes.c_void_p(target),
            ctypes.c_uint64(source),
            ctypes.c_size_t(nbytes),
            ctypes.c_void_p(stream),
        )

    def event(self) -> int:
        event = ctypes.c_void_p()
        self._call("cuEventCreate", ctypes.byref(event), ctypes.c_uint(_BLOCKING_SYNC))
        return event.value or 0

    def record(self, event: int, stream: int) -> None:
        self._call("cuEventRecord", ctypes.c_void_p(event), ctypes.c_void_p(stream))

    def has_reached(self, event: int) -> bool:
        status = self._library.cuEventQuery(ctypes.c_void_p(event))
        if status != _NOT_READY:
            _check("cuEventQuery", status)
        return status != _NOT_READY

    def wait(self, event: int) -> None:
        _check("cuEventSynchronize", self._waiting.cuEventSynchronize(ctypes.c_void_p(event)))

    def seconds_between(self, start: int, stop: int) -> float:
        milliseconds = ctypes.c_float()
        events = ctypes.c_void_p(start), ctypes.c_void_p(stop)
        self._call("cuEventElapsedTime", ctypes.byref(milliseconds), *events)
        return milliseconds.value / 1000

    def _exchange_capture_mode(self, mode: int) -> int:
        """Sets this thread's capture mode and returns the one before."""
        value = ctypes.c_int(mode)
        self._call("cuThreadExchangeStreamCaptureMode", ctypes.byref(value))
        return value.value

    def _call(self, name: str, *args: Any) -> None:
        _check(name, getattr(self._library, name)(*args))


def _check(name: str, status: int) -> None:
    if status:
        raise CudaError(f"{name} failed with CUDA error {status}")
