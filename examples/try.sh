#!/usr/bin/env bash
# Sends requests to a running gateway with curl, shows the replies, and fails if one is unexpected.
# usage: [GATEWAYD_TOKEN=secret] examples/try.sh [BASE_URL]      (default: http://127.0.0.1:8000)
set -euo pipefail

base=${1:-http://127.0.0.1:8000}
base=${base%/}
id="try-$$-$RANDOM"

failed() { echo "FAILED: $*" >&2; exit 1; }

# Calls curl. A token is passed in a file, so that the list of processes does not show it.
call() {
    curl -sS -N --noproxy '*' --fail-with-body --max-time 120 \
        -H @<(printf 'Content-Type: application/json\n'
              printf '%s' "${GATEWAYD_TOKEN:+Authorization: Bearer $GATEWAYD_TOKEN}") "$@"
}

# Prints the body of a completion request; the first argument is inserted at its end.
request() {
    printf '{"model": %s, "messages": [{"role": "user", "content": "%s"}], "max_tokens": 48%s}' \
        "$model" 'Hello! Who are you?' "$1"
}

echo "== $base/v1/models"
models=$(call "$base/v1/models") || failed "$base did not return a list of models: $models"
echo "$models"
model=$(python3 -c '
import json, sys
print(json.dumps(json.loads(sys.argv[1])["data"][0]["id"]))
' "$models" 2>/dev/null) || failed "the list has no model"

echo
echo "== $base/v1/chat/completions"
reply=$(call -i -H "X-Request-ID: $id" -d "$(request '')" "$base/v1/chat/completions") \
    || failed "the request for a completion failed: $reply"
echo "$reply"
echo
python3 -c '
import json, sys
body = json.loads(sys.argv[1].replace("\r", "").partition("\n\n")[2])
assert body["id"] and isinstance(body["id"], str)
assert isinstance(body["choices"][0]["message"]["content"], str)
' "$reply" 2>/dev/null || failed "the completion lacks id or choices[0].message.content"
echo "ok: a completion has an id and choices[0].message.content"
python3 -c '
import json, sys
reply, sent = sys.argv[1:]
head, _, body = reply.replace("\r", "").partition("\n\n")
headers = [line.partition(":") for line in head.split("\n")[1:]]
assert [v.strip() for k, _, v in headers if k.lower() == "x-request-id"] == [sent]
assert json.loads(body)["id"] == sent
' "$reply" "$id" 2>/dev/null || failed "the reply does not have the request id $id in its header and as its id"
echo "ok: the reply has the request id in its header and as its id"

echo
echo "== $base/v1/chat/completions, streaming (each line begins with the seconds since the call)"
call -H "X-Request-ID: $id" -d "$(request ', "stream": true')" "$base/v1/chat/completions" \
    | python3 -c '
import json, os, sys, time

sys.excepthook = lambda kind, error, _: print(f"{kind.__name__}: {error}", file=sys.stderr)
sent, start, buffer = sys.argv[1], time.monotonic(), b""
events, arrivals = [], 0
while data := os.read(0, 65536):
    arrivals += 1
    *lines, buffer = (buffer + data).split(b"\n")
    for line in filter(None, lines):
        print(f"{time.monotonic() - start:7.3f}  {line.decode()}", flush=True)
        if line.startswith(b"data: "):
            events.append(line[6:])

assert not buffer, "the stream ends in the middle of a line"
assert events and events[-1] == b"[DONE]", "the stream does not end with data: [DONE]"
chunks = [json.loads(event) for event in events[:-1]]
assert chunks, "the stream has no chunk"
assert not any("error" in chunk for chunk in chunks), "the stream contains an error"
assert {chunk["id"] for chunk in chunks} == {sent}, "a chunk has another id"
reasons = [choice["finish_reason"] for chunk in chunks for choice in chunk["choices"]]
assert reasons[-1] and not any(reasons[:-1]), "only the last chunk must have a finish_reason"
# The echo sends one chunk. The chunks of a model must arrive one by one, not all together.
assert len(events) < 10 or arrivals > len(events) / 4, "the events did not arrive one by one"
print(f"ok: {len(events)} events arrived one by one, the last one was data: [DONE]")
' "$id" || failed "the stream is not as expected"
