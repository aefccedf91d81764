"""The checks of `benchmarks load`, and its table, from plain values."""

from __future__ import annotations

from typing import Any

CANCEL_SECONDS = 2.0
MEMORY_RATIO = 1.05
EXPLORER_SECONDS = 0.1
JOB_SHARE = 0.9  # of the samples must have a running job
ASKED_SHARE = 0.95
ENDS = ("completed", "stopped", "refused", "failed", "vanished")  # of a job that was accepted


def checks(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Each as `name`, `aim`, `measured` (as text) and `met`. What was not measured is not met."""
    results = [_server(result), _errors(result), _log(result), _jobs(result), _cancelled(result)]
    results += [_memory(result)]
    results += [_counted(result, what) for what in ("threads", "handles")]
    return [*results, *_explorers(result)]


def _check(name: str, aim: str, measured: str, met: bool) -> dict[str, Any]:
    return {"name": name, "aim": aim, "measured": measured, "met": bool(met)}


def _server(result: dict[str, Any]) -> dict[str, Any]:
    broken = result["broken"]
    return _check("app", "runs to the end", broken or "ran", not broken)


def _errors(result: dict[str, Any]) -> dict[str, Any]:
    count = sum(result["errors"].values())
    return _check("errors", "0", str(count), count == 0)


def _log(result: dict[str, Any]) -> dict[str, Any]:
    count = sum(result["log"].values())
    return _check("log", "no traceback", str(count), count == 0)


def _jobs(result: dict[str, Any]) -> dict[str, Any]:
    jobs = result["jobs"]
    joined, ended = jobs.get("joined", 0), sum(jobs.get(one, 0) for one in ENDS)
    left = joined - ended + result["under_way"] + result["unfinished"]
    words = f"{jobs.get('completed', 0)} completed of {joined}, {jobs.get('failed', 0)} failed"
    met = left == 0 and not jobs.get("failed", 0) and jobs.get("completed", 0) > 0
    return _check("jobs", "every accepted job ends", f"{words}, {left} left", met)


def _cancelled(result: dict[str, Any]) -> dict[str, Any]:
    times = result["vanished"]
    if not times:
        return _check("cancelled", f"within {CANCEL_SECONDS:g} s", "nobody vanished", False)
    late = sum(one > CANCEL_SECONDS for one in times)
    words = f"{times[-1]:.1f} s at most, {late} of {len(times)} later"
    return _check("cancelled", f"within {CANCEL_SECONDS:g} s", words, late == 0)


def _memory(result: dict[str, Any]) -> dict[str, Any]:
    states = result["states"]
    aim = f"{MEMORY_RATIO:g} times at most"
    if len(states) < 2:
        return _check("memory", aim, "not measured", False)
    warm, end = states["warm"]["rss"], states["end"]["rss"]
    words = f"{warm / 1e6:.0f} MB, at the end {end / 1e6:.0f} MB ({end / warm:.3f})"
    return _check("memory", aim, words, end <= MEMORY_RATIO * warm)


def _counted(result: dict[str, Any], what: str) -> dict[str, Any]:
    states = result["states"]
    if len(states) < 2:
        return _check(what, "no more", "not measured", False)
    warm, end = states["warm"][what], states["end"][what]
    return _check(what, "no more", f"{warm}, at the end {end}", end <= warm)


def _explorers(result: dict[str, Any]) -> list[dict[str, Any]]:
    aim = f"p95 at most {1000 * EXPLORER_SECONDS:.0f} ms"
    asked = result["asked"]
    if not asked:
        return []
    given = sum(one["count"] for one in result["explorers"].values())
    words = f"{given} of {asked} answered, a job running {result['job_ran']:.0%} of the time"
    met = given >= ASKED_SHARE * asked and result["job_ran"] >= JOB_SHARE
    results = [_check("explorers", "answered, during a job", words, met)]
    for kind, times in result["explorers"].items():
        if not times["count"]:
            results.append(_check(kind, aim, "not measured", False))
            continue
        words = f"p50 {1000 * times['median']:.0f} ms, p95 {1000 * times['p95']:.0f} ms"
        results.append(
            _check(kind, aim, f"{words} ({times['count']})", times["p95"] <= EXPLORER_SECONDS)
        )
    return results


def table(result: dict[str, Any]) -> str:
    """The whole result for a terminal."""
    wanted, load = result["settings"], result["load"]
    lines = [
        f"{wanted['clients']} clients for {wanted['minutes']:g} minutes after "
        f"{wanted['warm_minutes']:g} of warm-up, {wanted['rate']:g} explorers' requests per second",
        f"{result['processors']} processors, {result['threads']} torch threads, load "
        f"{load[0]:.1f} before and {load[1]:.1f} at the end",
        "",
    ]
    for one in result["checks"]:
        mark = "ok" if one["met"] else "NOT MET"
        lines.append(f"{one['name']:<12}{mark:<9}{one['measured']}  (aim: {one['aim']})")
    lines += ["", f"jobs: {_listed(result['jobs'])}"]
    spent = result["processor"]
    if spent.get("seconds"):
        shares = [f"{who} {spent[who] / spent['seconds']:.2f}" for who in ("app", "clients")]
        lines.append(f"processors in use, on average: {', '.join(shares)}")
    if result["lag"]["count"]:
        lag, gap = result["lag"], result["look_gap"]
        lines.append(
            f"the clients' own process was late by {1000 * lag['p95']:.0f} ms (p95); jobs were "
            f"checked every {gap.get('median', 0):.1f} s, {gap.get('most', 0):.1f} s at most"
        )
    lines += [f"error, {count} times: {words}" for words, count in result["errors"].items()]
    lines += [f"in the log, {count} times: {words}" for words, count in result["log"].items()]
    return "\n".join([*lines, *_grown(result["states"])])


def _grown(states: dict[str, Any]) -> list[str]:
    """The handles and threads whose number has grown."""
    if len(states) < 2:
        return []
    lines = []
    for what, key in (("handles to", "kinds"), ("threads", "threads_by_name")):
        warm, end = states["warm"].get(key, {}), states["end"].get(key, {})
        more = {k: v - warm.get(k, 0) for k, v in end.items() if v > warm.get(k, 0)}
        lines += [f"{count} more {what} {name}" for name, count in more.items()]
    return lines


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {what}" for what, count in counts.items()) or "none"
