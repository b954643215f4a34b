"""The smallest gateway on aiohttp, server and client: ``aiohttp_proxy.py PORT BACKEND``."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator

import aiohttp
from aiohttp import web

PORT, BACKEND = int(sys.argv[1]), sys.argv[2]
CLIENT = web.AppKey("client", aiohttp.ClientSession)


async def with_client(app: web.Application) -> AsyncIterator[None]:
    app[CLIENT] = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=300),
        auto_decompress=False,
    )
    yield
    await app[CLIENT].close()


async def chat(request: web.Request) -> web.StreamResponse:
    body, headers = await request.read(), {"Content-Type": "application/json"}
    url = f"{BACKEND}/v1/chat/completions"
    try:
        async with request.app[CLIENT].post(url, data=body, headers=headers) as reply:
            kind = {"Content-Type": reply.headers.get("Content-Type", "application/json")}
            if not kind["Content-Type"].startswith("text/event-stream"):
                return web.Response(body=await reply.read(), status=reply.status, headers=kind)
            answer = web.StreamResponse(status=reply.status, headers=kind)
            await answer.prepare(request)
            async for data in reply.content.iter_any():
                await answer.write(data)
            await answer.write_eof()
            return answer
    except aiohttp.ClientError as e:
        return web.json_response({"error": {"message": str(e)}}, status=502)


app = web.Application(client_max_size=32 * 2**20)
app.cleanup_ctx.append(with_client)
app.add_routes([web.post("/v1/chat/completions", chat)])
web.run_app(
    app,
    host="127.0.0.1",
    port=PORT,
    print=None,
    access_log=None,
    handler_cancellation=True,  # otherwise a disconnect of the client cancels nothing
)
