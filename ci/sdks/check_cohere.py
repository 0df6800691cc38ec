"""Cohere's SDK: its types judge our requests, and it reads the answers."""

import inspect
import logging
import typing

import cohere
import pydantic
import replay
from cohere.core.api_error import ApiError

# It complains of events of a later day, and goes on.
logging.disable(logging.CRITICAL)

# The types of the parameters of a chat that are more than plain values.
TYPES = {
    "messages": typing.List[cohere.ChatMessageV2],
    "tools": typing.List[cohere.ToolV2],
    "response_format": cohere.ResponseFormatV2,
    "thinking": cohere.Thinking,
}
REASONS = {"COMPLETE": "stop", "STOP_SEQUENCE": "stop", "MAX_TOKENS": "length", "TOOL_CALL": "tool_calls"}


def strict(value):
    """The SDK's types take fields that they do not know; we must not send any."""
    if isinstance(value, pydantic.BaseModel):
        assert not value.model_extra, f"{type(value).__name__} does not know {value.model_extra}"
        for name in type(value).model_fields:
            strict(getattr(value, name))
    elif isinstance(value, list):
        for item in value:
            strict(item)
    return value


def typed(name, value):
    return strict(pydantic.TypeAdapter(TYPES[name]).validate_python(value)) if name in TYPES else value


def call(method, body):
    parameters = inspect.signature(method).parameters
    unknown = body.keys() - parameters.keys()
    assert not unknown, f"{method.__name__} has no parameters {unknown}"
    return method(**{name: typed(name, value) for name, value in body.items()})


class Reply:
    """What an answer says."""

    def __init__(self):
        self.said = {"text": "", "reasoning": "", "calls": [], "citations": [], "finish": None, "usage": None}

    def part(self, part):
        self.said["text"] += getattr(part, "text", None) or ""
        self.said["reasoning"] += getattr(part, "thinking", None) or ""

    def plan(self, plan):
        self.said["reasoning"] += plan or ""

    def call(self, call):
        function = call.function
        self.said["calls"].append([call.id, function.name, function.arguments or ""])

    def citation(self, citation):
        for source in citation.sources or [None]:
            known = getattr(source, "document", None) or getattr(source, "tool_output", None) or {}
            known = known if isinstance(known, dict) else {}
            self.said["citations"].append([known.get("url"), known.get("title") or getattr(source, "id", None), citation.text])

    def end(self, reason, usage):
        self.said["finish"] = reason and REASONS.get(reason, reason)
        count = usage and (usage.tokens or usage.billed_units)
        if count:
            numbers = [count.input_tokens, count.output_tokens, usage.cached_tokens]
            self.said["usage"] = [int(number or 0) for number in numbers]


def streamed(events):
    reply = Reply()
    for event in events:
        delta = getattr(event, "delta", None)
        message = getattr(delta, "message", None)
        match event.type:
            case "content-start" | "content-delta":
                reply.part(message.content)
            case "tool-plan-delta":
                reply.plan(message.tool_plan)
            case "tool-call-start":
                reply.call(message.tool_calls)
            case "tool-call-delta":
                reply.said["calls"][event.index][2] += message.tool_calls.function.arguments
            case "citation-start":
                reply.citation(message.citations)
            case "message-end":
                reply.end(delta.finish_reason, delta.usage)
    return reply.said


def whole(answer):
    reply = Reply()
    message = answer.message
    for part in message.content or []:
        reply.part(part)
    reply.plan(message.tool_plan)
    for each in message.tool_calls or []:
        reply.call(each)
    for citation in message.citations or []:
        reply.citation(citation)
    reply.end(answer.finish_reason, answer.usage)
    return reply.said


def talk(url, exchange):
    client = cohere.Client(api_key="k", base_url=url)
    options = {"max_retries": 0}
    try:
        match exchange["kind"]:
            case "models":
                found = client.models.list(page_size=1000, request_options=options)
                useful = lambda model: model.endpoints is None or {"chat", "embed"} & set(model.endpoints)
                return {"models": [model.name for model in found.models if model.name and useful(model)]}
            case "embeddings":
                found = call(client.v2.embed, {**exchange["body"], "request_options": options})
                vectors = found.embeddings.float_
                return {"vectors": vectors and [[float(number) for number in vector] for vector in vectors]}
            case "chat":
                body = {**exchange["body"], "request_options": options}
                if body.pop("stream"):
                    return streamed(call(client.v2.chat_stream, body))
                return whole(call(client.v2.chat, body))
    except ApiError as error:
        said = error.body.get("message") if isinstance(error.body, dict) else None
        return {"status": error.status_code, "message": said}


replay.serve(talk)
