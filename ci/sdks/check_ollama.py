"""Ollama's SDK: its types judge our requests, and it reads the answers."""

import inspect

import ollama
import pydantic
import replay


def call(method, body):
    unknown = body.keys() - inspect.signature(method).parameters.keys()
    assert not unknown, f"{method.__name__} has no parameters {unknown}"
    return method(**body)


def read(lines):
    said = {"text": "", "reasoning": "", "calls": [], "finish": None, "usage": None}
    for line in lines:
        message = line.message
        said["text"] += message.content or ""
        said["reasoning"] += message.thinking or ""
        for each in message.tool_calls or []:
            said["calls"].append([each.function.name, dict(each.function.arguments)])
        if line.done:
            said["finish"] = line.done_reason
            if line.prompt_eval_count is not None or line.eval_count is not None:
                said["usage"] = [line.prompt_eval_count or 0, line.eval_count or 0]
    return said


def talk(url, exchange):
    client = ollama.Client(host=url)
    body = exchange["body"]
    try:
        match exchange["kind"]:
            case "models":
                return {"models": [model.model for model in client.list().models if model.model]}
            case "embeddings":
                return {"vectors": [list(vector) for vector in call(client.embed, body).embeddings]}
            case "chat":
                answer = call(client.chat, body)
                return read(answer if body["stream"] else [answer])
    except ollama.ResponseError as error:
        return {"status": error.status_code, "message": error.error}
    except pydantic.ValidationError as error:
        return {"unreadable": str(error)}


replay.serve(talk)
