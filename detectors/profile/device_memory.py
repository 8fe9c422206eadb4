"""Memory of the accelerator, for whoever watches a long-running scorer."""

from __future__ import annotations

import torch


def device_memory(device: torch.device) -> dict[str, int]:
    """Bytes `used` (held by this process) and `total` of a CUDA device; empty for a CPU (the process's own)."""
    if device.type != "cuda":
        return {}
    _, total = torch.cuda.mem_get_info(device)
    # reserved, not allocated: what torch keeps cached is as lost to others as what it uses
    return {"used": torch.cuda.memory_reserved(device), "total": total}
