"""Compares what two devices pack: python compare_digests.py ONE.json OTHER.json."""

from __future__ import annotations

import json
import sys
from pathlib import Path

one, other = (json.loads(Path(each).read_text()) for each in sys.argv[1:3])
for each in (one, other):
    print(f"{each['machine']} ({each['isa']}): {each['photographs']} photographs", end="; ")
    print(f"answered by: {', '.join(each['where'])}; classes {each['answers']}")
assert {one["machine"], other["machine"]} == {"x86_64", "aarch64"}
faults = [
    f"not answered by the edge: {each['where']}"
    for each in (one, other)
    if each["where"] != ["edge"]
]
if one["answers"] != other["answers"]:
    faults.append("the answers differ")
print(f"{'packing, of the same feature maps':50} sha256 of all photographs")
for name, digest in one["given"].items():
    same = other["given"].get(name) == digest
    print(f"{name:50} {digest[:32]} {'identical' if same else 'DIFFERS'}")
    if not same:
        faults.append(f"{name} differs")
alike = sum(other["own"].get(name) == digest for name, digest in one["own"].items())
print(
    f"{len(one['given'])} packings compared. Of each machine's own feature maps, whose sums "
    f"ONNX Runtime takes in another order, {alike} of {len(one['own'])} are identical, too."
)
if faults:
    sys.exit("\n".join(faults))
