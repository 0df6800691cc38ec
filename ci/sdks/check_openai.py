#!/usr/bin/env python3
"""The official OpenAI SDK as the other side: reads jobs, one JSON object a line, and answers each with one line.

A job is a request of ours with its answer:

    {"api": "chat" | "responses" | "count" | "embeddings" | "models", "path": "/v1/chat/completions", "body": {...},
     "deployments": "2024-10-21", "answer": {"status": 200, "type": "text/event-stream", "headers": {}, "text": "..."},
     "whole": true}

The body is held against the SDK's own types. The SDK is then asked for the same, against a server on loopback that replays
the answer, and what it sent (`sent`) and understood (`said`, or `error`) is told. `whole` says that the answer has
everything that the SDK's types require, which is checked, too. It ends when stdin does.
"""

import json
import sys
import threading
import types
import typing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import openai
import typing_extensions
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.chat.completion_create_params import (
    CompletionCreateParamsNonStreaming,
    CompletionCreateParamsStreaming,
)
from openai.types.embedding_create_params import EmbeddingCreateParams
from openai.types.responses import Response, ResponseStreamEvent
from openai.types.responses.input_token_count_params import InputTokenCountParams
from openai.types.responses.response_create_params import (
    ResponseCreateParamsNonStreaming,
    ResponseCreateParamsStreaming,
)
from pydantic import ValidationError

KEY = "sk-a-key-of-the-tests"


class Replay(BaseHTTPRequestHandler):
    """Sends the answer of the job at hand and keeps the request."""

    protocol_version = "HTTP/1.1"
    answer: dict = {}
    sent: dict = {}

    def respond(self):
        length = int(self.headers.get("content-length") or 0)
        body = self.rfile.read(length)
        Replay.sent = {
            "path": self.path,
            "body": json.loads(body) if body else None,
            "auth": "api-key" if "api-key" in self.headers else "authorization",
        }
        answer = Replay.answer
        text = answer["text"].encode()
        self.send_response(answer["status"])
        for name, value in {"content-type": answer["type"], **answer["headers"]}.items():
            if value:
                self.send_header(name, value)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_POST = respond

    def log_message(self, *_):
        pass


