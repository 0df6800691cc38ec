"""Google's own SDK says what we say, and reads what we read.

Each line of standard input is a job: a request body as we wrote it, and the answer of a server. The body is read into
the SDK's types, the SDK sends it to a server on loopback, and a line of JSON tells what it sent and what it made of
the answer. `crates/providers/tests/google_genai.rs` compares.
"""

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

from google import genai
from google.genai import errors, types
from google.oauth2.credentials import Credentials

KEY = "a-key-of-the-tests"


class Server(HTTPServer):
    """Answers every request with `answer`, and keeps it in `seen`."""

    answer = {}
    seen = {}


class Handler(BaseHTTPRequestHandler):
    def reply(self):
        length = int(self.headers.get("content-length") or 0)
        body = self.rfile.read(length)
        self.server.seen = {
            "method": self.command,
            "path": self.path,
            "key": self.headers.get("x-goog-api-key") or self.headers.get("authorization"),
            "body": json.loads(body) if body else None,
        }
        answer = self.server.answer
        content = answer["body"].encode()
        self.send_response(answer["status"])
        self.send_header("content-type", answer["type"])
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = reply

    def log_message(self, *_):
        pass


def client(service, url):
    options = types.HttpOptions(base_url=url, retry_options=types.HttpRetryOptions(attempts=1))
    if service == "gemini":
        options.api_version = "v1beta"
        return genai.Client(api_key=KEY, http_options=options)
    options.api_version = "v1"
    return genai.Client(
        vertexai=True, project="p1", location="us-east-1", credentials=Credentials(token=KEY), http_options=options
    )


def generate(client, job):
    body = job["body"]
    config = dict(body.get("generationConfig", {}))
    config |= {name: body[name] for name in ("systemInstruction", "tools", "toolConfig") if name in body}
    # What the SDK would do by itself, beside the API.
    config["automaticFunctionCalling"] = {"disable": True}
    given = {
        "model": job["model"],
        "contents": [types.Content.model_validate(content) for content in body["contents"]],
        "config": types.GenerateContentConfig.model_validate(config),
    }
    if job["stream"]:
        answers = list(client.models.generate_content_stream(**given))
    else:
        answers = [client.models.generate_content(**given)]
    got = {"text": "", "thoughts": "", "signatures": [], "calls": [], "sources": [], "usage": {}, "finish": None}
    for answer in answers:
        if answer.usage_metadata:
            got["usage"] |= answer.usage_metadata.model_dump(exclude_none=True, mode="json")
        if answer.prompt_feedback and answer.prompt_feedback.block_reason:
            got["blocked"] = answer.prompt_feedback.block_reason.value
        for candidate in answer.candidates or []:
            for part in (candidate.content and candidate.content.parts) or []:
                read(part, got)
            if candidate.finish_reason:
                got["finish"] = candidate.finish_reason.value
            citations = candidate.citation_metadata and candidate.citation_metadata.citations
            got["sources"] += [citation.uri for citation in citations or [] if citation.uri]
            chunks = candidate.grounding_metadata and candidate.grounding_metadata.grounding_chunks
            for chunk in chunks or []:
                source = chunk.web or chunk.maps
                got["sources"] += [source.uri] if source else []
    return got


def read(part, got):
    if part.thought_signature:
        got["signatures"].append(part.model_dump(mode="json")["thought_signature"])
    if part.function_call and part.function_call.name:
        call = part.function_call
        got["calls"].append({"id": call.id, "name": call.name, "args": call.args or {}})
    elif part.text:
        got["thoughts" if part.thought else "text"] += part.text


def embed(client, job):
    answer = client.models.embed_content(
        model=job["model"],
        contents=job["texts"],
        config=types.EmbedContentConfig(task_type=job["task"], output_dimensionality=job["dimensions"]),
    )
    return {"vectors": [embedding.values for embedding in answer.embeddings]}


def count(client, job):
    body = job["body"]
    answer = client.models.count_tokens(
        model=job["model"],
        contents=[types.Content.model_validate(content) for content in body["contents"]],
        config=types.CountTokensConfig.model_validate(
            {name: body[name] for name in ("systemInstruction", "tools") if name in body}
        ),
    )
    return {"tokens": answer.total_tokens}


def models(client, job):
    return {"models": [model.name.rsplit("/", 1)[-1] for model in client.models.list()]}


def work(job, server, clients):
    server.answer, server.seen = job["answer"], {}
    result = {}
    try:
        does = {"chat": generate, "embed": embed, "count": count, "models": models}[job["does"]]
        result["got"] = does(clients[job["service"]], job)
    except errors.APIError as error:
        result["error"] = {"code": error.code, "message": error.message, "status": error.status}
    except Exception as error:  # noqa: BLE001: the test has to see what it was
        result["fault"] = f"{type(error).__name__}: {error}"
    result["sent"] = server.seen
    return result


def main():
    server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    clients = {service: client(service, url) for service in ("gemini", "vertex")}
    for line in sys.stdin:
        print(json.dumps(work(json.loads(line), server, clients)), flush=True)
    server.shutdown()


if __name__ == "__main__":
    main()
