"""ScissionTL's published DenseNet-169 data through this planner, and the gain of int8.

    python bench/scissiontl_data.py ../shared/data/scissiontl-densenet169.json

The cost model is that of the data: blocks, down- and upsampling, conversion on either side, one
round trip, and the bytes at the link's rate. int8 has the times of the paper's TL and a quarter of
its bytes, because it was not measured on those machines.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import scissionlite as sl
from scissionlite.graph.tensors import TensorInfo
from scissionlite.scissiontl.profile import BlockProfile, TransferProfile

PAPER, INT8, FLOAT32 = sl.TransferSpec.paper(), sl.TransferSpec(), sl.TransferSpec.float32_split()


def profile_of(machine: dict[str, Any], model: str) -> sl.Profile:
    """Convert the measurements of one machine to a profile."""
    rows = machine["blocks"]
    blocks, transfers = [], []
    for index, row in enumerate(rows):
        first, last = row["input_layer"], row["output_layer"]
        # The data has only the bytes that were sent, not their shape.
        crossing = TensorInfo(f"layer {last}", (1, row["output_size"] // 4))
        blocks.append(
            BlockProfile(
                name=str(last),
                after=str(last),
                before=str(last + 1),
                latency=row["second_prediction"],
                crossing=(crossing,),
                layers=tuple(str(layer) for layer in range(first, last + 1)),
            )
        )
        convert = max(row["dataconvert_time"], 0.0)  # -1 where it was not measured
        down, up = convert + row["downsample_time"], convert + row["upsample_time"]
        nbytes = row["tl_output_size"]
        transfers.append(TransferProfile(index, FLOAT32, convert, convert, row["output_size"]))
        if nbytes > 0:  # after the last pooling there is nothing to pool
            transfers.append(TransferProfile(index, PAPER, down, up, nbytes))
            transfers.append(TransferProfile(index, INT8, down, up, nbytes // 4))
    return sl.Profile(
        name=machine["name"],
        model=model,
        runtime="tensorflow",
        inputs=(TensorInfo("image", (1, 3, 224, 224)),),
        blocks=tuple(blocks),
        transfers=tuple(t for t in transfers if t.block < len(rows) - 1),
        network_latency=sum(row["second_prediction"] for row in rows),
    )


def ranked(data: dict[str, Any], spec: sl.TransferSpec, edge: int = 0) -> list[sl.Plan]:
    """Plans that cut the network with one Transfer Layer, best first."""
    link = sl.Link(data["network"]["rtt_ms"] / 1e3, data["network"]["bandwidth_mbps"] * 1e6)
    device, server = data["device"], data["edges"][edge]
    plans = sl.plan(profile_of(device, data["model"]), profile_of(server, data["model"]), link)
    return [plan for plan in plans if plan.spec == spec]


def main(path: Path, as_json: bool) -> None:
    data = json.loads(path.read_text())
    printed = data["expected_top5_tx2_gpu_to_ampere"]
    ours, int8, plain = (ranked(data, spec) for spec in (PAPER, INT8, FLOAT32))
    rows: list[dict[str, Any]] = [
        {
            "last_device_layer": int(plan.slicing_point or ""),
            "latency": plan.predicted.latency,
            "printed_last_device_layer": expected["device_layers"][1],
            "printed_latency": expected["latency_s"],
            "sent_bytes": plan.predicted.sent_bytes,
        }
        for plan, expected in zip(ours, printed, strict=False)
    ]
    best: list[dict[str, Any]] = [
        {
            "what": what,
            "last_device_layer": int(plans[0].slicing_point or ""),
            "latency": plans[0].predicted.latency,
            "sent_bytes": plans[0].predicted.sent_bytes,
        }
        for what, plans in (("float32 split", plain), ("paper's TL", ours), ("int8 TL", int8))
    ]
    if as_json:
        print(json.dumps({"rows": rows, "best": best}))
        return
    print("| rank | ScissionTL: device layers | ms | this planner: device layers | ms | kB |")
    print("| --- | --- | --- | --- | --- | --- |")
    for rank, row in enumerate(rows, 1):
        print(
            f"| {rank} | 0 to {row['printed_last_device_layer']} | "
            f"{row['printed_latency'] * 1e3:.1f} | 0 to {row['last_device_layer']} | "
            f"{row['latency'] * 1e3:.2f} | {row['sent_bytes'] / 1e3:.1f} |"
        )
    print("\n| best with | device layers | ms | kB |\n| --- | --- | --- | --- |")
    for row in best:
        print(
            f"| {row['what']} | 0 to {row['last_device_layer']} | {row['latency'] * 1e3:.1f} | "
            f"{row['sent_bytes'] / 1e3:.1f} |"
        )


if __name__ == "__main__":
    if len(sys.argv) < 2:
        raise SystemExit(f"usage: {sys.argv[0]} scissiontl-densenet169.json [--json]")
    main(Path(sys.argv[1]), "--json" in sys.argv[2:])
