"""A minimal gateway on FastAPI and httpx: ``fastapi_httpx.py PORT BACKEND``."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

PORT, BACKEND = int(sys.argv[1]), sys.argv[2]


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with httpx.AsyncClient(
        base_url=BACKEND,
        timeout=httpx.Timeout(10, read=300),
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=200),
    ) as client:
        app.state.client = client
        yield


app = FastAPI(lifespan=lifespan)


# response_model=None: FastAPI sends the returned response unchanged.
@app.post("/v1/chat/completions", response_model=None)
async def chat(request: Request) -> Response:
    payload, client = await request.json(), request.app.state.client
    try:
        asked = client.build_request("POST", "/v1/chat/completions", json=payload)
        reply = await client.send(asked, stream=True)
    except httpx.HTTPError as e:
        return JSONResponse({"error": {"message": str(e)}}, status_code=502)
    media_type = reply.headers.get("content-type")
    if payload.get("stream"):

        async def body() -> AsyncIterator[bytes]:
            try:
                async for data in reply.aiter_raw():
                    yield data
            finally:
                await reply.aclose()

        return StreamingResponse(body(), reply.status_code, media_type=media_type)
    await reply.aread()
    await reply.aclose()
    return Response(reply.content, reply.status_code, media_type=media_type)


uvicorn.run(app, host="127.0.0.1", port=PORT, log_level="warning", access_log=False)
