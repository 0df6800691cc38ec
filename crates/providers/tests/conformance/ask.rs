//! The canonical requests: every provider's fixture of a feature shows the same one.

use std::collections::BTreeMap;

use lapce_ai_providers::{
    ChatRequest, Content, EmbeddingPurpose, EmbeddingRequest, Image, ImageDetail, ImageSource,
    Message, ReasoningEffort, ResponseFormat, Role, Tool, ToolCall, ToolChoice,
};
use serde_json::value::RawValue;

/// What is asked.
pub(crate) enum Ask {
    Chat(ChatRequest),
    Count(ChatRequest),
    Embed(EmbeddingRequest),
    Models,
}

/// The request `name` with `model` and further options, each of them used up.
pub(crate) fn ask(name: &str, options: &mut BTreeMap<String, String>) -> Option<Ask> {
    if name == "models" {
        return Some(Ask::Models);
    }
    let model = options.remove("model").unwrap_or_default();
    if name == "embeddings" {
        let purpose = match options.remove("purpose").as_deref() {
            Some("query") => EmbeddingPurpose::Query,
            _ => EmbeddingPurpose::Document,
        };
        let dimensions = options.remove("dimensions");
        return Some(Ask::Embed(EmbeddingRequest {
            model,
            input: match options.remove("texts").as_deref() {
                Some("1") => vec!["Hello".into()],
                _ => vec!["Hello".into(), "World".into()],
            },
            dimensions: dimensions.map(|text| text.parse().unwrap()),
            purpose,
        }));
    }
    let mut request = chat(name)?;
    request.model = model;
    if let Some(stream) = options.remove("stream") {
        request.stream = stream == "true";
    }
    if let Some(tokens) = options.remove("max_tokens") {
        request.max_tokens = Some(tokens.parse().unwrap());
    }
    // The proofs of `reasoning_back`, where a provider knows its own by their form.
    for (option, redacted) in [("signature", false), ("redacted", true)] {
        let Some(proof) = options.remove(option) else {
            continue;
        };
        for content in request.messages.iter_mut().flat_map(|m| &mut m.content) {
            match content {
                Content::Reasoning { signature, .. } if !redacted => {
                    *signature = Some(proof.clone()).filter(|proof| proof != "none");
                }
                Content::RedactedReasoning(data) if redacted => data.clone_from(&proof),
                _ => {}
            }
        }
    }
    Some(match options.remove("count") {
        Some(_) => Ask::Count(request),
        None => Ask::Chat(request),
    })
}

