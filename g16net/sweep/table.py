"""How far the runs of a sweep are, for a person and for `sweep.json`."""

import time

from g16net.run import records
from g16net.run.workdir import Workdir
from g16net.sweep.state import BLOCKED, DONE, FAILED, RUNNING, WAITING, read


def summarise(runs, states, folder, started):
    """Counts, the time left, and a row for each run."""
    rows = []
    for one in runs:
        state, facts = states[one["name"]]
        row = {"name": one["name"], "state": state, "after": one["after"], **figures(folder.run(one["name"]), one)}
        rows.append({**row, **{key: facts[key] for key in ("seconds", "error") if key in facts}})
    counts = {state: sum(row["state"] == state for row in rows) for state in (DONE, FAILED, RUNNING, WAITING)}
    counts[WAITING] += sum(row["state"] == BLOCKED for row in rows)
    known = [row["seconds"] for row in rows if row["state"] == DONE and "seconds" in row]
    left = None
    if known:
        left = sum(known) / len(known) * (counts[RUNNING] + counts[WAITING]) / max(counts[RUNNING], 1)
    return {
        "mode": "sweep",
        "command": records.command(),
        **counts,
        "seconds": round(time.time() - started, 3),
        "seconds_left": left and round(left, 1),
        "runs": rows,
    }


def figures(folder, one):
    """The newest figures of a run: those of its last mode that has a test accuracy, or of its last epoch."""
    found = {}
    for mode in one["modes"]:
        result = read(Workdir(folder).figures(mode))
        if result:
            found.update({key: result[key] for key in ("top1", "top5", "loss") if key in result})
    if "finetune" in one["modes"]:
        result = read(Workdir(folder).figures("finetune")) or {"sizes": []}
        found["finetuned"] = {str(row["size"]): row["top1"] for row in result["sizes"]} or None
    if "top1" not in found and not one["after"]:
        epochs = records.by_epoch(records.read_lines(Workdir(folder).records))
        if epochs:
            last = epochs[-1]
            found = {"epoch": last["epoch"], "top1": last.get("eval_top1_average", last.get("eval_top1"))}
    return {key: value for key, value in found.items() if value is not None}


def table(summary):
    """The summary for a person."""
    width = max(len(row["name"]) for row in summary["runs"])
    lines = [f"{'run':{width}}  state    top-1    seconds"]
    for row in summary["runs"]:
        top1 = f"{100 * row['top1']:6.2f} %" if "top1" in row else " " * 8
        seconds = f"{row['seconds']:8.0f}" if "seconds" in row else " " * 8
        notes = [f"epoch {row['epoch']}"] if "epoch" in row and row["state"] == RUNNING else []
        notes += [f"fine-tuned at {size}: {100 * top1:.2f} %" for size, top1 in row.get("finetuned", {}).items()]
        if row["state"] == WAITING and row["after"]:
            notes = [f"for the training of {row['after']}"]
        note = row.get("error") or ", ".join(notes)
        lines.append(f"{row['name']:{width}}  {row['state']:8}{top1} {seconds}  {note}".rstrip())
    counts = ", ".join(f"{summary[state]} {state}" for state in (DONE, FAILED, RUNNING, WAITING))
    left = f"; about {summary['seconds_left']:.0f} s left" if summary["seconds_left"] else ""
    return "\n".join(lines + [f"{counts}; {summary['seconds']:.0f} s{left}"])
