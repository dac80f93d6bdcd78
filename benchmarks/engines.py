"""The same audit on every engine: in one process, in two, and on a Ray cluster of two nodes of which one is killed.

Everything but `environment` must be the same bytes. `--data small` audits two candidates instead of the built-in plan.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from contract import Row, arguments, publish

from audit import small


def audited(plan: dict[str, Any], engine: dict[str, Any], progress: Any = None) -> dict[str, Any]:
    """One audit in an empty folder: its digest without the environment, and its seconds."""
    from crushproof.audit.plan.plan import Plan
    from crushproof.audit.run import run_audit

    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        result = run_audit(Plan.model_validate({**plan, "engine": engine}), Path(), Path(folder), progress=progress)
        wall = time.monotonic() - started
        written = json.loads((Path(folder) / "audit.json").read_text())
    cpu = sum(written.pop("environment")["seconds"].values())
    digest = hashlib.sha256(json.dumps(written, sort_keys=True).encode()).hexdigest()
    print(f"{engine}: {wall:.0f} s, {cpu:.0f} s of CPU, {digest[:16]}, verdict {result.verdict}", file=sys.stderr)
    return {"wall": wall, "cpu": cpu, "digest": digest}


def on_a_cluster(plan: dict[str, Any]) -> dict[str, Any]:
    """On two nodes of one core; the second is killed when a quarter of the cells are done."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    from crushproof.audit.engine.progress import Lines

    node: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 500_000_000}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    second = cluster.add_node(**node)

    class Killing(Lines):
        def end(self, cell: Any, seconds: float) -> None:
            super().end(cell, seconds)
            if self.standing.done == self.standing.total // 4:
                cluster.remove_node(second, allow_graceful=False)
                self.note("a node was killed")

    try:
        return audited(plan, {"kind": "ray", "address": cluster.address}, Killing(sys.stderr))
    finally:
        import ray

        ray.shutdown()
        cluster.shutdown()


def main() -> None:
    options = arguments(__doc__ or "")
    from crushproof.audit.plan.builtin import PLAN

    plan = small() if str(options.data) == "small" else PLAN
    here = audited(plan, {"kind": "local", "workers": 0})
    others = {
        "two processes": audited(plan, {"kind": "local", "workers": 2}),
        "Ray, one of two nodes killed": on_a_cluster(plan),
    }
    rows = [Row("audit", "one process, wall", here["wall"], "s"), Row("audit", "one process, CPU", here["cpu"], "s")]
    for setting, other in others.items():
        rows.append(Row("audits that differ", setting, float(other["digest"] != here["digest"]), "", target=0.0))
        rows.append(Row("audit", f"{setting}, wall", other["wall"], "s", peer=here["wall"]))
        rows.append(Row("audit", f"{setting}, CPU of cells", other["cpu"], "s", peer=here["cpu"]))
    publish(rows, options.json)


if __name__ == "__main__":
    main()