fn chat(name: &str) -> Option<ChatRequest> {
    let hello = || vec![Message::user("Hello")];
    let request = ChatRequest {
        messages: hello(),
        ..ChatRequest::default()
    };
    Some(match name {
        // Plain ones, whole and streamed.
        "chat" => request,
        "stream" => ChatRequest {
            stream: true,
            ..request
        },
        "system" => ChatRequest {
            system: Some("Be brief.".into()),
            ..request
        },
        // Instructions that come in the middle of the conversation.
        "system_later" => ChatRequest {
            system: Some("Be brief.".into()),
            messages: vec![
                Message::user("Hello"),
                Message::assistant("Hi."),
                Message::text(Role::System, "Now speak French."),
                Message::user("Go on"),
            ],
            ..request
        },
        "limits" => ChatRequest {
            temperature: Some(0.5),
            top_p: Some(0.9),
            max_tokens: Some(100),
            stop: vec!["END".into()],
            seed: Some(7),
            user: Some("u1".into()),
            metadata: BTreeMap::from([("team".into(), "a".into())]),
            ..request
        },
        "tools" => ChatRequest {
            tools: tools(),
            ..weather(request)
        },
        "tools_required" => choose(weather(request), ToolChoice::Required),
        "tools_named" => choose(weather(request), ToolChoice::Tool("get_weather".into())),
        "tools_none" => choose(weather(request), ToolChoice::None),
        "tools_one_at_a_time" => ChatRequest {
            parallel_tool_calls: Some(false),
            ..choose(weather(request), ToolChoice::Auto)
        },
        "tool_results" => ChatRequest {
            tools: tools(),
            messages: vec![
                Message::user("Weather in Paris, and the time?"),
                Message {
                    content: vec![Content::Text("I look.".into())],
                    tool_calls: vec![
                        call("call_1", "get_weather", r#"{"city":"Paris"}"#),
                        call("call_2", "get_time", ""),
                    ],
                    ..Message::assistant("")
                },
                Message::tool_result("call_1", r#"{"celsius":21}"#),
                Message::tool_result("call_2", "noon"),
            ],
            ..request
        },
        // Ids that begin anew in each turn.
        "tool_results_same_ids" => ChatRequest {
            messages: vec![
                Message::user("Weather in Paris?"),
                calling("call_0", "get_weather", r#"{"city":"Paris"}"#),
                Message::tool_result("call_0", "sun"),
                calling("call_0", "get_time", ""),
                Message::tool_result("call_0", "noon"),
            ],
            ..request
        },
        // Arguments as no good model writes them.
        "tool_results_broken" => ChatRequest {
            messages: vec![
                Message::user("Weather in Paris?"),
                calling("call_1", "get_weather", r#"{"city":"Par"#),
                Message::tool_result("call_1", "sun"),
            ],
            ..request
        },
        "image" => ChatRequest {
            messages: vec![Message {
                content: vec![Content::Text("What is this?".into()), png()],
                ..Message::user("")
            }],
            ..request
        },
        "image_url" => ChatRequest {
            messages: vec![Message {
                content: vec![
                    Content::Image(Image {
                        source: ImageSource::Url("https://example.com/cat.png".into()),
                        detail: Some(ImageDetail::Low),
                    }),
                    Content::Text("What is this?".into()),
                ],
                ..Message::user("")
            }],
            ..request
        },
        "reasoning" => ChatRequest {
            reasoning: Some(ReasoningEffort::High),
            ..request
        },
        "reasoning_none" => ChatRequest {
            reasoning: Some(ReasoningEffort::None),
            ..request
        },
        "reasoning_budget" => ChatRequest {
            reasoning_budget: Some(2048),
            max_tokens: Some(4096),
            ..request
        },
        // A turn with thoughts and a call goes back.
        "reasoning_back" => ChatRequest {
            tools: tools(),
            reasoning: Some(ReasoningEffort::High),
            messages: vec![
                Message::user("Weather in Paris?"),
                Message {
                    content: vec![
                        Content::Reasoning {
                            text: "I need the weather.".into(),
                            signature: Some("SIGNATURE".into()),
                        },
                        Content::RedactedReasoning("ENCRYPTED".into()),
                        Content::Text("I look.".into()),
                    ],
                    tool_calls: vec![ToolCall {
                        signature: Some("CALL-SIGNATURE".into()),
                        ..call("call_1", "get_weather", r#"{"city":"Paris"}"#)
                    }],
                    ..Message::assistant("")
                },
                Message::tool_result("call_1", "sun"),
            ],
            ..request
        },
        // A turn with nothing but a thought and a text goes back.
        "reasoning_said" => ChatRequest {
            messages: vec![
                Message::user("Hello"),
                Message {
                    content: vec![
                        Content::Reasoning {
                            text: "Hm.".into(),
                            signature: None,
                        },
                        Content::Text("Hi.".into()),
                    ],
                    ..Message::assistant("")
                },
                Message::user("Go on"),
            ],
            ..request
        },
        "json_schema_with_tools" => ChatRequest {
            tools: tools(),
            ..chat("json_schema")?
        },
        "json_schema" => ChatRequest {
            response_format: Some(ResponseFormat::JsonSchema {
                name: "city".into(),
                schema: raw(CITY),
                strict: Some(true),
            }),
            ..request
        },
        "json_object" => ChatRequest {
            response_format: Some(ResponseFormat::JsonObject),
            ..request
        },
        "cache" => ChatRequest {
            system: Some("Be brief.".into()),
            tools: tools(),
            cache_system: true,
            cache_tools: true,
            messages: vec![
                Message {
                    content: vec![
                        Content::Text("A long file.".into()),
                        Content::CachePoint,
                        Content::Text("What is it?".into()),
                    ],
                    ..Message::user("")
                },
                Message::assistant("A file."),
                Message::user("Really?"),
            ],
            ..request
        },
        _ => return None,
    })
}

const CITY: &str = r#"{"type":"object","properties":{"city":{"type":"string"}},"required":["city"],"additionalProperties":false}"#;

fn weather(request: ChatRequest) -> ChatRequest {
    ChatRequest {
        messages: vec![Message::user("Weather in Paris and Rome?")],
        ..request
    }
}

fn choose(request: ChatRequest, choice: ToolChoice) -> ChatRequest {
    ChatRequest {
        tools: tools(),
        tool_choice: Some(choice),
        ..request
    }
}

/// One with a schema, held to it strictly, and one with nothing but a name.
fn tools() -> Vec<Tool> {
    vec![
        Tool {
            name: "get_weather".into(),
            description: Some("The weather of a city.".into()),
            parameters: Some(raw(CITY)),
            strict: Some(true),
        },
        Tool {
            name: "get_time".into(),
            description: None,
            parameters: None,
            strict: None,
        },
    ]
}

fn call(id: &str, name: &str, arguments: &str) -> ToolCall {
    ToolCall {
        id: id.into(),
        name: name.into(),
        arguments: arguments.into(),
        signature: None,
    }
}

/// A turn that only calls a tool.
fn calling(id: &str, name: &str, arguments: &str) -> Message {
    Message {
        content: Vec::new(),
        tool_calls: vec![call(id, name, arguments)],
        ..Message::assistant("")
    }
}

fn png() -> Content {
    Content::Image(Image {
        source: ImageSource::Base64 {
            media_type: "image/png".into(),
            data: "iVBORw0KGgo=".into(),
        },
        detail: None,
    })
}

fn raw(json: &str) -> Box<RawValue> {
    RawValue::from_string(json.into()).unwrap()
}
