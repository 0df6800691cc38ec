//! What the fixtures do not show: how odd conversations become turns.

use serde_json::{Value, json};

use super::*;
use crate::chat::{Content, Image, ImageSource, Message, Role, ToolCall};

fn written(request: &ChatRequest) -> Value {
    serde_json::from_slice(&message(request).unwrap().json).unwrap()
}

fn error(request: &ChatRequest) -> ProviderError {
    match message(request) {
        Ok(written) => panic!("{}", String::from_utf8_lossy(&written.json)),
        Err(error) => error,
    }
}

fn new(messages: Vec<Message>) -> ChatRequest {
    ChatRequest {
        messages,
        ..ChatRequest::new("claude-opus-4-8")
    }
}

fn of(role: Role, content: Vec<Content>) -> Message {
    Message {
        content,
        ..Message::text(role, "")
    }
}

fn calling(arguments: &[&str]) -> Message {
    let calls = arguments.iter().enumerate().map(|(at, text)| ToolCall {
        id: format!("c{at}"),
        name: "f".into(),
        arguments: (*text).into(),
        signature: None,
    });
    Message {
        tool_calls: calls.collect(),
        ..of(Role::Assistant, Vec::new())
    }
}

fn image(media_type: &str) -> Content {
    Content::Image(Image {
        source: ImageSource::Base64 {
            media_type: media_type.into(),
            data: "AA==".into(),
        },
        detail: None,
    })
}

fn text(text: &str) -> Content {
    Content::Text(text.into())
}

/// Roles, and of each block its text or type.
fn shape(body: &Value) -> Value {
    let turns = body["messages"].as_array().unwrap().iter();
    turns
        .map(|turn| {
            let blocks = turn["content"].as_array().unwrap().iter();
            let mut row = vec![turn["role"].clone()];
            row.extend(blocks.map(|block| block.get("text").unwrap_or(&block["type"]).clone()));
            Value::from(row)
        })
        .collect()
}

#[test]
fn neighbours_of_one_role_are_one_turn() {
    let request = new(vec![
        Message::user("a"),
        Message::user("b"),
        Message::assistant("c"),
        calling(&["{}", "{}"]),
        Message::user("too early"),
        Message::tool_result("c0", "1"),
        Message::tool_result("c1", "2"),
        Message::user("d"),
    ]);
    assert_eq!(
        shape(&written(&request)),
        json!([
            ["user", "a", "b"],
            ["assistant", "c", "tool_use", "tool_use"],
            // Results first, or the API misses them.
            ["user", "tool_result", "tool_result", "too early", "d"],
        ])
    );
}

#[test]
fn instructions_stand_only_behind_turns_of_the_user() {
    let system = |text: &str| Message::text(Role::System, text);
    let mut request = new(vec![
        system("first"),
        Message::user("a"),
        system("s"),
        system("t"),
        Message::user("b"),
        Message::assistant("c"),
        system("late"),
    ]);
    let body = written(&request);
    assert_eq!(
        shape(&body),
        json!([["user", "a", "b"], ["system", "s", "t"], ["assistant", "c"]])
    );
    let texts = json!([{"type": "text", "text": "first"}, {"type": "text", "text": "late"}]);
    assert_eq!(body["system"], texts);
    request.model = "claude-sonnet-5".into();
    let body = written(&request);
    assert_eq!(
        shape(&body),
        json!([["user", "a", "b"], ["assistant", "c"]])
    );
    assert_eq!(body["system"].as_array().unwrap().len(), 4);
}

