"""Print the results of pytest-benchmark as a Markdown table: python benchmarks/table.py RESULTS.json"""

import json
import sys
from pathlib import Path
from typing import Any


def table(results: dict[str, Any]) -> str:
    """Return a table with one row for every benchmark; ratios above 1 mean that the measured one is faster."""
    benchmarks = results["benchmarks"]
    rivals = sorted({name for entry in benchmarks for name in entry["extra_info"].get("ratio_to_subject", {})})
    lines = [
        ", ".join(sorted({f"{entry['extra_info'].get(key)}" for entry in benchmarks}))
        for key in ("device", "torch", "backend")
    ]
    lines += ["", "| benchmark | median us | GB/s | " + " | ".join(f"{rival} / ours" for rival in rivals) + " |"]
    lines.append("|---" * (3 + len(rivals)) + "|")
    for entry in benchmarks:
        info = entry["extra_info"]
        ratios = [info.get("ratio_to_subject", {}).get(rival) for rival in rivals]
        cells = ["" if ratio is None else f"{ratio:.2f}" for ratio in ratios]
        speed = f"{info['gigabytes_per_second']:.0f}" if "gigabytes_per_second" in info else ""
        lines.append(f"| {entry['name']} | {entry['stats']['median'] * 1e6:.1f} | {speed} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
