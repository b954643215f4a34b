"""Checks a run against the promises: each function yields a sentence for each broken one."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from .backend import Attempt, credentials_in
from .client import Answer, Ask, ClientEnd
from .plans import without_id
from .world import KEY, TOKEN, World

#: Bytes that one connection may hold for a peer that does not read: Twisted pauses a producer at
#: 64 KiB, and one more write may be a whole reply.
MOST_BUFFERED = 64 * 1024 * 4

#: Seconds within which a backend must see a disconnect of the client.
CANCEL = 0.1

_BACKEND_ENDS = {
    "backend_unreachable",
    "backend_error",
    "backend_truncated",
    "backend_timeout",
}


def judge(world: World) -> list[str]:
    """A sentence for each broken promise of a run; empty if all were kept."""
    found = list(dict.fromkeys(world.problems))
    lines = world.log_lines()
    by_id: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        by_id.setdefault(line["id"], []).append(line)
    attempts: dict[str, list[Attempt]] = {}
    for attempt in world.attempts:
        attempts.setdefault(attempt.id, []).append(attempt)
    found += _metrics(world, lines)
    for client in world.clients:
        try:
            answers = client.answers()
        except (AssertionError, ValueError) as e:
            found.append(f"{client.asks[0].id}: no HTTP: {e}")
            continue
        for n, ask in enumerate(client.asks):
            answer = answers[n] if n < len(answers) else None
            own = by_id.get(ask.id, [])
            said = _exchange(world, client, ask, answer, own, attempts.get(ask.id, []))
            found += [f"{ask.id}: {problem}" for problem in said]
    for id, tries in attempts.items():
        found += [f"{id}: {problem}" for problem in _executions(world, tries)]
        for attempt in tries:
            found += [f"{id}: {problem}" for problem in _request(world, attempt)]
    found += _cancel(world, attempts, by_id)
    found += _credentials(world)
    if world.pending:
        found.append(f"all have left, and still: {world.pending}")
    if world.most_buffered > MOST_BUFFERED:
        found.append(f"a connection held {world.most_buffered} bytes")
    for backend in world.backends:
        found += backend.problems
    return found


def _metrics(world: World, lines: list[dict[str, Any]]) -> list[str]:
    """Promise 1: the log and the metrics agree."""
    counted: Counter[str] = Counter()
    for family in text_string_to_metric_families(world.service.metrics.text().decode()):
        for sample in family.samples:
            if sample.name == "gatewayd_ends_total":
                counted[sample.labels["end"]] += int(sample.value)
    logged = Counter(line["end"] for line in lines)
    if +counted != logged:
        return [f"metrics counted {dict(+counted)}, the log has {dict(logged)}"]
    return []


def _exchange(
    world: World,
    client: ClientEnd,
    ask: Ask,
    answer: Answer | None,
    lines: list[dict[str, Any]],
    attempts: list[Attempt],
) -> list[str]:
    """One request has one log line, and the client saw what the line says."""
    if len(lines) > 1:
        return [f"{len(lines)} lines in the log"]
    if not lines:
        if answer is not None and answer.header("x-request-id") == [ask.id]:
            return ["an answer without a line in the log"]
        return ["asked of a backend without a line in the log"] if attempts else []
    (line,) = lines
    found = []
    if len(line["backend"]) < len(attempts) and not _stale(attempts):
        found.append(f"{len(attempts)} attempts, the log knows {line['backend']}")
    if answer is not None:
        found += _answer(world, client, ask, answer, line, attempts)
        found += _told_not_to_retry(answer, line, attempts)
    elif line["end"] == "complete" and client.left is None and client.reads_all:
        found.append("complete in the log, and no answer")
    if line["end"] == "internal":
        found.append("an internal error")
    stayed = client.left is None and not client.end.unsent
    reads = client.reads and client.minor == 1
    if line["end"] == "client_gone" and stayed and reads and not (client.broken and line["detail"]):
        found.append("client_gone in the log, and the client had not left")
    return found


def _answer(
    world: World,
    client: ClientEnd,
    ask: Ask,
    answer: Answer,
    line: dict[str, Any],
    attempts: list[Attempt],
) -> list[str]:
    found = []
    end = line["end"]
    if len(answer.header("x-request-id")) != 1:
        found.append("not exactly one X-Request-ID")
    if line["status"] != answer.status:
        found.append(f"status {answer.status} for the client, {line['status']} in the log")
    good = answer.status == 200
    last = line.get("attempts", [{}])[-1].get("end")
    if world.reask and (
        not attempts
        or attempts[-1].backend != line["backend"][-1]
        or last == "backend_unreachable"  # a backend that was left for another one, asked again
    ):
        return found  # the last backend never received it
    plan = attempts[-1].plan if attempts else None
    if end == "complete":
        if plan is None or not plan.complete:
            found.append(f"complete in the log, but the backend played: {plan and plan.name}")
        elif client.left is None and not answer.whole and not client.broken:
            found.append("complete in the log, not whole for the client")
    elif good and answer.whole:
        found.append(f"{end} in the log, whole for the client ({plan and plan.name})")
    if good and plan is not None:
        found += _content(ask, answer, plan)
    if end != "complete" and client.left is None and not good:
        if not answer.whole:
            found.append("an error that is not whole")
        elif set(answer.error) != {"message", "type", "param", "code"}:
            found.append(f"no envelope: {answer.body!r}")
    if good and end in _BACKEND_ENDS and client.left is None and answer.is_stream:
        last = answer.payloads[-1:] or [b"{}"]
        if not client.broken and b'"error"' not in last[0]:
            found.append("a stream that broke off without an error event")
        if client.minor == 0 and not client.broken:
            found.append("a broken stream over HTTP/1.0 that ends like a whole one")
    if ask.fault and good:
        found.append(f"answered in spite of its {ask.fault}")
    if plan is None or client.left is not None or not client.reads or attempts[-1].was_reset:
        return found
    if plan.complete and end not in ("complete", "refused", "client_gone", "backend_timeout"):
        found.append(f"{end} ({line['code']}, {line['detail']}), but the reply was {plan.name}")
    passed_on = good or answer.status == plan.status or attempts[-1].left is not None
    passed_on |= line["backend"][-1] != attempts[-1].backend  # the last never received it
    if plan.status and answer.whole and not passed_on:
        found.append(f"{answer.status} for the backend's {plan.name}")
    return found


def _told_not_to_retry(answer: Answer, line: dict[str, Any], attempts: list[Attempt]) -> list[str]:
    """A client is told not to repeat a request that several backends may have executed."""
    left = [a for a in attempts[:-1] if a.plan.may_have_run and not _died_unanswered(a)]
    if left and answer.status != 200 and answer.header("x-should-retry") != ["false"]:
        return [f"{answer.status} without x-should-retry after {len(line['backend'])} backends"]
    return []


def _content(ask: Ask, answer: Answer, plan: Any) -> list[str]:
    """A client received its own content, in order, from the start, and whole if it was told so."""
    found = []
    if answer.is_stream:
        payloads = answer.payloads
        done = payloads[-1:] == [b"[DONE]"]
        if b"[DONE]" in payloads[:-1]:
            found.append("something follows [DONE]")
        chunks = [p for p in payloads if p != b"[DONE]" and b'"error"' not in p]
        if any(json.loads(chunk)["id"] != ask.id for chunk in chunks):
            found.append("a chunk with the id of another")
        if plan.body:  # a JSON reply that was converted to a stream
            if done and not plan.complete:
                found.append(f"[DONE] is {done} after {plan.name}")
            if any(ask.id.encode() + b":" not in chunk for chunk in chunks):
                found.append("the content of another")
            return found
        expected = [without_id(p) for p in plan.payloads]
        if [without_id(chunk) for chunk in chunks] != expected[: len(chunks)]:
            found.append("other events than the backend sent")
        if done and (not plan.complete or len(chunks) != len(expected)):
            found.append(f"[DONE] after {len(chunks)} of {len(expected)} events of {plan.name}")
        if answer.whole and not done:
            found.append("whole without [DONE]")
    elif ask.is_audio:
        if answer.whole and answer.body != plan.body:
            found.append("other bytes than the backend sent")
        if not plan.body.startswith(answer.body) and plan.body:
            found.append("bytes of another")
    elif answer.whole:
        if without_id(answer.body) != without_id(plan.body or b"{}"):
            found.append("another document than the backend sent")
        elif json.loads(answer.body)["id"] != ask.id:
            found.append("a document with the id of another")
    return found


def _stale(attempts: list[Attempt]) -> bool:
    """Whether a reused connection ended without a byte, which allows one more attempt."""
    return any(_died_unanswered(attempt) for attempt in attempts)


def _died_unanswered(attempt: Attempt) -> bool:
    """Whether the gateway may have seen a reused connection end without a byte of the reply.

    A reset discards bytes that were sent before and not read yet.
    """
    return not attempt.fresh and (not attempt.answered or attempt.was_reset)


def _executions(world: World, attempts: list[Attempt]) -> list[str]:
    """Promise 6: the next backend is asked only after the one before cannot work any more.

    Without ``reask``, none is asked once a backend may have begun the work.
    """
    executions = 1
    for attempt, following in itertools.pairwise(attempts):
        if not attempt.plan.may_have_run:
            continue
        if not _died_unanswered(attempt):
            executions += 1
            if executions > world.attempts_allowed:
                return [f"asked again after {attempt.plan.name}"]
        over = attempt.ended is not None and attempt.ended <= following.began
        if not over and not 0 < attempt.socket.closed_at < following.sent_at:
            return [f"asked again while {attempt.plan.name} was under way"]
    return []


def _request(world: World, attempt: Attempt) -> list[str]:
    """Promise 7: the backend received the body unchanged."""
    asked = next((a for c in world.clients for a in c.asks if a.id == attempt.id), None)
    if asked is None:
        return ["a backend was asked for nobody"]
    if attempt.whole and attempt.body != asked.body:
        return ["another body than the client sent"]
    if asked.fault:
        return [f"sent to a backend in spite of its {asked.fault}"]
    return []


def _cancel(
    world: World, attempts: dict[str, list[Attempt]], lines: dict[str, list[dict[str, Any]]]
) -> list[str]:
    """Promise 4: if a client disconnects, its backend request is cancelled at once."""
    found = []
    for client in world.clients:
        if client.left is None:
            continue
        for ask in client.asks:
            for attempt in attempts.get(ask.id, []):
                over = attempt.ended if attempt.left is None else attempt.left
                late = max(client.left, attempt.began) + CANCEL
                gone = any(line["end"] == "client_gone" for line in lines.get(ask.id, []))
                if gone and attempt.ended is None and (over is None or over > late):
                    found.append(f"{ask.id}: left at {client.left}, the backend saw it at {over}")
    return found


def _credentials(world: World) -> list[str]:
    """Promise 8: credentials stay on their side."""
    found = credentials_in(world.backends, [TOKEN.encode()])
    found += [client.asks[0].id for client in world.clients if KEY.encode() in client.received]
    return [f"credentials have crossed: {found}"] if found else []
