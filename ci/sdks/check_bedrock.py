"""botocore, the AWS SDK's core, says what it makes of what we send to Bedrock and read from it.

One JSON question a line on standard input, one JSON answer a line on standard output. Nothing is contacted.
"""

import base64
import json
import sys
from datetime import datetime, timezone
from unittest import mock

import botocore.auth
import botocore.session
from botocore.awsrequest import AWSRequest, HeadersDict
from botocore.credentials import Credentials
from botocore.eventstream import EventStream, EventStreamBuffer
from botocore.parsers import create_parser
from botocore.serialize import create_serializer
from botocore.validate import ParamValidator

SESSION = botocore.session.Session()
MODELS = {name: SESSION.get_service_model(name) for name in ("bedrock-runtime", "bedrock")}


def sign(question):
    """The headers that SigV4Auth adds to a request with these headers."""
    keys = question["keys"]
    credentials = Credentials(keys["id"], keys["secret"], keys["token"])
    request = AWSRequest(
        method=question["method"],
        url=question["url"],
        headers=question["headers"],
        data=base64.b64decode(question["body"]),
    )
    moment = datetime.fromtimestamp(question["now"], timezone.utc)
    with mock.patch("botocore.auth.get_current_datetime", lambda *args, **kwargs: moment):
        botocore.auth.SigV4Auth(credentials, "bedrock", question["region"]).add_auth(request)
    return {name.lower(): value for name, value in request.headers.items()}


def plain(value):
    """A header's value or a parsed one as JSON, with bytes in base64."""
    if isinstance(value, bytes):
        return {"bytes": base64.b64encode(value).decode()}
    if isinstance(value, dict):
        return {name: plain(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    if isinstance(value, datetime):
        return value.isoformat()
    return value


def frames(question):
    """The messages in these bytes, and whether what follows them was refused."""
    buffer = EventStreamBuffer()
    buffer.add_data(base64.b64decode(question["bytes"]))
    messages = []
    try:
        for message in buffer:
            messages.append([plain(message.headers), plain(message.payload)["bytes"]])
    except Exception as error:  # noqa: BLE001, whatever it is: the bytes were not accepted
        return {"messages": messages, "refused": type(error).__name__}
    return {"messages": messages, "refused": None}


def to_parameters(value, shape):
    """A body as the parameters from which botocore would make it: only blobs differ."""
    if shape.type_name == "blob":
        return base64.b64decode(value, validate=True)
    if shape.type_name == "structure" and not shape.is_document_type:
        return {
            name: to_parameters(inner, shape.members[name]) if name in shape.members else inner
            for name, inner in value.items()
        }
    if shape.type_name == "list":
        return [to_parameters(inner, shape.member) for inner in value]
    return value


def request(question):
    """What is wrong with a body, and the request that botocore makes of the same parameters."""
    operation = MODELS[question["service"]].operation_model(question["operation"])
    if operation.has_event_stream_input or operation.input_shape.serialization.get("payload"):
        parameters = {"body": json.dumps(question["body"]).encode()}
    else:
        parameters = to_parameters(question["body"], operation.input_shape)
    parameters.update(question["parameters"])
    report = ParamValidator().validate(parameters, operation.input_shape)
    made = create_serializer("rest-json").serialize_to_request(parameters, operation)
    query = made["query_string"]
    return {
        "wrong": report.generate_report(),
        "method": made["method"],
        "path": made["url_path"],
        "query": {name: str(value) for name, value in query.items()} if query else {},
        "body": json.loads(made["body"]) if made["body"] else None,
    }


class Body:
    """The streamed body of an answer, as far as botocore asks of one."""

    def __init__(self, data):
        self.data = data

    def stream(self):
        yield from (self.data[at : at + 7] for at in range(0, len(self.data), 7))

    def close(self):
        pass


def answer(question):
    """An answer as botocore parses it; of a stream its events, and the error that ends it."""
    operation = MODELS[question["service"]].operation_model(question["operation"])
    data = base64.b64decode(question["body"])
    parser = create_parser("rest-json")
    streams = operation.has_event_stream_output and question["status"] < 300
    shape = operation.output_shape
    response = {
        "status_code": question["status"],
        "headers": HeadersDict(question["headers"]),
        "body": Body(data) if streams else data,
        "context": {"operation_name": operation.name},
    }
    if not streams:
        return plain(parser.parse(response, shape))
    member = shape.members[shape.event_stream_name]
    events = []
    stream = EventStream(response["body"], member, parser._event_stream_parser, operation.name)  # noqa: SLF001
    try:
        events.extend(plain(event) for event in stream)
    except Exception as error:  # noqa: BLE001, as above
        known = getattr(error, "response", {}).get("Error")
        return {"events": events, "error": known or {"Code": type(error).__name__}}
    return {"events": events, "error": None}


QUESTIONS = {"sign": sign, "frames": frames, "request": request, "answer": answer}

for line in sys.stdin:
    asked = json.loads(line)
    print(json.dumps(QUESTIONS[asked["ask"]](asked)), flush=True)