def misfits(value, kind, place="body"):
    """Why a JSON value does not fit an annotation of the SDK's; unlike at run time, unknown keys count."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind in (typing.Any, object):
        return []
    if origin in (typing.Union, types.UnionType):
        found = [misfits(value, one, place) for one in arguments]
        # The nearest one says most.
        return min(found, key=lambda problems: (len(problems), str(problems)))
    if origin in (typing.Annotated, typing_extensions.Required, typing_extensions.NotRequired):
        return misfits(value, arguments[0], place)
    if kind is type(None):
        return [] if value is None else [f"{place} is not null"]
    if origin in (typing.Literal, typing_extensions.Literal):
        return [] if value in arguments else [f"{place} is {value!r}, not one of {arguments}"]
    if typing_extensions.is_typeddict(kind):
        if not isinstance(value, dict):
            return [f"{place} is no object"]
        hints = typing_extensions.get_type_hints(kind, include_extras=True)
        problems = [f"{place}.{name} is missing" for name in kind.__required_keys__ if name not in value]
        for name, part in value.items():
            if name in hints:
                problems += misfits(part, hints[name], f"{place}.{name}")
            else:
                problems.append(f"{place}.{name} is unknown")
        return problems
    if origin is dict or kind is dict:
        if not isinstance(value, dict):
            return [f"{place} is no object"]
        inner = arguments[1] if arguments else typing.Any
        return [problem for name, part in value.items() for problem in misfits(part, inner, f"{place}.{name}")]
    if origin is not None and isinstance(origin, type) and issubclass(origin, typing.Iterable) or "Sequence" in str(kind):
        if not isinstance(value, list):
            return [f"{place} is no array"]
        inner = arguments[0] if arguments else typing.Any
        return [problem for at, part in enumerate(value) for problem in misfits(part, inner, f"{place}[{at}]")]
    if kind is float:
        return [] if isinstance(value, (int, float)) and not isinstance(value, bool) else [f"{place} is no number"]
    if kind in (str, int, bool):
        fits = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
        return [] if fits else [f"{place} is no {kind.__name__}"]
    return [f"{place}: the checker does not know {kind!r}"]


def params(api, streaming):
    return {
        "chat": CompletionCreateParamsStreaming if streaming else CompletionCreateParamsNonStreaming,
        "responses": ResponseCreateParamsStreaming if streaming else ResponseCreateParamsNonStreaming,
        "count": InputTokenCountParams,
        "embeddings": EmbeddingCreateParams,
    }[api]


def call(client, api, body):
    create = {
        "chat": client.chat.completions.create,
        "responses": client.responses.create,
        "count": client.responses.input_tokens.count,
        "embeddings": client.embeddings.create,
    }
    if api == "models":
        return {"models": [model.id for model in client.models.list()]}
    if api == "embeddings":
        # Unasked, the SDK asks for base64 itself and decodes it; asked, it hands it out as it is.
        body = {name: value for name, value in body.items() if name != "encoding_format"}
    result = create[api](**body)
    if api == "count":
        return {"tokens": result.input_tokens}
    if api == "embeddings":
        data = sorted(result.data, key=lambda entry: entry.index)
        return {"vectors": [entry.embedding for entry in data], "model": result.model,
                "tokens": result.usage and result.usage.prompt_tokens}
    streaming = body.get("stream")
    return (chat if api == "chat" else response)(result, streaming)


def detail(usage, part, name):
    details = getattr(usage, part, None)
    return getattr(details, name, None) or 0


def chat(result, streaming):
    if streaming:
        state = ChatCompletionStreamState()
        for chunk in result:
            # Azure's verdicts have no delta, for which this accumulator is not made.
            if not chunk.choices or chunk.choices[0].delta:
                state.handle_chunk(chunk)
        result = state.current_completion_snapshot
    choice, usage = result.choices[0], result.usage
    message = choice.message
    return {
        "id": result.id,
        "model": result.model,
        "text": (message.content or "") + (message.refusal or ""),
        "calls": [[call.id, call.function.name, call.function.arguments] for call in message.tool_calls or []],
        "finish": "refusal" if message.refusal else choice.finish_reason,
        "sources": [[note.url_citation.url, note.url_citation.title] for note in message.annotations or []],
        "usage": usage and [usage.prompt_tokens, usage.completion_tokens,
                            detail(usage, "prompt_tokens_details", "cached_tokens"),
                            detail(usage, "completion_tokens_details", "reasoning_tokens")],
    }


def response(result, streaming):
    pieces = None
    if streaming:
        items, pieces, end = [], "", None
        for event in result:
            if event.type in ("response.output_text.delta", "response.refusal.delta"):
                pieces += event.delta
            elif event.type == "response.output_item.done":
                items.append(event.item)
            elif event.type in ("response.completed", "response.incomplete", "response.failed"):
                end = event.response
            elif event.type == "error":
                raise openai.APIError(event.message, None, body={"code": event.code, "message": event.message})
        result, output = end, items or end.output
    else:
        output = result.output
    if result.error or result.status in ("failed", "cancelled"):
        error = result.error.to_dict() if result.error else {}
        raise openai.APIError(error.get("message", ""), None, body=error)
    text, calls, thoughts, sources, refused = "", [], [], [], False
    for item in output:
        if item.type == "message":
            for part in item.content:
                refused |= part.type == "refusal"
                text += part.refusal if part.type == "refusal" else part.text
                notes = part.annotations if part.type == "output_text" else []
                sources += [[note.url, note.title] for note in notes or [] if note.type == "url_citation"]
        elif item.type == "function_call":
            calls.append([item.call_id, item.name, item.arguments])
        elif item.type == "reasoning":
            thoughts.append([item.id, item.encrypted_content])
    reason = result.incomplete_details and result.incomplete_details.reason
    finish = reason or ("refusal" if refused else "tool_calls" if calls else "stop")
    usage = result.usage if isinstance(getattr(result.usage, "input_tokens", None), int) else None
    return {
        "id": result.id,
        "model": result.model,
        "text": pieces or text,
        "calls": calls,
        "finish": finish if result.status in ("completed", "incomplete") else "unknown",
        "sources": sources,
        "thoughts": [thought for thought in thoughts if thought[1]],
        "usage": usage and [usage.input_tokens, usage.output_tokens,
                            detail(usage, "input_tokens_details", "cached_tokens"),
                            detail(usage, "output_tokens_details", "reasoning_tokens")],
    }


EVENTS = {typing.get_args(kind.model_fields["type"].annotation)[0]: kind
          for kind in typing.get_args(typing.get_args(ResponseStreamEvent)[0])}


def strictly(api, answer):
    """Holds every document of an answer against the SDK's models. Of what does not exist yet (`a_new_`), none is there."""
    streamed = answer["type"].startswith("text/event-stream")
    if streamed:
        # Lines may end in other ways than Python thinks.
        lines = [line[6:] for line in answer["text"].split("\n") if line.startswith("data: ")]
        documents = [line for line in lines if line != "[DONE]"]
    else:
        documents = [answer["text"]]
    problems = []
    for document in documents:
        if not streamed:
            kind = ChatCompletion if api == "chat" else Response
        elif api == "chat":
            kind = ChatCompletionChunk
        else:
            name = json.loads(document)["type"]
            if "a_new_" in name:
                continue
            kind = EVENTS[name]
        try:
            kind.model_validate_json(document)
        except ValidationError as error:
            found = [one for one in error.errors() if "a_new_" not in str(one["input"])]
            problems += [f"{document[:80]}: {one['loc']}: {one['msg']}" for one in found]
    return problems


