#!/usr/bin/env python3
"""Anthropic's own SDK beside our wire format: `check_anthropic.py CASES`, one JSON document a line.

    {"request": {"path": "/v1/messages", "headers": {...}, "body": {...}}}
        -> {"agrees": true}, or {"differs": "why"}: the body must fit the SDK's types, which forbid what they do not
           know, and the SDK must send the same path, headers and body when it is asked for the same.
    {"answer": {"status": 200, "headers": {...}, "stream": true, "body": "..."}}
        -> {"message": {...}} as the SDK puts it together, or {"error": {"status", "type", "message", "request_id"}}
"""

import functools
import json
import sys

import anthropic
import httpx2
from anthropic.types import message_count_tokens_params, message_create_params
from anthropic.types.beta import message_create_params as beta_message_create_params
from pydantic import ConfigDict, TypeAdapter
from typing_extensions import is_typeddict

# The API has these for older models; the SDK's types lack them since 1.0.
SAMPLING = ("temperature", "top_p")
MESSAGE = {"id": "m", "type": "message", "role": "assistant", "model": "m", "content": [], "usage": {}}


def make_types_strict() -> None:
    for name, module in list(sys.modules.items()):
        if name.startswith("anthropic.types"):
            # What is iterable would be checked only while it is read, and could be read once.
            if hasattr(module, "Iterable"):
                module.Iterable = list
            for value in vars(module).values():
                # A tool's schema may hold anything, and says so.
                if is_typeddict(value) and not hasattr(value, "__pydantic_config__"):
                    value.__pydantic_config__ = ConfigDict(extra="forbid")


adapter = functools.cache(TypeAdapter)


def client(headers: dict, answer) -> anthropic.Anthropic:
    return anthropic.Anthropic(
        api_key=headers.get("x-api-key", "key"),
        base_url="http://sdk.test",
        max_retries=0,
        http_client=httpx2.Client(transport=httpx2.MockTransport(answer)),
    )


def check_request(case: dict) -> dict:
    path, headers, body = case["path"], case["headers"], case["body"]
    sent = []

    def answer(request):
        sent.append(request)
        if body and body.get("stream"):
            return httpx2.Response(200, headers={"content-type": "text/event-stream"}, content=b"")
        documents = {"/v1/models": {"data": [], "has_more": False}, "/v1/messages/count_tokens": {"input_tokens": 1}}
        return httpx2.Response(200, json=documents.get(request.url.path, MESSAGE))

    sdk = client(headers, answer)
    url, _, query = path.partition("?")
    if url == "/v1/models":
        arguments = dict(pair.split("=") for pair in query.split("&"))
        sdk.models.list(**arguments)
    else:
        betas = headers.get("anthropic-beta", "")
        known = {name: value for name, value in body.items() if name not in SAMPLING}
        sampling = {name: body[name] for name in SAMPLING if name in body}
        if url.endswith("count_tokens"):
            types, call, more = message_count_tokens_params.MessageCountTokensParams, sdk.messages.count_tokens, {}
        elif betas:
            types, call = beta_message_create_params.MessageCreateParams, sdk.beta.messages.create
            more = {"betas": betas.split(",")}
        else:
            types, call, more = message_create_params.MessageCreateParams, sdk.messages.create, {}
        read = adapter(types).dump_python(adapter(types).validate_python(known), mode="json")
        if read != known:
            return {"differs": f"its types read {read}"}
        result = call(**known, **more, extra_body=sampling or None)
        if known.get("stream"):
            result.close()
    [request] = sent
    if request.url.path != url:
        return {"differs": f"it asks {request.url.path}"}
    if query and request.url.query.decode() != query:
        return {"differs": f"it asks for {request.url.query.decode()}"}
    if body is not None and json.loads(request.content) != body:
        return {"differs": f"it sends {request.content.decode()}"}
    for name in ("x-api-key", "anthropic-version", "anthropic-beta"):
        if request.headers.get(name) != headers.get(name):
            return {"differs": f"its {name} is {request.headers.get(name)}"}
    return {"agrees": True}


def check_answer(case: dict) -> dict:
    body = case["body"].encode()
    sdk = client({}, lambda _: httpx2.Response(case["status"], headers=case["headers"], content=body))
    ask = {"model": "m", "max_tokens": 1, "messages": [{"role": "user", "content": "Hello"}]}
    try:
        if case["stream"]:
            with sdk.messages.stream(**ask) as stream:
                message = stream.get_final_message()
        else:
            message = sdk.messages.create(**ask)
    except anthropic.APIStatusError as error:
        body = error.body if isinstance(error.body, dict) else {}
        inner = body.get("error") or {}
        return {"error": {"status": error.status_code, "type": inner.get("type"), "message": inner.get("message"),
                          "request_id": error.request_id}}
    return {"message": message.model_dump(mode="json", warnings=False)}


def main() -> None:
    make_types_strict()
    with open(sys.argv[1], encoding="utf-8") as cases:
        for line in cases:
            case = json.loads(line)
            try:
                verdict = check_request(case["request"]) if "request" in case else check_answer(case["answer"])
            except Exception as error:  # noqa: BLE001 - whatever it is, it is the verdict
                verdict = {"failed": f"{type(error).__name__}: {error}"}
            print(json.dumps(verdict), flush=True)


if __name__ == "__main__":
    main()
