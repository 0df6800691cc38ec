//! What is written for each dialect.

use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Value, json};

use super::*;
use crate::chat::{Image, ImageDetail, ImageSource};
use crate::error::ErrorKind;

fn written(request: &ChatRequest, dialect: Dialect) -> Value {
    serde_json::from_slice(&body(request, &dialect).unwrap()).unwrap()
}

fn everything() -> ChatRequest {
    ChatRequest {
        system: Some("Be brief.".into()),
        messages: vec![
            Message {
                content: vec![
                    Content::Text("What is this?".into()),
                    Content::Image(Image {
                        source: ImageSource::Base64 {
                            media_type: "image/png".into(),
                            data: "AAAA".into(),
                        },
                        detail: Some(ImageDetail::Low),
                    }),
                    Content::Image(Image {
                        source: ImageSource::Url("https://x/y.png".into()),
                        detail: None,
                    }),
                ],
                ..Message::user("")
            },
            Message {
                content: vec![Content::Reasoning {
                    text: "hm".into(),
                    signature: None,
                }],
                tool_calls: vec![
                    ToolCall {
                        id: "call_1".into(),
                        name: "look".into(),
                        arguments: "{\"a\": 1}".into(),
                        signature: None,
                    },
                    ToolCall {
                        id: "call_2".into(),
                        name: "now".into(),
                        arguments: String::new(),
                        signature: None,
                    },
                ],
                ..Message::assistant("")
            },
            Message::tool_result("call_1", "a cat"),
            Message::tool_result("call_2", ""),
        ],
        tools: vec![Tool {
            name: "look".into(),
            description: Some("Looks closer".into()),
            parameters: Some(
                RawValue::from_string(r#"{"type":"object","z":1,"a":2}"#.into()).unwrap(),
            ),
            strict: Some(true),
        }],
        tool_choice: Some(ToolChoice::Required),
        parallel_tool_calls: Some(false),
        response_format: Some(ResponseFormat::JsonSchema {
            name: "answer".into(),
            schema: to_raw_value(&json!({"type": "object"})).unwrap(),
            strict: Some(true),
        }),
        temperature: Some(0.7),
        top_p: Some(0.9),
        max_tokens: Some(100),
        stop: vec!["END".into()],
        seed: Some(7),
        reasoning: Some(ReasoningEffort::Low),
        user: Some("u1".into()),
        metadata: [("a".to_owned(), "b".to_owned())].into(),
        ..ChatRequest::new("gpt-x")
    }
}

#[test]
fn every_field_for_openai() {
    let expected = json!({
        "model": "gpt-x",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [
                {"type": "text", "text": "What is this?"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA", "detail": "low"}},
                {"type": "image_url", "image_url": {"url": "https://x/y.png"}},
            ]},
            {"role": "assistant", "content": null, "tool_calls": [
                {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": "{\"a\": 1}"}},
                {"id": "call_2", "type": "function", "function": {"name": "now", "arguments": "{}"}},
            ]},
            {"role": "tool", "content": "a cat", "tool_call_id": "call_1"},
            {"role": "tool", "content": "", "tool_call_id": "call_2"},
        ],
        "tools": [{"type": "function", "function": {
            "name": "look", "description": "Looks closer",
            "parameters": {"type": "object", "z": 1, "a": 2}, "strict": true,
        }}],
        "tool_choice": "required",
        "parallel_tool_calls": false,
        "response_format": {"type": "json_schema", "json_schema": {
            "name": "answer", "schema": {"type": "object"}, "strict": true,
        }},
        "temperature": 0.7,
        "top_p": 0.9,
        "max_completion_tokens": 100,
        "stop": ["END"],
        "seed": 7,
        "reasoning_effort": "low",
        "user": "u1",
        "stream": true,
        "stream_options": {"include_usage": true},
    });
    assert_eq!(written(&everything(), Dialect::OPENAI), expected);
    // The order of a schema's properties survives.
    let text = String::from_utf8(body(&everything(), &Dialect::OPENAI).unwrap()).unwrap();
    assert!(text.contains(r#"{"type":"object","z":1,"a":2}"#));
}

#[test]
fn dialects_differ_in_their_rows_only() {
    let openai = written(&everything(), Dialect::OPENAI);
    let compatible = written(&everything(), Dialect::COMPATIBLE);
    assert_eq!(compatible["max_tokens"], 100);
    assert_eq!(compatible.get("max_completion_tokens"), None);
    assert_eq!(
        compatible.as_object().unwrap().len(),
        openai.as_object().unwrap().len()
    );

    let with_schema = body(&everything(), &Dialect::DEEPSEEK).unwrap_err();
    assert_eq!(with_schema.kind, ErrorKind::Unsupported);
    let without = ChatRequest {
        response_format: Some(ResponseFormat::JsonObject),
        ..everything()
    };
    let deepseek = written(&without, Dialect::DEEPSEEK);
    assert_eq!(deepseek["messages"][2]["reasoning_content"], "hm");
    assert_eq!(compatible["messages"][2].get("reasoning_content"), None);

    let mistral = written(&everything(), Dialect::MISTRAL);
    assert_eq!(
        (&mistral["max_tokens"], &mistral["random_seed"]),
        (&json!(100), &json!(7))
    );
    assert_eq!(mistral["tool_choice"], "any");
    for absent in [
        "seed",
        "user",
        "stream_options",
        "reasoning_effort",
        "max_completion_tokens",
    ] {
        assert_eq!(mistral.get(absent), None, "{absent}");
    }
}

#[test]
fn a_plain_request_has_nothing_more_than_needed() {
    let mut request = ChatRequest::new("m").with(Message::user("Hi"));
    request.stream = false;
    let expected = json!({"model": "m", "messages": [{"role": "user", "content": "Hi"}]});
    assert_eq!(written(&request, Dialect::OPENAI), expected);

    request.tool_choice = Some(ToolChoice::Tool("look".into()));
    request.response_format = Some(ResponseFormat::JsonObject);
    assert_eq!(written(&request, Dialect::OPENAI).get("tool_choice"), None);
    request.tools = everything().tools;
    let written = written(&request, Dialect::OPENAI);
    assert_eq!(
        written["tool_choice"],
        json!({"type": "function", "function": {"name": "look"}})
    );
    assert_eq!(written["response_format"], json!({"type": "json_object"}));
}

#[test]
fn nonsense_is_refused_before_it_is_sent() {
    let kind = |request: &ChatRequest| body(request, &Dialect::OPENAI).unwrap_err().kind;
    assert_eq!(
        kind(&ChatRequest::new("").with(Message::user("x"))),
        ErrorKind::InvalidRequest
    );
    assert_eq!(kind(&ChatRequest::new("m")), ErrorKind::InvalidRequest);
    assert_eq!(
        kind(&ChatRequest {
            temperature: Some(f64::NAN),
            ..everything()
        }),
        ErrorKind::InvalidRequest
    );
    let stray = ChatRequest::new("m").with(Message::text(Role::Tool, "x"));
    assert_eq!(kind(&stray), ErrorKind::InvalidRequest);
    let image = Content::Image(Image {
        source: ImageSource::Url("u".into()),
        detail: None,
    });
    let painted = Message {
        content: vec![image],
        ..Message::assistant("")
    };
    assert_eq!(
        kind(&ChatRequest::new("m").with(painted)),
        ErrorKind::Unsupported
    );
}