OPERATIONS = {"chat": "/chat/completions", "responses": "/responses", "count": "/responses/input_tokens",
              "embeddings": "/embeddings", "models": "/models"}


def connect(api, path, deployments, port, http):
    address = f"http://127.0.0.1:{port}"
    common = {"api_key": KEY, "max_retries": 0, "http_client": http}
    if deployments:
        return openai.AzureOpenAI(azure_endpoint=address, api_version=deployments, **common)
    return openai.OpenAI(base_url=address + path.removesuffix(OPERATIONS[api]), **common)


def work(job, port, http):
    said = {}
    body, answer = job.get("body"), job.get("answer")
    streaming = bool(body and body.get("stream"))
    if body is not None:
        said["misfits"] = misfits(body, params(job["api"], streaming))
    if answer is None:
        answer = {"status": 418, "type": "application/json", "headers": {}, "text": "{}"}
    if job.get("whole"):
        said["misfits"] += strictly(job["api"], answer)
    Replay.answer, Replay.sent = answer, None
    client = connect(job["api"], job["path"], job.get("deployments"), port, http)
    try:
        said["said"] = call(client, job["api"], body or {})
    except openai.APIStatusError as error:
        inner = error.body if isinstance(error.body, dict) else {}
        said["error"] = {"status": error.status_code, "message": inner.get("message"), "code": inner.get("code"),
                         "request_id": error.request_id, "class": type(error).__name__}
    except openai.APIError as error:
        inner = error.body if isinstance(error.body, dict) else {}
        said["error"] = {"message": inner.get("message") or error.message, "code": inner.get("code")}
    except Exception as error:  # A broken job must not end the others.
        said["error"] = {"class": type(error).__name__, "message": str(error)}
    said["sent"] = Replay.sent
    return said


def main():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Replay)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    # One for all: it reads the system's certificates.
    with openai.DefaultHttpxClient() as http:
        for line in sys.stdin:
            print(json.dumps(work(json.loads(line), server.server_port, http)), flush=True)


if __name__ == "__main__":
    main()
