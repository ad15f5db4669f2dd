"""The properties of a machine that decide whether a training fits and how long it takes."""

from dataclasses import dataclass, replace
from typing import Final

from engine.config.job import JobConfig
from finetuneflow.v1.hardware_pb2 import Gpu, Hardware

# Dense matrix products in 16 bits with float32 sums, in TFLOP/s, from the makers' data sheets; without sparsity. The
# first entry whose words all occur in a GPU's name applies.
_GPU_TFLOPS: Final[tuple[tuple[str, float], ...]] = (
    ("b200", 2250), ("h200", 989), ("h100 pcie", 756), ("h100 nvl", 835), ("h100", 989), ("a100", 312),
    ("l40s", 362), ("l40", 181), ("l4", 121), ("a40", 150), ("a30", 165), ("a10g", 70), ("a10", 125), ("a16", 18),
    ("rtx 6000 ada", 182), ("rtx a6000", 155), ("rtx a5000", 111), ("rtx a4000", 77),
    ("rtx 5090", 210), ("rtx 5080", 113), ("rtx 5070", 62), ("rtx 4090", 165), ("rtx 4080", 97), ("rtx 4070", 58),
    ("rtx 4060", 30), ("rtx 3090", 71), ("rtx 3080", 60), ("rtx 3070", 41), ("rtx 3060", 26),
    ("v100", 125), ("t4", 65), ("p100", 19),
)  # fmt: skip
# For an unlisted GPU, the peak of a small one, so that its time is overestimated rather than underestimated.
_UNKNOWN_GPU_TFLOPS: Final = 30.0
# Float32 operations of a core per cycle: two fused multiply-adds of 16, 8 or 4 values. A clock of 2.5 GHz is assumed.
_CPU_PER_CYCLE: Final = (("avx512f", 64), ("avx2", 32))
_CPU_HERTZ: Final = 2.5e9


@dataclass(frozen=True)
class Machine:
    """The device that each process of a training runs on: a GPU of a node, or a share of its CPU."""

    name: str
    """Name of the GPU, or of the CPU with its number of cores; observed speeds are stored under it."""
    on_gpu: bool
    free_bytes: int
    """Free memory for each process: that of the GPU with the least, or an equal share of main memory."""
    total_bytes: int
    peak_flops: float
    """Operations per second: on a GPU in 16 bits, on a CPU in float32."""
    bf16: bool
    """True if bfloat16 is fast on it."""
    quantises: bool
    """True if bitsandbytes is installed."""
    known: bool = True
    """True if peak_flops comes from the table; False if it is assumed."""
    world_size: int = 1
    """Processes that train together."""
    host_free_bytes: int = 0
    """Free main memory of the node."""
    deepspeed: bool = False
    """True if DeepSpeed is installed."""

    @classmethod
    def of(
        cls, hardware: Hardware, *, gpus: int | None = None, world_size: int = 1, free_bytes: int | None = None
    ) -> "Machine":
        """Returns the GPUs that `world_size` processes train on, or the CPU if no GPU is usable or `gpus` is 0.

        A node with fewer GPUs than processes is not refused here. `free_bytes` replaces the memory that is free now.
        """
        packages = hardware.packages
        quantises, deepspeed = "bitsandbytes" in packages, "deepspeed" in packages
        available = hardware.memory_available_bytes
        gpu = deciding_gpu(hardware, world_size) if gpus != 0 else None
        if gpu is not None:
            free = gpu.memory_free_bytes if free_bytes is None else free_bytes
            machine = gpu_machine(gpu.name, free, total=gpu.memory_total_bytes, bf16=gpu.bf16, quantises=quantises)
            return replace(machine, world_size=world_size, host_free_bytes=available, deepspeed=deepspeed)
        features = set(hardware.cpu_features)
        fast = bool({"amx_bf16", "avx512_bf16"} & features)
        per_cycle = next((count for name, count in _CPU_PER_CYCLE if name in features), 16)
        cores = max(hardware.cpu_cores, 1)
        return cls(
            name=f"{hardware.cpu_model or 'CPU'} × {cores}",
            on_gpu=False,
            free_bytes=(available if free_bytes is None else free_bytes) // world_size,
            total_bytes=hardware.memory_total_bytes,
            peak_flops=cores * per_cycle * _CPU_HERTZ,
            bf16=fast,
            quantises=quantises,
            world_size=world_size,
            host_free_bytes=available,
            deepspeed=deepspeed,
        )

    @classmethod
    def for_job(cls, hardware: Hardware, config: JobConfig) -> "Machine":
        """Returns the devices that the processes of a job train on."""
        return cls.of(hardware, gpus=config.resources.gpus, world_size=config.world_size)


def deciding_gpu(hardware: Hardware, world_size: int = 1) -> Gpu | None:
    """Returns the GPU that decides what a training can do, or None if none is usable.

    The processes have the first GPUs, and do equal parts, so the one with the least free memory decides.
    """
    if not _usable(hardware):
        return None
    return min(hardware.gpus[:world_size], key=lambda gpu: gpu.memory_free_bytes)


def gpu_hardware(name: str, free_bytes: int, count: int = 1, host_bytes: int = 0) -> Hardware:
    """Returns hardware with `count` of this GPU, which need not exist, bf16, bitsandbytes and DeepSpeed."""
    gpu = Gpu(name=name, memory_free_bytes=free_bytes, memory_total_bytes=free_bytes, bf16=True)
    packages = {"bitsandbytes": "", "deepspeed": ""}
    return Hardware(cuda_available=True, gpus=[gpu] * count, packages=packages, memory_available_bytes=host_bytes)


def gpu_machine(
    name: str, free_bytes: int, *, total: int | None = None, bf16: bool = True, quantises: bool = True
) -> Machine:
    """Returns a machine with this GPU, which need not exist."""
    words = name.lower().replace("-", " ").replace("geforce ", "").split()
    found = next((tflops for key, tflops in _GPU_TFLOPS if set(key.split()) <= set(words)), None)
    return Machine(
        name=name,
        on_gpu=True,
        free_bytes=free_bytes,
        total_bytes=free_bytes if total is None else total,
        peak_flops=(found or _UNKNOWN_GPU_TFLOPS) * 1e12,
        bf16=bf16,
        quantises=quantises,
        known=found is not None,
    )


def _usable(hardware: Hardware) -> bool:
    return hardware.cuda_available and bool(hardware.gpus)
