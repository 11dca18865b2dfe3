"""What the pool commands tell people."""

from __future__ import annotations

from typing import Any, TypeAlias

from nvmeof.cli.text import size_text, table

Answer: TypeAlias = dict[str, Any]
LINES_MAX = 20
"""Damaged places that are printed; --json has them all."""


def status(answer: Answer) -> list[str]:
    """After status."""
    word = answer["state"]
    if word == "healthy" and not answer["healthy"]:
        word = "degraded" if answer["deleted"] else "damaged"
    kind = "encrypted" if answer["encrypted"] else "not encrypted"
    lines = [
        f"pool {answer['uuid']}: {word.upper() if word != 'healthy' else word}, {answer['raid']}, "
        f"{answer['data']} data + {answer['parity']} parity, {kind}{', being served' if answer['served'] else ''}",
        f"{size_text(answer['used'])} of {size_text(answer['capacity'])} used, {answer['segments_free']} of "
        f"{answer['segments']} segments free",
    ]
    lines += [f"reason: {reason}" for reason in (answer["reason"], answer["background_error"]) if reason]
    if answer["unreadable"]:
        lines.append(
            f"problem: {answer['unreadable']} reads failed since this pool was opened: "
            "blocks are lost, or were marked uncorrectable; nvmeof pool scrub says what is lost"
        )
    lines += [f"problem: {problem}" for problem in answer["problems"]]
    lines += ["", *_members(answer["members"]), "", *_namespaces(answer["namespaces"]), "", _scrub(answer["scrub"])]
    if answer["media_errors"]:
        lines.append(f"{answer['media_errors']} media errors in this pool's life; of late:")
        lines += _errors(answer["errors"])
    return lines


def _members(members: list[Answer]) -> list[str]:
    rows = [("ROLE", "STATE", "ERRORS", "MEMBER", "")]
    for each in members:
        role = "spare" if each["role"] is None else str(each["role"])
        state = each["state"]
        if each["progress"] is not None:
            state += f" {each['progress']:.0%}"
        rows.append((role, state, str(each["errors"]), each["name"], each["reason"]))
    return table(rows, right=(0, 2))


def _namespaces(namespaces: list[Answer]) -> list[str]:
    if not namespaces:
        return ["no namespaces"]
    rows = [("NSID", "SIZE", "WRITTEN", "BLOCK", "CODEC", "ENCRYPTED", "WRITE CACHE", "UUID")]
    for each in namespaces:
        codec = each["codec"] + (f" {each['level']}" if each["codec"] in ("zstd", "deflate", "auto") else "")
        codec += f", planes of {each['planes']}" if each["planes"] else ""
        sizes = size_text(each["size"]), size_text(each["allocated"]), str(each["block_size"])
        switches = ("yes" if each["encrypted"] else "no", "on" if each["write_cache"] else "off")
        rows.append((str(each["nsid"]), *sizes, codec, *switches, each["uuid"]))
    return table(rows, right=(0, 1, 2, 3))


def _scrub(found: Answer) -> str:
    if not found["stripes"] and found["progress"] is None:
        return "scrub: none yet"
    where = "done" if found["progress"] is None else f"{found['progress']:.0%}{'' if found['running'] else ', stopped'}"
    return f"scrub: {where}, {found['stripes']} stripes, {found['healed']} strips healed, {found['lost']} stripes lost"


def _errors(errors: list[Answer]) -> list[str]:
    lines = []
    for each in errors[-LINES_MAX:]:
        healed = "healed" if each["healed"] else "NOT healed"
        lines.append(f"  {each['what']} (segment {each['segment']}, page {each['page']}), {healed}")
    if len(errors) > LINES_MAX:
        lines.append(f"  and {len(errors) - LINES_MAX} before (--json lists them)")
    return lines


def scrub(answer: Answer) -> list[str]:
    """After scrub."""
    if "started" in answer:
        return ["scrubbing (nvmeof pool status shows how far it is)"]
    bad = sum(answer["bad"].values())
    if not answer["finished"]:
        how = "stopped"
    elif answer["lost"]:
        how = f"LOST {answer['lost']} stripes"
    else:
        how = "nothing bad" if not bad else "all healed" if answer["healed"] >= bad else "not all healed"
    lines = [f"scrubbed {answer['stripes']} stripes in {answer['seconds']:.2f} s: {bad} bad strips, {how}"]
    lines += _errors(answer["errors"])
    if answer["state"] != "healthy":
        lines.append(f"the pool is {answer['state']}: {answer['reason']}")
    return lines


def rebuild(answer: Answer) -> list[str]:
    """After rebuild."""
    if "started" in answer:
        return ["rebuilding (nvmeof pool status shows how far it is)"]
    said = f"rebuilt in {answer['seconds']:.2f} s" if answer["rebuilt"] else "nothing to rebuild"
    return [said if answer["state"] == "healthy" else f"{said}; the pool is {answer['state']}: {answer['reason']}"]


def replace(answer: Answer) -> list[str]:
    """After replace."""
    how = f"rebuilt in {answer['seconds']:.2f} s" if answer["rebuilt"] else "being rebuilt (see nvmeof pool status)"
    return [f"role {answer['role']}: {answer['member']} has it now, {how}", *filter(None, [answer["note"]])]


def spare(answer: Answer) -> list[str]:
    """After add-spare."""
    return [f"{answer['member']} is a spare now"]


def namespace_made(answer: Answer) -> list[str]:
    """After create-namespace."""
    size = size_text(answer["size"])
    return [f"namespace {answer['nsid']}: made, {size} in blocks of {answer['block_size']}, UUID {answer['uuid']}"]


def namespace_set(answer: Answer) -> list[str]:
    """After set."""
    names = ("codec", "level", "planes", "write_cache")
    return [f"namespace {answer['nsid']}: {', '.join(f'{name} {answer[name]}' for name in names)}"]


def namespace_resized(answer: Answer) -> list[str]:
    """After resize."""
    return [f"namespace {answer['nsid']}: {size_text(answer['size'])} now"]


def namespace_deleted(answer: Answer) -> list[str]:
    """After delete-namespace."""
    return [f"namespace {answer['nsid']}: deleted{', its key destroyed' if answer['encrypted'] else ''}"]