#[test]
fn blank_texts_and_foreign_thoughts_are_left_out() {
    let thought = |signature: Option<&str>| Content::Reasoning {
        text: "hm".into(),
        signature: signature.map(Into::into),
    };
    let request = new(vec![
        of(Role::User, vec![text(" \n"), text("a"), thought(Some("s"))]),
        of(Role::Assistant, vec![thought(None)]),
        of(Role::User, vec![text("b")]),
        of(
            Role::Assistant,
            vec![
                Content::RedactedReasoning(r#"{"type":"reasoning.encrypted"}"#.into()),
                thought(Some("s")),
                text("c"),
                thought(Some("t")),
                text(""),
            ],
        ),
    ]);
    assert_eq!(
        shape(&written(&request)),
        json!([
            ["user", "a", "b"],
            ["assistant", "thinking", "c", "thinking"]
        ])
    );
}

#[test]
fn arguments_are_objects() {
    let body = written(&new(vec![
        Message::user("a"),
        calling(&["", " {\"b\":1,\"a\":2.50} ", "[1]", "{\"cut\": \"o"]),
    ]));
    let blocks = body["messages"][1]["content"].as_array().unwrap();
    let inputs: Vec<&Value> = blocks.iter().map(|block| &block["input"]).collect();
    let expected = [
        json!({}),
        json!({"b": 1, "a": 2.5}),
        json!({"INVALID_JSON": "[1]"}),
        json!({"INVALID_JSON": "{\"cut\": \"o"}),
    ];
    assert_eq!(inputs, expected.iter().collect::<Vec<_>>());
    let request = new(vec![Message::user("a"), calling(&["{\"b\":1,\"a\":2.50}"])]);
    let json = String::from_utf8(message(&request).unwrap().json).unwrap();
    // As the model wrote them: its cache is of the very text.
    assert!(json.contains(r#""input":{"b":1,"a":2.50}"#), "{json}");
}

#[test]
fn four_marks_at_most_and_the_latest_count() {
    let marked = |name: &str| of(Role::User, vec![text(name), Content::CachePoint]);
    let mut messages = Vec::new();
    for name in ["a", "b", "c", "d", "e"] {
        messages.push(marked(name));
        messages.push(of(
            Role::Assistant,
            vec![Content::Reasoning {
                text: "hm".into(),
                signature: Some("s".into()),
            }],
        ));
    }
    // A mark behind a thought is one of what came before it.
    messages.push(of(Role::User, vec![Content::CachePoint, text("f")]));
    let request = ChatRequest {
        system: Some("s".into()),
        cache_system: true,
        // There are none.
        cache_tools: true,
        ..new(messages)
    };
    let body = written(&request);
    assert_eq!(body["system"][0]["cache_control"]["type"], "ephemeral");
    let turns = body["messages"].as_array().unwrap().iter();
    let blocks = turns.flat_map(|turn| turn["content"].as_array().unwrap());
    let marked: Vec<_> = blocks
        .filter(|block| block.get("cache_control").is_some())
        .map(|block| block["text"].as_str().unwrap())
        .collect();
    assert_eq!(marked, ["c", "d", "e"]);
}

#[test]
fn results_may_be_empty_or_pictures_and_can_be_marked() {
    let result = |content: Vec<Content>| Message {
        tool_call_id: Some("c0".into()),
        ..of(Role::Tool, content)
    };
    let request = new(vec![
        Message::user("a"),
        calling(&["{}"]),
        result(vec![]),
        result(vec![image("image/jpg"), Content::CachePoint]),
    ]);
    let source = json!({"type": "base64", "media_type": "image/jpeg", "data": "AA=="});
    assert_eq!(
        written(&request)["messages"][2]["content"],
        json!([
            {"type": "tool_result", "tool_use_id": "c0"},
            {"type": "tool_result", "tool_use_id": "c0", "content": [{"type": "image", "source": source}],
             "cache_control": {"type": "ephemeral"}},
        ])
    );
}

#[test]
fn pictures_in_urls_of_their_own() {
    let inline = |url: &str| {
        new(vec![of(
            Role::User,
            vec![Content::Image(Image {
                source: ImageSource::Url(url.into()),
                detail: None,
            })],
        )])
    };
    let body = written(&inline("data:image/webp;base64,AA=="));
    assert_eq!(
        body["messages"][0]["content"][0]["source"],
        json!({"type": "base64", "media_type": "image/webp", "data": "AA=="})
    );
    assert_eq!(
        error(&inline("data:image/webp,x")).kind,
        ErrorKind::InvalidRequest
    );
}

#[test]
fn what_cannot_be_said_is_refused() {
    let user = |content| new(vec![of(Role::User, content)]);
    let unsupported = [
        user(vec![image("image/tiff")]),
        new(vec![
            Message::user("a"),
            of(Role::Assistant, vec![image("image/png")]),
        ]),
        new(vec![of(Role::System, vec![image("image/png")])]),
    ];
    for request in unsupported {
        assert_eq!(error(&request).kind, ErrorKind::Unsupported);
    }
    let invalid = [
        new(vec![]),
        ChatRequest {
            system: Some("s".into()),
            ..user(vec![text(" ")])
        },
        new(vec![Message {
            tool_call_id: None,
            ..Message::tool_result("", "x")
        }]),
        ChatRequest {
            model: String::new(),
            ..user(vec![text("a")])
        },
        ChatRequest {
            temperature: Some(f64::NAN),
            ..user(vec![text("a")])
        },
    ];
    for request in invalid {
        assert_eq!(error(&request).kind, ErrorKind::InvalidRequest);
    }
}

#[test]
fn sampling_stop_and_choice_where_they_are_taken() {
    let request = ChatRequest {
        top_p: Some(0.5),
        stop: vec!["\n".into(), "END".into()],
        // Without tools there is nothing to choose.
        tool_choice: Some(ToolChoice::Required),
        parallel_tool_calls: Some(false),
        ..new(vec![Message::user("a")])
    };
    let body = written(&request);
    assert_eq!(body["stop_sequences"], json!(["END"]));
    assert!(body.get("top_p").is_none() && body.get("tool_choice").is_none());
    let older = ChatRequest {
        model: "claude-sonnet-4-6".into(),
        ..request
    };
    assert_eq!(written(&older)["top_p"], 0.5);
    let thinking = ChatRequest {
        reasoning_budget: Some(5000),
        ..older
    };
    assert!(written(&thinking).get("top_p").is_none());
    assert_eq!(
        written(&thinking)["output_config"],
        json!({"effort": "medium"})
    );
}
